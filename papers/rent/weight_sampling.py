"""Random per-sample weights: Dirichlet draws around the normalised importance weights, and their limit, resampling.

Bae et al., ICLR 2024 (arXiv 2403.02690), Section 3. Let mu = w / Σ w over a batch of B samples. The family DWS draws
weight vectors from Dirichlet(alpha · mu), which have

    E[v] = mu,     Cov[v] = (diag(mu) − mu muᵀ) / (alpha + 1).

alpha → inf is mu itself, self-normalised reweighting. alpha → 0 is one-hot: a sample drawn with probability mu, which
repeated M times is RENT's resampling with replacement.

Draws are made in float64 on the generator's device, by default the CPU whatever the weights' device: the same seed then
draws the same indices everywhere, and PyTorch's deterministic mode, which has no cumulative sum on CUDA, stays usable.
"""

import math

import torch
from torch import Tensor


@torch.no_grad()
def resample_indices(
    weights: Tensor, num_samples: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Indices drawn with replacement, each with probability proportional to its weight (RENT, Algorithm 1).

    Args:
        weights: (B,) finite numbers >= 0 of any scale, not all zero. A weight of 0 is never drawn.
        num_samples: M >= 1, the resampling budget; B by default.
        generator: source of randomness; PyTorch's global one of the CPU by default.

    Returns:
        (M,) int64 in [0, B), on the weights' device.

    Raises:
        ValueError: weights that are not 1-D, or negative, not finite or all zero; num_samples < 1.
    """
    _check_weights(weights, "weights")
    count = len(weights) if num_samples is None else num_samples
    if count < 1:
        raise ValueError(f"num_samples: need at least 1, got {num_samples}")
    # By the inverse of the distribution function: torch.multinomial forces its last value to 1 after rounding, which
    # gives a last weight of 0 a chance. Here an index is drawn only if its own step contains the uniform number.
    cumulative = _normalized(weights, generator).cumsum(0)
    uniform = torch.rand(count, dtype=torch.float64, device=cumulative.device, generator=generator)
    return torch.searchsorted(cumulative, uniform * cumulative[-1], right=True).to(weights.device)


@torch.no_grad()
def sample_dirichlet_weights(
    base_weights: Tensor, concentration: float, num_draws: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Draws from Dirichlet(alpha · mu), mu = base_weights / Σ base_weights (DWS).

    Args:
        base_weights: (B,) finite numbers >= 0 of any scale, not all zero.
        concentration: alpha >= 0, the *sum* of the Dirichlet's parameters, whatever B and the scale of the weights.
            0 gives one-hot draws at the indices that `resample_indices` draws, infinity gives mu.
        num_draws: M >= 1.
        generator: source of randomness; PyTorch's global one of the CPU by default.

    Returns:
        (M, B), each row on the simplex, exactly 0 where mu is; in the dtype of the weights (float32 for integers).

    Raises:
        ValueError: weights as in `resample_indices`; a concentration that is negative or NaN; num_draws < 1.
    """
    _check_weights(base_weights, "base_weights")
    if not concentration >= 0:
        raise ValueError(f"concentration: need a number >= 0, got {concentration}")
    if num_draws < 1:
        raise ValueError(f"num_draws: need at least 1, got {num_draws}")
    if concentration == 0:
        indices = resample_indices(base_weights, num_draws, generator)
        draws = torch.nn.functional.one_hot(indices, len(base_weights))
    else:
        mean = _normalized(base_weights, generator)
        draws = mean.expand(num_draws, -1)
        if concentration < math.inf:
            draws = _dirichlet(draws, concentration, generator)
    dtype = base_weights.dtype if base_weights.is_floating_point() else torch.float32
    return draws.to(base_weights.device, dtype, copy=True)


def _dirichlet(mean: Tensor, concentration: float, generator: torch.Generator | None) -> Tensor:
    """One draw per row of `mean` (M, B) float64, for 0 < concentration < inf.

    Normalised Gamma(a_i) variables with a = alpha · mean. Nearly all of them underflow for small a, hence their logs:
    a Gamma(a) variable is one of Gamma(a + 1) times U^(1/a), and −log U is exponential, E, so
    log g_i = log G_i − E_i / (alpha · mean_i). All are multiplied by min(alpha, 1) until their maximum is subtracted,
    which keeps them finite for every alpha. For alpha → 0 what remains is a race of exponential clocks with rates
    mean_i, which i wins with probability mean_i: resampling.
    """
    scale = min(concentration, 1.0)
    log_gamma = torch._standard_gamma(concentration * mean + 1, generator=generator).log()
    clocks = torch.empty_like(log_gamma).exponential_(generator=generator) / mean
    scores = scale * log_gamma - min(1 / concentration, 1.0) * clocks
    # A mean of 0 has the score −inf, unless its exponential happens to be 0 as well.
    scores = torch.where(mean > 0, scores, -math.inf)
    return ((scores - scores.amax(1, keepdim=True)) / scale).softmax(1)


def _normalized(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """mu, float64 on the device of the draws. Divided by the largest weight first, so that the sum is finite."""
    device = "cpu" if generator is None else generator.device
    weights = weights.detach().to(device, torch.float64)
    weights = weights / weights.max()
    return weights / weights.sum()


def _check_weights(weights: Tensor, name: str) -> None:
    if weights.ndim != 1 or len(weights) == 0:
        raise ValueError(f"{name}: need shape (B,) with B >= 1, got {tuple(weights.shape)}")
    if not weights.isfinite().all():
        raise ValueError(f"{name}: need finite numbers, got {weights[~weights.isfinite()][0].item()}")
    if (weights < 0).any():
        raise ValueError(f"{name}: need numbers >= 0, got {weights.min().item():.4g}")
    if not weights.any():
        raise ValueError(f"{name}: need at least one above 0, got {len(weights)} zeros")
