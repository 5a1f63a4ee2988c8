"""Time-dependent density ratios from a discriminator (Kim et al., ICLR 2024, arXiv 2403.01189).

A large set is drawn from a biased density p_b, a small reference set from the unbiased p_d. Training batches hold a
share π of references, so what a denoiser sees is p_o = π p_d + (1 − π) p_b. A discriminator of noisy references against
noisy biased samples has the logit ℓ(x, σ) = log p_d^σ/p_b^σ, and

    w̃ = p_d^σ/p_o^σ = e^ℓ/(π e^ℓ + 1 − π) = 1/(π + (1 − π) e^{−ℓ}),

which stays below 1/π. At π = ½ it is 2 d, with d the discriminator's probability.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from shared.diffusion.gradients import value_and_score

Logit = Callable[[Tensor, Tensor], Tensor]
"""`(x (B, ...), sigma (B,)) -> (B,)`, x in VE coordinates."""


def log_density_ratio(logit: Tensor, ref_fraction: float = 0.5, exponent: float = 1.0) -> Tensor:
    """exponent · log w̃ of logits.

    Args:
        logit: ℓ, any shape, finite.
        ref_fraction: π in [0, 1); 0 gives w = e^ℓ, which has no upper bound.
        exponent: trades bias for variance: w̃^exponent, > 0.

    Returns:
        the shape of `logit`, at most −exponent · log π.

    Raises:
        ValueError: π outside [0, 1), an exponent that is not positive, or a logit that is not finite.
    """
    if not 0 <= ref_fraction < 1:
        raise ValueError(f"ref_fraction: must lie in [0, 1), got {ref_fraction}")
    if not 0 < exponent < math.inf:
        raise ValueError(f"exponent: need a positive number, got {exponent}")
    if not logit.isfinite().all():
        raise ValueError("logit: need finite numbers")
    if ref_fraction == 0:
        return exponent * logit
    log_reference = torch.full_like(logit, math.log(ref_fraction))
    return -exponent * torch.logaddexp(log_reference, math.log1p(-ref_fraction) - logit)


def log_ratio_and_score(
    logit_fn: Logit, x: Tensor, sigma: Tensor, ref_fraction: float = 0.5, exponent: float = 1.0
) -> tuple[Tensor, Tensor]:
    """exponent · log w̃(x, σ) and its gradient in x, by one forward and one backward pass through the discriminator.

    Args:
        logit_fn: ℓ(x, sigma), in evaluation mode; its parameters are given no `.grad`.
        x: (B, ...), noisy samples in VE coordinates.
        sigma: (B,), their noise levels, > 0.
        ref_fraction: π in [0, 1).
        exponent: > 0.

    Returns:
        log ratio (B,) and score (B, ...), both detached.

    Raises:
        ValueError: sigma that is not (B,) or not positive, a logit that is not (B,), and as `log_density_ratio`.
    """
    check_sigma(sigma, len(x))

    def log_ratio(inputs: Tensor, levels: Tensor) -> Tensor:
        logit = logit_fn(inputs, levels)
        if logit.shape != levels.shape:
            raise ValueError(f"logit_fn: must return shape {tuple(levels.shape)}, got {tuple(logit.shape)}")
        return log_density_ratio(logit, ref_fraction, exponent)

    return value_and_score(log_ratio, x, sigma)


def check_sigma(sigma: Tensor, batch_size: int) -> None:
    """Raises ValueError unless noise levels are (B,) and positive."""
    if sigma.shape != (batch_size,):
        raise ValueError(f"sigma: need shape ({batch_size},), got {tuple(sigma.shape)}")
    if not (sigma > 0).all():
        raise ValueError(f"sigma: need positive numbers, got {sigma.min().item()}")
