"""Denoisers and samplers on Gaussians and mixtures, where every answer is known."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn

from shared.diffusion.denoisers import (
    EdmDenoiser,
    NoisePredictionDenoiser,
    edm_loss_weight,
    lognormal_sigmas,
    per_sample,
)
from shared.diffusion.gaussian_mixtures import GaussianMixture, orthonormal_mixture, ring
from shared.diffusion.gradients import value_and_score
from shared.diffusion.noise_levels import edm_sigmas
from shared.diffusion.samplers import (
    EULER,
    HEUN,
    Churn,
    ancestral_step,
    euler_step,
    guided,
    heun_step,
    integrate,
)

GAUSSIAN = GaussianMixture(torch.tensor([[0.4, -0.2]]), 0.3, torch.ones(1))
MIXTURE = GaussianMixture(torch.tensor([[0.5, 0.0], [-0.5, 0.3], [0.1, -1.0]]), 0.2, torch.tensor([3.0, 1.0, 2.0]))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Linear(nn.Module):
    """A network with weights in float64 that shows what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x, number):
        self.seen = x, number
        return self.weight * x + per_sample(number, x)


# --- Mixtures


def test_mixture_density_score_and_denoiser_agree():
    x, sigma = normal(20, 2), torch.linspace(0.01, 3, 20, dtype=torch.float64)
    log_density, score = value_and_score(MIXTURE.log_density, x, sigma)
    torch.testing.assert_close(MIXTURE.score(x, sigma), score, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(MIXTURE.denoise(x, sigma), x + sigma[:, None] ** 2 * score, rtol=1e-10, atol=1e-10)
    by_hand = torch.stack(
        [
            sum(
                weight * math.exp(-((row - mean) ** 2).sum() / (2 * (0.04 + s**2))) / (2 * math.pi * (0.04 + s**2))
                for weight, mean in zip((0.5, 1 / 6, 1 / 3), MIXTURE.means, strict=True)
            )
            for row, s in zip(x, sigma, strict=True)
        ]
    )
    torch.testing.assert_close(log_density.exp(), by_hand)


def test_mixture_samples_have_its_law():
    generator = torch.Generator().manual_seed(0)
    samples, components = MIXTURE.sample(60_000, generator)
    shares = components.bincount(minlength=3) / 60_000
    torch.testing.assert_close(shares, torch.tensor([0.5, 1 / 6, 1 / 3]), rtol=0, atol=0.01)
    noise = samples - MIXTURE.means[components]
    assert noise.std().item() == pytest.approx(0.2, rel=0.01)
    assert abs(noise.mean().item()) < 0.003
    assert MIXTURE.around(torch.tensor([2, 0])).shape == (2, 2)


def test_testbeds_have_their_geometry():
    assert torch.allclose(ring().means.norm(dim=1), torch.ones(8).double())
    assert torch.pdist(ring().means).min().item() == pytest.approx(2 * math.sin(math.pi / 8))
    means = orthonormal_mixture(32, 0.3, torch.ones(4), seed=1).means
    torch.testing.assert_close(means @ means.T, torch.eye(4).double())
    with pytest.raises(ValueError, match="weights"):
        orthonormal_mixture(2, 0.3, torch.ones(3), seed=1)
    for arguments in ((torch.zeros(2), 1.0, torch.ones(2)), (torch.zeros(2, 1), 0.0, torch.ones(2))):
        with pytest.raises(ValueError, match="need"):
            GaussianMixture(*arguments)


# --- Denoisers


def test_edm_preconditioning():
    """For Gaussian data of variance σ_data² around 0 the network has nothing to add: c_skip x is the denoiser."""
    network = Linear()
    denoiser = EdmDenoiser(network, sigma_data=0.5)
    x, sigma = normal(3, 1, 2, 2), torch.tensor([0.1, 1.0, 20.0], dtype=torch.float64)
    with torch.no_grad():
        output = denoiser(x, sigma)
    scaled, number = network.seen
    total = (sigma**2 + 0.25).sqrt()
    torch.testing.assert_close(scaled, x / total[:, None, None, None])
    torch.testing.assert_close(number, sigma.log() / 4)
    skip, out = 0.25 / total**2, sigma * 0.5 / total
    torch.testing.assert_close(
        output, per_sample(skip, x) * x + per_sample(out, x) * (scaled / 2 + per_sample(number, x))
    )
    with torch.no_grad():
        network.weight.zero_()
    exact = GaussianMixture(torch.zeros(1, 4), 0.5, torch.ones(1)).denoise(x.flatten(1), sigma)
    torch.testing.assert_close(per_sample(skip, x) * x, exact.view_as(x))
    with pytest.raises(ValueError, match="sigma_data"):
        EdmDenoiser(network, sigma_data=0.0)


def test_edm_denoiser_keeps_the_dtype_of_the_state():
    denoiser = EdmDenoiser(nn.Identity(), 0.5)
    denoiser.network = Linear().float()
    output = denoiser(normal(2, 3), torch.ones(2, dtype=torch.float64))
    assert output.dtype == torch.float64
    assert denoiser.network.seen[0].dtype == torch.float32


def test_edm_loss_weight_undoes_the_scale_of_the_output():
    sigma = torch.tensor([0.01, 0.5, 30.0])
    out = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    torch.testing.assert_close(edm_loss_weight(sigma, 0.5) * out**2, torch.ones(3))


def test_lognormal_sigmas():
    logs = lognormal_sigmas(20_000, -1.2, 1.5, torch.Generator().manual_seed(0)).log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.05)
    assert logs.std().item() == pytest.approx(1.5, rel=0.03)


