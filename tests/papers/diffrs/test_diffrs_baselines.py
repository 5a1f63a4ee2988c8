"""The baselines: limit cases, their price, and exactness where there is any."""

import math

import pytest
import torch

from papers.diffrs.baselines import best_of, discriminator_guidance, final_rejection, restart
from papers.diffrs.noise_schedule import edm_sigmas
from shared.diffusion.gaussian_mixtures import GaussianMixture
from shared.diffusion.samplers import integrate

DATA = GaussianMixture(torch.tensor([[0.3]]), 0.15, torch.ones(1))
MODEL = GaussianMixture(torch.tensor([[0.1]]), 0.25, torch.ones(1))
SIGMAS = edm_sigmas(18)
PASS = 35


def log_ratio(x, sigma):
    return DATA.log_density(x, sigma) - MODEL.log_density(x, sigma)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_guidance_by_the_exact_ratio_is_the_denoiser_of_the_data():
    """D_p + σ² ∇ log q^σ/p^σ = D_q, by Tweedie's formula."""
    start = noise(50, 1)
    output = discriminator_guidance(MODEL.denoise, log_ratio, SIGMAS, start, weight=1.0, corrector_weight=1.0)
    torch.testing.assert_close(output.samples, integrate(DATA.denoise, start, SIGMAS), rtol=0, atol=1e-9)
    assert output.total_nfe == 50 * PASS


def test_guidance_weights_belong_to_the_two_evaluations():
    start = noise(5, 1)
    base = integrate(MODEL.denoise, start, SIGMAS)
    by_weights = {
        pair: discriminator_guidance(
            MODEL.denoise, log_ratio, SIGMAS, start, weight=pair[0], corrector_weight=pair[1]
        ).samples
        for pair in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    }
    torch.testing.assert_close(by_weights[0.0, 0.0], base, rtol=0, atol=1e-12)
    assert ((by_weights[1.0, 0.0] - base).abs() > 1e-4).all()
    assert ((by_weights[0.0, 1.0] - base).abs() > 1e-4).all()
    one_step = torch.tensor([2.0, 0.0], dtype=torch.float64)  # to the data there is no second evaluation
    output = discriminator_guidance(MODEL.denoise, log_ratio, one_step, start, weight=0.0, corrector_weight=1.0)
    torch.testing.assert_close(output.samples, integrate(MODEL.denoise, start, one_step))


def test_restart_price_and_limit():
    start = noise(5, 1)
    plain = restart(MODEL.denoise, SIGMAS, start, repeats=0)
    torch.testing.assert_close(plain.samples, integrate(MODEL.denoise, start, SIGMAS), rtol=0, atol=1e-12)
    assert plain.total_nfe == 5 * PASS
    calls = []

    def counted(x, sigma):
        calls.append(len(x))
        return MODEL.denoise(x, sigma)

    assert restart(counted, SIGMAS, start, repeats=5).total_nfe == sum(calls) == 5 * 55
    with pytest.raises(ValueError, match="sigma_min"):
        restart(MODEL.denoise, SIGMAS, start, repeats=1, sigma_min=0.3, sigma_max=0.06)


def test_restart_keeps_the_models_law_and_forgets_the_start():
    """With the exact denoiser the law stays that of the model; wide and often enough, nothing of the start is left."""
    start = noise(20_000, 1)
    generator = torch.Generator().manual_seed(1)
    output = restart(
        MODEL.denoise, SIGMAS, start, repeats=6, nodes=8, sigma_min=0.05, sigma_max=2.0, generator=generator
    )
    x = output.samples[:, 0]
    assert x.mean().item() == pytest.approx(0.1, abs=4 * 0.25 / math.sqrt(20_000) + 0.003)
    assert x.std().item() == pytest.approx(0.25, rel=0.04)
    assert abs(torch.corrcoef(torch.stack([x, start[:, 0]]))[0, 1]) < 0.03


def test_final_rejection_by_the_exact_ratio_is_exact():
    x = torch.linspace(-3, 3, 100_001, dtype=torch.float64)[:, None]
    log_constant = log_ratio(x, 0.0).max()
    output = final_rejection(
        MODEL.denoise, log_ratio, SIGMAS, log_constant, 4000, (1,), generator=torch.Generator().manual_seed(0)
    )
    assert output.samples.mean().item() == pytest.approx(0.3, abs=4 * 0.15 / math.sqrt(4000) + 0.003)
    assert output.samples.std().item() == pytest.approx(0.15, rel=0.06)
    assert output.total_nfe / 4000 == pytest.approx(PASS * log_constant.exp().item(), rel=0.06)


def test_final_rejection_gives_up():
    with pytest.raises(RuntimeError, match="2 of 2"):
        final_rejection(lambda x, s: x, lambda x, s: x[:, 0] - math.inf, SIGMAS[-2:], torch.tensor(0.0), 2, (1,))


def test_best_of_takes_the_largest_ratio():
    start = noise(4, 30, 1)
    output = best_of(MODEL.denoise, log_ratio, SIGMAS, start)
    candidates = torch.stack([integrate(MODEL.denoise, part, SIGMAS) for part in start])
    largest = torch.stack([log_ratio(part, 0.0) for part in candidates]).max(0).values
    torch.testing.assert_close(log_ratio(output.samples, 0.0), largest)
    assert output.total_nfe == 4 * 30 * PASS
