"""Names of what is trained: a run is ``<base>``, or ``<base>+<term>``, and may name its hyperparameters.

Bases are the gradients of :mod:`papers.udim.sharpness`: ``erm``, ``sam``, ``asam``, ``sagm``, ``gam``. Terms are what
is added to them after the warm-up (:class:`papers.udim.update.UnknownDomainTerm`):

``udim``
    the inconsistency with the worst-case domain within the data radius
``random``, ``zero``, ``cross_entropy``
    controls: a random direction of the same length; radius 0; cross-entropy on the same perturbed inputs
``variance``, ``gradient``
    ablations: the first and the second half of the penalty alone
``norm``, ``coordinate``, ``style``
    variants: the paper's form of the penalty; the published experiments' normalisation over the batch; style
``fishr``
    Fishr's penalty between source domains, of which it needs two

``sam+udim@data_radius=0.5,weight=1`` fixes two hyperparameters; the others are the selected ones. No PyTorch here:
workflows read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType

from shared.errors import InputError

BASES = ("erm", "sam", "asam", "sagm", "gam")
TERMS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "udim": {},
        "random": {"direction": "random"},
        "zero": {},
        "cross_entropy": {"penalty": "cross_entropy"},
        "variance": {"penalty": "variance"},
        "gradient": {"penalty": "gradient"},
        "norm": {"penalty": "norm"},
        "coordinate": {"perturbation": "per_coordinate"},
        "style": {"perturbation": "style"},
        "fishr": {},
    }
)
"""What of the term differs from UDIM's; ``zero`` has data radius 0, ``fishr`` another penalty."""


@dataclass(frozen=True)
class Hyperparameters:
    """What is searched for."""

    learning_rate: float
    rho: float = 0.05
    """Radius of the perturbation of the weights."""
    data_radius: float = 1.0
    """Radius of the perturbation of an input, in the units of inputs; the step size of a style."""
    weight: float = 1.0
    """Of the term."""


@dataclass(frozen=True)
class Run:
    """One training."""

    base: str
    term: str | None = None
    overrides: Mapping[str, float] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The run without its hyperparameters."""
        return f"{self.base}+{self.term}" if self.term else self.base

    def settings(self, defaults: Hyperparameters, selected: Mapping[str, Mapping[str, float]]) -> Hyperparameters:
        """The hyperparameters in force.

        Those selected for the method; or else, for a base, for SAM; for a base with a term, for SAM with that term, or
        for SAM with UDIM. What the run names itself comes first.

        Args:
            defaults: for what was not selected.
            selected: by method.
        """
        donors = [self.method, f"sam+{self.term}", "sam+udim"] if self.term else [self.method, "sam"]
        if self.term == "fishr":
            donors = [self.method, self.base]
        found = next((dict(selected[name]) for name in donors if name in selected), {})
        if self.term == "zero":
            found["data_radius"] = 0.0
        return replace(defaults, **found | dict(self.overrides))


def parse_run(text: str) -> Run:
    """A run from its name.

    Raises:
        InputError: an unknown base, term or hyperparameter, or a value that is not a number of at least 0.
    """
    method, at, named = text.partition("@")
    base, plus, term = method.partition("+")
    if base not in BASES:
        raise InputError(f"run {text!r}: unknown base {base!r}; there are: {', '.join(BASES)}")
    if plus and term not in TERMS:
        raise InputError(f"run {text!r}: unknown term {term!r}; there are: {', '.join(TERMS)}")
    known = [item.name for item in fields(Hyperparameters)]
    overrides: dict[str, float] = {}
    for assignment in named.split(",") if at else ():
        name, _, value = assignment.partition("=")
        if name not in known or name in overrides:
            raise InputError(f"run {text!r}: expected <name>=<value> once for some of {', '.join(known)}")
        try:
            overrides[name] = float(value)
        except ValueError:
            raise InputError(f"run {text!r}: {name} must be a number, got {value!r}") from None
        if not 0 <= overrides[name] < float("inf"):
            raise InputError(f"run {text!r}: {name} must be finite and at least 0, got {value}")
    return Run(base, term or None, overrides)
