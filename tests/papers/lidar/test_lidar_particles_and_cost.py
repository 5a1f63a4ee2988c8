import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from papers.lidar.cost import cost_to_reach, model_evaluations_per_image
from papers.lidar.particle_resampling import effective_sample_size, feynman_kac_weights, log_potentials, resample

PATH = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # (steps, particles)


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_potentials_telescope_to_the_final_reward(potential):
    running = product = torch.zeros(4, dtype=torch.float64)
    for index, rewards in enumerate(PATH):
        options = {"potential": potential, "reward_weight": 3.0, "log_product": product, "final": index == 4}
        logs, updated = log_potentials(rewards, running, **options)
        weights, same = feynman_kac_weights(rewards, running, **options)
        torch.testing.assert_close(weights, logs.softmax(0))
        assert torch.equal(same, updated)
        running, product = updated, product + logs
    torch.testing.assert_close(product, 3.0 * PATH[-1], rtol=1e-12, atol=1e-12)


def test_running_values():
    rewards, running = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5])
    for potential, logs, after in (
        ("difference", [0.5, -2.5], [1.0, -2.0]),
        ("max", [1.0, 0.5], [1.0, 0.5]),
        ("sum", [1.5, -1.5], [1.5, -1.5]),
    ):
        found, updated = log_potentials(rewards, running, potential=potential, reward_weight=1.0)
        assert found.tolist() == logs and updated.tolist() == after


def test_weights_stay_finite():
    weights, _ = feynman_kac_weights(torch.tensor([1e4, 0.0]), torch.zeros(2), potential="max", reward_weight=1e3)
    assert weights.tolist() == [1.0, 0.0]


def test_resampling_follows_the_weights():
    weights = torch.tensor([0.0, 0.7, 0.3])
    drawn = torch.stack([resample(weights, torch.Generator().manual_seed(seed)) for seed in range(2000)])
    shares = torch.bincount(drawn.flatten(), minlength=3) / drawn.numel()
    assert drawn.shape == (2000, 3) and torch.allclose(shares, weights, atol=0.02)
    assert effective_sample_size(torch.full((4,), 0.25)) == pytest.approx(4)
    assert effective_sample_size(torch.tensor([1.0, 0.0])) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"potential": "product"}, "potential"),
        ({"running": torch.zeros(3)}, "running"),
        ({"log_product": torch.zeros(1)}, "log_product"),
        ({"rewards": torch.tensor([math.nan, 0.0])}, "rewards"),
        ({"rewards": torch.zeros(0), "running": torch.zeros(0)}, "rewards"),
        ({"reward_weight": math.inf}, "reward_weight"),
    ],
)
def test_impossible_particles_are_refused(changes, name):
    options = {"rewards": torch.zeros(2), "running": torch.zeros(2), "potential": "max", "reward_weight": 1.0} | changes
    rewards, running = options.pop("rewards"), options.pop("running")
    with pytest.raises(ValueError, match=rf"^{name}: "):
        feynman_kac_weights(rewards, running, **options)


# Cost


def test_the_cards_numbers_of_evaluations():
    assert model_evaluations_per_image(target_steps=100, num_images=4) == 200
    assert model_evaluations_per_image(target_steps=100, num_images=4, num_lookahead=50, lookahead_steps=5) == 325
    ahead = {"num_lookahead": 100, "lookahead_steps": 1, "lookahead_cfg": False}
    assert model_evaluations_per_image(target_steps=100, num_images=4, **ahead) == 225
    # Three samples of three steps cost at most 6 % of 50 steps.
    cheap = model_evaluations_per_image(target_steps=50, num_images=4, num_lookahead=3, lookahead_steps=3)
    assert 100 < cheap <= 106


@given(st.integers(1, 9), st.integers(0, 50), st.integers(0, 50), st.booleans(), st.booleans())
def test_all_images_together_cost_what_is_evaluated(images, size, steps, target_cfg, lookahead_cfg):
    per_image = model_evaluations_per_image(
        target_steps=7,
        num_images=images,
        num_lookahead=size,
        lookahead_steps=steps,
        target_cfg=target_cfg,
        lookahead_cfg=lookahead_cfg,
    )
    total = images * 7 * (1 + target_cfg) + size * steps * (1 + lookahead_cfg)
    assert per_image * images == pytest.approx(total)


@pytest.mark.parametrize("name", ["num_images", "target_steps", "num_lookahead", "lookahead_steps"])
def test_impossible_counts_are_refused(name):
    options = {"target_steps": 1, "num_images": 1} | {name: 0 if name == "num_images" else -1}
    with pytest.raises(ValueError, match=rf"^{name}: "):
        model_evaluations_per_image(**options)


def test_the_cost_of_a_score_lies_between_settings():
    costs, scores = [100, 50, 200], [0.6, 0.4, 0.7]
    assert cost_to_reach(0.5, costs, scores) == pytest.approx(75)
    assert cost_to_reach(0.65, costs, scores) == pytest.approx(150)
    assert cost_to_reach(0.3, costs, scores) == 50
    assert cost_to_reach(0.8, costs, scores) == 2000
    # A curve that falls again has reached the score before.
    assert cost_to_reach(0.6, [50, 100, 200], [0.4, 0.8, 0.5]) == pytest.approx(75)
    with pytest.raises(ValueError, match=r"^scores: "):
        cost_to_reach(0.5, [1, 2], [0.1])
