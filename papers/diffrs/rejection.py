"""Diffusion rejection sampling: when a step of the sampler is accepted, by what constants, and where a rejected sample
goes (Na et al., ICML 2024, arXiv 2405.17880).

A pre-trained model's reverse kernel p(x_k | x_{k−1}) is taken as the proposal of a rejection sampler for the true
kernel q(x_k | x_{k−1}). Both share the forward kernel, so by Bayes' rule it drops out of their ratio, and with the
marginal ratio L_k(x) = q_k(x)/p_k(x) of data and *model samples*, both with noise of level σ_k, the acceptance is

    A_k = (1/M_k) q(x_k | x_{k−1})/p(x_k | x_{k−1}) = (1/M_k) L_k(x_k)/L_{k−1}(x_{k−1}),

at most 1. One discriminator of noisy data against noisy model samples has ℓ_k = log L_k as its logit. A rejected state
is pushed back one level by the forward kernel and tested there on its own, since its parent is no longer the
proposal's: A = (1/M̄_k) L_k(x_k). Levels are numbered k = 0 (noise) … K (data) with σ_0 > … > σ_K = 0; the paper's t
runs the other way.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class RejectionConstants(NamedTuple):
    """Logarithms of the constants M (K + 1,) of steps to each level, and M̄ (K + 1,) of levels on their own."""

    transition: Tensor
    marginal: Tensor


def log_acceptance(log_ratio: Tensor, log_constant: Tensor, log_ratio_prev: Tensor | None = None) -> Tensor:
    """log A = min(0, ℓ_k(x_k) − ℓ_{k−1}(x_{k−1}) − log M_k), or without ℓ_{k−1} the marginal test's.

    Args:
        log_ratio: ℓ_k(x_k); −∞ is never accepted, whatever the others are.
        log_constant: log M_k, or log M̄_k.
        log_ratio_prev: ℓ_{k−1}(x_{k−1}) of the accepted state that the step started from; None: the marginal test.

    Returns:
        in [−∞, 0], of the shape to which the three broadcast.

    Raises:
        ValueError: NaN in an input, or ∞ − ∞.
    """
    log_ratio_prev = torch.zeros_like(log_ratio) if log_ratio_prev is None else log_ratio_prev
    for name, values in (
        ("log_ratio", log_ratio),
        ("log_constant", log_constant),
        ("log_ratio_prev", log_ratio_prev),
    ):
        if values.isnan().any():
            raise ValueError(f"{name}: need numbers, got NaN")
    difference = log_ratio - log_ratio_prev - log_constant
    difference = torch.where(log_ratio == -math.inf, -math.inf, difference)
    if difference.isnan().any():
        raise ValueError("log_ratio: infinite, as is what is taken from it")
    return difference.clamp(max=0)


def rejection_log_constants(log_ratios: Tensor, percentile: float, floor: float | None = 0.0) -> RejectionConstants:
    """Constants from samples of the base sampler, none rejected: quantiles of what the tests will compare.

    log M̄_k is the quantile of ℓ_k(x_k), log M_k that of ℓ_k(x_k) − ℓ_{k−1}(x_{k−1}). A larger percentile γ rejects
    more, costs more evaluations, and comes closer to a true rejection sampler.

    Args:
        log_ratios: (K + 1, N), row k the ℓ_k(x_k) of N runs of the base sampler.
        percentile: γ in [0, 1], linearly interpolated; 1 is the maximum.
        floor: smallest logarithm; 0 keeps M ≥ 1; None: none.

    Returns:
        (K + 1,) each; `transition[0]`, which no step leads to, is 0.

    Raises:
        ValueError: log_ratios that are not 2-D with two rows and a column at least, or not finite; a percentile
            outside [0, 1].
    """
    if log_ratios.ndim != 2 or log_ratios.shape[0] < 2 or log_ratios.shape[1] < 1:
        raise ValueError(f"log_ratios: need shape (K + 1, N), got {tuple(log_ratios.shape)}")
    if not log_ratios.isfinite().all():
        raise ValueError("log_ratios: need finite numbers")
    if not 0 <= percentile <= 1:
        raise ValueError(f"percentile: must lie in [0, 1], got {percentile}")
    marginal = log_ratios.quantile(percentile, dim=1)
    transition = log_ratios.diff(dim=0).quantile(percentile, dim=1)
    if floor is not None:
        marginal, transition = marginal.clamp(min=floor), transition.clamp(min=floor)
    return RejectionConstants(torch.cat([transition.new_zeros(1), transition]), marginal)


def renoise(
    x: Tensor,
    noise: Tensor,
    sigma_from: Tensor | float,
    sigma_to: Tensor | float,
    alpha_from: Tensor | float = 1.0,
    alpha_to: Tensor | float = 1.0,
) -> Tensor:
    """The forward kernel from level (α, σ) back to a noisier one: r x + √(σ'² − r² σ²) noise with r = α'/α.

    Args:
        x: (B, ...), at the level `sigma_from`, `alpha_from`.
        noise: (B, ...), of unit variance.
        sigma_from: σ, scalar or (B,).
        sigma_to: σ', scalar or (B,).
        alpha_from: α; 1 in VE coordinates.
        alpha_to: α'.

    Returns:
        (B, ...) in the dtype of x.

    Raises:
        ValueError: noise of another shape, levels that are neither scalars nor (B,), or a variance to add that is
            negative beyond rounding.
    """
    if noise.shape != x.shape:
        raise ValueError(f"noise: need shape {tuple(x.shape)}, got {tuple(noise.shape)}")
    levels = {"sigma_from": sigma_from, "sigma_to": sigma_to, "alpha_from": alpha_from, "alpha_to": alpha_to}
    start, end, alpha_start, alpha_end = (_level(name, value, x) for name, value in levels.items())
    ratio = alpha_end / alpha_start
    variance = end**2 - ratio**2 * start**2
    # Levels may come in the dtype of x, so that is the rounding to forgive.
    if (variance < -16 * torch.finfo(x.dtype).eps * end**2).any():
        raise ValueError(f"sigma_to: must not be below sigma_from, the variance to add is {variance.min().item():.3g}")
    return ratio.to(x) * x + variance.clamp(min=0).sqrt().to(x) * noise


def _level(name: str, value: Tensor | float, x: Tensor) -> Tensor:
    """Float64 (), or (B, 1, ...)."""
    level = torch.as_tensor(value, dtype=torch.float64, device=x.device)
    if level.ndim == 0:
        return level
    if level.shape != (len(x),):
        raise ValueError(f"{name}: need a scalar or shape ({len(x)},), got {tuple(level.shape)}")
    return level.reshape(-1, *[1] * (x.ndim - 1))
