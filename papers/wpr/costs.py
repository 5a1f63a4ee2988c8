"""Token costs of Wasserstein policy regularization (arXiv 2602.01685): what a move between two tokens costs.

C_ij is the distance of the tokens' input embeddings in the frozen reference model, truncated to nearest neighbours:
(i, j) is kept if either token is among the k nearest of the other, and is forbidden (+inf) otherwise. Nothing else has
to be stored for that than the distance r_i to each token's k-th neighbour, as (i, j) is kept iff C_ij ≤ max(r_i, r_j);
so a vocabulary of any size works from its embeddings (`EmbeddingCost`), a small one from a matrix
(`token_cost_matrix`).

If λ·(distance to the nearest token) is large, the kernel exp(−λC) is the identity, and the finite Sinkhorn iteration
a reverse KL in disguise, whatever the embeddings mean; `kernel_exponent` warns of it. Two control costs test whether a
gain is semantic: `identity_cost` is that limit exactly, `permuted_cost` puts the same distances between the wrong
tokens.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import LongTensor, Tensor

METRICS = ("euclidean", "cosine")

TokenCost = Tensor | Callable[[LongTensor], Tensor]
"""A dense (V, V) cost, or a function from distinct token ids (n,) to their (n, n) cost."""

IDENTITY_KERNEL_THRESHOLD = 40.0
"""exp(−40) = 4e-18: a nearest neighbour this many `reg` away is invisible in float64 next to the token itself."""


@torch.no_grad()
def token_cost_matrix(embeddings: Tensor, *, metric: str = "euclidean", num_neighbors: int | None = None) -> Tensor:
    """Cost C of moving probability between any two tokens: the distance of their embeddings.

    Args:
        embeddings: (V, d) finite floats, one row per token.
        metric: "euclidean", ‖E_i − E_j‖₂ (not squared), or "cosine", 1 − cos(E_i, E_j) with norms of at least 1e-8.
        num_neighbors: k in [1, V−1] keeps C_ij iff j is among the k nearest others of i or i among those of j;
            None keeps all. Tokens tied with the k-th nearest are kept.

    Returns:
        (V, V) in the embeddings' dtype and device: symmetric, ≥ 0, zero on the diagonal, +inf where truncated.

    Raises:
        ValueError: `embeddings` is not a finite 2-D float tensor, or another argument is out of range.
    """
    _check_embeddings(embeddings, metric)
    radii = None if num_neighbors is None else neighbor_radii(embeddings, num_neighbors, metric=metric)
    token_ids = torch.arange(len(embeddings), device=embeddings.device)
    return EmbeddingCost(embeddings, radii, metric)(token_ids).to(embeddings.dtype)


@torch.no_grad()
def neighbor_radii(
    embeddings: Tensor, num_neighbors: int, *, metric: str = "euclidean", block_elements: int = 2**25
) -> Tensor:
    """Cost r_i from each token to its `num_neighbors`-th nearest other token.

    The radii say everything about the truncation: (i, j) is kept iff C_ij ≤ max(r_i, r_j). They are found in blocks
    of rows of at most `block_elements` costs (and never less than one row), so that a vocabulary of 256k needs no
    (V, V) tensor.

    Returns:
        (V,) in the embeddings' dtype, but at least float32, so that it compares exactly with the distances.

    Raises:
        ValueError: as `token_cost_matrix`, or `block_elements` < 1.
    """
    _check_embeddings(embeddings, metric)
    size = len(embeddings)
    if not 1 <= num_neighbors <= size - 1:
        raise ValueError(f"num_neighbors must be in [1, V-1] = [1, {size - 1}], got {num_neighbors}")
    if block_elements < 1:
        raise ValueError(f"block_elements must be at least 1, got {block_elements}")
    points, slack = _metric_points(embeddings, metric)
    radii = points.new_empty(size)
    rows = max(1, block_elements // size)
    for start in range(0, size, rows):
        block = slice(start, start + rows)
        cost = _pairwise_cost(points[block], slack[block], points, slack, metric)
        # A token is not its own neighbour. Told by its index, since duplicate embeddings are at distance 0 as well.
        cost.diagonal(start).fill_(math.inf)
        radii[block] = cost.kthvalue(num_neighbors, dim=-1).values
    return radii


@dataclass(frozen=True, eq=False)
class EmbeddingCost:
    """The entries of `token_cost_matrix` for given token ids, computed when called, without a (V, V) tensor.

    `wasserstein_penalty` takes it as its `cost`.

    Args:
        embeddings: (V, d) floats.
        radii: (V,) from `neighbor_radii` of the same embeddings and metric, or None for no truncation.
        metric: "euclidean" or "cosine".

    Raises:
        ValueError: wrong shapes or unknown metric.
    """

    embeddings: Tensor
    radii: Tensor | None = None
    metric: str = "euclidean"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {METRICS}, got {self.metric!r}")
        if self.embeddings.ndim != 2:
            raise ValueError(f"embeddings must have shape (V, d), got {tuple(self.embeddings.shape)}")
        if self.radii is not None and self.radii.shape != self.embeddings.shape[:1]:
            raise ValueError(
                f"radii must have shape ({len(self.embeddings)},) like the embeddings' rows, "
                f"got {tuple(self.radii.shape)}"
            )

    @torch.no_grad()
    def __call__(self, token_ids: LongTensor) -> Tensor:
        """Cost (n, n), at least float32, among the tokens `token_ids` (n,), distinct, in any order."""
        points, slack = _metric_points(self.embeddings[token_ids], self.metric)
        cost = _pairwise_cost(points, slack, points, slack, self.metric)
        if self.radii is not None:
            radii = self.radii[token_ids].to(cost)
            cost.masked_fill_(cost > torch.maximum(radii[:, None], radii), math.inf)
        return cost.fill_diagonal_(0)


def _check_embeddings(embeddings: Tensor, metric: str) -> None:
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings must have shape (V, d), got {tuple(embeddings.shape)}")
    if not embeddings.is_floating_point():
        raise ValueError(f"embeddings must be floating point, got {embeddings.dtype}")
    if not embeddings.isfinite().all():
        raise ValueError("embeddings must be finite, got NaN or infinity")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}, got {metric!r}")


def _metric_points(embeddings: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Points x (·, d), and the slack ½(1 − ‖x‖²) (·,) of the vectors too short to be normalised (else 0)."""
    points = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    if metric == "euclidean":
        return points, points.new_zeros(len(points))
    norms = torch.linalg.vector_norm(points, dim=-1)
    points = points / norms.clamp(min=1e-8)[:, None]
    return points, torch.where(norms < 1e-8, (1 - points.square().sum(-1)) / 2, 0)


