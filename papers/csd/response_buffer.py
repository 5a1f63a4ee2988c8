"""The student's own responses, kept for some steps of on-policy distillation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

Example = tuple[list[int], list[int]]
"""Token ids of a prompt and of its response."""


class ResponseBuffer:
    """First in, first out; ``accelerator.register_for_checkpointing`` saves and restores it."""

    def __init__(self, capacity: int) -> None:
        """Keeps the newest ``capacity`` examples.

        Raises:
            ValueError: the capacity is not positive.
        """
        if capacity < 1:
            raise ValueError(f"capacity: must be at least 1, got {capacity}")
        self._examples: deque[Example] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._examples)

    def push(self, examples: Iterable[Example]) -> None:
        """Add examples, the oldest of which give way first."""
        self._examples.extend(examples)

    def draw(self, size: int, rng: np.random.Generator) -> list[Example]:
        """Up to ``size`` different examples, uniformly."""
        chosen = rng.permutation(len(self._examples))[:size]
        return [self._examples[index] for index in chosen]

    def state_dict(self) -> dict[str, Any]:
        return {"examples": [list(example) for example in self._examples]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._examples.clear()
        self._examples.extend((prompt, response) for prompt, response in state["examples"])
