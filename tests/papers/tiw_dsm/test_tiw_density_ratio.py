"""The density ratio: limits, expectations, its score, and the identity that makes the correction right."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from papers.tiw_dsm import vp_time
from papers.tiw_dsm.density_ratio import log_density_ratio, log_ratio_and_score
from shared.diffusion import noise_levels
from shared.diffusion.gaussian_mixtures import GaussianMixture

MEANS = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
UNBIASED = GaussianMixture(MEANS, 0.4, torch.tensor([0.5, 0.5]))
BIASED = GaussianMixture(MEANS, 0.4, torch.tensor([0.8, 0.2]))


def exact_logit(x, sigma):
    return UNBIASED.log_density(x, sigma) - BIASED.log_density(x, sigma)


def observed(ref_fraction: float) -> GaussianMixture:
    return GaussianMixture(MEANS, 0.4, ref_fraction * UNBIASED.weights + (1 - ref_fraction) * BIASED.weights)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- The formula


@given(st.floats(-30, 30), st.floats(0, 0.999), st.floats(0.1, 3))
def test_ratio_is_its_definition(logit, ref_fraction, exponent):
    """Invariants 2 and 9."""
    log_ratio = log_density_ratio(double(logit), ref_fraction, exponent).item()
    odds = math.exp(logit)
    expected = odds / (ref_fraction * odds + 1 - ref_fraction)
    assert log_ratio == pytest.approx(exponent * math.log(expected), rel=1e-9, abs=1e-9)
    if ref_fraction > 0:
        assert log_ratio <= -exponent * math.log(ref_fraction) + 1e-12


def test_ratio_limits():
    """Invariants 1 and 2."""
    assert log_density_ratio(double(0, 0)).tolist() == [0, 0]
    extreme = double(-800, 800)
    assert log_density_ratio(extreme).tolist() == pytest.approx([math.log(2) - 800, math.log(2)])
    assert log_density_ratio(extreme, 0.0).tolist() == [-800, 800]
    logits = normal(5)
    torch.testing.assert_close(log_density_ratio(logits).exp(), 2 * torch.sigmoid(logits))
    torch.testing.assert_close(log_density_ratio(logits, 0.0), logits)
    assert log_density_ratio(logits, 1 - 1e-9).abs().max() < 1e-7
    assert log_density_ratio(logits.float().view(5, 1)).dtype == torch.float32


@pytest.mark.parametrize(
    ("logit", "ref_fraction", "exponent", "message"),
    [
        (0.0, 1.0, 1.0, "ref_fraction"),
        (0.0, -0.1, 1.0, "ref_fraction"),
        (0.0, 0.5, 0.0, "exponent"),
        (0.0, 0.5, -1.0, "exponent"),
        (math.nan, 0.5, 1.0, "logit"),
        (math.inf, 0.5, 1.0, "logit"),
    ],
)
def test_ratio_refuses(logit, ref_fraction, exponent, message):
    with pytest.raises(ValueError, match=message):
        log_density_ratio(double(logit), ref_fraction, exponent)


@pytest.mark.parametrize("ref_fraction", [0.0, 0.1, 0.5])
def test_weights_turn_observed_into_unbiased_expectations(ref_fraction):
    """Invariant 3: E_{p_o}[w̃] = 1 and E_{p_o}[w̃ f] = E_{p_d}[f], within four standard errors."""
    x, _ = observed(ref_fraction).sample(40_000, torch.Generator().manual_seed(0))
    weights = log_density_ratio(exact_logit(x, 0.0), ref_fraction).exp()
    for values, expected in ((weights, 1.0), (weights * x[:, 0], 0.0), (weights * (x[:, 0] > 0), 0.5)):
        assert values.mean().item() == pytest.approx(expected, abs=4 * (values.std() / 200).item())


# --- The score


@pytest.mark.parametrize("ref_fraction", [0.0, 0.1, 0.5])
def test_corrected_denoiser_is_the_unbiased_one(ref_fraction):
    """Invariant 5: D_o(x, σ) + σ² ∇ log w̃ = D_d(x, σ)."""
    x, sigma = 2 * normal(30, 2), torch.linspace(0.05, 4, 30, dtype=torch.float64)
    log_ratio, score = log_ratio_and_score(exact_logit, x, sigma, ref_fraction)
    torch.testing.assert_close(
        log_ratio, UNBIASED.log_density(x, sigma) - observed(ref_fraction).log_density(x, sigma), rtol=0, atol=1e-8
    )
    corrected = observed(ref_fraction).denoise(x, sigma) + sigma[:, None] ** 2 * score
    torch.testing.assert_close(corrected, UNBIASED.denoise(x, sigma), rtol=0, atol=1e-8)


def test_score_is_the_gradient():
    """Invariants 4 and 9: central differences, (1 − d) ∇ℓ, and both scaled by the exponent."""
    x, sigma, step = normal(6, 1, 2, seed=3), torch.linspace(0.2, 2, 6, dtype=torch.float64), 1e-5

    def logit(x, sigma):
        return (x.flatten(1).sin() * 3).prod(1) / sigma

    log_ratio, score = log_ratio_and_score(logit, x, sigma, 0.3, exponent=1.7)
    torch.testing.assert_close(log_ratio, 1.7 * log_ratio_and_score(logit, x, sigma, 0.3)[0])
    for index in range(2):
        moved = torch.zeros_like(x)
        moved[..., index] = step
        ends = [log_density_ratio(logit(x + sign * moved, sigma), 0.3, 1.7) for sign in (1, -1)]
        torch.testing.assert_close(score[:, 0, index], (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-6)
    _, half = log_ratio_and_score(exact_logit, x[:, 0], sigma)
    slope = UNBIASED.score(x[:, 0], sigma) - BIASED.score(x[:, 0], sigma)
    torch.testing.assert_close(half, (1 - torch.sigmoid(exact_logit(x[:, 0], sigma)))[:, None] * slope)


def test_discriminator_is_left_alone():
    """Invariant 8, and invariant 1 for a logit that is 0 everywhere."""
    network = torch.nn.Linear(2, 1)
    x, sigma = normal(3, 2).float(), torch.ones(3)
    before = x.clone()
    with torch.no_grad():
        log_ratio, score = log_ratio_and_score(lambda x, sigma: network(x)[:, 0], x, sigma)
    assert not log_ratio.requires_grad
    assert not score.requires_grad
    assert network.weight.grad is None
    assert score.abs().sum() > 0
    assert torch.equal(x, before)
    assert not x.requires_grad
    log_ratio, score = log_ratio_and_score(lambda x, sigma: torch.zeros(3), x, sigma)
    assert not log_ratio.any()
    assert not score.any()
    assert score.shape == x.shape


@pytest.mark.parametrize(
    ("logit", "sigma", "message"),
    [
        (lambda x, s: x, torch.ones(3), "logit_fn"),
        (lambda x, s: x[:, 0], torch.ones(3, 1), "sigma"),
        (lambda x, s: x[:, 0], torch.ones(()), "sigma"),
        (lambda x, s: x[:, 0], torch.zeros(3), "sigma"),
        (lambda x, s: x[:, 0] / 0, torch.ones(3), "logit"),
    ],
)
def test_score_refuses(logit, sigma, message):
    with pytest.raises(ValueError, match=message):
        log_ratio_and_score(logit, torch.zeros(3, 2), sigma)


def test_vp_time_is_the_shared_one():
    """Invariant 10 is tested where the functions are."""
    assert vp_time.sigma_to_vp is noise_levels.sigma_to_vp
    assert vp_time.importance_sampled_vp_time is noise_levels.importance_sampled_vp_time
