"""The objective: limits, which optimum each variant has, and that no sample's weight touches another's loss."""

import pytest
import torch

from papers.tiw_dsm.density_ratio import log_density_ratio, log_ratio_and_score
from papers.tiw_dsm.objective import tiw_dsm_loss
from shared.diffusion.gaussian_mixtures import GaussianMixture

B = 5


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def batch():
    sigma = torch.tensor([0.01, 0.1, 0.7, 3.0, 40.0], dtype=torch.float64)
    return dict(
        denoised=normal(B, 3, 2, 2),
        clean=normal(B, 3, 2, 2, seed=1),
        sigma=sigma,
        log_ratio=normal(B, seed=2),
        log_ratio_score=normal(B, 3, 2, 2, seed=3),
    )


def test_loss_is_its_formula(batch):
    loss = tiw_dsm_loss(**batch, sigma_data=0.3)
    assert loss.shape == (B,)
    for i in range(B):
        denoised, clean, sigma, log_ratio, score = (value[i] for value in batch.values())
        target = clean + sigma**2 * score
        weight = (sigma**2 + 0.09) / (sigma * 0.3) ** 2
        assert loss[i].item() == pytest.approx((weight * log_ratio.exp() * ((denoised - target) ** 2).mean()).item())


def test_neutral_terms_are_plain_denoising_score_matching(batch):
    """Invariants 1 and 7: at d = ½ everywhere nothing is left of the method, exactly."""
    plain = tiw_dsm_loss(batch["denoised"], batch["clean"], batch["sigma"])
    neutral = batch | dict(
        log_ratio=log_density_ratio(torch.zeros(B, dtype=torch.float64)),
        log_ratio_score=torch.zeros_like(batch["clean"]),
    )
    assert torch.equal(tiw_dsm_loss(**neutral), plain)
    assert torch.equal(tiw_dsm_loss(**neutral | dict(log_ratio=None)), plain)
    assert torch.equal(tiw_dsm_loss(**neutral | dict(log_ratio_score=None)), plain)


def test_loss_is_linear_in_the_ratio_sample_by_sample(batch):
    """Invariants 7 and 11; another sample's weight changes nothing."""
    loss = tiw_dsm_loss(**batch)
    changed = batch["log_ratio"].clone()
    changed[2] += torch.tensor(3.0).log()
    expected = loss.clone()
    expected[2] *= 3
    torch.testing.assert_close(tiw_dsm_loss(**batch | dict(log_ratio=changed)), expected)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(tiw_dsm_loss(**{name: value[order] for name, value in batch.items()}), loss[order])


def test_correction_vanishes_with_the_noise(batch):
    """Invariant 10: as σ², whatever the score."""
    shifted = [
        tiw_dsm_loss(clean, clean, torch.full((B,), sigma).double(), None, score).mean()
        / ((sigma**2 + 0.25) / (0.5 * sigma) ** 2)
        for sigma in (1e-2, 1e-3)
        for clean, score in [(batch["clean"], batch["log_ratio_score"])]
    ]
    assert (shifted[0] / shifted[1]).item() == pytest.approx(1e4, rel=1e-6)


def test_ratio_and_score_are_constants(batch):
    """Invariant 8."""
    inputs = {name: value.clone().requires_grad_() for name, value in batch.items()}
    tiw_dsm_loss(**inputs).sum().backward()
    assert inputs["denoised"].grad.abs().sum() > 0
    assert inputs["log_ratio"].grad is None
    assert inputs["log_ratio_score"].grad is None
    for name, value in inputs.items():
        assert torch.equal(value, batch[name])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("denoised", torch.zeros(B, 3, 2, 1)),
        ("denoised", torch.zeros(1, 3, 2, 2)),
        ("log_ratio_score", torch.zeros(B, 1, 2, 2)),
        ("sigma", torch.ones(B, 1, 1, 1)),
        ("sigma", torch.ones(1)),
        ("sigma", torch.zeros(B)),
        ("log_ratio", torch.zeros(B, 1, 1, 1)),
        ("log_ratio", torch.zeros(1)),
    ],
)
def test_loss_refuses(batch, name, value):
    with pytest.raises(ValueError, match=name):
        tiw_dsm_loss(**batch | {name: value})


