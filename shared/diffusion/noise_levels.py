"""Noise levels of diffusion models, and the two coordinates in which they are told.

Everywhere in this project a noisy sample is x = x_0 + σ ε (variance exploding, VE; Karras et al., NeurIPS 2022, "EDM").
Networks that were trained on variance-preserving (VP) samples see α x at time τ instead, where

    α = 1/√(1 + σ²),    B(τ) = ∫₀^τ β = ½ τ² (β₁ − β₀) + τ β₀ = log(1 + σ²),    β₀ = 0.1, β₁ = 20 (Song et al., 2021).
"""

import math

import torch
from torch import Tensor


def edm_sigmas(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Noise levels σ_0 = σ_max > ... > σ_{K−1} = σ_min > σ_K = 0 of a sampler with K steps (EDM, equation 5).

    Args:
        num_steps: K, at least 2.
        sigma_min: last level above 0.
        sigma_max: first level.
        rho: larger values put more of the levels near σ_min.

    Returns:
        float64 (K + 1,).

    Raises:
        ValueError: fewer than 2 steps, not 0 < sigma_min < sigma_max < ∞, or rho ≤ 0.
    """
    if num_steps < 2:
        raise ValueError(f"num_steps: need at least 2, got {num_steps}")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"sigma_min, sigma_max: need 0 < sigma_min < sigma_max, got {sigma_min}, {sigma_max}")
    if not rho > 0:
        raise ValueError(f"rho: need a positive number, got {rho}")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    levels = torch.linspace(high, low, num_steps, dtype=torch.float64) ** rho
    return torch.cat([levels, levels.new_zeros(1)])


def sigma_to_vp(sigma: Tensor, beta_min: float = 0.1, beta_max: float = 20.0) -> tuple[Tensor, Tensor]:
    """(α, τ) of VE noise levels: where a variance-preserving network expects α x.

    Args:
        sigma: any shape, ≥ 0; 0 is clean, with α = 1 and τ = 0.
        beta_min: β₀.
        beta_max: β₁.

    Returns:
        two tensors of the shape and dtype of `sigma`.

    Raises:
        ValueError: a negative or NaN sigma, or not 0 < beta_min ≤ beta_max.
    """
    _check_betas(beta_min, beta_max)
    if not (sigma >= 0).all():
        raise ValueError(f"sigma: need numbers of at least 0, got {sigma.min().item()}")
    alpha = torch.rsqrt(1 + sigma**2)
    return alpha, _vp_time(torch.log1p(sigma**2), beta_min, beta_max)


def vp_to_sigma(tau: Tensor, beta_min: float = 0.1, beta_max: float = 20.0) -> Tensor:
    """VE noise levels σ = √(exp B(τ) − 1) of VP times: the inverse of `sigma_to_vp`.

    Raises:
        ValueError: a negative or NaN tau, or not 0 < beta_min ≤ beta_max.
    """
    _check_betas(beta_min, beta_max)
    if not (tau >= 0).all():
        raise ValueError(f"tau: need numbers of at least 0, got {tau.min().item()}")
    return torch.expm1(_integrated_beta(tau, beta_min, beta_max)).sqrt()


def importance_sampled_vp_time(u: Tensor, t_min: float = 1e-5, beta_min: float = 0.1, beta_max: float = 20.0) -> Tensor:
    """VP times in [t_min, 1] of uniform numbers, such that log σ(τ)² is uniform: an inverse distribution function.

    A loss over τ weighted by g²(τ)/σ_vp²(τ) = β/(1 − e^{−B}) is its plain mean over these times, since that weight is
    the derivative of log(e^B − 1) = log σ². For t_min = 1e-5 they lie at σ in [0.0010, 152.2].

    Args:
        u: any shape, in [0, 1].
        t_min: smallest time, in (0, 1).
        beta_min: β₀.
        beta_max: β₁.

    Returns:
        the shape and dtype of `u`.

    Raises:
        ValueError: u outside [0, 1], t_min outside (0, 1), or not 0 < beta_min ≤ beta_max.
    """
    _check_betas(beta_min, beta_max)
    if not ((u >= 0) & (u <= 1)).all():
        raise ValueError(f"u: need numbers in [0, 1], got {u.min().item()} to {u.max().item()}")
    if not 0 < t_min < 1:
        raise ValueError(f"t_min: must lie in (0, 1), got {t_min}")
    first, last = (math.log(math.expm1(_integrated_beta(tau, beta_min, beta_max))) for tau in (t_min, 1.0))
    log_variance = first + u * (last - first)
    return _vp_time(torch.nn.functional.softplus(log_variance, threshold=50), beta_min, beta_max)


def _integrated_beta(tau, beta_min: float, beta_max: float):
    """B(τ) of a number or a tensor."""
    return 0.5 * tau**2 * (beta_max - beta_min) + tau * beta_min


def _vp_time(integrated_beta: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """τ ≥ 0 with B(τ) as given. In this form of the root nothing cancels where B is small."""
    root = (beta_min**2 + 2 * (beta_max - beta_min) * integrated_beta).sqrt()
    return 2 * integrated_beta / (beta_min + root)


def _check_betas(beta_min: float, beta_max: float) -> None:
    if not 0 < beta_min <= beta_max < math.inf:
        raise ValueError(f"beta_min, beta_max: need 0 < beta_min <= beta_max, got {beta_min}, {beta_max}")
