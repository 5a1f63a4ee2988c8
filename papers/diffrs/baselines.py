"""What DiffRS is compared with: discriminator guidance, Restart, rejection at the end only, and the best of several.

All use the denoiser and noise levels of the base sampler, and the first, third and fourth the discriminator of DiffRS.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from papers.diffrs.rejection import log_acceptance
from papers.diffrs.sampler import STALLED_PASSES, LogRatio
from shared.diffusion.denoisers import Denoiser
from shared.diffusion.gradients import value_and_score
from shared.diffusion.noise_levels import edm_sigmas
from shared.diffusion.samplers import HEUN, check_sigmas, guided, heun_step, integrate


class Samples(NamedTuple):
    """Samples (N, ...), and the denoiser's evaluations that all of them took together, of one sample each."""

    samples: Tensor
    total_nfe: int


def discriminator_guidance(
    denoiser: Denoiser,
    log_ratio: LogRatio,
    sigmas: Tensor,
    noise: Tensor,
    *,
    weight: float = 2.0,
    corrector_weight: float = 0.0,
) -> Samples:
    """Discriminator guidance (Kim et al., ICML 2023): the slope of Heun's method is (x − D)/σ − w σ ∇ℓ(x, σ).

    Args:
        denoiser: D(x, σ).
        log_ratio: ℓ(x, σ), differentiated in x.
        sigmas: (K + 1,), strictly decreasing to 0.
        noise: (N, ...), unit variance.
        weight: w of the first evaluation of each step; 2 for unconditional CIFAR-10.
        corrector_weight: w of the second.

    Raises:
        ValueError: sigmas that do not decrease strictly to 0.
    """

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return value_and_score(log_ratio, x, sigma)[1]

    first, second = guided(denoiser, score, weight), guided(denoiser, score, corrector_weight)
    samples = integrate(
        first, noise, sigmas, step=lambda _, x, start, end: heun_step(first, x, start, end, corrector=second)
    )
    return Samples(samples, len(noise) * HEUN.remaining(len(sigmas) - 1))


@torch.no_grad()
def restart(
    denoiser: Denoiser,
    sigmas: Tensor,
    noise: Tensor,
    *,
    repeats: int,
    nodes: int = 3,
    sigma_min: float = 0.06,
    sigma_max: float = 0.3,
    noise_scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> Samples:
    """Restart (Xu et al., NeurIPS 2023): an interval of noise levels is run through several times, with fresh noise.

    At the pass's level nearest to `sigma_min`, noise up to `sigma_max` is added and removed again by Heun's method on a
    grid of `nodes` levels (EDM's, ρ = 7), `repeats` times.

    Args:
        denoiser: D(x, σ).
        sigmas: (K + 1,), strictly decreasing to 0.
        noise: (N, ...), unit variance.
        repeats: K_r ≥ 0.
        nodes: N_r ≥ 2.
        sigma_min: t_min.
        sigma_max: t_max.
        noise_scale: S_noise.
        generator: of the added noise; None: PyTorch's global one.

    Raises:
        ValueError: sigmas that do not decrease strictly to 0, fewer than 2 nodes, or an interval that is empty.
    """
    check_sigmas(sigmas)
    turn = int((sigmas[:-1] - sigma_min).abs().argmin())
    levels = edm_sigmas(nodes, float(sigmas[turn]), sigma_max)[:-1].to(sigmas)
    x = noise.to(sigmas) * sigmas[0]
    x = _run(denoiser, x, sigmas[: turn + 1])
    for _ in range(repeats):
        fresh = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        x = _run(denoiser, x + (levels[0] ** 2 - levels[-1] ** 2).sqrt() * noise_scale * fresh, levels)
    x = _run(denoiser, x, sigmas[turn:])
    evaluations = HEUN.remaining(len(sigmas) - 1) + repeats * 2 * (nodes - 1)
    return Samples(x, len(noise) * evaluations)


def _run(denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    for start, end in pairwise(sigmas):
        x = heun_step(denoiser, x, start.expand(len(x)), end.expand(len(x)))
    return x


@torch.no_grad()
def final_rejection(
    denoiser: Denoiser,
    log_ratio: LogRatio,
    sigmas: Tensor,
    log_constant: Tensor,
    num_samples: int,
    sample_shape: tuple[int, ...],
    *,
    generator: torch.Generator | None = None,
) -> Samples:
    """Discriminator rejection sampling: whole passes, accepted with probability min(1, L_K(x_K)/M̄_K) at the end.

    Exact where the log ratio is, and M̄_K its supremum.

    Args:
        denoiser: D(x, σ).
        log_ratio: ℓ(x, σ), asked at sigma = 0 only.
        sigmas: (K + 1,), strictly decreasing to 0.
        log_constant: log M̄_K, ().
        num_samples: N requests.
        sample_shape: of one sample.
        generator: on the device of sigmas; None: PyTorch's global one.

    Raises:
        ValueError: sigmas that do not decrease strictly to 0, or log ratios that are NaN.
        RuntimeError: a stall: hardly any sample is accepted.
    """
    samples = torch.empty(num_samples, *sample_shape, dtype=sigmas.dtype, device=sigmas.device)
    total, pending = 0, torch.arange(num_samples, device=sigmas.device)
    for _ in range(STALLED_PASSES):
        noise = torch.randn(len(pending), *sample_shape, generator=generator, dtype=sigmas.dtype, device=sigmas.device)
        x = integrate(denoiser, noise, sigmas)
        total += len(pending) * HEUN.remaining(len(sigmas) - 1)
        log_a = log_acceptance(log_ratio(x, sigmas.new_zeros(len(x))).to(sigmas), log_constant)
        uniform = torch.rand(len(x), generator=generator, dtype=sigmas.dtype, device=sigmas.device)
        accepted = uniform.clamp(min=torch.finfo(sigmas.dtype).tiny).log() <= log_a
        samples[pending[accepted]] = x[accepted]
        pending = pending[~accepted]
        if not len(pending):
            return Samples(samples, total)
    raise RuntimeError(f"{len(pending)} of {num_samples} samples were not accepted in {STALLED_PASSES} passes")


@torch.no_grad()
def best_of(denoiser: Denoiser, log_ratio: LogRatio, sigmas: Tensor, noise: Tensor) -> Samples:
    """Of several whole passes per sample the one with the largest log ratio: good samples, but none of the data's law.

    Args:
        denoiser: D(x, σ).
        log_ratio: ℓ(x, σ), asked at sigma = 0 only.
        sigmas: (K + 1,), strictly decreasing to 0.
        noise: (M, N, ...), unit variance, M candidates for each sample.

    Raises:
        ValueError: sigmas that do not decrease strictly to 0.
    """
    flat = integrate(denoiser, noise.flatten(0, 1), sigmas)
    scores = log_ratio(flat, sigmas.new_zeros(len(flat))).view(noise.shape[:2])
    best = scores.argmax(0)
    samples = flat.view(noise.shape)[best, torch.arange(noise.shape[1], device=best.device)]
    return Samples(samples, len(flat) * HEUN.remaining(len(sigmas) - 1))
