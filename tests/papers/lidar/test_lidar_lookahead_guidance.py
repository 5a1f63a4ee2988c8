"""The identities of lookahead guidance, in float64."""

import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from papers.lidar.lookahead_guidance import (
    expected_future_reward,
    guide_model_output,
    lookahead_score,
    lookahead_weights,
)

B, N, SHAPE = 3, 7, (2, 4, 4)
TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}
TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


X, AHEAD, REWARDS = drawn(B, *SHAPE), drawn(N, *SHAPE, seed=1), drawn(N, seed=2)
LEVELS = (0.6, 0.8, 1.7)
GIVEN = (X, AHEAD, REWARDS, *LEVELS)


def naive(x_t, lookahead, rewards, alpha, sigma, weight):
    """The formulas as they stand: weights (tilted, base), r̂, g."""
    logits = -(x_t[:, None] - alpha * lookahead).flatten(2).square().sum(-1) / (2 * sigma**2)
    tilted, base = (weight * rewards + logits).softmax(-1), logits.softmax(-1)
    efr = (base * (weight * rewards).exp()).sum(-1).log()
    score = alpha / sigma**2 * torch.einsum("bn,n...->b...", tilted - base, lookahead)
    return tilted, base, efr, score


def close(found, expected, **tolerance):
    torch.testing.assert_close(found, expected, **(TOLERANCE | tolerance))


