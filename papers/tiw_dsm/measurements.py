"""What is measured of ratios, and of samples and denoisers of every arm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from papers.tiw_dsm.data import Densities, Problem
from papers.tiw_dsm.density_ratio import Logit, log_density_ratio
from papers.tiw_dsm.methods import Logits
from papers.tiw_dsm.options import DataOptions, TrainOptions
from shared.data_order import generator_for
from shared.diffusion.denoisers import Denoiser, edm_loss_weight, lognormal_sigmas, per_sample
from shared.diffusion.metrics import coverage, energy_distance, mode_shares, nearest_distances, total_variation
from shared.diffusion.noise_levels import edm_sigmas
from shared.diffusion.samplers import integrate
from shared.frechet import frechet_distance
from shared.vision.evaluation import predict_logits
from shared.vision.models import Classifier

WEIGHT_SIGMAS = (0.1, 0.3, 1.0, 3.0)
"""Noise levels at which weights of the biased data are counted, beside those of the clean discriminator."""
ERROR_SIGMAS = torch.logspace(-2, 1, 13, dtype=torch.float64)
"""Noise levels, relative to the data's deviation, at which the ratio is compared with the exact one."""
SMALL_WEIGHT = 0.01
"""Biased samples whose weight is below are lost."""
LOG10_WEIGHTS = torch.arange(-6, 2.01, 0.25, dtype=torch.float64)
"""Edges of the histogram of log10 w; its end bins hold everything beyond."""
COMPARED = 2000
"""Samples between which distances are computed, at most."""
_PART = 1000


@torch.no_grad()
def draw_samples(
    options: TrainOptions, denoiser: Denoiser, shape: tuple[int, ...], seed: int, device: torch.device
) -> Tensor:
    """Samples (N, ...) on the CPU, from noise that is the same for all arms of a seed."""
    sampling = options.sampling
    generator = generator_for(seed, 4)
    sigmas = edm_sigmas(sampling.solver_steps, sampling.sigma_min, sampling.sigma_max).float().to(device)
    noise = torch.randn(sampling.samples, *shape, generator=generator)
    return torch.cat(
        [integrate(denoiser, part.to(device), sigmas).cpu() for part in noise.split(sampling.sample_batch)]
    )


@dataclass(frozen=True)
class SampleMeter:
    """Compares samples with fresh unbiased ones."""

    data: DataOptions
    problem: Problem
    """On the CPU."""
    judge: Classifier | None = None
    """Of images in [0, 1]."""

    def measure(self, samples: Tensor) -> dict[str, float]:
        """Metrics of samples (N, ...).

        energy_distance       to the test set; 0 for equal distributions
        group_tv              total variation between the shares of groups and equal shares
        reference_distance    median distance to the nearest reference, relative to the test set's: 0 for copies of them
        feature_distance      Fréchet distance of the judge's features to the test set's; images only
        coverage              share of the test set with a sample among its nearest neighbours; images only
        """
        some, test = samples[:COMPARED], self.problem.test[:COMPARED]
        shares = self.group_shares(samples)
        found = {
            "energy_distance": energy_distance(some, test),
            "group_tv": total_variation(shares, torch.full_like(shares, 1 / len(shares))),
            "reference_distance": self._reference_distance(some) / self._reference_distance(test),
        }
        if self.judge is not None:
            features = (_features(self.judge, images) for images in (samples, self.problem.test))
            found["feature_distance"] = frechet_distance(*features)
            found["coverage"] = coverage(some, test)
        return found

    def group_shares(self, samples: Tensor) -> Tensor:
        """Shares of the groups: of the nearest mode, or of the class that the judge predicts."""
        if self.judge is None:
            return mode_shares(samples, self.problem.densities.unbiased.means)
        logits = predict_logits(self.judge, as_unit(samples))
        return logits.argmax(1).bincount(minlength=logits.shape[1]).double() / len(samples)

    def _reference_distance(self, samples: Tensor) -> float:
        return nearest_distances(samples, self.problem.reference).median().item()


