"""The diffusion bridge of DBAE: schedules, marginals, preconditioning, reverse drift and sampler.

A diffusion dx = f(x, t) dt + g(t) dw, with x_t | x_0 ~ N(α_t x_0, σ_t² I), is pinned at both ends by Doob's h-transform
(Zhou et al., ICLR 2024, "DDBM"): at t = 0 it is an image x_0, at t = T an endpoint x_T, which in DBAE is a decoder's
output for the image's code z. With SNR_t = α_t²/σ_t² and r_t = SNR_T/SNR_t, from r_0 = 0 to r_T = 1,

    dx = [f + g² h] dt + g dw,    h = ∇ log p(x_T | x_t) = ((α_t/α_T) x_T − x_t) / (σ_t² (SNR_t/SNR_T − 1)),
    x_t = a_t x_T + b_t x_0 + s_t ε,    a_t = r_t α_t/α_T,    b_t = α_t (1 − r_t),    s_t² = σ_t² (1 − r_t).

Since b_t²/s_t² = SNR_t − SNR_T, x_t − a_t x_T is an ordinary noisy image whose signal is exactly gone at T. The score
of x_t given x_T, from a denoiser's estimate D of x_0, is s = −(x_t − a_t x_T − b_t D)/s_t² = (α_t D − x_t)/σ_t² + h,
and in reverse time

    dx = [f − g² (s − h)] dt + g dw̄ (SDE),    dx = [f − g² (½ s − h)] dt (ODE).

Reference: Kim, Lee, Park, Na, Moon: Diffusion Bridge AutoEncoders for Unsupervised Representation Learning, ICLR 2025.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class BridgeSchedule:
    """f and g of the diffusion that is pinned.

    ``vp``: f = −½ β x, g² = β with β(t) = beta_min + beta_d t; with B_t = beta_min t + ½ beta_d t² it has
    α_t² = exp(−B_t) and σ_t² = 1 − exp(−B_t). ``ve``: f = 0, g² = 2 t, α = 1, σ_t = t.

    Raises:
        ValueError: another kind, t_max that is not positive, a negative beta, or for ``vp`` both betas 0.
    """

    kind: Literal["vp", "ve"] = "vp"
    t_max: float = 1.0
    """T, where the endpoint is; for ``ve`` it is σ_max."""
    beta_d: float = 2.0
    beta_min: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in ("vp", "ve"):
            raise ValueError(f"kind: must be 'vp' or 've', got {self.kind!r}")
        if not 0 < self.t_max < math.inf:
            raise ValueError(f"t_max: need a positive number, got {self.t_max}")
        if not (0 <= self.beta_d < math.inf and 0 <= self.beta_min < math.inf):
            raise ValueError(f"beta_d, beta_min: need numbers of at least 0, got {self.beta_d}, {self.beta_min}")
        if self.kind == "vp" and self.beta_d + self.beta_min == 0:
            raise ValueError("beta_d, beta_min: vp needs one of them above 0")


class BridgeMarginal(NamedTuple):
    """x_t = weight_end x_T + weight_start x_0 + std ε; each of the shape of t."""

    weight_end: Tensor
    """a_t"""
    weight_start: Tensor
    """b_t"""
    std: Tensor
    """s_t"""


class BridgePreconditioning(NamedTuple):
    """D = c_skip x_t + c_out F(c_in x_t, ...), trained with loss_weight · (D − x_0)²; each of the shape of t."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    loss_weight: Tensor


class BridgeDrift(NamedTuple):
    """dx/dt of the reverse process, to be multiplied by a negative dt, and g²(t)."""

    drift: Tensor
    diffusion_squared: Tensor


class BridgeSample(NamedTuple):
    """Images, and how often the denoiser was evaluated for each of them."""

    x0: Tensor
    nfe: int


class _Moments(NamedTuple):
    """Of the diffusion that is not pinned, at times of any shape, in float64."""

    alpha: Tensor
    """α_t"""
    variance: Tensor
    """σ_t²"""
    ratio: Tensor
    """r_t = SNR_T/SNR_t"""
    complement: Tensor
    """1 − r_t, without cancellation near T."""
    alpha_end: float
    """α_T"""
    contraction: Tensor
    """f/x"""
    diffusion_squared: Tensor
    """g²"""


