"""Each method's loss is the objective with the terms it is to have, and guidance has the optimum of the correction."""

import pytest
import torch

from papers.tiw_dsm.density_ratio import log_density_ratio, log_ratio_and_score
from papers.tiw_dsm.methods import METHODS, sampling_denoiser, training_objective
from papers.tiw_dsm.objective import tiw_dsm_loss
from shared.diffusion.gaussian_mixtures import GaussianMixture
from shared.diffusion.training import score_matching

MEANS = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
UNBIASED = GaussianMixture(MEANS, 0.4, torch.tensor([0.5, 0.5]))
BIASED = GaussianMixture(MEANS, 0.4, torch.tensor([0.8, 0.2]))
OBSERVED = GaussianMixture(MEANS, 0.4, (UNBIASED.weights + BIASED.weights) / 2)


def noisy_logit(x, sigma):
    return UNBIASED.log_density(x, sigma) - BIASED.log_density(x, sigma)


def clean_logit(x, sigma):
    assert not sigma.any()
    return 3 * x[:, 0]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    denoised, clean, noise = torch.randn(3, 6, 2, generator=generator, dtype=torch.float64)
    sigma = torch.linspace(0.1, 2, 6, dtype=torch.float64)
    return denoised, clean, clean + sigma[:, None] * noise, sigma


@pytest.mark.parametrize("name", METHODS)
def test_losses_have_their_terms(name, batch):
    denoised, clean, x, sigma = batch
    losses = training_objective(
        METHODS[name], noisy_logit, clean_logit, sigma_data=0.9, ref_fraction=0.4, exponent=1.5
    )(*batch)
    log_ratio, score = log_ratio_and_score(noisy_logit, x, sigma, 0.4, 1.5)
    terms = {
        "tiw": (log_ratio, score),
        "iw": (log_density_ratio(3 * clean[:, 0], 0.4, 1.5), None),
        "weight_only": (log_ratio, None),
        "correction_only": (None, score),
    }.get(name, (None, None))
    torch.testing.assert_close(losses, tiw_dsm_loss(denoised, clean, sigma, *terms, sigma_data=0.9))
    if terms == (None, None):
        torch.testing.assert_close(losses, score_matching(0.9)(*batch))


def test_guided_sampling_is_from_the_unbiased_density(batch):
    x, sigma = batch[2:]
    for name, method in METHODS.items():
        denoiser = sampling_denoiser(method, OBSERVED.denoise, noisy_logit)
        expected = UNBIASED if name == "guidance" else OBSERVED
        torch.testing.assert_close(denoiser(x, sigma), expected.denoise(x, sigma), rtol=0, atol=1e-9)


def test_only_one_method_leaves_the_biased_data_out():
    assert [name for name, method in METHODS.items() if method.references_only] == ["dsm_ref"]
