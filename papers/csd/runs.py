"""Names of what is trained: a run is ``<setting>/<method>``, such as ``off-policy/csd-SS`` or ``imitkd/forward_kl``.

Settings say where the responses that a student learns on come from, and what was done to the teacher:

``off-policy``
    the data set's responses
``imitkd``, ``gkd``
    responses of the student itself, from a buffer: always (Lin et al. 2020), or in half of the steps (Agarwal et al.
    2024)
``distillm``
    responses of the student itself in a share of the steps that grows where the validation loss rises, most of them
    used again and again (Ko et al. 2024; :mod:`papers.csd.student_share`)
``offset-<A>``
    off-policy, with a constant of standard deviation A, a function of the context, added to all of the teacher's logits
    at a position; its distribution is unchanged

Methods are the kinds of :func:`papers.csd.distillation_objectives.token_divergence`, and

``csd-<w1><w2>``, ``csd-<w1><w2>:<tau>``
    concrete score distillation with two weights out of S(tudent), T(eacher), U(niform), M(ixture), at a temperature
``dld-<w>``
    direct logit distillation with one of the weights
``sft``, ``seqkd``
    cross-entropy on the data set's responses, on the teacher's
``initial``, ``teacher``
    nothing is trained: the student that all methods start from, and the teacher
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shared.errors import InputError

DIVERGENCES = (
    "forward_kl",
    "reverse_kl",
    "symmetric_kl",
    "jeffreys",
    "total_variation",
    "jensen_shannon",
    "skew_forward_kl",
    "skew_reverse_kl",
    "alpha_beta",
)
LIKELIHOODS = ("sft", "seqkd")
UNTRAINED = ("initial", "teacher")
WEIGHT_NAMES = {"S": "student", "T": "teacher", "U": "uniform", "M": "mixture"}

RUN_KEY = ["setting", "method", "seed"]
"""Columns that name a training in tables."""
PROMPT_KEY = [*RUN_KEY, "suite", "prompt_id"]
"""Columns that name what a training made of a test prompt."""

_STUDENT_FRACTIONS = {"off-policy": 0.0, "gkd": 0.5, "imitkd": 1.0, "distillm": None}
_LOGIT_METHOD = re.compile(r"(?P<loss>csd)-(?P<pair>[STUM]{2})(:(?P<temperature>\d+(\.\d+)?))?|(?P<direct>dld)-[STUM]")
_OFFSET = re.compile(r"offset-(?P<amplitude>\d+(\.\d+)?)")


@dataclass(frozen=True)
class Run:
    """One training, or one model that is only sampled."""

    setting: str
    method: str

    def __str__(self) -> str:
        return f"{self.setting}/{self.method}"

    @property
    def student_fraction(self) -> float | None:
        """Share of the steps that learn on the student's own responses, in [0, 1]; None where it adapts."""
        return _STUDENT_FRACTIONS.get(self.setting, 0.0)

    @property
    def is_on_policy(self) -> bool:
        """Whether any step may learn on the student's own responses."""
        return self.student_fraction != 0.0

    @property
    def offset(self) -> float:
        """Standard deviation of the constants added to the teacher's logits."""
        match = _OFFSET.fullmatch(self.setting)
        return float(match["amplitude"]) if match else 0.0

    @property
    def is_trained(self) -> bool:
        return self.method not in UNTRAINED

    @property
    def tuned_as(self) -> Run:
        """The run whose learning rate this one takes; itself for most.

        A shifted teacher is learned from as the teacher itself is: a dose must not change anything else. Reverse KL
        has the gradient of ``csd-SS``, and the comparison of the two asks what is left at equal hyperparameters. The
        temperature of ``csd-SS`` is a sweep, not a method.
        """
        setting = "off-policy" if self.offset else self.setting
        method = "csd-SS" if self.method == "reverse_kl" or self.method.startswith("csd-SS:") else self.method
        return Run(setting, method)


def parse_run(text: str) -> Run:
    """A run from ``<setting>/<method>``.

    Raises:
        InputError: not of that form, or an unknown setting or method.
    """
    setting, _, method = text.partition("/")
    if setting not in _STUDENT_FRACTIONS and not _OFFSET.fullmatch(setting):
        raise InputError(f"run {text!r}: unknown setting {setting!r}; there are: {', '.join(_STUDENT_FRACTIONS)}, "
                         "offset-<A>")  # fmt: skip
    known = (*DIVERGENCES, *LIKELIHOODS, *UNTRAINED)
    if method not in known:
        match = _LOGIT_METHOD.fullmatch(method)
        if match is None or (match["temperature"] and float(match["temperature"]) == 0):
            raise InputError(f"run {text!r}: unknown method {method!r}; there are: {', '.join(known)}, "
                             "csd-<S|T|U|M><S|T|U|M>[:<temperature>], dld-<S|T|U|M>")  # fmt: skip
    return Run(setting, method)


def tuned_runs(runs: tuple[str, ...]) -> list[str]:
    """Those of the runs whose learning rate is searched for, in their order."""
    parsed = [parse_run(text) for text in runs]
    return [str(run) for run in parsed if run.is_trained and run.tuned_as == run]