def _moments(t: Tensor, schedule: BridgeSchedule) -> _Moments:
    t, end = t.double(), schedule.t_max
    if schedule.kind == "ve":
        one = torch.ones_like(t)
        return _Moments(one, t**2, (t / end) ** 2, (end - t) * (end + t) / end**2, 1.0, 0 * t, 2 * t)
    low, slope = schedule.beta_min, schedule.beta_d
    integral, total = low * t + slope * t**2 / 2, low * end + slope * end**2 / 2
    rest = (end - t) * (low + slope * (end + t) / 2)
    beta = low + slope * t
    return _Moments(
        alpha=torch.exp(-integral / 2),
        variance=-torch.expm1(-integral),
        ratio=torch.expm1(integral) / math.expm1(total),
        complement=torch.exp(integral) * torch.expm1(rest) / math.expm1(total),
        alpha_end=math.exp(-total / 2),
        contraction=-beta / 2,
        diffusion_squared=beta,
    )


def signal_to_noise(t: Tensor, schedule: BridgeSchedule) -> Tensor:
    """SNR_t = α_t²/σ_t² of the shape and dtype of t; infinite at 0.

    Raises:
        ValueError: t outside [0, t_max].
    """
    _check_times(t, schedule)
    moments = _moments(t, schedule)
    return (moments.alpha**2 / moments.variance).to(t.dtype)


def bridge_marginal(t: Tensor, schedule: BridgeSchedule) -> BridgeMarginal:
    """(a_t, b_t, s_t) of x_t = a_t x_T + b_t x_0 + s_t ε.

    Args:
        t: any shape, in [0, t_max].
        schedule: the diffusion.

    Returns:
        three tensors of the shape and dtype of t: (0, 1, 0) at 0 and (1, 0, 0) at t_max.

    Raises:
        ValueError: t outside [0, t_max].
    """
    _check_times(t, schedule)
    moments = _moments(t, schedule)
    parts = (
        moments.ratio * moments.alpha / moments.alpha_end,
        moments.alpha * moments.complement,
        (moments.variance * moments.complement).clamp(min=0).sqrt(),
    )
    return BridgeMarginal(*(part.to(t.dtype) for part in parts))


def bridge_preconditioning(
    t: Tensor,
    schedule: BridgeSchedule,
    *,
    sigma_data: float = 0.5,
    sigma_data_end: float = 0.5,
    cov_xy: float = 0.0,
) -> BridgePreconditioning:
    """DDBM's scalings: the linear estimate of x_0 from x_t that is best for these second moments, and what it misses.

    With σ_0, σ_E, κ the three moments and A = a²σ_E² + b²σ_0² + 2abκ + s² the variance of x_t: c_in = A^{-1/2},
    c_skip = (bσ_0² + aκ)/A, c_out² = (a²(σ_E²σ_0² − κ²) + σ_0² s²)/A, and loss_weight = 1/c_out², infinite at 0.

    Args:
        t: any shape, in [0, t_max].
        schedule: the diffusion.
        sigma_data: standard deviation of x_0.
        sigma_data_end: that of x_T. Training and sampling need the same.
        cov_xy: covariance of x_0 and x_T.

    Raises:
        ValueError: t outside [0, t_max]; sigma_data ≤ 0, sigma_data_end < 0, |cov_xy| > sigma_data · sigma_data_end.
    """
    if not 0 < sigma_data < math.inf:
        raise ValueError(f"sigma_data: need a positive number, got {sigma_data}")
    if not 0 <= sigma_data_end < math.inf:
        raise ValueError(f"sigma_data_end: need a number of at least 0, got {sigma_data_end}")
    if not abs(cov_xy) <= sigma_data * sigma_data_end:
        raise ValueError(f"cov_xy: at most sigma_data · sigma_data_end = {sigma_data * sigma_data_end:g} in size, "
                         f"got {cov_xy}")  # fmt: skip
    _check_times(t, schedule)
    a, b, s = bridge_marginal(t.double(), schedule)
    start, end = sigma_data**2, sigma_data_end**2
    total = a**2 * end + b**2 * start + 2 * a * b * cov_xy + s**2
    out_squared = (a**2 * (end * start - cov_xy**2) + start * s**2) / total
    parts = ((b * start + a * cov_xy) / total, out_squared.sqrt(), total.rsqrt(), 1 / out_squared)
    return BridgePreconditioning(*(part.to(t.dtype) for part in parts))