def _pairwise_cost(rows: Tensor, row_slack: Tensor, columns: Tensor, column_slack: Tensor, metric: str) -> Tensor:
    """Cost of every row point to every column point.

    Differences are taken before squaring. The matrix-product form would lose half the digits of the small distances,
    those that matter, and its rounding depends on the shape of the blocks, which would break the comparison with the
    radii; this way each entry is the same number whatever it is computed with, and duplicates are at exactly 0.
    """
    distance = torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")
    if metric == "euclidean":
        return distance
    return distance.square() / 2 + row_slack[:, None] + column_slack  # 1 − x·y


# Controls, and the warning that the cost is one.


def identity_cost(token_ids: LongTensor) -> Tensor:
    """Control cost (n, n), float32: 0 on the diagonal, +inf off it. A `cost` for `wasserstein_penalty` as it is."""
    size = len(token_ids)
    return torch.full((size, size), math.inf, device=token_ids.device).fill_diagonal_(0)


def permuted_cost(cost: TokenCost, permutation: LongTensor) -> TokenCost:
    """Control cost C'_ij = C_π(i)π(j): the same distances between the wrong tokens.

    Args:
        cost: (V, V) tensor, or a function from token ids (n,), in any order, to their (n, n) cost.
        permutation: π, (V,), for example `torch.randperm(V, generator=torch.Generator().manual_seed(seed))`.

    Returns:
        A tensor for a tensor, a function for a function.

    Raises:
        ValueError: `permutation` is not a permutation of 0, …, V−1.
    """
    if permutation.ndim != 1 or not torch.equal(
        permutation.sort().values, torch.arange(len(permutation), device=permutation.device)
    ):
        raise ValueError(f"permutation must hold 0, …, V-1 once each, got shape {tuple(permutation.shape)}")
    if callable(cost):
        return lambda token_ids: cost(permutation[token_ids])
    if cost.shape != (len(permutation), len(permutation)):
        raise ValueError(f"permutation must have the length of cost, {tuple(cost.shape)}, got {len(permutation)}")
    return cost[permutation[:, None], permutation]


def nearest_neighbor_costs(cost: Tensor) -> Tensor:
    """Smallest cost (n,) from each token to another one, given (n, n), n > 0; +inf if there is none.

    For embeddings whose cost does not fit, `neighbor_radii(embeddings, 1)` is the same.
    """
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
        raise ValueError(f"cost must have shape (n, n), got {tuple(cost.shape)}")
    return cost.clone().fill_diagonal_(math.inf).amin(-1)


def kernel_exponent(nearest: Tensor, *, reg: float) -> float:
    """Median of λ·(nearest-neighbour cost); warns if it says that the kernel is the identity.

    Call it once, where the cost of the whole vocabulary and `reg` first meet, not at every step.

    Args:
        nearest: (V,) from `nearest_neighbor_costs` or `neighbor_radii(embeddings, 1)`.
        reg: 1/λ > 0, in the unit of the cost.

    Raises:
        ValueError: reg ≤ 0, or no tokens.
    """
    if not reg > 0:
        raise ValueError(f"reg must be positive, got {reg}")
    if nearest.numel() == 0:
        raise ValueError("nearest must hold at least one token, got none")
    exponent = nearest.double().median().item() / reg
    if exponent > IDENTITY_KERNEL_THRESHOLD:
        warnings.warn(
            f"the median nearest-neighbour cost is {exponent:.3g} times reg={reg:g}: the kernel exp(-C/reg) is the "
            "identity, and the Wasserstein penalty a reverse KL. Raise reg or scale the cost down.",
            stacklevel=2,
        )
    return exponent
