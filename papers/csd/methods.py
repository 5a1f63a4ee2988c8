"""Per-token losses by the names of :mod:`papers.csd.runs`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from papers.csd.distillation_objectives import concrete_score_loss, direct_logit_loss, token_divergence
from papers.csd.runs import DIVERGENCES, LIKELIHOODS, UNTRAINED, WEIGHT_NAMES

TokenLoss = Callable[[Tensor, Tensor], Tensor]
"""Student's and teacher's logits [..., V] -> loss of every token [...]."""


def logit_loss(method: str, *, teacher_fraction: float = 0.5) -> TokenLoss:
    """The loss of a method that compares logits, ``csd-TS``, ``dld-S`` or a divergence.

    Args:
        method: its name, see :mod:`papers.csd.runs`.
        teacher_fraction: α of the weight M.

    Raises:
        ValueError: the method does not compare logits.
    """
    if method in DIVERGENCES:
        return partial(token_divergence, kind=method)
    if method in (*LIKELIHOODS, *UNTRAINED):
        raise ValueError(f"method must be one that compares logits, got {method!r}")
    loss, _, rest = method.partition("-")
    weights, _, temperature = rest.partition(":")
    names = tuple(WEIGHT_NAMES[letter] for letter in weights)
    if loss == "dld":
        return partial(direct_logit_loss, weighting=names[0])
    return partial(
        concrete_score_loss,
        weighting=names,
        temperature=float(temperature or 1.0),
        teacher_fraction=teacher_fraction,
    )
