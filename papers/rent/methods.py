"""Names of what is trained: a method is `<utilization>/<estimator>`, such as `rent/forward`.

Utilizations are those of `papers.rent.utilization`. Estimators of the transition matrix T:

    true        known, as synthetic noise allows: the matrix that made the noise, or where the noise depends on the
                sample, its average within the classes
    forward     from anchors, once, at the end of the warm-up
    dual_t      from anchors and predictions, once, at the end of a warm-up of its own
    volminnet, tv, cycle
                learned in every step; the first two have no warm-up

`ce` and `b0` use no T and are written alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from papers.rent.transition_estimation import LEARNED
from papers.rent.utilization import Utilization
from shared.errors import InputError

ESTIMATORS = ("true", "forward", "dual_t", *LEARNED)
WITHOUT_TRANSITION = ("ce", "b0")


@dataclass(frozen=True)
class Method:
    """One way to learn from noisy labels."""

    name: str
    utilization: Utilization
    estimator: str | None
    """None for the methods that use no T."""

    def warmup_epochs(self, *, common: int, dual: int) -> int:
        """Epochs of plain cross-entropy before the method itself begins."""
        if self.estimator in ("volminnet", "tv"):
            return 0
        return dual if self.estimator == "dual_t" else common


def parse_method(name: str) -> Method:
    """The method of a name.

    Raises:
        InputError: no such method.
    """
    used, slash, estimator = name.partition("/")
    try:
        utilization = Utilization.parse(used)
    except ValueError as error:
        raise InputError(f"method {name!r}: {error}") from None
    if utilization.name in WITHOUT_TRANSITION:
        if slash:
            raise InputError(f"method {name!r}: {used} uses no transition matrix, and is written alone")
        return Method(name, utilization, None)
    if estimator not in ESTIMATORS:
        raise InputError(f"method {name!r}: needs an estimator, such as {used}/forward; there are: "
                         f"{', '.join(ESTIMATORS)}")  # fmt: skip
    return Method(name, utilization, estimator)