# --- Optima: y is one of a few points, with observed probability p_o(y) and x one of a few values.

POINTS = torch.tensor([-1.0, 0.2, 1.5], dtype=torch.float64)
BIASED, UNBIASED = (GaussianMixture(POINTS[:, None], 1e-6, torch.tensor(w)) for w in ([0.7, 0.2, 0.1], [0.2, 0.3, 0.5]))
OBSERVED = GaussianMixture(POINTS[:, None], 1e-6, (BIASED.weights + UNBIASED.weights) / 2)


def logit(x, sigma):
    return UNBIASED.log_density(x, sigma) - BIASED.log_density(x, sigma)


def mean_gradient(optimum: GaussianMixture, x: torch.Tensor, sigma: torch.Tensor, log_ratio, score) -> torch.Tensor:
    """Gradient (N,) of the expected loss given x, in one free value for each x, at the denoiser of a mixture."""
    table = optimum.denoise(x, sigma).requires_grad_()
    total = 0
    posterior = OBSERVED.responsibilities(x, sigma)  # of y given x, under the observed density
    for index, point in enumerate(POINTS):
        clean = torch.full_like(x, point)
        ratio = log_ratio(x, clean, sigma) if log_ratio else None
        losses = tiw_dsm_loss(table, clean, sigma, ratio, score(x, sigma) if score else None)
        total = total + (posterior[:, index] * losses).sum()
    return torch.autograd.grad(total, table)[0][:, 0]


def noisy_ratio(x, clean, sigma):
    return log_density_ratio(logit(x, sigma))


def clean_ratio(x, clean, sigma):
    return log_density_ratio(logit(clean, 0 * sigma))


def score(x, sigma):
    return log_ratio_and_score(logit, x, sigma)[1]


@pytest.mark.parametrize(
    ("log_ratio", "correction", "optimum", "other"),
    [
        (None, None, OBSERVED, UNBIASED),
        (noisy_ratio, None, OBSERVED, UNBIASED),
        (None, score, UNBIASED, OBSERVED),
        (noisy_ratio, score, UNBIASED, OBSERVED),
        (clean_ratio, None, UNBIASED, OBSERVED),
    ],
    ids=["DSM", "W-only", "C-only", "TIW-DSM", "IW-DSM"],
)
def test_optimum_of_every_variant(log_ratio, correction, optimum, other):
    """Invariant 6: weights of noisy samples change no optimum; the correction does, and so do weights of clean ones."""
    x, sigma = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None], torch.full((9,), 0.8, dtype=torch.float64)
    torch.testing.assert_close(
        mean_gradient(optimum, x, sigma, log_ratio, correction), torch.zeros(9).double(), rtol=0, atol=1e-8
    )
    assert mean_gradient(other, x, sigma, log_ratio, correction).abs().max() > 0.05


def test_optimum_does_not_depend_on_the_weight():
    """Any positive function of (x, σ) does: also a ratio that is badly wrong, unlike a wrong score."""
    x, sigma = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None], torch.full((9,), 0.8, dtype=torch.float64)

    def wrong_ratio(x, clean, sigma):
        return x[:, 0].sin() * 3

    gradient = mean_gradient(UNBIASED, x, sigma, wrong_ratio, score)
    torch.testing.assert_close(gradient, torch.zeros(9).double(), rtol=0, atol=1e-8)
    gradient = mean_gradient(UNBIASED, x, sigma, noisy_ratio, lambda x, sigma: -score(x, sigma))
    assert gradient.abs().max() > 0.05
