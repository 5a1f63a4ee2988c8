"""Sets of lookahead samples: drawn once for a prompt, used by all its images, and refused for any other prompt."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from shared.errors import InputError


@dataclass(frozen=True)
class LookaheadSet:
    """Clean samples of one prompt with their rewards, in the order in which they were drawn.

    Attributes:
        key: of prompt, model and solver; see :func:`lookahead_key`.
        latents: x̂, (n, *shape), in the space in which the denoiser works: a decoder's scaling is not undone.
        rewards: r, (n,).
    """

    key: str
    latents: Tensor
    rewards: Tensor

    def __post_init__(self) -> None:
        if len(self.latents) != len(self.rewards) or self.rewards.ndim != 1:
            raise ValueError(f"rewards: need one for each of {len(self.latents)} samples, got {len(self.rewards)}")

    def first(self, count: int) -> LookaheadSet:
        """The first samples: smaller sets are nested in larger ones.

        Raises:
            ValueError: the set has fewer.
        """
        if not 1 <= count <= len(self.rewards):
            raise ValueError(f"count: must lie in [1, {len(self.rewards)}], got {count}")
        return LookaheadSet(self.key, self.latents[:count], self.rewards[:count])

    @property
    def best(self) -> Tensor:
        """The sample with the highest reward, (*shape)."""
        return self.latents[int(self.rewards.argmax())]

    def check(self, key: str) -> LookaheadSet:
        """The set itself, if it is the one of this key.

        Raises:
            InputError: it belongs to another prompt, model or solver.
        """
        if key != self.key:
            raise InputError(f"lookahead set {self.key[:12]}: belongs to another prompt, model or solver")
        return self


def lookahead_key(prompt: str, model: str, solver: dict[str, object]) -> str:
    """Hash of what a set was drawn for and with.

    Args:
        prompt: its text.
        model: what identifies the model: a hub name, a checksum.
        solver: settings of the lookahead sampler, with its seed.
    """
    text = json.dumps({"prompt": prompt, "model": model, "solver": solver}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def save_set(folder: Path, lookahead: LookaheadSet) -> None:
    """Write a set to ``<key>.safetensors`` in a folder: latents in half precision, and the key in its header."""
    tensors = {"latents": lookahead.latents.half().cpu().contiguous(), "rewards": lookahead.rewards.float().cpu()}
    partial = folder / f".partial-{lookahead.key}"
    save_file(tensors, partial, metadata={"key": lookahead.key})
    partial.rename(folder / f"{lookahead.key}.safetensors")


def load_set(folder: Path, key: str) -> LookaheadSet:
    """The set of a key from its folder, in single precision.

    Raises:
        InputError: the folder has none, the file is damaged, or it holds another key.
    """
    path = folder / f"{key}.safetensors"
    if not path.is_file():
        raise InputError(f"{folder}: no lookahead set for this prompt, model and solver ({key[:12]})")
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("key", "")
            lookahead = LookaheadSet(found, file.get_tensor("latents").float(), file.get_tensor("rewards"))
    except Exception as error:  # safetensors raises errors of its own
        raise InputError(f"{path}: no lookahead set: {str(error).splitlines()[0]}") from error
    return lookahead.check(key)
