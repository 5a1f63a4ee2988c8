"""The bridge against its defining identities, other coordinates, brute force and Gaussian cases in closed form."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from papers.dbae.diffusion_bridge import (
    BridgeSchedule,
    bridge_marginal,
    bridge_preconditioning,
    karras_time_grid,
    reverse_bridge_drift,
    sample_bridge,
    signal_to_noise,
)

VP = BridgeSchedule()
VE = BridgeSchedule("ve", t_max=80.0)
SCHEDULES = pytest.mark.parametrize("schedule", [VP, VE, BridgeSchedule("vp", 2.0, 0.0, 0.7)], ids=["vp", "ve", "flat"])


def times_of(schedule: BridgeSchedule, count: int = 9) -> torch.Tensor:
    return torch.linspace(0.03, 0.97, count, dtype=torch.float64) * schedule.t_max


def moments(t: float, schedule: BridgeSchedule) -> tuple[float, float]:
    """(α_t, σ_t) by their definition."""
    if schedule.kind == "ve":
        return 1.0, t
    integral = schedule.beta_min * t + schedule.beta_d * t**2 / 2
    return math.exp(-integral / 2), math.sqrt(1 - math.exp(-integral))


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@SCHEDULES
def test_the_marginal_joins_image_and_endpoint(schedule):
    ends = torch.tensor([0.0, schedule.t_max], dtype=torch.float64)
    a, b, s = bridge_marginal(ends, schedule)
    torch.testing.assert_close(torch.stack([a, b, s]), torch.tensor([[0.0, 1], [1, 0], [0, 0]]).double(), atol=1e-12,
                               rtol=0)  # fmt: skip
    t = times_of(schedule)
    a, b, s = bridge_marginal(t, schedule)
    last = signal_to_noise(torch.tensor(schedule.t_max, dtype=torch.float64), schedule)
    torch.testing.assert_close(b**2 / s**2, signal_to_noise(t, schedule) - last, rtol=1e-8, atol=1e-12)


@SCHEDULES
@given(share=st.floats(0.001, 0.999))
def test_the_marginal_is_that_of_a_gaussian_conditioned_on_its_end(schedule, share):
    """x_t given x_0 and x_T, from the joint normal distribution of the diffusion that is not pinned."""
    t = share * schedule.t_max
    alpha, sigma = moments(t, schedule)
    alpha_end, sigma_end = moments(schedule.t_max, schedule)
    covariance = alpha_end / alpha * sigma**2
    gain = covariance / sigma_end**2
    expected = [gain, alpha - gain * alpha_end, math.sqrt(max(sigma**2 - gain * covariance, 0.0))]
    found = bridge_marginal(torch.tensor(t, dtype=torch.float64), schedule)
    torch.testing.assert_close(torch.stack(found), torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-9)


def test_vp_is_ve_in_other_coordinates():
    t = times_of(VP)
    alphas, sigmas = (torch.tensor(part, dtype=torch.float64)
                      for part in zip(*(moments(each, VP) for each in t.tolist()), strict=True))  # fmt: skip
    alpha_end, sigma_end = moments(1.0, VP)
    a, b, s = bridge_marginal(t, VP)
    a_ve, b_ve, s_ve = bridge_marginal(sigmas / alphas, BridgeSchedule("ve", t_max=sigma_end / alpha_end))
    torch.testing.assert_close(a, alphas / alpha_end * a_ve, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(b, alphas * b_ve, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(s, alphas * s_ve, rtol=1e-8, atol=1e-10)


def test_single_precision_is_accurate_where_times_are_small():
    t = torch.tensor([1e-4, 0.5, 1 - 1e-4])
    for single, double in zip(bridge_marginal(t, VP), bridge_marginal(t.double(), VP), strict=True):
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=0)


@SCHEDULES
@pytest.mark.parametrize(("start", "end", "covariance"), [(0.5, 0.5, 0.0), (0.7, 1.3, 0.4), (1.0, 0.5, -0.3)])
def test_preconditioning_is_the_best_linear_estimate(schedule, start, end, covariance):
    t = times_of(schedule)
    a, b, s = bridge_marginal(t, schedule)
    skip, out, into, weight = bridge_preconditioning(
        t, schedule, sigma_data=start, sigma_data_end=end, cov_xy=covariance
    )
    variance = a**2 * end**2 + b**2 * start**2 + 2 * a * b * covariance + s**2
    with_start = b * start**2 + a * covariance
    torch.testing.assert_close(skip, with_start / variance, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(into**2 * variance, torch.ones_like(t), rtol=1e-8, atol=0)
    torch.testing.assert_close(out**2, start**2 - with_start**2 / variance, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(weight * out**2, torch.ones_like(t), rtol=1e-8, atol=0)
    ends = torch.tensor([0.0, schedule.t_max], dtype=torch.float64)
    skip, out, into, weight = bridge_preconditioning(
        ends, schedule, sigma_data=start, sigma_data_end=end, cov_xy=covariance
    )
    rest = math.sqrt(start**2 - covariance**2 / end**2)
    expected = [[1, covariance / end**2], [0, rest], [1 / start, 1 / end]]
    torch.testing.assert_close(torch.stack([skip, out, into]), torch.tensor(expected).double(), rtol=1e-6, atol=1e-8)
    assert weight[0] == math.inf


def test_a_forgotten_moment_of_the_endpoint_scales_the_input_wrongly():
    t = torch.tensor([0.99, 0.9999], dtype=torch.float64)
    right, wrong = (bridge_preconditioning(t, VP, sigma_data_end=each).c_in for each in (0.5, 0.0))
    torch.testing.assert_close(wrong / right, torch.tensor([3.6, 35.0]).double(), rtol=0.03, atol=0)


@SCHEDULES
@given(share=st.floats(0.02, 0.98), k=st.floats(-3, 3))
def test_the_ode_moves_along_the_marginal_of_a_known_image(schedule, share, k):
    t, width = share * schedule.t_max, 1e-6 * schedule.t_max
    x0, x_T = torch.tensor([[0.7]]).double(), torch.tensor([[-1.9]]).double()

    def at(time: float) -> torch.Tensor:
        a, b, s = bridge_marginal(torch.tensor(time, dtype=torch.float64), schedule)
        return a * x_T + b * x0 + s * k

    slope = (at(t + width) - at(t - width)) / (2 * width)
    now = torch.tensor(t, dtype=torch.float64)
    ode = reverse_bridge_drift(at(t), x_T, x0, now, schedule)
    sde = reverse_bridge_drift(at(t), x_T, x0, now, schedule, stochastic=True)
    torch.testing.assert_close(ode.drift, slope, rtol=1e-5, atol=1e-6)
    a, b, s = bridge_marginal(now, schedule)
    score = -(at(t) - a * x_T - b * x0) / s**2
    torch.testing.assert_close(ode.drift - sde.drift, sde.diffusion_squared / 2 * score, rtol=1e-8, atol=1e-8)
    squared = 2 * t if schedule.kind == "ve" else schedule.beta_min + schedule.beta_d * t
    assert ode.diffusion_squared.item() == pytest.approx(squared)


@SCHEDULES
def test_the_drift_is_that_of_scores_and_h(schedule):
    """The drift in the form of the paper: f − g² (½ s − h), f − g² (s − h), with times of each sample."""
    x, x_T, denoised = normals(3, 4, 2, 3).unbind()
    t = times_of(schedule, 4)
    for stochastic, part in ((False, 0.5), (True, 1.0)):
        drift, squared = reverse_bridge_drift(x, x_T, denoised, t, schedule, stochastic=stochastic)
        assert squared.shape == t.shape
        for row, time in enumerate(t.tolist()):
            alpha, sigma = moments(time, schedule)
            alpha_end, sigma_end = moments(schedule.t_max, schedule)
            ratio = (alpha / sigma) ** 2 / (alpha_end / sigma_end) ** 2
            h = (alpha / alpha_end * x_T[row] - x[row]) / (sigma**2 * (ratio - 1))
            score = (alpha * denoised[row] - x[row]) / sigma**2 + h
            f = 0.0 if schedule.kind == "ve" else -squared[row] / 2 * x[row]
            torch.testing.assert_close(drift[row], f - squared[row] * (part * score - h), rtol=1e-8, atol=1e-8)


def gaussian_pair(variance_end: float, covariance: float, variance_start: float):
    """The optimal denoiser of a Gaussian pair (x_0, x_T), and E, Var of x_0 given x_T = 1."""
    gain = covariance / variance_end
    rest = variance_start - covariance * gain

    def denoiser(x, t, x_T):
        a, b, s = (part.reshape(-1, 1) for part in bridge_marginal(t, VP))
        mean = gain * x_T
        return mean + rest * b / (b**2 * rest + s**2) * (x - a * x_T - b * mean)

    return denoiser, gain, rest


def test_the_ode_finds_the_posterior_mean_and_the_sde_the_posterior():
    """The first step, from x_T where the drift is singular, leaves a bias that falls with the number of steps."""
    denoiser, gain, variance = gaussian_pair(0.25, 0.125, 0.25)
    x_T = torch.full((4000, 1), 0.5, dtype=torch.float64)
    mean = 0.5 * gain
    errors = []
    for steps in (50, 200, 1000):
        grid = karras_time_grid(steps, t_min=1e-4, t_max=1.0)
        errors.append(abs(sample_bridge(denoiser, x_T[:1], grid, VP, clip=False).x0.item() - mean))
    assert errors[1] < 0.02 and errors[0] > errors[1] > errors[2] and errors[2] < 0.008
    grid = karras_time_grid(200, t_min=1e-4, t_max=1.0)
    by_sde = sample_bridge(denoiser, x_T, grid, VP, churn=0.5, clip=False, generator=torch.Generator().manual_seed(0))
    assert abs(by_sde.x0.mean().item() - mean) < 0.03
    assert by_sde.x0.var().item() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("variance", [0.3, 2.0])
def test_information_and_error(variance):
    """I-MMSE: half the integral of λ v/(1 + v (SNR_t − SNR_T)) is ½ log(1 + v (SNR_{t_0} − SNR_T))."""
    low = 0.01
    snr = [signal_to_noise(torch.tensor(t, dtype=torch.float64), VP).item() for t in (low, 1.0)]

    def integrand(t: float) -> float:
        alpha, sigma = moments(t, VP)
        weight = alpha**2 * (VP.beta_min + VP.beta_d * t) / sigma**4
        return weight * variance / (1 + variance * ((alpha / sigma) ** 2 - snr[1]))

    found = 0.5 * quad(integrand, low, 1.0, epsabs=1e-10, epsrel=1e-10, limit=200)[0]
    assert found == pytest.approx(0.5 * math.log(1 + variance * (snr[0] - snr[1])), rel=1e-6)


@pytest.mark.parametrize(("order", "churn", "evaluations"), [(1, 0.0, 7), (2, 0.0, 13), (1, 0.33, 14), (2, 0.33, 20)])
def test_evaluations_are_counted(order, churn, evaluations):
    calls = []

    def denoiser(x, t, x_T):
        calls.append((t, x_T))
        assert t.shape == (2,) and x.shape == (2, 3)
        return 0 * x

    grid = karras_time_grid(7, t_min=1e-3, t_max=1.0)
    sample = sample_bridge(denoiser, normals(2, 3), grid, VP, order=order, churn=churn)
    assert sample.nfe == len(calls) == evaluations
    assert calls[0][0][0] == pytest.approx(1 - 1e-4)


@given(steps=st.integers(1, 60), rho=st.floats(0.5, 12))
def test_time_grids_decrease_to_zero(steps, rho):
    grid = karras_time_grid(steps, t_min=1e-4, t_max=1.0, rho=rho)
    assert grid.dtype == torch.float64 and len(grid) == steps + 1
    assert (grid.diff() < 0).all() and grid[-1] == 0 and grid[0] == 1 - 1e-4
    if steps > 1:
        assert grid[-2] == 1e-4
        share = torch.arange(steps, dtype=torch.float64) / (steps - 1)
        low, high = 1e-4 ** (1 / rho), (1 - 1e-4) ** (1 / rho)
        torch.testing.assert_close(grid[:-1], (high + share * (low - high)) ** rho, rtol=1e-9, atol=1e-11)


def test_a_known_image_is_reached_and_estimates_are_clipped():
    x0, x_T = 0.5 * normals(5, 2, 3).clamp(-1, 1), normals(5, 2, 3, seed=1)
    grid = karras_time_grid(20, t_min=1e-4, t_max=1.0)
    for order in (1, 2):
        found = sample_bridge(lambda x, t, end: x0, x_T, grid, VP, order=order)
        torch.testing.assert_close(found.x0, x0, rtol=0, atol=2e-3)
    clipped = sample_bridge(lambda x, t, end: 0 * x + 3, x_T, grid, VP).x0
    assert clipped.max() <= 1 and clipped.min() > 0.99
    free = sample_bridge(lambda x, t, end: 0 * x + 3, x_T, grid, VP, clip=False).x0
    assert free.min() > 2.9


def test_the_noise_of_the_churn_is_as_given():
    x_T, grid = normals(2, 3), karras_time_grid(4, t_min=1e-3, t_max=1.0)
    noise = normals(4, 2, 3, seed=2)

    def denoiser(x, t, end):
        return 0.3 * x + 0.1 * end

    given_, repeated = (sample_bridge(denoiser, x_T, grid, VP, churn=0.4, noise=noise).x0 for _ in range(2))
    drawn = sample_bridge(denoiser, x_T, grid, VP, churn=0.4, generator=torch.Generator().manual_seed(3)).x0
    assert torch.equal(given_, repeated) and not torch.equal(given_, drawn)
    without = [sample_bridge(denoiser, x_T, grid, VP, noise=each).x0 for each in (None, noise)]
    assert torch.equal(*without)
    # A brute-force walk by the equations.
    x = x_T
    for step, (t, u) in enumerate(pairwise(grid)):
        middle = t + 0.4 * (u - t)
        drift, squared = reverse_bridge_drift(x, x_T, denoiser(x, t, x_T).clamp(-1, 1), t, VP, stochastic=True)
        x = x + drift * (middle - t) + ((t - middle) * squared).sqrt() * noise[step]
        x = x + reverse_bridge_drift(x, x_T, denoiser(x, middle, x_T).clamp(-1, 1), middle, VP).drift * (u - middle)
    torch.testing.assert_close(given_, x.clamp(-1, 1), rtol=1e-10, atol=1e-10)


def zero(x, t, x_T):
    return 0 * x


ONE = torch.ones(2, 3, dtype=torch.float64)
GRID = karras_time_grid(3, t_min=1e-3, t_max=1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BridgeSchedule("edm"), "kind: must be 'vp' or 've'"),
        (lambda: BridgeSchedule(t_max=0.0), "t_max: need a positive number"),
        (lambda: BridgeSchedule(beta_d=-1.0), "beta_d, beta_min: need numbers of at least 0"),
        (lambda: BridgeSchedule(beta_d=0.0, beta_min=0.0), "beta_d, beta_min: vp needs one of them above 0"),
        (lambda: bridge_marginal(torch.tensor([1.1]), VP), r"t: must lie in \[0, 1\]"),
        (lambda: bridge_marginal(torch.tensor([math.nan]), VP), r"t: must lie in \[0, 1\]"),
        (lambda: bridge_marginal(torch.tensor([1]), VP), "t: need floats"),
        (lambda: bridge_preconditioning(torch.tensor(0.5), VP, sigma_data=0.0), "sigma_data: need a positive number"),
        (lambda: bridge_preconditioning(torch.tensor(0.5), VP, cov_xy=0.3), "cov_xy: at most"),
        (lambda: reverse_bridge_drift(ONE, ONE[:1], ONE, torch.tensor(0.5), VP), "x_t, x_T, denoised: need one shape"),
        (lambda: reverse_bridge_drift(ONE, ONE, ONE, torch.rand(3), VP), "t: need a scalar or one number per row"),
        (lambda: reverse_bridge_drift(ONE, ONE, ONE, torch.tensor(1.0), VP), r"t: must lie in \(0, 1\)"),
        (lambda: reverse_bridge_drift(ONE, ONE, ONE, torch.tensor(0.0), VP), r"t: must lie in \(0, 1\)"),
        (lambda: karras_time_grid(0, t_min=0.1, t_max=1.0), "num_steps: need at least 1"),
        (lambda: karras_time_grid(5, t_min=1.0, t_max=1.0), "t_min, t_max, end_offset: need"),
        (lambda: karras_time_grid(5, t_min=0.1, t_max=1.0, rho=0.0), "rho: need a positive number"),
        (lambda: sample_bridge(zero, ONE, GRID, VP, churn=1.0), r"churn: must lie in \[0, 1\)"),
        (lambda: sample_bridge(zero, ONE, GRID, VP, order=3), "order: must be 1 or 2"),
        (lambda: sample_bridge(zero, ONE, GRID.flip(0), VP), "times: must decrease strictly to 0"),
        (lambda: sample_bridge(zero, ONE, GRID[:-1], VP), "times: must decrease strictly to 0"),
        (lambda: sample_bridge(zero, ONE, torch.tensor([1.0, 0.0]), VP), "times: must start below t_max = 1"),
        (lambda: sample_bridge(zero, ONE, GRID, VP, churn=0.2, noise=ONE), "noise: need the shape"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
