"""TAD: how much single latents know about single attributes (Yeats et al., ECCV 2022; Wang et al., ICML 2023).

An attribute is captured if some latent alone tells it apart and no other attribute nearly determines it. Of each
captured attribute counts by how much the best latent is better than the second best: 0 where attributes are smeared
over latents.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.model_selection import KFold

Array = NDArray[np.float64]


class TADResult(NamedTuple):
    """Of one set of latents."""

    score: float
    """Σ over captured attributes of (best − second best AUROC)."""
    num_captured: int
    auroc: Array
    """(A, L): of attribute k told by latent j alone, whatever its sign, in [½, 1]."""


def tad_score(
    latents: Array,
    attributes: NDArray[np.integer],
    *,
    auroc_threshold: float = 0.75,
    entropy_reduction_threshold: float = 0.2,
) -> TADResult:
    """Total AUROC difference of latents and binary attributes.

    Attribute k is captured if max_j AUROC_kj ≥ auroc_threshold and max_{l ≠ k} I(y_k; y_l)/H(y_k) is at most
    entropy_reduction_threshold.

    Args:
        latents: (N, L), finite.
        attributes: (N, A) of 0 and 1.
        auroc_threshold: see above.
        entropy_reduction_threshold: see above.

    Raises:
        ValueError: shapes that do not match, latents that are not finite, an attribute not binary or constant.
    """
    latents, attributes = np.asarray(latents, np.float64), np.asarray(attributes)
    if latents.ndim != 2 or attributes.ndim != 2 or len(latents) != len(attributes) or 0 in latents.shape:
        raise ValueError(f"latents, attributes: need (N, L) and (N, A), got {latents.shape} and {attributes.shape}")
    if attributes.shape[1] == 0:
        raise ValueError("attributes: need at least one, got none")
    if not np.isfinite(latents).all():
        raise ValueError("latents: need finite numbers")
    if not np.isin(attributes, (0, 1)).all():
        raise ValueError("attributes: need 0 and 1 only")
    constant = np.ptp(attributes.astype(int), axis=0) == 0
    if constant.any():
        raise ValueError(f"attributes: column {int(np.argmax(constant))} is constant")
    auroc = _auroc(latents, attributes)
    best, second = np.sort(np.hstack([np.zeros((len(auroc), 1)), auroc]), axis=1)[:, [-1, -2]].T
    captured = (best >= auroc_threshold) & (_entropy_reduction(attributes) <= entropy_reduction_threshold)
    return TADResult(float((best - second)[captured].sum()), int(captured.sum()), auroc)


def tad_over_folds(latents: Array, attributes: NDArray[np.integer], folds: int = 5) -> tuple[float, float]:
    """Mean TAD and mean number of captured attributes over the training parts of the folds, as InfoDiffusion reports.

    Raises:
        ValueError: as `tad_score`, or fewer than two folds.
    """
    parts = [tad_score(latents[kept], attributes[kept]) for kept, _ in KFold(folds).split(latents)]
    return float(np.mean([part.score for part in parts])), float(np.mean([part.num_captured for part in parts]))


def _auroc(latents: Array, attributes: NDArray[np.integer]) -> Array:
    """(A, L), by rank sums; ties count half."""
    positive = attributes.astype(np.float64)
    count = positive.sum(axis=0)[:, None]
    ranks = rankdata(latents, axis=0)
    area = (positive.T @ ranks - count * (count + 1) / 2) / (count * (len(latents) - count))
    return np.maximum(area, 1 - area)


def _entropy_reduction(attributes: NDArray[np.integer]) -> Array:
    """(A,): the largest share of an attribute's entropy that one other attribute takes away; 0 if there is no other."""
    positive = attributes.astype(np.float64)
    states = np.stack([1 - positive, positive])  # (2, N, A)
    joint = np.einsum("pnk,qnl->pqkl", states, states) / len(positive)
    marginal = states.mean(axis=1)
    independent = marginal[:, None, :, None] * marginal[None, :, None, :]
    terms = joint * np.log(np.divide(joint, independent, out=np.ones_like(joint), where=joint > 0))
    information, entropy = terms.sum(axis=(0, 1)), -(marginal * np.log(marginal)).sum(axis=0)
    np.fill_diagonal(information, 0)
    return (information / entropy[:, None]).max(axis=1)
