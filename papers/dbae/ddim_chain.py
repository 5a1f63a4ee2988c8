"""The discrete chain of DDPM, on which DiffAE, PDAE and their relatives are trained, and DDIM along it both ways.

x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε for t = 0 ... T − 1. A network's output is turned into an estimate of x_0; with
ε̂ = (x − √ᾱ x̂_0)/√(1 − ᾱ) for the estimate after clipping, a step of DDIM is x' = √ᾱ' x̂_0 + √(1 − ᾱ') ε̂, downwards for
decoding and upwards for inferring the x_T of an image (Preechakul et al., CVPR 2022, "DiffAE").
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Estimator = Callable[[Tensor, Tensor], Tensor]
"""`(x (B, ...), t (B,) int64) -> estimate of x_0 (B, ...)`."""


def linear_chain(num_times: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> Tensor:
    """ᾱ (num_times,), float64, of evenly spaced β.

    Raises:
        ValueError: fewer than 2 times, or not 0 < beta_min ≤ beta_max < 1.
    """
    if num_times < 2:
        raise ValueError(f"num_times: need at least 2, got {num_times}")
    if not 0 < beta_min <= beta_max < 1:
        raise ValueError(f"beta_min, beta_max: need 0 < beta_min <= beta_max < 1, got {beta_min}, {beta_max}")
    return torch.cumprod(1 - torch.linspace(beta_min, beta_max, num_times, dtype=torch.float64), 0)


def spaced_times(num_steps: int, num_times: int) -> Tensor:
    """num_steps of the chain's times, int64, ascending from 0 to the last, as even as can be.

    Raises:
        ValueError: num_steps outside [2, num_times].
    """
    if not 2 <= num_steps <= num_times:
        raise ValueError(f"num_steps: must lie in [2, {num_times}], got {num_steps}")
    return torch.linspace(0, num_times - 1, num_steps, dtype=torch.float64).round().long()


def add_noise(x0: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t for ᾱ (B,) of images (B, ...)."""
    signal, scale = _scales(alphas_cumprod, x0)
    return signal * x0 + scale * noise


def from_noise(x: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x̂_0 of predicted noise ε̂, for ᾱ (B,)."""
    signal, scale = _scales(alphas_cumprod, x)
    return (x - scale * noise) / signal


def velocity(x0: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """v = √ᾱ ε − √(1 − ᾱ) x_0, for ᾱ (B,)."""
    signal, scale = _scales(alphas_cumprod, x0)
    return signal * noise - scale * x0


def from_velocity(x: Tensor, v: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x̂_0 = √ᾱ x − √(1 − ᾱ) v̂, for ᾱ (B,)."""
    signal, scale = _scales(alphas_cumprod, x)
    return signal * x - scale * v


def pdae_shift(alphas_cumprod: Tensor) -> Tensor:
    """κ_t = √α_t (1 − ᾱ_{t−1})/√(1 − ᾱ_t) (T,): weight of the gradient network in PDAE's training; 0 at t = 0."""
    previous = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
    return (alphas_cumprod / previous).sqrt() * (1 - previous) / (1 - alphas_cumprod).sqrt()


def pdae_weight(alphas_cumprod: Tensor, gamma: float = 0.1) -> Tensor:
    """SNR^γ/(1 + SNR) (T,): PDAE's weight of the loss."""
    return (alphas_cumprod / (1 - alphas_cumprod)) ** gamma * (1 - alphas_cumprod)


@torch.no_grad()
def ddim_decode(
    estimate: Estimator, x_T: Tensor, alphas_cumprod: Tensor, num_steps: int, *, clip: bool = True
) -> Tensor:
    """Samples from x_T (B, ...), in num_steps evaluations.

    Args:
        estimate: of x_0.
        x_T: standard normals, or what `ddim_infer` found.
        alphas_cumprod: ᾱ (T,).
        num_steps: evaluations.
        clip: clamps the estimates and the result to [−1, 1], where images lie.

    Raises:
        ValueError: num_steps outside [2, T].
    """
    times = spaced_times(num_steps, len(alphas_cumprod)).flip(0)
    levels = torch.cat([alphas_cumprod[times], alphas_cumprod.new_ones(1)])
    return _walk(estimate, x_T, times, levels, clip=clip)


@torch.no_grad()
def ddim_infer(estimate: Estimator, x0: Tensor, alphas_cumprod: Tensor, num_steps: int) -> Tensor:
    """x_T of images (B, ...), in num_steps evaluations: DDIM upwards, the last step to ᾱ = 0.

    The image is taken for x at time 0, as DiffAE does.

    Raises:
        ValueError: num_steps outside [2, T].
    """
    times = spaced_times(num_steps, len(alphas_cumprod))
    levels = torch.cat([alphas_cumprod[times], alphas_cumprod.new_zeros(1)])
    return _walk(estimate, x0, times, levels, clip=True)


def _walk(estimate: Estimator, x: Tensor, times: Tensor, levels: Tensor, *, clip: bool) -> Tensor:
    """DDIM through the levels ᾱ (N + 1,), evaluated at times (N,)."""
    for t, here, there in zip(times, levels[:-1], levels[1:], strict=True):
        denoised = estimate(x, t.to(x.device).expand(len(x)))
        denoised = denoised.clamp(-1, 1) if clip else denoised
        noise = (x - here.sqrt().item() * denoised) / (1 - here).sqrt().item()
        x = there.sqrt().item() * denoised + (1 - there).sqrt().item() * noise
    return x


def _scales(alphas_cumprod: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """√ᾱ and √(1 − ᾱ) as (B, 1, ...), in the dtype of a batch (B, ...)."""
    shape = (-1,) + (1,) * (like.ndim - 1)
    return tuple(part.sqrt().to(like).reshape(shape) for part in (alphas_cumprod, 1 - alphas_cumprod))
