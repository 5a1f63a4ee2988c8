"""Names of runs: ``<method>[:<strength>][,<option>=<value>...][@<model>]``.

``base`` is the sampler without a defence, ``stg:0.2`` STG with steps of length 0.2, ``stg:0.2,fraction=0.4`` the same
in 40 % of the steps, and ``stg:0.2@duo`` on the model that is called duo.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

STRENGTHS = {
    "stg": "length ρ of STG's steps",
    "sdg": "scale ρ of SDG",
    "negative": "share of the concept's text in the unconditional one",
    "sld": "s_S of SLD",
    "safree": "α of SAFREE's trigger rule; a lower one takes more tokens for triggers",
    "uce": "weight of the erased concept in UCE's edit",
}
"""What the strength of each method is."""
OPTIONS = ("fraction", "threshold", "prior_weight")
"""Options that a run may change."""


@dataclass(frozen=True)
class Run:
    """One way of sampling; see the module's docstring for its name."""

    method: str
    strength: float | None = None
    options: dict[str, float] = field(default_factory=dict)
    model: str | None = None


def parse_run(text: str) -> Run:
    """The run of a name.

    Raises:
        ValueError: the text names none.
    """
    head, at, model = text.partition("@")
    first, *changes = head.split(",")
    method, colon, strength = first.partition(":")
    if method not in ("base", *STRENGTHS):
        raise ValueError(f"run {text!r}: unknown method {method!r}; there are: base, {', '.join(STRENGTHS)}")
    if bool(colon) != (method != "base") or bool(at) != bool(model):
        raise ValueError(f"run {text!r}: expected base or <method>:<strength>, and a name after @")
    options = {}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in OPTIONS:
            raise ValueError(f"run {text!r}: unknown option {name!r}; there are: {', '.join(OPTIONS)}")
        options[name] = _number(value, text)
    return Run(method, _number(strength, text) if colon else None, options, model or None)


def _number(value: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"run {text!r}: expected a number, got {value!r}")
    return number
