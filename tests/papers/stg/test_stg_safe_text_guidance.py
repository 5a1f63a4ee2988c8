"""Identities of STG and of the defences beside it, in double precision."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from smooth_system import ALPHA, EMBEDDING, LATENTS, UNCOND, B, C, D, H, L, denoise, draw, evaluate

from papers.stg.safe_text_guidance import (
    centered_update_window,
    guide_text_embedding,
    predict_clean_latents,
    safe_data_guidance,
    safe_latent_diffusion_guidance,
    safree_token_projection,
    unsafe_confidence,
)


def scoring(*flags):
    return lambda decoded: (evaluate(decoded), torch.tensor(flags))


def guide(embedding=EMBEDDING, *, flags=(True, False, True), network=denoise, score=None, **options):
    options = {"uncond_output": UNCOND, "guidance_scale": 3.0, "alpha_cumprod": ALPHA, "step_size": 0.1, **options}
    return guide_text_embedding(network, score or scoring(*flags), LATENTS, embedding, **options)


def value(embedding):
    output = UNCOND + 3.0 * (denoise(LATENTS, embedding) - UNCOND)
    return evaluate(predict_clean_latents(LATENTS, output, ALPHA, "epsilon"))


def lengths(difference):
    return difference.flatten(1).norm(dim=1)


# What a detector says


def test_unsafe_boxes_are_added_up():
    confidence = torch.tensor([[0.9, 0.3, 0.8, 0.05], [0.2, 0.1, 0.7, 0.0]], requires_grad=True)
    classes = torch.tensor([[3, 6, 1, 3], [1, 3, -1, -1]])
    values, flags = unsafe_confidence(confidence, classes, [3, 6], 0.1)
    assert values.tolist() == pytest.approx([1.2, 0.0]) and flags.tolist() == [True, False]
    (gradient,) = torch.autograd.grad(values.sum(), confidence)
    assert gradient.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert unsafe_confidence(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.int64), [3], 0.1)[1].tolist() == [
        False,
        False,
    ]


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_higher_threshold_never_counts_more(a, b):
    confidence, classes = draw(4, 8).sigmoid(), torch.arange(8).expand(4, 8) % 3
    (low, low_flags), (high, high_flags) = (
        unsafe_confidence(confidence, classes, [0, 2], threshold) for threshold in sorted((a, b))
    )
    assert (high <= low).all() and (high_flags <= low_flags).all()


@pytest.mark.parametrize(
    ("shape", "classes", "threshold", "name"),
    [
        ((2, 3), [1], 0.5, "class_id"),
        ((2, 4), [1], 1.5, "threshold"),
        ((2, 4), [1], float("nan"), "threshold"),
        ((2, 4), [-1], 0.5, "unsafe_classes"),
        ((2, 4), [], 0.5, "unsafe_classes"),
    ],
)
def test_impossible_detections_are_refused(shape, classes, threshold, name):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        unsafe_confidence(torch.zeros(2, 4), torch.zeros(shape, dtype=torch.int64), classes, threshold)
    with pytest.raises(ValueError, match=r"^class_id: "):
        unsafe_confidence(torch.zeros(4), torch.zeros(4, dtype=torch.int64), [1], 0.5)


# Which steps


@pytest.mark.parametrize(
    ("steps", "fraction", "expected"),
    [(50, 0.8, range(5, 45)), (50, 0.2, range(20, 30)), (20, 0.8, range(2, 18)), (7, 1, range(7)), (7, 0, range(3, 3))],
)
def test_the_window_is_in_the_middle(steps, fraction, expected):
    assert list(centered_update_window(steps, fraction)) == list(expected)


@given(st.integers(1, 100), st.floats(0, 1))
def test_the_window_is_centred_within_a_step(steps, fraction):
    window = centered_update_window(steps, fraction)
    assert len(window) == round(fraction * steps)
    before, after = window.start, steps - window.stop
    assert before >= 0 and 0 <= after - before <= 1


@pytest.mark.parametrize(("steps", "fraction"), [(0, 0.5), (5, 1.1), (5, -0.1), (5, float("nan"))])
def test_impossible_windows_are_refused(steps, fraction):
    with pytest.raises(ValueError, match=r"^(num_inference_steps|fraction): "):
        centered_update_window(steps, fraction)


# The update


def test_flagged_samples_move_against_the_gradient_and_others_stay():
    leaf = EMBEDDING.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf).sum(), leaf)
    found, flags, values = guide()
    expected = EMBEDDING - 0.1 * gradient / lengths(gradient).view(-1, 1, 1)
    assert torch.allclose(found[[0, 2]], expected[[0, 2]], rtol=1e-9) and torch.equal(found[1], EMBEDDING[1])
    assert flags.tolist() == [True, False, True] and torch.allclose(values, value(EMBEDDING))
    assert torch.allclose(lengths(found - EMBEDDING)[[0, 2]], torch.tensor(0.1, dtype=torch.float64), rtol=1e-9)
    closer, _, _ = guide(step_size=1e-3)
    assert (value(closer) < values)[[0, 2]].all()


def test_an_unflagged_batch_costs_no_backward_pass():
    class NoBackward(torch.autograd.Function):
        @staticmethod
        def forward(context, values):
            return values.clone()

        @staticmethod
        def backward(context, gradient):
            raise AssertionError("backward")

    def score(flag):
        return lambda decoded: (NoBackward.apply(evaluate(decoded)), torch.full((B,), flag))

    found, flags, _ = guide(score=score(False))
    assert torch.equal(found, EMBEDDING) and not flags.any()
    with pytest.raises(AssertionError, match="backward"):
        guide(score=score(True))


def test_a_flagged_sample_moves_as_if_it_were_alone():
    together, _, _ = guide(flags=(True, True, True))
    for flags in ((True, False, False), (True, False, True)):
        assert torch.allclose(guide(flags=flags)[0][0], together[0], rtol=1e-12)


def test_a_saturated_score_moves_nothing():
    def score(decoded):
        return decoded.flatten(1).sum(1).clamp(0, 0), torch.tensor([True] * B)

    assert torch.equal(guide(score=score)[0], EMBEDDING)
    anchored, _, _ = guide(score=score, start="anchor", anchor_embedding=EMBEDDING + 1)
    assert torch.equal(anchored, EMBEDDING)


def test_steps_start_where_they_should():
    anchor = EMBEDDING + 1
    found, _, _ = guide(start="anchor", anchor_embedding=anchor)
    plain, _, _ = guide()
    assert torch.allclose((found - anchor)[[0, 2]], (plain - EMBEDDING)[[0, 2]], atol=1e-12)
    assert torch.equal(found[1], EMBEDDING[1])


def test_the_prior_pulls_flagged_samples_back():
    anchor = EMBEDDING + draw(B, L, D, seed=8)
    leaf = EMBEDDING.clone().requires_grad_()
    objective = value(leaf) + 2.0 * ((anchor - leaf) ** 2).mean(dim=(1, 2))
    (gradient,) = torch.autograd.grad(objective.sum(), leaf)
    found, _, _ = guide(anchor_embedding=anchor, prior_weight=2.0)
    expected = EMBEDDING - 0.1 * gradient / lengths(gradient).view(-1, 1, 1)
    assert torch.allclose(found[[0, 2]], expected[[0, 2]], rtol=1e-9) and torch.equal(found[1], EMBEDDING[1])


def test_it_works_without_gradients_around_it():
    calls = []

    def counted(latents, embedding):
        calls.append(1)
        return denoise(latents, embedding)

    with torch.no_grad():
        found, _, values = guide(network=counted)
    assert len(calls) == 1 and not found.requires_grad and not values.requires_grad


@given(st.floats(0.01, 0.99), st.floats(0.1, 3))
def test_theorem_1_is_exact_in_the_linear_gaussian_model(alpha, step_size):
    """x0 | c ~ N(A c, I): s(x, c + ρv) - s(x, c) = ρ √ᾱ A v, here with v = -Aᵀu/‖Aᵀu‖."""
    matrix, unsafe = draw(C * H * H, L * D, seed=9), draw(C * H * H, seed=10)

    def score(embedding):
        return (alpha**0.5 * embedding.flatten(1) @ matrix.T).view_as(LATENTS) - LATENTS

    found, _, _ = guide(
        network=lambda latents, embedding: -((1 - alpha) ** 0.5) * score(embedding),
        score=lambda decoded: (decoded.flatten(1) @ unsafe, torch.tensor([True] * B)),
        alpha_cumprod=alpha,
        step_size=step_size,
    )
    unit = -(unsafe @ matrix) / (unsafe @ matrix).norm()
    change = (score(found) - score(EMBEDDING)).flatten(1)
    assert torch.allclose(change, step_size * alpha**0.5 * (matrix @ unit).expand_as(change), atol=1e-9)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"start": "origin"}, "start"),
        ({"start": "anchor"}, "anchor_embedding"),
        ({"prior_weight": 1.0}, "anchor_embedding"),
        ({"step_size": float("nan")}, "step_size"),
        ({"flags": (True, False)}, "score"),
        ({"score": lambda decoded: (evaluate(decoded), torch.ones(B))}, "score"),
        ({"score": lambda decoded: (evaluate(decoded.detach()), torch.tensor([True] * B))}, "score"),
        ({"uncond_output": UNCOND[:1]}, "uncond_output"),
        ({"embedding": EMBEDDING[:1]}, "text_embedding"),
    ],
)
def test_impossible_updates_are_refused(options, name):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        guide(**options)


def test_only_flagged_gradients_have_to_be_finite():
    def score(flags):
        def scored(decoded):
            sums = decoded.flatten(1).sum(1)
            return torch.stack([sums[0], (sums[1] * 0).sqrt(), sums[2]]), torch.tensor(flags)

        return scored

    guide(score=score([True, False, False]))
    with pytest.raises(FloatingPointError, match=r"^gradient: "):
        guide(score=score([False, True, False]))


# Safe data guidance


def predict_noise(latents):
    return torch.tanh(2 * latents)


def test_data_guidance_pushes_flagged_samples_to_safety():
    noise, flags, values = safe_data_guidance(
        predict_noise, scoring(True, False, True), LATENTS, alpha_cumprod=ALPHA, scale=2.0
    )

    def at(latents):
        return evaluate(predict_clean_latents(latents, predict_noise(latents), ALPHA, "epsilon"))

    step = torch.zeros_like(LATENTS)
    step[:, 1, 2, 3] = 1e-6
    slope = (at(LATENTS + step) - at(LATENTS - step)) / 2e-6
    added = noise - predict_noise(LATENTS)
    assert torch.allclose(added[[0, 2], 1, 2, 3], 2.0 * (1 - ALPHA) ** 0.5 * slope[[0, 2]], atol=1e-6)
    assert torch.equal(noise[1], predict_noise(LATENTS)[1])
    assert flags.tolist() == [True, False, True] and torch.allclose(values, at(LATENTS))


def test_data_guidance_of_scale_zero_or_without_flags_is_plain():
    for flags, scale in (((True,) * B, 0.0), ((False,) * B, 5.0)):
        noise, _, _ = safe_data_guidance(predict_noise, scoring(*flags), LATENTS, alpha_cumprod=ALPHA, scale=scale)
        assert torch.equal(noise, predict_noise(LATENTS))


# Safe latent diffusion

TEXT, CONCEPT = draw(B, C, H, H, seed=11), draw(B, C, H, H, seed=12)
MEDIUM = {"guidance_scale": 7.5, "safety_scale": 1000.0, "threshold": 0.01, "momentum_scale": 0.3, "momentum_beta": 0.4}


def sld(momentum=None, *, step=20, warmup_steps=10, **options):
    return safe_latent_diffusion_guidance(
        UNCOND, TEXT, CONCEPT, momentum, step=step, warmup_steps=warmup_steps, **{**MEDIUM, **options}
    )


PLAIN = UNCOND + 7.5 * (TEXT - UNCOND)


def test_safe_latent_diffusion_entry_by_entry():
    momentum = draw(B, C, H, H, seed=13)
    noise, after = sld(momentum, safety_scale=0.7, threshold=0.2)
    for place in [(0, 0, 0, 0), (1, 1, 2, 3), (2, 0, 3, 1), (0, 1, 1, 1), (2, 1, 0, 2)]:
        u, c, s, m = (float(tensor[place]) for tensor in (UNCOND, TEXT, CONCEPT, momentum))
        strength = 0.0 if c - s >= 0.2 else min(1.0, 0.7 * abs(c - s))
        safety = strength * (s - u) + 0.3 * m
        assert float(noise[place]) == pytest.approx(u + 7.5 * (c - u - safety))
        assert float(after[place]) == pytest.approx(0.4 * m + 0.6 * safety)


def test_safe_latent_diffusion_at_its_limits():
    off, _ = sld(draw(B, C, H, H, seed=13), safety_scale=0.0, momentum_scale=0.0)
    assert torch.allclose(off, PLAIN)
    warm, momentum = sld(step=9)
    assert torch.allclose(warm, PLAIN) and momentum.abs().sum() > 0
    started, _ = sld(step=10)
    assert not torch.allclose(started, PLAIN)
    everything, _ = sld(safety_scale=1e12, threshold=1e12, momentum_scale=0.0, warmup_steps=0, step=0)
    assert torch.allclose(everything, UNCOND + 7.5 * (TEXT - CONCEPT))
    assert torch.equal(sld()[0], sld(torch.zeros_like(TEXT))[0])


@pytest.mark.parametrize(
    ("options", "name"), [({"momentum": TEXT[:1]}, "momentum"), ({"momentum_beta": 1.5}, "momentum_beta")]
)
def test_impossible_safe_latent_diffusion_is_refused(options, name):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        sld(**options)
    with pytest.raises(ValueError, match=r"^noise_unsafe: "):
        safe_latent_diffusion_guidance(UNCOND, TEXT, CONCEPT[:1], None, step=0, warmup_steps=0, **MEDIUM)


# SAFREE


def projector(rows):
    return torch.linalg.pinv(rows) @ rows


@given(st.integers(0, 1000), st.integers(2, 5), st.integers(1, 3))
def test_triggers_are_projected_and_other_tokens_stay(seed, count, concepts):
    states, pooled, concept = draw(8, 10, seed=seed), draw(count, 10, seed=seed + 1), draw(concepts, 10, seed=seed + 2)
    filtered, triggers = safree_token_projection(states, pooled, concept)
    away = torch.eye(10, dtype=torch.float64) - projector(concept)
    distances = [float((away @ row).norm()) for row in pooled]
    for index in range(count):
        others = sum(distance for j, distance in enumerate(distances) if j != index) / (count - 1)
        trigger = not distances[index] < 1.01 * others
        assert bool(triggers[index]) is trigger
        expected = away @ projector(pooled) @ states[index + 1] if trigger else states[index + 1]
        assert torch.allclose(filtered[index + 1], expected, atol=1e-10)
        assert trigger or torch.equal(filtered[index + 1], states[index + 1])
    assert torch.equal(filtered[0], states[0]) and torch.equal(filtered[count + 1 :], states[count + 1 :])


def test_projecting_twice_or_from_dependent_concepts_changes_nothing():
    states, pooled, concept = draw(4, 10), draw(1, 10, seed=1), draw(2, 10, seed=2)
    once, triggers = safree_token_projection(states, pooled, concept)
    assert triggers.tolist() == [True] and not torch.allclose(once[1], states[1])
    assert torch.allclose(concept @ once[1], torch.zeros(2, dtype=torch.float64), atol=1e-10)
    repeated, _ = safree_token_projection(states, pooled, torch.cat([concept, concept.sum(0, keepdim=True)]))
    assert torch.allclose(repeated, once, atol=1e-10)


def test_concepts_orthogonal_to_everything_leave_the_lengths():
    pooled = torch.zeros(3, 10, dtype=torch.float64)
    pooled[:, :4] = draw(3, 4)
    concept = torch.zeros(1, 10, dtype=torch.float64)
    concept[0, 9] = 2.0
    _, triggers = safree_token_projection(draw(5, 10), pooled, concept)
    norms = pooled.norm(dim=1)
    expected = [float(norms[i]) >= 1.01 * float((norms.sum() - norms[i]) / 2) for i in range(3)]
    assert triggers.tolist() == expected


def test_half_precision_is_computed_in_single():
    states, pooled, concept = (part.half() for part in (draw(4, 10), draw(2, 10, seed=1), draw(2, 10, seed=2)))
    filtered, triggers = safree_token_projection(states, pooled, concept)
    expected, same = safree_token_projection(states.float(), pooled.float(), concept.float())
    assert filtered.dtype == torch.float16 and torch.equal(filtered, expected.half()) and torch.equal(triggers, same)
    assert torch.equal(filtered[1:3][~triggers], states[1:3][~triggers])


def test_a_larger_alpha_spares_more_tokens():
    pooled, concept = draw(5, 10), draw(2, 10, seed=1)
    flagged = [safree_token_projection(draw(8, 10), pooled, concept, alpha)[1] for alpha in (-0.5, 0.01, 5.0)]
    assert (flagged[0] >= flagged[1]).all() and (flagged[1] >= flagged[2]).all() and not flagged[2].any()


@pytest.mark.parametrize(
    ("pooled", "concept", "name"),
    [
        ((2, 9), (2, 10), "masked_pooled"),
        ((0, 10), (2, 10), "masked_pooled"),
        ((4, 10), (2, 10), "masked_pooled"),
        ((2, 10), (2, 9), "concept_embeddings"),
    ],
)
def test_impossible_projections_are_refused(pooled, concept, name):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        safree_token_projection(draw(4, 10), draw(*pooled), draw(*concept))
