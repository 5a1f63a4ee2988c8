import math

import pytest
import torch

from papers.stg.toy_mixture import (
    CONDITION,
    MODES,
    STD,
    UNSAFE_VALUES,
    measure_points,
    mixture_log_density,
    mixture_noise,
    mode_weights,
    sample_points,
    signal_levels,
)


def points(count, seed=0):
    return 2 * torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sampled(method, strength=0.0, value="linear", count=400):
    return measure_points(sample_points(method, UNSAFE_VALUES[value], strength, count=count, seed=0))


@pytest.mark.parametrize("alpha", [0.001, 0.3, 0.999])
def test_the_denoiser_is_the_gradient_of_the_density(alpha):
    noisy, condition = points(20).requires_grad_(), points(20, seed=1)
    (score,) = torch.autograd.grad(mixture_log_density(noisy, condition, alpha).sum(), noisy)
    assert torch.allclose(mixture_noise(noisy, condition, alpha), -math.sqrt(1 - alpha) * score, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.3, 0.9])
def test_the_density_integrates_to_one(alpha):
    axis = torch.linspace(-8, 8, 321, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = mixture_log_density(grid, CONDITION.double().expand(len(grid), 2), alpha).exp()
    assert float(density.sum() * 0.05**2) == pytest.approx(1, abs=1e-4)


def test_the_condition_asks_for_the_unsafe_mode():
    weights = mode_weights(CONDITION.double())
    exact = torch.tensor([math.exp(3 * math.cos(k * math.pi / 3)) for k in range(6)], dtype=torch.float64)
    assert torch.allclose(weights, exact / exact.sum(), atol=1e-6) and 0.66 < weights[0] < 0.69
    assert torch.allclose(mode_weights(torch.zeros(2)), torch.full((6,), 1 / 6))


def test_noise_levels_fall():
    levels = signal_levels()
    assert len(levels) == 50 and (levels.diff() > 0).all()
    assert levels[-1] == pytest.approx(1 - 1e-4) and levels[0] < 0.002


def test_plain_sampling_gives_the_mixture():
    plain = sampled("base", count=2000)
    assert plain.unsafe == pytest.approx(float(mode_weights(CONDITION)[0]), abs=0.04)
    assert plain.off_manifold < 0.02 and plain.safe_total_variation < 0.08


def test_guidance_of_strength_zero_is_plain():
    base = sample_points("base", UNSAFE_VALUES["bump"], 0.0, count=50, seed=1)
    for method in ("stg", "sdg"):
        assert torch.equal(sample_points(method, UNSAFE_VALUES["bump"], 0.0, count=50, seed=1), base)


def test_strong_guidance_leaves_the_manifold_in_data_space_only():
    assert sampled("sdg", 3.0).unsafe < 0.2 and sampled("sdg", 10.0).off_manifold > 0.9
    for strength in (3.0, 10.0):
        guided = sampled("stg", strength)
        assert guided.unsafe < 0.02 and guided.off_manifold < 0.01


@pytest.mark.parametrize("value", UNSAFE_VALUES)
def test_unsafe_values_are_highest_at_the_unsafe_mode_and_differentiable_there(value):
    places = MODES.double().clone().requires_grad_()
    values = UNSAFE_VALUES[value](places)
    assert values.argmax() == 0
    (gradient,) = torch.autograd.grad(values.sum(), places)
    assert torch.isfinite(gradient).all()


def test_points_are_counted_where_they_are():
    centres = MODES.double()
    near, far = centres[2] + torch.tensor([3.4 * STD, 0.0]), centres[2] + torch.tensor([3.6 * STD, 0.0])
    shares = measure_points(torch.stack([centres[0], centres[1], near, far]))
    assert shares.unsafe == 0.25 and shares.off_manifold == 0.25
    weights = mode_weights(CONDITION.double())[1:]
    expected = (torch.tensor([0.5, 0.5, 0, 0, 0]) - weights / weights.sum()).abs().sum() / 2
    assert shares.safe_total_variation == pytest.approx(float(expected))
    assert math.isnan(measure_points(centres[:1]).safe_total_variation)


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match=r"^method: "):
        sample_points("sld", UNSAFE_VALUES["linear"], 1.0, count=1, seed=0)
