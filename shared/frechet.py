"""The Fréchet distance of two sets of features, by which sets of images are compared."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Squared Fréchet distance of normal distributions fitted to two sets of features, (A, D) and (B, D).

    ‖μa - μb‖² + tr(Σa + Σb - 2 (Σa^½ Σb Σa^½)^½), in float64; the root is symmetric, so rank-deficient covariances
    (fewer than D images) are no trouble.

    Raises:
        ValueError: sets of fewer than two, of different D, or with values that are not finite.
    """
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    for name, features in (("features_a", a), ("features_b", b)):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != a.shape[1]:
            raise ValueError(f"{name}: need at least two rows of {a.shape[-1]} features, got shape {features.shape}")
        if not np.isfinite(features).all():
            raise ValueError(f"{name}: need finite values")
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root_a = _symmetric_root(np.atleast_2d(covariance_a))
    cross = _symmetric_root(root_a @ np.atleast_2d(covariance_b) @ root_a)
    shift = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    return float(shift + np.trace(np.atleast_2d(covariance_a + covariance_b)) - 2 * np.trace(cross))


def _symmetric_root(matrix: Array) -> Array:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