def test_noise_prediction_denoiser():
    """A network that knows the noise gives back the clean sample; levels between times are interpolated in log σ."""
    chain = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod
    clean, noise = normal(3, 4), normal(3, 4, seed=1)
    levels = ((1 - chain.double()) / chain.double()).sqrt()
    sigma = torch.stack([levels[0], levels[500], (levels[998] * levels[999]).sqrt()])

    class Oracle(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x, time):
            self.x, self.time = x, time
            return noise

    oracle = Oracle()
    denoiser = NoisePredictionDenoiser(oracle, chain)
    x = clean + sigma[:, None] * noise
    torch.testing.assert_close(denoiser(x, sigma), clean)
    torch.testing.assert_close(oracle.time, torch.tensor([0, 500, 998.5], dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(oracle.x, x / (1 + sigma[:, None] ** 2).sqrt())
    assert denoiser.time(levels[:1] / 10).item() == 0
    with pytest.raises(ValueError, match="sigma"):
        denoiser(x, 2 * levels[[999, 999, 999]])
    with pytest.raises(ValueError, match="alphas_cumprod"):
        NoisePredictionDenoiser(oracle, chain.flip(0))


# --- Samplers


def test_the_flow_of_a_gaussian_is_a_scaling():
    """The exact solution: deviations from the mean shrink with the standard deviation of the noisy law."""
    start = normal(200, 2)
    expected = GAUSSIAN.means + (80 * start - GAUSSIAN.means) * 0.3 / math.sqrt(0.09 + 80**2)
    errors = {
        (step.__name__, count): (
            integrate(GAUSSIAN.denoise, start, edm_sigmas(count), step=step) - expected
        ).abs().max().item()
        for step in (heun_step, euler_step)
        for count in (40, 80)
    }  # fmt: skip
    assert errors["heun_step", 80] < 4e-3
    assert errors["heun_step", 40] / errors["heun_step", 80] == pytest.approx(4, rel=0.25)  # second order
    assert errors["euler_step", 40] / errors["euler_step", 80] == pytest.approx(2, rel=0.15)  # first order


@pytest.mark.parametrize(("solver", "cost", "last"), [(HEUN, 2, 1), (EULER, 1, 1)])
def test_the_price_of_a_solver_is_what_it_pays(solver, cost, last):
    calls = []

    def denoiser(x, sigma):
        calls.append(len(x))
        return MIXTURE.denoise(x, sigma)

    integrate(denoiser, normal(3, 2), edm_sigmas(6), step=solver.step)
    assert sum(calls) == 3 * solver.remaining(6) == 3 * (5 * cost + last)
    assert solver.remaining(0) == 0
    assert solver.remaining(torch.tensor([0, 1, 6])).tolist() == [0, last, 5 * cost + last]


@pytest.mark.parametrize("step", [heun_step, euler_step])
def test_levels_may_differ_within_a_batch(step):
    x, sigma, after = normal(3, 2), torch.tensor([3.0, 0.5, 0.1]).double(), torch.tensor([1.0, 0.2, 0.0]).double()
    together = step(MIXTURE.denoise, x, sigma, after)
    apart = torch.cat([step(MIXTURE.denoise, *(value[[i]] for value in (x, sigma, after))) for i in range(3)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-12)
    torch.testing.assert_close(together[2], MIXTURE.denoise(x[2:], sigma[2:])[0])


def test_euler_is_deterministic_ddim_and_no_noise_is_ancestral_without_eta():
    """Against diffusers' DDIM, in VP coordinates, from time to time."""
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    alphas = scheduler.alphas_cumprod.double()
    sigma = ((1 - alphas) / alphas).sqrt()
    start = normal(5, 2)
    for t, previous in zip(scheduler.timesteps, [*scheduler.timesteps[1:], None], strict=True):
        after = torch.zeros(5).double() if previous is None else sigma[previous].expand(5)
        here = sigma[t].expand(5)
        vp = alphas[t].sqrt() * start
        noise = (start - MIXTURE.denoise(start, here)) / here[:, None]
        theirs = scheduler.step(noise, t, vp).prev_sample
        scale = 1.0 if previous is None else alphas[previous].sqrt()
        ours = euler_step(MIXTURE.denoise, start, here, after)
        torch.testing.assert_close(scale * ours, theirs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ancestral_step(MIXTURE.denoise, start, here, after, eta=0.0), ours)
        start = ours


def test_ancestral_step_draws_from_the_posterior():
    """With x_0 known, x' given x is normal with mean x_0 + (σ'²/σ²)(x − x_0) and variance σ'²(σ² − σ'²)/σ²."""
    count, sigma, after = 100_000, 1.5, 0.8
    x = torch.full((count, 1), 2.0, dtype=torch.float64)
    levels = [torch.full((count,), value, dtype=torch.float64) for value in (sigma, after)]
    out = ancestral_step(lambda x, s: torch.full_like(x, 0.3), x, *levels, generator=torch.Generator().manual_seed(0))
    variance = after**2 * (sigma**2 - after**2) / sigma**2
    assert out.mean().item() == pytest.approx(0.3 + after**2 / sigma**2 * 1.7, abs=4 * math.sqrt(variance / count))
    assert out.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / count))
    to_data = ancestral_step(lambda x, s: x / 2, x, levels[0], 0 * levels[1])
    torch.testing.assert_close(to_data, x / 2)


def test_churn_keeps_the_law():
    start, sigmas = normal(20_000, 2), edm_sigmas(60)
    churn = Churn(20.0, torch.Generator().manual_seed(2), 0.05, 50.0)
    samples = integrate(GAUSSIAN.denoise, start, sigmas, churn=churn)
    assert (samples - integrate(GAUSSIAN.denoise, start, sigmas)).abs().mean() > 0.05
    torch.testing.assert_close(samples.mean(0), GAUSSIAN.means[0], rtol=0, atol=0.02)
    torch.testing.assert_close(samples.std(0), torch.full((2,), 0.3).double(), rtol=0.05, atol=0)


def test_ancestral_sampling_of_a_gaussian_is_a_linear_chain():
    """Its mean and variance follow from level to level: x' = k x + κ (1 − k) x + fresh noise, around the mean."""
    sigmas, generator = edm_sigmas(40), torch.Generator().manual_seed(2)
    samples = integrate(
        GAUSSIAN.denoise,
        normal(20_000, 2),
        sigmas,
        step=lambda *arguments: ancestral_step(*arguments, generator=generator),
    )
    variance = 80.0**2
    for sigma, after in zip(sigmas.tolist(), sigmas[1:].tolist(), strict=False):
        keep, old = 0.09 / (0.09 + sigma**2), after**2 / sigma**2
        variance = (keep + old * (1 - keep)) ** 2 * variance + old * (sigma**2 - after**2)
    torch.testing.assert_close(samples.var(0), torch.full((2,), variance).double(), rtol=0.04, atol=0)
    torch.testing.assert_close(samples.mean(0), GAUSSIAN.means[0], rtol=0, atol=0.01)


def test_churn_raises_levels_within_its_range_only():
    churn = Churn(10.0, torch.Generator().manual_seed(0), 0.1, 5.0, noise_scale=2.0)
    x = torch.zeros(50_000, 1, dtype=torch.float64)
    noisy, raised = churn(x, torch.tensor(1.0).double(), 100)
    assert raised.item() == pytest.approx(1.1)
    assert noisy.std().item() == pytest.approx(2 * math.sqrt(0.21), rel=0.02)
    assert churn(x, torch.tensor(1.0), 10)[1].item() == pytest.approx(math.sqrt(2))
    for outside in (0.05, 6.0):
        same, level = churn(x, torch.tensor(outside), 100)
        assert same is x
        assert level == outside


def test_guided_denoiser_is_that_of_the_tilted_density():
    other = GaussianMixture(torch.tensor([[0.0, 0.2]]), 0.5, torch.ones(1))
    x, sigma = normal(10, 2), torch.linspace(0.1, 2, 10, dtype=torch.float64)

    def score(x, sigma):
        return other.score(x, sigma) - MIXTURE.score(x, sigma)

    torch.testing.assert_close(guided(MIXTURE.denoise, score)(x, sigma), other.denoise(x, sigma))
    half = (MIXTURE.denoise(x, sigma) + other.denoise(x, sigma)) / 2
    torch.testing.assert_close(guided(MIXTURE.denoise, score, 0.5)(x, sigma), half)
    assert guided(MIXTURE.denoise, score, 0.0) == MIXTURE.denoise


@pytest.mark.parametrize("sigmas", [[1.0, 0.5], [1.0, 1.0, 0.0], [0.0], [[1.0, 0.0]], [0.5, 1.0, 0.0]])
def test_levels_must_fall_to_zero(sigmas):
    with pytest.raises(ValueError, match="sigmas"):
        integrate(MIXTURE.denoise, normal(2, 2), torch.tensor(sigmas))


# --- Gradients


def test_value_and_score_differentiates_the_input_only():
    weight = torch.tensor(2.0, requires_grad=True)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    with torch.no_grad():
        values, score = value_and_score(lambda x, sigma: weight * x.square().sum(1) / sigma, x, torch.tensor([1.0, 2]))
    assert values.tolist() == [10, 25]
    assert score.tolist() == [[4, 8], [6, 8]]
    assert weight.grad is None
    assert x.grad is None
    assert not values.requires_grad
    assert not score.requires_grad
    constant, zero = value_and_score(lambda x, sigma: torch.ones(2), x, torch.ones(2))
    assert (constant.tolist(), zero.tolist()) == ([1, 1], [[0, 0], [0, 0]])
    with pytest.raises(ValueError, match="log_density"):
        value_and_score(lambda x, sigma: x, x, torch.ones(2))
