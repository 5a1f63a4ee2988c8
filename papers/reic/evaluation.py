"""Measures of relation extraction and of what was selected for it.

Every (pair, relation) is a prediction with the bag's logit as its score; all are sorted by it. With c_k right ones
among
the first k, precision is c_k / k and recall c_k / F, where F counts all facts, those that were never scored too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np


def precision_recall_curve(scores: Sequence[float], correct: Sequence[bool], num_facts: int) -> tuple[np.ndarray, ...]:
    """Recall and precision of the n prefixes, each (n,); arguments and errors as `precision_recall_summary`."""
    values, right = np.asarray(scores, dtype=np.float64), np.asarray(correct)
    if values.ndim != 1 or right.shape != values.shape:
        raise ValueError(f"correct: need the shape of scores, {values.shape}, got {right.shape}")
    if len(values) < 2:
        raise ValueError(f"scores: need at least 2, got {len(values)}")
    if not np.isfinite(values).all():
        raise ValueError(f"scores: must be finite, got {values[~np.isfinite(values)][0]}")
    right = right.astype(bool)
    if num_facts < 1 or num_facts < right.sum():
        raise ValueError(
            f"num_facts: must be at least 1 and the number of correct ones, {right.sum()}, got {num_facts}"
        )
    found = right[np.argsort(-values, kind="stable")].cumsum()
    return found / num_facts, found / np.arange(1, len(values) + 1)


def precision_recall_summary(
    scores: Sequence[float], correct: Sequence[bool], num_facts: int, *, at: Sequence[int] = (500, 1000)
) -> dict[str, float]:
    """Numbers that describe a ranking of predictions.

    Args:
        scores: n >= 2 finite numbers; equal ones keep their order.
        correct: n truth values.
        num_facts: F, at least the number of correct ones.
        at: ranks k >= 1.

    Returns:
        "f1": the largest along the curve; "auc": trapezoids over (recall, precision) from the first prediction on;
        "mean_precision": over all n prefixes; "p@<k>": precision of the first k, NaN if there are fewer.

    Raises:
        ValueError: arguments that are not as said.
    """
    recall, precision = precision_recall_curve(scores, correct, num_facts)
    if any(rank < 1 for rank in at):
        raise ValueError(f"at: ranks must be at least 1, got {list(at)}")
    total = recall + precision
    f1 = np.divide(2 * recall * precision, total, out=np.zeros_like(total), where=total > 0)
    summary = {
        "f1": float(f1.max()),
        "auc": float(np.trapezoid(precision, recall)),
        "mean_precision": float(precision.mean()),
    }
    return summary | {f"p@{k}": float(precision[k - 1]) if k <= len(precision) else math.nan for k in at}


def evidence_recall(evidence: Collection[int], shown: Collection[int]) -> float:
    """Share of a document's gold evidence blocks among those that are shown; NaN where it has none."""
    return len(set(evidence) & set(shown)) / len(set(evidence)) if evidence else math.nan


def evidence_precision(evidence: Collection[int], shown: Collection[int]) -> float:
    """Share of the blocks that are shown which are evidence; NaN where none are shown."""
    return len(set(evidence) & set(shown)) / len(set(shown)) if shown else math.nan
