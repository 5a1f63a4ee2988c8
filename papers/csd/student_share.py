"""DistiLLM's schedule (Ko et al. 2024): how often a student learns on its own responses, and when it writes them."""

from __future__ import annotations

import math
from typing import Any, Literal

RAISES = 10
"""Raises that take the share from 0 to 1."""

Source = Literal["data", "fresh", "replay"]
"""Where a step's examples come from: the data set, the buffer after new responses, or the buffer as it is."""


class AdaptiveShare:
    """Share a of the steps that learn on the student's own responses: raised where these are needed.

    It starts at 0 and rises by a tenth, up to 1, whenever the validation loss has risen by a margin since it was last
    observed: a sign that training on the data set's responses and sampling from the student have come apart.
    ``accelerator.register_for_checkpointing`` saves and restores it.
    """

    def __init__(self, margin: float) -> None:
        """``margin``: rise of the validation loss, in its own unit, that counts; at least 0.

        Raises:
            ValueError: the margin is negative or not a number.
        """
        if not margin >= 0:
            raise ValueError(f"margin: must be at least 0, got {margin}")
        self._margin = margin
        self._raises = 0
        self._previous = math.inf

    @property
    def value(self) -> float:
        """a in [0, 1]."""
        return self._raises / RAISES

    def observe(self, validation_loss: float) -> None:
        """Take note of the validation loss; the first one is only what the next is compared with."""
        if validation_loss >= self._previous + self._margin:
            self._raises = min(self._raises + 1, RAISES)
        self._previous = validation_loss

    def state_dict(self) -> dict[str, Any]:
        return {"raises": self._raises, "previous": self._previous}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._raises, self._previous = state["raises"], state["previous"]


def choose_source(draw: float, share: float, *, progress: float, buffer_is_full: bool) -> Source:
    """Source of a step's examples.

    New responses are written in a (1 - progress) of the steps, so ever fewer of them, and wherever the buffer is not
    yet full; the rest of the share replays old ones.

    Args:
        draw: uniform in [0, 1).
        share: a in [0, 1].
        progress: steps done over all steps, in [0, 1].
    """
    if draw >= share:
        return "data"
    return "fresh" if not buffer_is_full or draw < share * (1 - progress) else "replay"
