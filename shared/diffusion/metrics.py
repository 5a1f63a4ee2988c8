"""Distances between two sets of samples, and what is missing or wrong in one of them.

Samples are (N, ...) and flattened to vectors; all is computed in float64. The Fréchet distance of two sets of features
is `shared.frechet.frechet_distance`.
"""

import torch
from torch import Tensor

_ROWS = 2048
"""Rows of a distance matrix in memory at once."""


def sliced_wasserstein(a: Tensor, b: Tensor, *, directions: int = 128, quantiles: int = 2000, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance: root of the mean over random unit vectors of the projections' squared W₂.

    Args:
        a: (N, ...).
        b: (N', ...), of the same shape otherwise.
        directions: number of random unit vectors.
        quantiles: at which the projections' inverse distribution functions are compared; exact if N = N' = quantiles.
        seed: of the directions: the same for all sets that are to be compared.

    Raises:
        ValueError: sets that are empty, of different dimension or not finite.
    """
    a, b = _vectors(a, b)
    generator = torch.Generator().manual_seed(seed)
    units = torch.randn(a.shape[1], directions, generator=generator, dtype=torch.float64)
    units = units / units.norm(dim=0)
    levels = (torch.arange(quantiles, dtype=torch.float64) + 0.5) / quantiles
    first, second = ((x @ units).sort(dim=0).values[(levels * len(x)).long()] for x in (a, b))
    return (first - second).square().mean().sqrt().item()


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|X − Y| − E|X − X'| − E|Y − Y'| without bias (a U-statistic, so it may be slightly negative).

    Raises:
        ValueError: sets of fewer than two, of different dimension or not finite.
    """
    a, b = _vectors(a, b)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a, b: need at least two samples each, got {len(a)} and {len(b)}")
    between = _sum_of_distances(a, b) / (len(a) * len(b))
    within_a, within_b = (_sum_of_distances(x, x) / (len(x) * (len(x) - 1)) for x in (a, b))
    return 2 * between - within_a - within_b


def outlier_share(samples: Tensor, means: Tensor, radius: float) -> float:
    """Share of samples (N, D) that are farther than `radius` from all means (M, D)."""
    return (nearest_distances(samples, means) > radius).double().mean().item()


def mode_shares(samples: Tensor, means: Tensor) -> Tensor:
    """Share (M,) of samples (N, D) that are nearest to each of the means (M, D)."""
    samples, means = _vectors(samples, means)
    nearest = _distances(samples, means).argmin(1)
    return nearest.bincount(minlength=len(means)).double() / len(samples)


def total_variation(p: Tensor, q: Tensor) -> float:
    """½ Σ |p − q| of two probability vectors."""
    return (p.double() - q.double()).abs().sum().item() / 2


def nearest_distances(samples: Tensor, reference: Tensor) -> Tensor:
    """Distance (N,) of every sample to the nearest of the reference set; small for copies of it.

    Raises:
        ValueError: sets that are empty, of different dimension or not finite.
    """
    samples, reference = _vectors(samples, reference)
    return torch.cat([_distances(part, reference).min(1).values for part in samples.split(_ROWS)])


def precision(samples: Tensor, reference: Tensor, neighbors: int = 5) -> float:
    """Share of samples within the ball of at least one reference point, whose radius is the distance of its k-th
    neighbour in the reference set (Kynkäänniemi et al., NeurIPS 2019). With arguments exchanged it is their recall.

    Raises:
        ValueError: sets that are empty, of different dimension or not finite; neighbors outside [1, reference − 1].
    """
    samples, reference = _vectors(samples, reference)
    radii = _neighbor_radii(reference, neighbors)
    inside = [(_distances(part, reference) <= radii).any(1) for part in samples.split(_ROWS)]
    return torch.cat(inside).double().mean().item()


def coverage(samples: Tensor, reference: Tensor, neighbors: int = 5) -> float:
    """Share of reference points whose ball, as in `precision`, holds a sample (Naeem et al., ICML 2020).

    Raises:
        ValueError: as `precision`.
    """
    samples, reference = _vectors(samples, reference)
    return (nearest_distances(reference, samples) <= _neighbor_radii(reference, neighbors)).double().mean().item()


def _neighbor_radii(reference: Tensor, neighbors: int) -> Tensor:
    """Distance (N,) of each point to its k-th neighbour, itself not counted."""
    if not 1 <= neighbors < len(reference):
        raise ValueError(f"neighbors: must lie in [1, {len(reference) - 1}], got {neighbors}")
    parts = reference.split(_ROWS)
    return torch.cat([_distances(part, reference).kthvalue(neighbors + 1, dim=1).values for part in parts])


def _sum_of_distances(a: Tensor, b: Tensor) -> float:
    return sum(_distances(part, b).sum().item() for part in a.split(_ROWS))


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Not by inner products: there, the distance of a point to itself would be off by the root of the rounding error.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _vectors(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = (x.detach().double().flatten(1) for x in (a, b))
    if not len(a) or not len(b) or a.shape[1] != b.shape[1]:
        raise ValueError(f"samples: need two sets of vectors of one size, got {tuple(a.shape)} and {tuple(b.shape)}")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("samples: need finite numbers")
    return a, b