def as_unit(images: Tensor) -> Tensor:
    """Images in [-1, 1] as the judge expects them, in [0, 1]."""
    return (images.clamp(-1, 1) + 1) / 2


@torch.no_grad()
def _features(judge: Classifier, images: Tensor) -> Tensor:
    parts = as_unit(images).split(512)
    return torch.cat([judge.featurizer(part) for part in parts]).double().numpy()


@torch.no_grad()
def denoiser_error(options: TrainOptions, denoiser: Denoiser, problem: Problem, seed: int) -> float:
    """E λ(σ) · mean over dimensions of (D − D_d)² over noisy test samples, with D_d the exact unbiased denoiser."""
    settings = options.denoiser
    generator = generator_for(seed, 5)
    sigma = lognormal_sigmas(len(problem.test), settings.log_sigma_mean, settings.log_sigma_std, generator)
    x = problem.test + per_sample(sigma, problem.test) * torch.randn(problem.test.shape, generator=generator)
    errors = (denoiser(x, sigma) - problem.densities.unbiased.denoise(x, sigma)).square().flatten(1).mean(1)
    return (edm_loss_weight(sigma, settings.sigma_data) * errors).mean().item()


@torch.no_grad()
def ratio_errors(
    options: TrainOptions, logits: Logits, densities: Densities, seed: int, count: int = 4000
) -> tuple[list[dict[str, float]], float]:
    """Mean squared error of w̃ under noisy observed samples, against the exact one.

    Returns:
        rows of sigma and error for the time-dependent ratio, and the error of the clean one on clean samples.
    """
    generator = generator_for(seed, 6)
    pi = options.ref_fraction
    from_reference = torch.rand(count, generator=generator, dtype=torch.float64) < pi
    unbiased, biased = (mixture.sample(count, generator)[0] for mixture in (densities.unbiased, densities.biased))
    clean = torch.where(from_reference[:, None], unbiased, biased).float()

    def error(logit, x: Tensor, sigma: Tensor) -> float:
        found, exact = (log_density_ratio(each(x, sigma), pi).exp() for each in (logit, densities.log_ratio))
        return (found - exact).double().square().mean().item()

    rows = []
    for level in (ERROR_SIGMAS * options.denoiser.sigma_data).tolist():
        x = clean + level * torch.randn(clean.shape, generator=generator)
        rows.append({"sigma": level, "error": error(logits.noisy, x, torch.full((count,), level))})
    return rows, error(logits.clean, clean, torch.zeros(count))


@torch.no_grad()
def biased_weights(logits: Logits, biased: Tensor, seed: int) -> dict[tuple[str, float], Tensor]:
    """log w = ℓ (N,) of the biased samples, by discriminator and noise level: clean, and with noise of each level."""
    generator = generator_for(seed, 7)

    def log_weights(logit: Logit, x: Tensor, sigma: float) -> Tensor:
        parts = [logit(part, torch.full((len(part),), sigma, device=x.device)) for part in x.split(_PART)]
        return torch.cat(parts).double().cpu()

    found = {("clean", 0.0): log_weights(logits.clean, biased, 0.0)}
    for sigma in WEIGHT_SIGMAS:
        x = biased + sigma * torch.randn(biased.shape, generator=generator).to(biased)
        found["noisy", sigma] = log_weights(logits.noisy, x, sigma)
    return found


def small_weight_share(log_weights: Tensor) -> float:
    """Share of samples whose weight is below `SMALL_WEIGHT`."""
    return (log_weights < math.log(SMALL_WEIGHT)).double().mean().item()


def weight_counts(log_weights: Tensor) -> list[dict[str, float]]:
    """Histogram: log10_weight (where a bin begins), count."""
    log10 = (log_weights / math.log(10)).clamp(LOG10_WEIGHTS[0], LOG10_WEIGHTS[-1] - 1e-9)
    counts = torch.bucketize(log10, LOG10_WEIGHTS, right=True).sub(1).bincount(minlength=len(LOG10_WEIGHTS) - 1)
    return [
        {"log10_weight": edge, "count": count}
        for edge, count in zip(LOG10_WEIGHTS.tolist()[:-1], counts.tolist(), strict=True)
    ]
