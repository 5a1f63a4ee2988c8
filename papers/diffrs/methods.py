"""Names of runs: a run is ``<method>``, or ``<method>@<name>=<value>,...``.

``base``
    the setting's sampler
``longer``
    the same with more steps: ``steps``
``churn``
    the stochastic sampler of EDM: ``steps``, ``amount`` (S_churn), ``noise_scale`` (S_noise)
``dg``
    discriminator guidance: ``steps``, ``weight`` and ``corrector`` of the first and second evaluation
``restart``
    ``repeats``, ``nodes``, and the interval of noise levels from ``low`` to ``high``
``diffrs``
    ``percentile`` (γ)
``final``
    rejection at the end alone: ``percentile``
``best``
    of ``candidates`` passes the one with the largest ratio

What a run names itself comes first, then what was selected for its method in tuning, then `Method.defaults`. No PyTorch
here: workflows read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from shared.errors import InputError

DEFAULTS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "base": {},
        "longer": {"steps": 40},
        "churn": {"steps": 28, "amount": 5, "noise_scale": 1},
        "dg": {"steps": 0, "weight": 2, "corrector": 0},
        "restart": {"repeats": 5, "nodes": 3, "low": 0.06, "high": 0.3},
        "diffrs": {"percentile": 0.75},
        "final": {"percentile": 0.75},
        "best": {"candidates": 2},
    }
)
"""Hyperparameters of every method; ``steps: 0`` are those of the setting."""
PUBLISHED = "diffrs@percentile=0.75"
"""DiffRS with the official percentile."""
COUNTS = ("steps", "repeats", "nodes", "candidates")
"""Those that count something."""


@dataclass(frozen=True)
class Run:
    """One way of sampling."""

    method: str
    overrides: Mapping[str, float] = field(default_factory=dict)

    def settings(self, selected: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """The hyperparameters in force, given those selected by method."""
        return {**DEFAULTS[self.method], **selected.get(self.method, {}), **self.overrides}


def parse_run(text: str) -> Run:
    """A run from its name.

    Raises:
        InputError: an unknown method or hyperparameter, or a value that is not a number of at least 0, or not a whole
            one where it counts something.
    """
    method, at, named = text.partition("@")
    if method not in DEFAULTS:
        raise InputError(f"run {text!r}: unknown method {method!r}; there are: {', '.join(DEFAULTS)}")
    overrides: dict[str, float] = {}
    for assignment in named.split(",") if at else ():
        name, _, value = assignment.partition("=")
        if name not in DEFAULTS[method] or name in overrides:
            known = ", ".join(DEFAULTS[method]) or "none"
            raise InputError(f"run {text!r}: expected <name>=<value> once for some of {known}")
        try:
            overrides[name] = float(value)
        except ValueError:
            raise InputError(f"run {text!r}: {name} must be a number, got {value!r}") from None
        if not 0 <= overrides[name] < math.inf or (name in COUNTS and overrides[name] % 1):
            kind = "a whole number" if name in COUNTS else "finite and at least 0"
            raise InputError(f"run {text!r}: {name} must be {kind}, got {value}")
    return Run(method, overrides)