@given(st.floats(0.0, 1.0), st.floats(0.05, 5.0), st.floats(-20, 20), st.integers(1, 9), st.integers(0, 99))
def test_it_is_the_definition(alpha, sigma, weight, count, seed):
    x_t, lookahead, rewards = drawn(2, 3, 2, seed=seed), drawn(count, 3, 2, seed=seed + 1), drawn(count, seed=seed + 2)
    given_ = (x_t, lookahead, rewards, alpha, sigma, weight)
    tilted, base, efr, score = naive(*given_)
    found = lookahead_weights(*given_)
    close(found[0], tilted, rtol=1e-8, atol=1e-10)
    close(found[1], base, rtol=1e-8, atol=1e-10)
    close(expected_future_reward(*given_), efr, rtol=1e-8, atol=1e-9)
    close(lookahead_score(*given_), score, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("weight", [0.0, 1.0, 1e6, -1e6])
def test_weights_are_distributions(weight):
    for weights in lookahead_weights(X, AHEAD, REWARDS, *LEVELS[:2], weight):
        assert weights.shape == (B, N) and torch.isfinite(weights).all() and (weights >= 0).all()
        close(weights.sum(dim=1), torch.ones(B, dtype=torch.float64))
    assert torch.isfinite(lookahead_score(X, AHEAD, REWARDS, *LEVELS[:2], weight)).all()


def test_the_score_is_the_gradient_of_the_reward():
    leaf = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(expected_future_reward(leaf, AHEAD, REWARDS, *LEVELS).sum(), leaf)
    close(lookahead_score(*GIVEN), gradient, rtol=1e-8)


def test_there_is_no_guidance_without_a_preference():
    equal = torch.full((N,), 0.7, dtype=torch.float64)
    for given_ in (
        (X, AHEAD[:1], REWARDS[:1], *LEVELS),
        (X, AHEAD, REWARDS, 0.6, 0.8, 0.0),
        (X, AHEAD, equal, *LEVELS),
    ):
        assert lookahead_score(*given_).abs().max() < 1e-14
    close(expected_future_reward(X, AHEAD, equal, *LEVELS), torch.full((B,), 0.7 * 1.7, dtype=torch.float64))


def test_the_future_reward_lies_between_the_rewards():
    found = expected_future_reward(*GIVEN)
    assert (found >= 1.7 * REWARDS.min()).all() and (found <= 1.7 * REWARDS.max()).all()


def test_a_constant_reward_adds_itself_and_nothing_else():
    moved = (X, AHEAD, REWARDS + 3.0, *LEVELS)
    close(lookahead_score(*moved), lookahead_score(*GIVEN))
    for found, expected in zip(lookahead_weights(*moved), lookahead_weights(*GIVEN), strict=True):
        close(found, expected)
    close(expected_future_reward(*moved), expected_future_reward(*GIVEN) + 1.7 * 3.0)


def test_order_and_copies_of_the_set_do_not_matter():
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    for chosen in (order, torch.arange(N).repeat(2)):
        given_ = (X, AHEAD[chosen], REWARDS[chosen], *LEVELS)
        close(lookahead_score(*given_), lookahead_score(*GIVEN))
        close(expected_future_reward(*given_), expected_future_reward(*GIVEN))
    assert not torch.allclose(lookahead_score(X, AHEAD, REWARDS[order], *LEVELS), lookahead_score(*GIVEN))


def test_pure_noise_knows_nothing_of_the_samples():
    given_ = (X, AHEAD, REWARDS, 0.0, 1.0, 1.7)
    close(lookahead_weights(*given_)[1], torch.full((B, N), 1 / N, dtype=torch.float64))
    assert not lookahead_score(*given_).any()
    expected = ((1.7 * REWARDS).logsumexp(0) - math.log(N)).expand(B)
    close(expected_future_reward(*given_), expected)


def test_much_noise_leaves_the_tilted_mean():
    sigma = 1e7
    score = lookahead_score(X, AHEAD, REWARDS, 0.6, sigma, 1.7)
    expected = torch.einsum("n,n...->...", (1.7 * REWARDS).softmax(0), AHEAD) - AHEAD.mean(0)
    close(sigma**2 / 0.6 * score, expected.expand(B, *SHAPE), rtol=1e-6, atol=1e-8)


def test_a_model_that_is_the_lookahead_set_is_tilted_exactly():
    tilted, base = lookahead_weights(*GIVEN)
    clean = torch.einsum("bn,n...->b...", base, AHEAD)
    guided = guide_model_output(clean, lookahead_score(*GIVEN), *LEVELS[:2], 1.0, "sample")
    close(guided, torch.einsum("bn,n...->b...", tilted, AHEAD))


def clean_of(output, alpha, sigma, kind):
    if kind == "epsilon":
        return (X - sigma * output) / alpha
    if kind == "v_prediction":
        return (alpha * X - sigma * output) / (alpha**2 + sigma**2)
    if kind == "flow_prediction":
        return (X - sigma * output) / (alpha + sigma)
    return output


def output_of(clean, alpha, sigma, kind):
    noise = (X - alpha * clean) / sigma
    return {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": alpha * noise - sigma * clean,
        "flow_prediction": noise - clean,
    }[kind]


@pytest.mark.parametrize(("alpha", "sigma"), [(0.6, 0.8), (1.0, 3.0), (0.7, 0.3)])
@pytest.mark.parametrize("kind", TYPES)
def test_parametrisations_agree(kind, alpha, sigma):
    clean, score = drawn(B, *SHAPE, seed=5), drawn(B, *SHAPE, seed=6)
    guided = guide_model_output(output_of(clean, alpha, sigma, kind), score, alpha, sigma, 2.5, kind)
    close(clean_of(guided, alpha, sigma, kind), clean + 2.5 * sigma**2 / alpha * score, rtol=1e-9)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_no_scale_is_no_change(kind, dtype):
    output = drawn(B, *SHAPE, seed=5, dtype=dtype)
    assert torch.equal(guide_model_output(output, torch.ones_like(output), 0.6, 0.8, 0.0, kind), output)


def test_noise_alone_can_be_guided_in_epsilon():
    output = drawn(B, *SHAPE, seed=5)
    close(guide_model_output(output, output, 0.0, 1.0, 1.0, "epsilon"), torch.zeros_like(output))
    for kind in TYPES[1:]:
        with pytest.raises(ValueError, match=r"^alpha_t: "):
            guide_model_output(output, output, 0.0, 1.0, 1.0, kind)


def test_the_error_on_a_gaussian_falls_with_the_root_of_the_samples():
    """Prior N(0, 1), r = x0: g -> λ α / (α² + σ²)."""
    alpha, sigma, weight, sizes = 0.8, 0.6, 0.7, (64, 256, 1024, 4096)
    exact, errors = weight * alpha / (alpha**2 + sigma**2), []
    for size in sizes:
        sets, points = drawn(200, size, 1, seed=size), drawn(200, 1, seed=size + 1)
        score = lookahead_score(points, sets, sets[..., 0], alpha, sigma, weight)
        errors.append(float((score - exact).square().mean().sqrt()))
    slope = (math.log(errors[-1]) - math.log(errors[0])) / (math.log(sizes[-1]) - math.log(sizes[0]))
    assert errors[-1] < 0.05 and slope == pytest.approx(-0.5, abs=0.1)


def test_rotations_turn_the_score():
    turn = torch.linalg.qr(drawn(32, 32, seed=8)).Q
    x_t, lookahead = X.flatten(1), AHEAD.flatten(1)
    found = lookahead_score(x_t @ turn.T, lookahead @ turn.T, REWARDS, *LEVELS)
    close(found, lookahead_score(x_t, lookahead, REWARDS, *LEVELS) @ turn.T)


def test_batches_are_loops():
    alphas, sigmas = torch.tensor([0.2, 0.6, 1.0]).double(), torch.tensor([0.9, 0.8, 0.1]).double()
    for function in (lookahead_score, expected_future_reward):
        together = function(X, AHEAD, REWARDS, alphas, sigmas, 1.7)
        alone = [function(X[i : i + 1], AHEAD, REWARDS, float(alphas[i]), float(sigmas[i]), 1.7) for i in range(B)]
        close(together, torch.cat(alone))
        repeated = (AHEAD.expand(B, *AHEAD.shape), REWARDS.expand(B, N))
        close(function(X, *repeated, alphas, sigmas, 1.7), together)


def test_every_image_may_have_a_set_of_its_own():
    sets, rewards = drawn(B, N, *SHAPE, seed=3), drawn(B, N, seed=4)
    together = lookahead_score(X, sets, rewards, *LEVELS)
    close(together, torch.cat([lookahead_score(X[i : i + 1], sets[i], rewards[i], *LEVELS) for i in range(B)]))


def test_half_precision_is_computed_in_single():
    half = [each.half() for each in (X, AHEAD, REWARDS)]
    found = lookahead_score(*half, *LEVELS)
    expected = lookahead_score(*(each.float() for each in half), *LEVELS)
    assert found.dtype == torch.float16 and torch.equal(found, expected.half())
    output = guide_model_output(half[0], found, 0.6, 0.8, 2.0, "epsilon")
    assert output.dtype == torch.float16
    assert torch.equal(output, (half[0].float() - 2.0 * torch.tensor(0.8) * found.float()).half())


def test_matrix_products_are_fast_and_never_hold_all_differences():
    """Much faster than the formulas with their (B, n, d) differences, which it never makes; timing here is rough."""
    x_t, lookahead, rewards = (drawn(*shape, dtype=torch.float32) for shape in ((4, 4096), (200, 4096), (200,)))

    def seconds(function):
        times = []
        for _ in range(5):
            started = time.perf_counter()
            function(x_t, lookahead, rewards, *LEVELS)
            times.append(time.perf_counter() - started)
        return min(times)

    assert seconds(lambda *given_: naive(*given_)[3]) > 2 * seconds(lookahead_score)
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal largest
            found = function(*arguments, **(keywords or {}))
            if isinstance(found, torch.Tensor):
                largest = max(largest, found.numel())
            return found

    with Sizes():
        lookahead_score(x_t, lookahead, rewards, *LEVELS)
    assert largest <= lookahead.numel()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({1: AHEAD[:0], 2: REWARDS[:0]}, "lookahead"),
        ({1: AHEAD[:, :1]}, "lookahead"),
        ({1: drawn(B + 1, N, *SHAPE)}, "lookahead"),
        ({2: REWARDS[:3]}, "rewards"),
        ({2: REWARDS / 0}, "rewards"),
        ({3: -0.1}, "alpha_t"),
        ({3: torch.ones(2)}, "alpha_t"),
        ({4: 0.0}, "sigma_t"),
        ({4: -1.0}, "sigma_t"),
        ({5: float("nan")}, "reward_weight"),
    ],
)
def test_impossible_requests_are_refused(changes, name):
    given_ = [changes.get(place, value) for place, value in enumerate(GIVEN)]
    for function in (lookahead_score, expected_future_reward, lookahead_weights):
        with pytest.raises(ValueError, match=rf"^{name}: "):
            function(*given_)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({1: X[:1]}, "score"),
        ({5: "velocity"}, "prediction_type"),
        ({3: 0.0}, "sigma_t"),
        ({4: float("inf")}, "scale"),
    ],
)
def test_impossible_guidance_is_refused(changes, name):
    given_ = [changes.get(place, value) for place, value in enumerate((X, X, 0.6, 0.8, 1.0, "epsilon"))]
    with pytest.raises(ValueError, match=rf"^{name}: "):
        guide_model_output(*given_)
