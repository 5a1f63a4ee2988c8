"""Samplers as free functions over a denoiser, from noise level to noise level in VE coordinates.

A *step* takes samples from their own noise levels `sigma` (B,) to the next ones `sigma_next` (B,); levels may differ
within a batch, and a `sigma_next` of 0 is the data. In these coordinates deterministic DDIM on any VP schedule is
Euler's method, and DDPM's ancestral sampling is DDIM with eta = 1 (Song et al., ICLR 2021, equations 12 and 16): the
scale α drops out.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from shared.diffusion.denoisers import Denoiser, per_sample

Step = Callable[[Denoiser, Tensor, Tensor, Tensor], Tensor]
"""`(denoiser, x (B, ...), sigma (B,), sigma_next (B,)) -> x` at `sigma_next`."""


class Solver(NamedTuple):
    """A step and its price."""

    step: Step
    evaluations: int
    """Evaluations of the denoiser per sample in a step to `sigma_next` > 0."""
    last_evaluations: int = 1
    """Those in the step to 0."""

    def remaining(self, steps: int | Tensor) -> int | Tensor:
        """Evaluations of the last `steps` steps, the one to 0 included; none for 0 steps."""
        last = (steps > 0) * 1
        return self.evaluations * (steps - last) + self.last_evaluations * last


def euler_step(denoiser: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One evaluation: x + (σ' − σ) (x − D)/σ. This is DDIM with eta = 0."""
    ratio = per_sample(sigma_next / sigma, x)
    return ratio * x + (1 - ratio) * denoiser(x, sigma)


def heun_step(
    denoiser: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor, *, corrector: Denoiser | None = None
) -> Tensor:
    """Two evaluations, one where `sigma_next` is 0: Euler, then the mean of both slopes (EDM, algorithm 1).

    `corrector` is the denoiser of the second evaluation; None: the same.
    """
    slope = (x - denoiser(x, sigma)) / per_sample(sigma, x)
    x_next = x + per_sample(sigma_next - sigma, x) * slope
    rows = (sigma_next > 0).nonzero().squeeze(1)
    if len(rows):
        at, start, end = x_next[rows], sigma[rows], sigma_next[rows]
        second = (at - (corrector or denoiser)(at, end)) / per_sample(end, x)
        x_next[rows] = x[rows] + per_sample(end - start, x) * (slope[rows] + second) / 2
    return x_next


def ancestral_step(
    denoiser: Denoiser,
    x: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    *,
    eta: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One evaluation and fresh noise: a draw from q(x' | x, x_0 = D) for eta = 1, DDIM for eta = 0.

    Of the variance σ'² around D, (eta σ' /σ)² (σ² − σ'²) is fresh noise and the rest is the old noise's.
    """
    fresh = (eta * sigma_next / sigma) ** 2 * (sigma**2 - sigma_next**2)
    kept = (sigma_next**2 - fresh).clamp(min=0).sqrt() / sigma
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    denoised = denoiser(x, sigma)
    return denoised + per_sample(kept, x) * (x - denoised) + per_sample(fresh.sqrt(), x) * noise


EULER = Solver(euler_step, 1)
HEUN = Solver(heun_step, 2)


class Churn(NamedTuple):
    """Noise added before every step, which the step then has to remove as well (EDM, algorithm 2)."""

    amount: float
    """S_churn: the level rises by the factor 1 + min(S_churn/K, √2 − 1)."""
    generator: torch.Generator | None = None
    sigma_min: float = 0.0
    """S_min: levels below are left as they are."""
    sigma_max: float = math.inf
    """S_max: levels above are left as they are."""
    noise_scale: float = 1.0
    """S_noise: standard deviation of the noise, relative to what the levels say."""

    def __call__(self, x: Tensor, sigma: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """(x, sigma) after the noise, for x (B, ...) at the level sigma () of a sampler with `num_steps` steps."""
        if not self.sigma_min <= sigma <= self.sigma_max:
            return x, sigma
        raised = sigma * (1 + min(self.amount / num_steps, math.sqrt(2) - 1))
        noise = torch.randn(x.shape, generator=self.generator, dtype=x.dtype, device=x.device)
        return x + (raised**2 - sigma**2).sqrt() * self.noise_scale * noise, raised


@torch.no_grad()
def integrate(
    denoiser: Denoiser, noise: Tensor, sigmas: Tensor, *, step: Step = heun_step, churn: Churn | None = None
) -> Tensor:
    """Samples from noise of unit variance, through all noise levels.

    Args:
        denoiser: D(x, σ).
        noise: (B, ...), unit variance.
        sigmas: (K + 1,), strictly decreasing to 0; the state has its dtype.
        step: from one level to the next.
        churn: stochasticity; None: none.

    Returns:
        (B, ...) in the dtype of sigmas.

    Raises:
        ValueError: sigmas do not decrease strictly to 0.
    """
    check_sigmas(sigmas)
    x = noise.to(sigmas) * sigmas[0]
    for sigma, sigma_next in pairwise(sigmas):
        if churn is not None:
            x, sigma = churn(x, sigma, len(sigmas) - 1)
        x = step(denoiser, x, sigma.expand(len(x)), sigma_next.expand(len(x)))
    return x


def guided(denoiser: Denoiser, score: Denoiser, weight: float = 1.0) -> Denoiser:
    """D + weight · σ² score(x, σ): the denoiser of the density that is tilted by exp(weight · ∫ score).

    Args:
        denoiser: D(x, σ).
        score: `(x (B, ...), sigma (B,)) -> (B, ...)`, the gradient of a log density ratio.
        weight: 0 leaves the denoiser as it is, and evaluates no score.
    """
    if weight == 0:
        return denoiser
    return lambda x, sigma: denoiser(x, sigma) + weight * per_sample(sigma, x) ** 2 * score(x, sigma)


def check_sigmas(sigmas: Tensor) -> None:
    """Raises ValueError unless noise levels (K + 1,) decrease strictly to 0."""
    if sigmas.ndim != 1 or len(sigmas) < 2 or not (sigmas.diff() < 0).all() or sigmas[-1] != 0:
        raise ValueError(f"sigmas: need levels that decrease strictly to 0, got {sigmas.tolist()}")
