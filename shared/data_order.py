"""Order of the data and random draws as functions of the seed and the step, so that a resumed training repeats them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch


@dataclass(frozen=True)
class BatchOrder:
    """Which examples every step sees: each epoch is a fresh permutation, its incomplete last batch dropped."""

    size: int
    """Examples in the data set."""
    batch_size: int
    """Examples per step, over all processes and micro-batches."""
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= self.size:
            raise ValueError(f"batch_size: must lie in [1, {self.size}], the data's size, got {self.batch_size}")

    @property
    def steps_per_epoch(self) -> int:
        return self.size // self.batch_size

    def indices(self, step: int) -> np.ndarray:
        """The examples of one step, int64 (batch_size,)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        return _permutation(self.size, self.seed, epoch)[start : start + self.batch_size]

    def micro_batches(
        self, step: int, *, accumulation: int = 1, process_index: int = 0, num_processes: int = 1
    ) -> list[np.ndarray]:
        """This process's share of the step's examples in `accumulation` parts of equal size up to one example."""
        return np.array_split(self.indices(step)[process_index::num_processes], accumulation)


def chunks(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive parts of at most ``size`` indices."""
    return (indices[start : start + size] for start in range(0, len(indices), size))


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    permutation = np.random.default_rng([seed, epoch]).permutation(size)
    permutation.flags.writeable = False
    return permutation


def generator_for(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for the draws named by non-negative integers: (seed, step), (seed, step, process), ..."""
    # The length comes first because a SeedSequence ignores zeros at the end of its key.
    state = np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0] >> np.uint64(1)))
