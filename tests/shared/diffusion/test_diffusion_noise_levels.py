"""Noise levels and VP coordinates: identities of the two methods' cards."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.diffusion.noise_levels import edm_sigmas, importance_sampled_vp_time, sigma_to_vp, vp_to_sigma

BETA_MIN, BETA_MAX = 0.1, 20.0


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def integrated_beta(tau):
    return 0.5 * tau**2 * (BETA_MAX - BETA_MIN) + tau * BETA_MIN


def test_edm_sigmas():
    sigmas = edm_sigmas(18)
    assert sigmas.dtype == torch.float64
    assert sigmas.shape == (19,)
    assert sigmas[0].item() == pytest.approx(80, rel=1e-12)
    assert sigmas[-2].item() == pytest.approx(0.002, rel=1e-12)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    third = (80 ** (1 / 7) + 3 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert sigmas[3].item() == pytest.approx(third, rel=1e-12)
    assert edm_sigmas(3, 1.0, 3.0, rho=1.0).tolist() == pytest.approx([3, 2, 1, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1,), "num_steps"), ((5, 0.0), "sigma_min"), ((5, 2.0, 1.0), "sigma_min"), ((5, 0.1, 1.0, 0.0), "rho")],
)
def test_edm_sigmas_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        edm_sigmas(*arguments)


@given(st.floats(0, 1e4))
def test_vp_coordinates_solve_their_equations(sigma):
    alpha, tau = sigma_to_vp(double(sigma))
    assert (alpha**2 * (1 + sigma**2)).item() == pytest.approx(1, abs=1e-12)
    assert integrated_beta(tau).item() == pytest.approx(math.log1p(sigma**2), rel=1e-12, abs=1e-300)
    assert vp_to_sigma(tau).item() == pytest.approx(sigma, rel=1e-9, abs=1e-150)


def test_vp_coordinates_of_clean_samples_and_order():
    alpha, tau = sigma_to_vp(double(0, 0.1, 1, 100).view(2, 2))
    assert alpha.shape == tau.shape == (2, 2)
    assert (alpha[0, 0], tau[0, 0]) == (1, 0)
    assert (tau.flatten().diff() > 0).all()
    assert (alpha.flatten().diff() < 0).all()
    for refused in (double(-1.0), double(math.nan)):
        with pytest.raises(ValueError, match="sigma"):
            sigma_to_vp(refused)
        with pytest.raises(ValueError, match="tau"):
            vp_to_sigma(refused)
    with pytest.raises(ValueError, match="beta_min"):
        sigma_to_vp(double(1.0), beta_min=0.0)


def test_importance_sampled_times_have_uniform_log_variance():
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    tau = importance_sampled_vp_time(u)
    assert tau[0].item() == pytest.approx(1e-5, rel=1e-9)
    assert tau[-1].item() == pytest.approx(1, rel=1e-9)
    log_variance = 2 * vp_to_sigma(tau).log()
    affine = log_variance[0] + u * (log_variance[-1] - log_variance[0])
    torch.testing.assert_close(log_variance, affine, rtol=0, atol=1e-9)
    assert vp_to_sigma(tau[[0, -1]]).tolist() == pytest.approx([0.0010005, 152.2], rel=1e-3)


def test_importance_sampled_times_have_the_density_of_the_loss_weight():
    """dτ/du is proportional to the inverse of β/(1 − e^{−B})."""
    u = double(0.05, 0.3, 0.6, 0.9)
    step = 1e-6
    slope = (importance_sampled_vp_time(u + step) - importance_sampled_vp_time(u - step)) / (2 * step)
    tau = importance_sampled_vp_time(u)
    weight = (BETA_MIN + tau * (BETA_MAX - BETA_MIN)) / -torch.expm1(-integrated_beta(tau))
    product = slope * weight
    torch.testing.assert_close(product, product[0].expand_as(product), rtol=1e-6, atol=0)


@pytest.mark.parametrize("u", [-0.01, 1.01, math.nan])
def test_importance_sampled_times_refuse(u):
    with pytest.raises(ValueError, match="u:"):
        importance_sampled_vp_time(double(u))
    with pytest.raises(ValueError, match="t_min"):
        importance_sampled_vp_time(double(0.5), t_min=1.0)
