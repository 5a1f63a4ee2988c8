"""Names of runs: ``<method>[:<strength>][/<negative>][@<model>]``.

``none`` is the sampler without guidance, ``sld/explicit`` SLD with the concept's word at its selected strength,
``np:0.5/implicit@uce`` the negative prompt at half strength with the embedding that was inverted on the model called
uce, and sampling from it. ``sld/implicit-base@uce`` takes that of another model, here of the original one. ``prompt``
uses the negative as the prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

STRENGTHS = {
    "np": "share of the negative prompt's guidance",
    "sld": "s_S of SLD",
    "safree": "share of the negative prompt's guidance, with filtered tokens",
}
"""Methods with a negative, and what their strength is."""
METHODS = ("none", "prompt", *STRENGTHS)
BASE = "base"
"""The original model."""
EXPLICIT, IMPLICIT, RANDOM, SYNONYMS = "explicit", "implicit", "random", "synonyms"
"""Negatives: the concept's word, an inverted embedding, and controls: a random word, the mean of the other names."""


@dataclass(frozen=True)
class Run:
    """One way of sampling; see the module's docstring for its name."""

    method: str
    strength: float | None = None
    negative: str | None = None
    model: str = BASE

    @property
    def inverted_on(self) -> str | None:
        """The model of which the negative was inverted; None: it was not."""
        kind, _, model = (self.negative or "").partition("-")
        return (model or self.model) if kind == IMPLICIT else None

    @property
    def name(self) -> str:
        strength = "" if self.strength is None else f":{self.strength:g}"
        negative = f"/{self.negative}" if self.negative else ""
        return f"{self.method}{strength}{negative}" + ("" if self.model == BASE else f"@{self.model}")

    @property
    def shown(self) -> bool:
        """Whether sheets of images may show it: a model without guidance, or an unlearned one guided at the selected
        strength, with the concept's word or what was learned on that very model."""
        guided = self.method in STRENGTHS and self.model != BASE
        return self.method == "none" or (guided and self.strength is None and self.negative in (EXPLICIT, IMPLICIT))

    def at(self, strengths: dict[str, float]) -> Run:
        """The run at its method's selected strength, where it has none of its own.

        Raises:
            ValueError: no strength was selected for its method.
        """
        if self.strength is not None or self.method not in STRENGTHS:
            return self
        if self.method not in strengths:
            raise ValueError(f"run {self.name!r}: no strength is selected for {self.method}")
        return replace(self, strength=strengths[self.method])


def parse_run(text: str) -> Run:
    """The run of a name.

    Raises:
        ValueError: the text names none.
    """
    head, at, model = text.partition("@")
    first, slash, negative = head.partition("/")
    method, colon, strength = first.partition(":")
    if method not in METHODS:
        raise ValueError(f"run {text!r}: unknown method {method!r}; there are: {', '.join(METHODS)}")
    if bool(slash) == (method == "none") or (colon and method not in STRENGTHS) or (at and not model):
        raise ValueError(f"run {text!r}: expected none, or <method>[:<strength>]/<negative>, and a name after @")
    kind, dash, source = negative.partition("-")
    known = kind in (EXPLICIT, IMPLICIT, RANDOM, SYNONYMS) and (not dash or (kind == IMPLICIT and source))
    if slash and not known:
        raise ValueError(f"run {text!r}: unknown negative {negative!r}")
    return Run(method, _number(strength, text) if colon else None, negative or None, model or BASE)


def _number(value: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"run {text!r}: expected a number, got {value!r}")
    return number
