"""Identities of DATE on small analytic models, in double precision."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from smooth_system import ALPHA, EMBEDDING, LATENTS, UNCOND, B, C, D, H, L, denoise, draw, evaluate
from torch import nn

from papers.date.text_embedding_guidance import (
    adapt_text_embedding,
    data_space_guidance,
    normalized_ascent_step,
    predict_clean_latents,
    update_step_indices,
)


def adapt(embedding=EMBEDDING, *, network=denoise, reward=evaluate, rows=slice(None), **options):
    options = {
        "uncond_output": UNCOND[rows],
        "guidance_scale": 3.0,
        "alpha_cumprod": ALPHA,
        "step_size": 0.1,
        **options,
    }
    return adapt_text_embedding(network, reward, LATENTS[rows], embedding[rows], **options)


def lengths(difference):
    return difference.flatten(1).norm(dim=1)


def value(embedding, prediction_type="epsilon"):
    output = UNCOND + 3.0 * (denoise(LATENTS, embedding) - UNCOND)
    return evaluate(predict_clean_latents(LATENTS, output, ALPHA, prediction_type))


# The clean prediction


@given(st.floats(1e-3, 1.0))
def test_the_clean_prediction_inverts_adding_noise(alpha):
    clean, noise = draw(B, C, H, H, seed=5), draw(B, C, H, H, seed=6)
    noisy = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
    velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean
    for kind, output in (("epsilon", noise), ("v_prediction", velocity), ("sample", clean)):
        found = predict_clean_latents(noisy, output, alpha, kind)
        assert torch.allclose(found, clean, rtol=0, atol=1e-12 / alpha**0.5)
    per_sample = predict_clean_latents(noisy, noise, torch.full((B,), alpha), "epsilon")
    assert torch.allclose(per_sample, clean, rtol=1e-6, atol=1e-5)  # ᾱ itself is rounded to single precision


@pytest.mark.parametrize(
    ("output", "alpha", "kind", "name"),
    [
        (LATENTS[:, :1], 0.5, "epsilon", "model_output"),
        (LATENTS, 0.5, "score", "prediction_type"),
        (LATENTS, 0.0, "epsilon", "alpha_cumprod"),
        (LATENTS, 1.1, "sample", "alpha_cumprod"),
        (LATENTS, float("nan"), "sample", "alpha_cumprod"),
        (LATENTS, torch.full((2,), 0.5), "sample", "alpha_cumprod"),
    ],
)
def test_impossible_clean_predictions_are_refused(output, alpha, kind, name):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        predict_clean_latents(LATENTS, output, alpha, kind)


# The step


@given(st.floats(0, 10), st.floats(-30, 30), st.integers(0, 1000))
def test_a_step_has_its_length_and_ignores_the_gradients(step_size, exponent, seed):
    gradient = draw(B, L, D, seed=seed)
    moved = normalized_ascent_step(EMBEDDING, gradient * 10.0**exponent, step_size)
    assert torch.allclose(moved, EMBEDDING + step_size * gradient / lengths(gradient).view(-1, 1, 1), rtol=1e-9)


def test_a_zero_gradient_moves_nothing():
    gradient = draw(B, L, D)
    gradient[1] = 0
    moved = normalized_ascent_step(EMBEDDING, gradient, 1.0)
    assert torch.equal(moved[1], EMBEDDING[1])
    assert torch.allclose(lengths(moved - EMBEDDING), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))


def test_tiny_half_precision_gradients_keep_their_direction():
    gradient = torch.full((1, 4), 6e-8, dtype=torch.float16)
    moved = normalized_ascent_step(torch.zeros(1, 4, dtype=torch.float16), gradient, 1.0)
    assert moved.dtype == torch.float16 and torch.allclose(moved, torch.full_like(moved, 0.5))


@pytest.mark.parametrize(
    ("gradient", "step", "error"),
    [
        (EMBEDDING[:, :1], 1.0, ValueError),
        (EMBEDDING, -1.0, ValueError),
        (EMBEDDING, float("inf"), ValueError),
        (EMBEDDING / 0, 1.0, FloatingPointError),
    ],
)
def test_impossible_steps_are_refused(gradient, step, error):
    with pytest.raises(error, match=r"^(gradient|step_size): "):
        normalized_ascent_step(EMBEDDING, gradient, step)
    with pytest.raises(ValueError, match=r"^gradient: "):
        normalized_ascent_step(EMBEDDING[0, 0], EMBEDDING[0, 0], 1.0)


# Which steps


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({"every": 10}, (0, 10, 20, 30, 40)),
        ({"every": 60}, (0,)),
        ({"window": (47, 50)}, (47, 48, 49)),
        ({"window": (3, 3)}, ()),
        ({"indices": [9, 4, 4]}, (4, 9)),
        ({"indices": []}, ()),
    ],
)
def test_steps_are_selected(selector, expected):
    assert update_step_indices(50, **selector) == expected


@pytest.mark.parametrize(
    "selector",
    [
        {},
        {"every": 5, "indices": [1]},
        {"every": 0},
        {"window": (0, 51)},
        {"window": (5, 3)},
        {"indices": [50]},
        {"indices": [-1]},
    ],
)
def test_impossible_selections_are_refused(selector):
    with pytest.raises(ValueError, match=r"^(every|window|indices)"):
        update_step_indices(50, **selector)
    with pytest.raises(ValueError, match=r"^num_inference_steps: "):
        update_step_indices(0, every=1)


# The update


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_update_follows_the_gradient(prediction_type):
    leaf = EMBEDDING.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf, prediction_type).sum(), leaf)
    for index in (0, 7, 20):  # against central differences
        step = torch.zeros(B, L * D, dtype=torch.float64)
        step[:, index] = 1e-6
        step = step.view(B, L, D)
        slope = (value(EMBEDDING + step, prediction_type) - value(EMBEDDING - step, prediction_type)) / 2e-6
        assert torch.allclose(gradient.flatten(1)[:, index], slope, rtol=1e-5, atol=1e-8)
    found, scores = adapt(prediction_type=prediction_type)
    expected = EMBEDDING + 0.1 * gradient / lengths(gradient).view(-1, 1, 1)
    assert torch.allclose(found, expected, rtol=1e-9)
    assert torch.allclose(scores, value(EMBEDDING, prediction_type))
    plain, _ = adapt(prediction_type=prediction_type, normalize=False)
    assert torch.allclose(plain, EMBEDDING + 0.1 * gradient, rtol=1e-9)


def test_the_reward_rises_as_first_order_says():
    leaf = EMBEDDING.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf).sum(), leaf)
    found, before = adapt(step_size=1e-3)
    assert torch.allclose((value(found) - before) / 1e-3, lengths(gradient), rtol=0.02)
    lower, _ = adapt(step_size=1e-3, reward=lambda decoded: -evaluate(decoded))
    assert torch.allclose(lower - EMBEDDING, EMBEDDING - found, atol=1e-12)


def test_rescaling_the_reward_by_sample_changes_nothing():
    factors = torch.tensor([1e-3, 1.0, 1e4], dtype=torch.float64)
    assert torch.allclose(adapt()[0], adapt(reward=lambda decoded: factors * evaluate(decoded))[0], rtol=1e-9)


def test_samples_do_not_interact():
    together, scores = adapt()
    for index in range(B):
        alone, score = adapt(rows=slice(index, index + 1))
        assert torch.allclose(alone[0], together[index], rtol=1e-10)
        assert torch.allclose(score[0], scores[index], rtol=1e-10)
    levels = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    mixed, _ = adapt(alpha_cumprod=levels)
    for index, level in enumerate(levels.tolist()):
        assert torch.allclose(adapt(rows=slice(index, index + 1), alpha_cumprod=level)[0][0], mixed[index])


def test_steps_start_where_they_should():
    anchor = EMBEDDING + 1
    found, _ = adapt(start="anchor", anchor_embedding=anchor, num_updates=3)
    assert torch.allclose(lengths(found - anchor), torch.full((B,), 0.1, dtype=torch.float64), rtol=1e-9)
    one, _ = adapt(start="anchor", anchor_embedding=anchor)
    assert torch.allclose(one - anchor, adapt()[0] - EMBEDDING, atol=1e-12)  # the gradient at the current embedding
    many, _ = adapt(num_updates=3)
    assert (lengths(many - EMBEDDING) <= 0.3 + 1e-9).all() and lengths(many - EMBEDDING).max() > 0.29
    by_hand = EMBEDDING
    for _ in range(3):
        by_hand, _ = adapt(by_hand)
    assert torch.allclose(many, by_hand, rtol=1e-12)


def test_the_score_is_that_of_the_incoming_embedding():
    assert torch.equal(adapt(num_updates=3)[1], adapt()[1])


def test_the_prior_pulls_back_but_not_from_home():
    assert torch.equal(adapt(anchor_embedding=EMBEDDING, prior_weight=9.0)[0], adapt()[0])
    anchor = EMBEDDING + draw(B, L, D, seed=8)
    strong, _ = adapt(anchor_embedding=anchor, prior_weight=1e9, step_size=0.5)
    toward = (anchor - EMBEDDING) / lengths(anchor - EMBEDDING).view(-1, 1, 1)
    assert torch.allclose(strong - EMBEDDING, 0.5 * toward, atol=1e-6)
    leaf = EMBEDDING.clone().requires_grad_()
    objective = value(leaf) - 2.0 * ((anchor - leaf) ** 2).mean(dim=(1, 2))
    (gradient,) = torch.autograd.grad(objective.sum(), leaf)
    found, _ = adapt(anchor_embedding=anchor, prior_weight=2.0)
    assert torch.allclose(found, EMBEDDING + 0.1 * gradient / lengths(gradient).view(-1, 1, 1), rtol=1e-9)


def test_no_step_is_no_change():
    assert torch.equal(adapt(step_size=0.0)[0], EMBEDDING)


def test_the_network_is_evaluated_once_per_update_and_keeps_no_gradients():
    network = nn.Linear(L * D, C * H * H).double()
    calls = []

    def counted(latents, embedding):
        calls.append(embedding.requires_grad)
        return latents + network(embedding.flatten(1)).view_as(latents)

    with torch.no_grad():
        found, scores = adapt(network=counted, num_updates=3)
    assert calls == [True] * 3
    assert not found.requires_grad and not scores.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


def test_it_differentiates_through_the_decoder():
    calls = []

    def decode(latents):
        calls.append(latents.shape)
        return 2 * latents

    doubled, scores = adapt(decode=decode)
    assert calls == [LATENTS.shape]
    expected, other = adapt(reward=lambda decoded: evaluate(2 * decoded))
    assert torch.equal(doubled, expected) and torch.equal(scores, other)


@given(st.floats(0.01, 1.0), st.floats(0, 10))
def test_closed_form_of_the_linear_gaussian_model(alpha, scale):
    """x0 | c ~ N(A c, I): the noisy latents have unit variance, and the score is -(x - √ᾱ A c)."""
    matrix, direction = draw(C * H * H, L * D, seed=9), draw(C * H * H, seed=10)

    def score(embedding):
        return (alpha**0.5 * embedding.flatten(1) @ matrix.T).view_as(LATENTS) - LATENTS

    found, _ = adapt(
        network=lambda latents, embedding: -((1 - alpha) ** 0.5) * score(embedding),
        reward=lambda decoded: decoded.flatten(1) @ direction,
        alpha_cumprod=alpha,
        guidance_scale=scale + 0.1,
        step_size=0.7,
    )
    if alpha == 1.0:  # without noise the prediction is the sample itself: the embedding has no say
        assert torch.equal(found, EMBEDDING)
        return
    step = (found - EMBEDDING).flatten(1)
    unit = direction @ matrix / (direction @ matrix).norm()
    assert torch.allclose(step, 0.7 * unit.expand_as(step), rtol=1e-9, atol=1e-12)
    change = (score(found) - score(EMBEDDING)).flatten(1)
    assert torch.allclose(change, 0.7 * alpha**0.5 * (matrix @ unit).expand_as(change), atol=1e-9)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"start": "origin"}, "start"),
        ({"start": "anchor"}, "anchor_embedding"),
        ({"prior_weight": 1.0}, "anchor_embedding"),
        ({"start": "anchor", "anchor_embedding": EMBEDDING[:1]}, "anchor_embedding"),
        ({"prior_weight": -1.0, "anchor_embedding": EMBEDDING}, "prior_weight"),
        ({"num_updates": 0}, "num_updates"),
        ({"step_size": -0.1}, "step_size"),
        ({"reward": lambda decoded: decoded.mean()}, "score"),
        ({"reward": lambda decoded: decoded.detach().flatten(1).sum(1)}, "score"),
        ({"uncond_output": UNCOND[:1]}, "uncond_output"),
        ({"prediction_type": "score"}, "prediction_type"),
        ({"alpha_cumprod": 0.0}, "alpha_cumprod"),
    ],
)
def test_impossible_updates_are_refused(options, name):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        adapt(**options)


def test_a_reward_that_ignores_the_image_is_refused_with_a_prior_too():
    weight = torch.ones(B, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"^score: .* no gradient"):
        adapt(reward=lambda decoded: 2 * weight, anchor_embedding=EMBEDDING, prior_weight=1.0)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_gradient_that_is_not_finite_is_an_error(normalize):
    def reward(decoded):
        return (decoded.flatten(1).sum(1) * 0).sqrt()

    with pytest.raises(FloatingPointError, match=r"^gradient: not finite in 3 of 3"):
        adapt(reward=reward, normalize=normalize)


# Universal Guidance


def predict_noise(latents):
    return torch.tanh(2 * latents)


def test_universal_guidance_against_central_differences():
    noise, scores = data_space_guidance(predict_noise, evaluate, LATENTS, alpha_cumprod=ALPHA, scale=2.0)

    def at(latents):
        return evaluate(predict_clean_latents(latents, predict_noise(latents), ALPHA, "epsilon"))

    assert torch.allclose(scores, at(LATENTS))
    step = torch.zeros_like(LATENTS)
    step[:, 1, 2, 3] = 1e-6
    slope = (at(LATENTS + step) - at(LATENTS - step)) / 2e-6
    expected = predict_noise(LATENTS)[:, 1, 2, 3] - 2.0 * (1 - ALPHA) ** 0.5 * slope
    assert torch.allclose(noise[:, 1, 2, 3], expected, atol=1e-6)
    assert not noise.requires_grad


def test_universal_guidance_of_scale_zero_is_the_plain_prediction():
    noise, _ = data_space_guidance(predict_noise, evaluate, LATENTS, alpha_cumprod=ALPHA, scale=0.0)
    assert torch.equal(noise, predict_noise(LATENTS))


@pytest.mark.parametrize(("scale", "alpha", "name"), [(float("nan"), 0.5, "scale"), (1.0, 0.0, "alpha_cumprod")])
def test_impossible_universal_guidance_is_refused(scale, alpha, name):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        data_space_guidance(predict_noise, evaluate, LATENTS, alpha_cumprod=alpha, scale=scale)
