"""State of a training on disk, whole at every moment."""

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from shared.files import partial_path, publish_partial, remove


class Checkpointer:
    """Saves and restores all that `accelerator.prepare` returned, the random states, and a record of the loop's own.

    A checkpoint is a folder `step-<number>` that appears in one rename, after which the previous one is deleted:
    whenever the process is killed, the newest such folder is complete. Weights are safetensors; accelerate keeps the
    states of optimizers and random generators in torch's format and reads them with torch's restricted unpickler.
    """

    def __init__(self, directory: Path, accelerator: Accelerator, *, every: int):
        """Checkpoints after every `every` steps in `directory`, which the processes share.

        Raises:
            ValueError: `every` is not positive.
        """
        if every < 1:
            raise ValueError(f"every: must be at least 1, got {every}")
        self._directory, self._accelerator, self._every = Path(directory), accelerator, every

    def restore(self) -> tuple[int, dict[str, Any]]:
        """Loads the newest checkpoint: the number of steps done and the record saved with it; (0, {}) without one.

        Raises:
            RuntimeError: the random states could not be restored (accelerate itself only logs this).
        """
        saved = self._saved()
        if not saved:
            return 0, {}
        self._accelerator.load_state(str(saved[-1]))
        progress = json.loads((saved[-1] / "progress.json").read_text(encoding="utf-8"))
        if _random_state_digest() != progress["random_states"][self._accelerator.process_index]:
            raise RuntimeError(f"{saved[-1]}: the states of the random generators could not be restored")
        return progress["step"], progress["record"]

    def save_if_due(self, steps_done: int, record: Mapping[str, Any] | None = None) -> None:
        """Saves after every `every`-th step. Processes call it together."""
        if steps_done % self._every == 0:
            self.save(steps_done, record)

    def save(self, steps_done: int, record: Mapping[str, Any] | None = None) -> None:
        """Saves the state after `steps_done` steps with a record that JSON can hold. Processes call it together."""
        folder = self._directory / f"step-{steps_done:09d}"
        partial = partial_path(folder)
        if self._accelerator.is_main_process:
            remove(partial)
            partial.mkdir(parents=True)
        self._accelerator.wait_for_everyone()
        self._accelerator.save_state(str(partial))
        digests = gather_object([_random_state_digest()])
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            progress = {"step": steps_done, "random_states": digests, "record": dict(record or {})}
            (partial / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
            publish_partial(folder)
            for older in self._saved()[:-1]:
                remove(older)
        self._accelerator.wait_for_everyone()

    def _saved(self) -> list[Path]:
        return sorted(self._directory.glob("step-*"))


def _random_state_digest() -> str:
    _, keys, position, *_ = np.random.get_state()  # noqa: NPY002 - the global generator is what is checked
    states = (random.getstate(), keys.tolist(), position, torch.get_rng_state().tolist())
    return hashlib.sha256(repr(states).encode()).hexdigest()