def reverse_bridge_drift(
    x_t: Tensor, x_T: Tensor, denoised: Tensor, t: Tensor, schedule: BridgeSchedule, *, stochastic: bool = False
) -> BridgeDrift:
    """dx/dt of the reverse process at x_t: f − g² (½ s − h), or f − g² (s − h) of the SDE.

    The drift is linear in x_t, x_T and D, so a step costs three products whatever the schedule.

    Args:
        x_t: (B, ...).
        x_T: the endpoint, of that shape.
        denoised: D, the estimate of x_0, of that shape.
        t: a scalar or (B,), in (0, t_max).
        schedule: the diffusion.
        stochastic: drift of the SDE instead of the ODE.

    Returns:
        the drift, in the shape and dtype of x_t, and g² in the shape of t.

    Raises:
        ValueError: shapes that do not match, t ≤ 0 or t ≥ t_max.
    """
    if x_t.shape != x_T.shape or x_t.shape != denoised.shape:
        raise ValueError(f"x_t, x_T, denoised: need one shape, got {tuple(x_t.shape)}, {tuple(x_T.shape)}, "
                         f"{tuple(denoised.shape)}")  # fmt: skip
    if t.ndim > 1 or (t.ndim == 1 and (x_t.ndim == 0 or len(t) != len(x_t))):
        raise ValueError(f"t: need a scalar or one number per row of x_t {tuple(x_t.shape)}, got {tuple(t.shape)}")
    if not ((t > 0) & (t < schedule.t_max)).all():
        raise ValueError(f"t: must lie in (0, {schedule.t_max:g}), got {t.tolist()}")
    of_x, of_end, of_denoised, squared = _drift_weights(t, schedule, stochastic)
    shape = t.shape + (1,) * (x_t.ndim - 1) if t.ndim else ()
    of_x, of_end, of_denoised = (weight.to(x_t).reshape(shape) for weight in (of_x, of_end, of_denoised))
    drift = of_x * x_t + of_denoised * denoised
    if not stochastic:  # the SDE's drift does not depend on the endpoint: s − h = (α D − x)/σ²
        drift = torch.addcmul(drift, of_end, x_T)
    return BridgeDrift(drift, squared.to(t.dtype))


