"""Names of runs: ``<method>[,<option>=<value>...]@<module>/<corpus>``.

``reic@end_to_end/dense`` is the learned selector under the end-to-end module on the corpus that is called dense, and
``reic,lr=0.001@...`` the same with another learning rate of the selector. What stands behind the @ is the run's
setting.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from papers.reic.baselines import FilterDials
from papers.reic.options import MODULES, TrainOptions
from shared.errors import InputError

METHODS = {
    "random": "K random blocks",
    "first": "the first K blocks",
    "nearest": "the K blocks nearest to the target",
    "snippet": "a window of tokens round the target mention",
    "filter": "ECRIM's filter by bridge entities",
    "similarity": "the K blocks most similar to the target's in the frozen embeddings",
    "oracle": "gold evidence, filled up with random blocks",
    "oracle_triggers": "gold evidence, filled up with blocks that hold a trigger word, then random ones",
    "reic": "the learned selector",
    "reic_cold": "the learned selector without a warm-up on uniform picks",
    "reic_stateless": "the learned selector without the LSTM's state",
    "reic_shuffled": "the learned selector with rewards shuffled among the paths of a batch",
    "reic_frozen": "the selector as it was initialised",
}
LEARNED = ("reic", "reic_cold", "reic_stateless", "reic_shuffled", "reic_frozen")
TRAINING_OPTIONS = {
    "lr": "selector_learning_rate",
    "weight": "positive_weight",
    "baseline": "baseline",
    "exploration": "exploration",
    "reward": "reward",
    "relation_lr": "learning_rate",
    "steps": "steps",
}
"""Options of a run that are options of the training."""
DIALS = tuple(field.name for field in dataclasses.fields(FilterDials))


@dataclass(frozen=True)
class Run:
    """One training; see the module's docstring for its name."""

    name: str
    method: str
    module: str
    corpus: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def setting(self) -> str:
        """Module and corpus."""
        return f"{self.module}/{self.corpus}"

    @property
    def label(self) -> str:
        """The name without the setting."""
        return self.name.partition("@")[0]

    def training(self, common: TrainOptions, selected: Mapping[str, str] | None = None) -> TrainOptions:
        """Options of the training.

        Args:
            common: of all runs.
            selected: options that were selected for this kind of run; the run's own override them.
        """
        changes: dict[str, object] = {}
        for name, value in {**(selected or {}), **self.options}.items():
            if name in TRAINING_OPTIONS:
                kind = type(getattr(common, TRAINING_OPTIONS[name]))
                changes[TRAINING_OPTIONS[name]] = value if kind is str else kind(float(value))
        if self.module == "ecrim":  # the module's own reward and baseline, whatever was selected for the other
            changes |= {"reward": "threshold", "baseline": "mean"}
        if self.method == "reic_cold":
            changes["uniform_fraction"] = 0.0
        return dataclasses.replace(common, **changes)

    def dials(self, selected: Mapping[str, str] | None = None) -> FilterDials:
        """How the bridge filter scores."""
        found = {**(selected or {}), **self.options}
        values = {name: float(value) for name, value in found.items() if name in DIALS}
        return FilterDials(**{name: bool(value) if name == "jointly" else value for name, value in values.items()})


def parse_run(text: str) -> Run:
    """The run of a name.

    Raises:
        InputError: the text names none.
    """
    label, _, setting = text.partition("@")
    module, _, corpus = setting.partition("/")
    method, *changes = label.split(",")
    if method not in METHODS:
        raise InputError(f"run {text!r}: unknown method {method!r}; there are: {', '.join(METHODS)}")
    if module not in MODULES or not corpus:
        raise InputError(f"run {text!r}: expected @<module>/<corpus>, with a module of: {', '.join(MODULES)}")
    options = {}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in (*TRAINING_OPTIONS, *DIALS):
            raise InputError(f"run {text!r}: unknown option {name!r}; there are: "
                             f"{', '.join((*TRAINING_OPTIONS, *DIALS))}")  # fmt: skip
        if name not in ("baseline", "reward") and not _is_number(value):
            raise InputError(f"run {text!r}: {name}: expected a number, got {value!r}")
        options[name] = value
    return Run(text, method, module, corpus, options)


def family(method: str) -> str:
    """Under which name what was selected for a method is known: its own, or "reic" for all learned ones."""
    return "reic" if method in LEARNED else method


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False
