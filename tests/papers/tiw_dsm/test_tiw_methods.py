"""Each method's loss is the objective with the terms it is to have, and guidance has the optimum of the correction."""

import pytest
import torch

from papers.tiw_dsm.density_ratio import log_density_ratio, log_ratio_and_score
from papers.tiw_dsm.methods import METHODS, BatchRatios, Logits, arm_losses, parse_arm, sampling_denoiser
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


def ratios_of(batch, logits=None):
    _, clean, x, sigma = batch
    return BatchRatios(logits or {"fixed": Logits(noisy_logit, clean_logit)}, clean, x, sigma, 0.4)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("exponent", [1.0, 1.5])
def test_losses_have_their_terms(name, exponent, batch):
    denoised, clean, x, sigma = batch
    arm = parse_arm(name)
    if arm.uses_ratio:
        arm = parse_arm(f"{name}^{exponent}")
    losses = arm_losses(arm, ratios_of(batch), denoised, clean, sigma, sigma_data=0.9)
    log_ratio, score = log_ratio_and_score(noisy_logit, x, sigma, 0.4, exponent)
    terms = {
        "tiw": (log_ratio, score),
        "iw": (log_density_ratio(3 * clean[:, 0], 0.4, exponent), None),
        "weight_only": (log_ratio, None),
        "correction_only": (None, score),
    }.get(name, (None, None))
    torch.testing.assert_close(losses, tiw_dsm_loss(denoised, clean, sigma, *terms, sigma_data=0.9))
    if terms == (None, None):
        torch.testing.assert_close(losses, score_matching(0.9)(*batch))


def test_arms_of_a_batch_share_the_ratio(batch):
    denoised, clean, _, sigma = batch
    asked = []

    def counting(x, levels):
        asked.append(len(x))
        return noisy_logit(x, levels)

    ratios = ratios_of(batch, {name: Logits(counting, clean_logit) for name in ("fixed", "50")})
    for name in ("tiw", "weight_only", "correction_only", "dsm_obs", "iw"):
        arm_losses(parse_arm(name), ratios, denoised, clean, sigma, sigma_data=1.0)
    assert len(asked) == 1
    arm_losses(parse_arm("tiw@50"), ratios, denoised, clean, sigma, sigma_data=1.0)
    assert len(asked) == 2


def test_guided_sampling_is_from_the_unbiased_density(batch):
    x, sigma = batch[2:]
    for name in METHODS:
        denoiser = sampling_denoiser(parse_arm(name), OBSERVED.denoise, noisy_logit, ref_fraction=0.5)
        expected = UNBIASED if name == "guidance" else OBSERVED
        torch.testing.assert_close(denoiser(x, sigma), expected.denoise(x, sigma), rtol=0, atol=1e-9)


def test_what_methods_are_trained_on():
    apart = {name: method.data for name, method in METHODS.items() if method.data != "observed"}
    assert apart == {"dsm_ref": "references", "oracle": "unbiased"}


def test_names_of_arms():
    arm = parse_arm("tiw^0.5@2000")
    assert (arm.method, arm.exponent, arm.ratio) == (METHODS["tiw"], 0.5, "2000")
    assert parse_arm("guidance").training == parse_arm("guidance@exact").training == parse_arm("dsm_obs").training
    assert parse_arm("tiw").training != parse_arm("tiw@exact").training != parse_arm("iw@exact").training


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiw2", "expected one of tiw, iw"),
        ("tiw@clean", "@clean is neither selected, exact nor a number of steps"),
        ("tiw@0", "@0 is neither"),
        ("dsm_obs@exact", "dsm_obs uses no ratio"),
        ("oracle^2", "oracle uses no ratio"),
    ],
)
def test_names_that_are_none(name, message):
    with pytest.raises(ValueError, match=message):
        parse_arm(name)