def _drift_weights(t: Tensor, schedule: BridgeSchedule, stochastic: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of x_t, x_T and D in the drift, and g²; float64, of the shape of t."""
    moments = _moments(t, schedule)
    squared, variance, complement = moments.diffusion_squared, moments.variance, moments.complement
    if stochastic:
        of_denoised = -squared * moments.alpha / variance
        return moments.contraction + squared / variance, torch.zeros_like(variance), of_denoised, squared
    # ½ s − h = ½ ((α D − x)/σ² − h), and h = (a x_T − r x)/s².
    half = squared / (2 * variance)
    of_x = moments.contraction + half * (1 - moments.ratio / complement)
    of_end = half * moments.ratio * moments.alpha / (moments.alpha_end * complement)
    return of_x, of_end, -half * moments.alpha, squared


def karras_time_grid(
    num_steps: int, *, t_min: float, t_max: float, rho: float = 7.0, end_offset: float = 1e-4
) -> Tensor:
    """Times τ_0 = t_max − end_offset > ... > τ_{N−1} = t_min > τ_N = 0, dense near 0 for large rho.

    The first is not t_max, where the drift is 0/0. For one step they are (t_max − end_offset, 0).

    Args:
        num_steps: N.
        t_min: the last time above 0.
        t_max: T.
        rho: τ^{1/rho} is evenly spaced.
        end_offset: distance of the first time from t_max.

    Returns:
        float64 (num_steps + 1,).

    Raises:
        ValueError: num_steps < 1, not 0 < t_min < t_max − end_offset, rho ≤ 0, or a negative end_offset.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps: need at least 1, got {num_steps}")
    if not (0 < t_min < t_max - end_offset < math.inf and end_offset >= 0):
        raise ValueError(f"t_min, t_max, end_offset: need 0 < t_min < t_max - end_offset and end_offset >= 0, got "
                         f"{t_min}, {t_max}, {end_offset}")  # fmt: skip
    if not rho > 0:
        raise ValueError(f"rho: need a positive number, got {rho}")
    high = t_max - end_offset
    times = torch.linspace(high ** (1 / rho), t_min ** (1 / rho), num_steps, dtype=torch.float64) ** rho
    times[0] = high
    if num_steps > 1:
        times[-1] = t_min
    return torch.cat([times, times.new_zeros(1)])


@torch.no_grad()
def sample_bridge(
    denoiser: Callable[[Tensor, Tensor, Tensor], Tensor],
    x_T: Tensor,
    times: Tensor,
    schedule: BridgeSchedule,
    *,
    order: Literal[1, 2] = 1,
    churn: float = 0.0,
    clip: bool = True,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> BridgeSample:
    """Images from endpoints, along the reverse ODE, or with churn partly along the SDE (DDBM, algorithm 1).

    In a step from t to u a share `churn` of the way is an Euler–Maruyama step of the SDE, the rest an Euler or Heun
    step of the ODE; the step to 0 is always Euler's. Nothing is added to x_T.

    Args:
        denoiser: `(x_t (B, ...), t (B,), x_T (B, ...)) -> estimate of x_0 (B, ...)`.
        x_T: endpoints (B, ...).
        times: (N + 1,), strictly decreasing from below t_max to 0.
        schedule: the diffusion.
        order: 1 for Euler (N evaluations), 2 for Heun (2 N − 1); with churn N more.
        churn: share of each step along the SDE, in [0, 1).
        clip: clamps the estimates of x_0 and the result to [−1, 1].
        noise: (N, *x_T.shape) standard normals of the churn steps; None: drawn.
        generator: they are drawn from.

    Raises:
        ValueError: churn outside [0, 1), another order, times not as said, or noise of another shape.
    """
    if order not in (1, 2):
        raise ValueError(f"order: must be 1 or 2, got {order}")
    if not 0 <= churn < 1:
        raise ValueError(f"churn: must lie in [0, 1), got {churn}")
    if times.ndim != 1 or len(times) < 2 or not (times.diff() < 0).all() or times[-1] != 0:
        raise ValueError(f"times: must decrease strictly to 0, got {times.tolist()}")
    if not times[0] < schedule.t_max:
        raise ValueError(f"times: must start below t_max = {schedule.t_max:g}, got {times[0].item():g}")
    if noise is not None and noise.shape != (len(times) - 1, *x_T.shape):
        raise ValueError(f"noise: need the shape {(len(times) - 1, *x_T.shape)}, got {tuple(noise.shape)}")
    evaluations = 0

    def drift_at(x: Tensor, t: Tensor, stochastic: bool = False) -> BridgeDrift:
        nonlocal evaluations
        evaluations += 1
        denoised = denoiser(x, t.to(x).expand(len(x)), x_T)
        denoised = denoised.clamp(-1, 1) if clip else denoised
        return reverse_bridge_drift(x, x_T, denoised, t, schedule, stochastic=stochastic)

    x = x_T
    for index, (t, u) in enumerate(pairwise(times.double())):
        if churn > 0:
            normal = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device) if noise is None else (
                noise[index].to(x))  # fmt: skip
            between = t + churn * (u - t)
            drift, squared = drift_at(x, t, stochastic=True)
            x = x + (between - t).item() * drift + ((t - between) * squared).sqrt().item() * normal
            t = between
        step, drift = (u - t).item(), drift_at(x, t).drift
        if order == 2 and u > 0:
            drift = (drift + drift_at(x + step * drift, u).drift) / 2
        x = x + step * drift
    return BridgeSample(x.clamp(-1, 1) if clip else x, evaluations)


def _check_times(t: Tensor, schedule: BridgeSchedule) -> None:
    if not t.is_floating_point():
        raise ValueError(f"t: need floats, got {t.dtype}")
    if not ((t >= 0) & (t <= schedule.t_max)).all():
        raise ValueError(f"t: must lie in [0, {schedule.t_max:g}], got {t.min().item():g} to {t.max().item():g}")
