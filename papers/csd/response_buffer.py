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
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def is_full(self) -> bool:
        return len(self._examples) == self._examples.maxlen

    @property
    def tokens_written(self) -> int:
        """Response tokens ever pushed, those of examples that have given way included: what generation has cost."""
        return self._tokens

    def push(self, examples: Iterable[Example]) -> None:
        """Add examples, the oldest of which give way first."""
        for prompt, response in examples:
            self._examples.append((prompt, response))
            self._tokens += len(response)

    def draw(self, size: int, rng: np.random.Generator) -> list[Example]:
        """Up to ``size`` different examples, uniformly."""
        chosen = rng.permutation(len(self._examples))[:size]
        return [self._examples[index] for index in chosen]

    def state_dict(self) -> dict[str, Any]:
        return {"examples": [list(example) for example in self._examples], "tokens": self._tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._examples.clear()
        self._examples.extend((prompt, response) for prompt, response in state["examples"])
        self._tokens = state["tokens"]
