"""Identities and limit cases of the method's functions, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from papers.implicit_negatives.concept_inversion import concept_inversion_loss, invert_concept, starting_word
from papers.implicit_negatives.safety_guidance import negative_guidance, safe_latent_guidance
from papers.implicit_negatives.token_filtering import (
    filter_prompt_embeddings,
    filtered_step_limit,
    subspace_projector,
)
from papers.implicit_negatives.unlearning import uce_edit


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Concept inversion. On one Gaussian per condition the best predictor of noise is known exactly.

ALPHAS = torch.linspace(0.99, 0.02, 50, dtype=torch.float64)
SPREAD = 0.5


def gaussian_noise(noisy, timesteps, condition):
    """E[ε | x_t] for x0 ~ N(c, SPREAD² I): images are single pixels of as many channels as c has entries."""
    level = ALPHAS[timesteps].view(-1, 1, 1, 1)
    mean = condition.view(*condition.shape, 1, 1)
    variance = level * SPREAD**2 + 1 - level
    return (1 - level).sqrt() * (noisy - level.sqrt() * mean) / variance


def test_the_loss_is_the_mean_squared_error_at_the_noisy_latents():
    latents, noise, concept = draw(3, 2, 1, 1), draw(3, 2, 1, 1, seed=1), draw(2, seed=2)
    timesteps = torch.tensor([0, 20, 49])
    total = 0.0
    for index, t in enumerate(timesteps):
        noisy = ALPHAS[t].sqrt() * latents[index] + (1 - ALPHAS[t]).sqrt() * noise[index]
        predicted = gaussian_noise(noisy[None], t[None], concept[None])[0]
        total += float((predicted - noise[index]).square().sum())
    loss = concept_inversion_loss(gaussian_noise, latents, noise, timesteps, ALPHAS, concept)
    assert float(loss) == pytest.approx(total / 6)


def test_its_minimiser_is_the_condition_that_made_the_images():
    condition = torch.tensor([1.5, -0.7], dtype=torch.float64)
    latents = condition.view(1, 2, 1, 1) + SPREAD * draw(4000, 2, 1, 1)
    learned = invert_concept(
        gaussian_noise, lambda value: value, torch.zeros(2, dtype=torch.float64), latents, ALPHAS, steps=300,
        batch_size=200, learning_rate=0.03, generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    torch.testing.assert_close(learned, condition, atol=0.05, rtol=0)
    timesteps = torch.randint(50, (4000,), generator=torch.Generator().manual_seed(2))
    noise = draw(4000, 2, 1, 1, seed=3)
    at = [
        concept_inversion_loss(gaussian_noise, latents, noise, timesteps, ALPHAS, c) for c in (learned, learned + 0.5)
    ]
    assert at[0] < at[1]


def test_the_loss_is_differentiable_in_vectors_and_sequences():
    for shape in ((4,), (3, 4)):
        concept = draw(*shape).requires_grad_()
        seen = []

        def predict(noisy, timesteps, condition):
            seen.append(condition.shape)  # noqa: B023 - called in this very round
            return noisy * condition.mean(dim=tuple(range(1, condition.ndim))).view(-1, 1, 1, 1)

        latents, noise = draw(2, 1, 2, 2), draw(2, 1, 2, 2, seed=1)

        def loss(value):
            return concept_inversion_loss(predict, latents, noise, torch.tensor([3, 30]), ALPHAS, value)  # noqa: B023

        torch.autograd.gradcheck(loss, concept)
        assert seen[0] == (2, *shape)


def test_what_is_learned_is_all_that_changes():
    start = draw(3)
    before = start.clone()
    learned = invert_concept(
        lambda noisy, timesteps, condition: noisy * condition.sum(), lambda value: value, start, draw(5, 1, 2, 2),
        ALPHAS, steps=2, batch_size=2, learning_rate=0.1, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert torch.equal(start, before) and not learned.requires_grad and not torch.equal(learned, start)
    torch.testing.assert_close(starting_word(torch.tensor([[1.0, 2.0], [3.0, 6.0]])), torch.tensor([2.0, 4.0]))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"timesteps": torch.tensor([0, 50])}, "timesteps"),
        ({"timesteps": torch.tensor([-1, 3])}, "timesteps"),
        ({"timesteps": torch.tensor([1])}, "timesteps"),
        ({"noise": draw(2, 2, 1, 2)}, "noise"),
        ({"concept": draw(1, 2, 2)}, "concept"),
    ],
)
def test_impossible_inversions_are_refused(change, name):
    good = {
        "latents": draw(2, 2, 1, 1), "noise": draw(2, 2, 1, 1), "timesteps": torch.tensor([0, 1]),
        "alphas_cumprod": ALPHAS, "concept": draw(2),
    }  # fmt: skip
    with pytest.raises(ValueError, match=rf"^{name}: "):
        concept_inversion_loss(gaussian_noise, **good | change)


# Guidance

UNCOND, TEXT, CONCEPT = (draw(2, 3, 4, 4, seed=seed) for seed in (10, 11, 12))
W = 7.5
PLAIN = UNCOND + W * (TEXT - UNCOND)


def sld(momentum=None, step_index=20, *, uncond=UNCOND, text=TEXT, concept=CONCEPT, **options):
    medium = {
        "guidance_scale": W, "safety_scale": 1000.0, "threshold": 0.01, "momentum_scale": 0.3, "momentum_beta": 0.4,
        "warmup_steps": 10,
    }  # fmt: skip
    return safe_latent_guidance(uncond, text, concept, momentum, step_index, **medium | options)


def test_sld_where_it_is_plain_guidance():
    assert torch.allclose(sld(step_index=9)[0], PLAIN)
    assert torch.allclose(sld(concept=UNCOND)[0], PLAIN)
    assert torch.allclose(sld(draw(2, 3, 4, 4, seed=13), concept=UNCOND, momentum_scale=0.0)[0], PLAIN)
    assert torch.allclose(sld(safety_scale=0.0)[0], PLAIN)
    assert not torch.allclose(sld()[0], PLAIN)


def test_sld_at_its_strongest_is_guidance_from_the_concept_besides_the_empty_text():
    strongest, _ = sld(step_index=0, safety_scale=1e12, threshold=1e12, momentum_scale=0.0, warmup_steps=0)
    assert torch.allclose(strongest, UNCOND + W * (TEXT - CONCEPT))


def test_sld_entries_far_from_the_concept_have_momentum_alone():
    momentum = draw(2, 3, 4, 4, seed=13)
    noise, _ = sld(momentum)
    far = (TEXT - CONCEPT) >= 0.01
    expected = UNCOND + W * (TEXT - UNCOND - 0.3 * momentum)
    assert torch.allclose(noise[far], expected[far]) and not torch.allclose(noise[~far], expected[~far])


def test_sld_momentum_grows_in_the_warm_up_and_settles():
    momentum, gamma = None, None
    for index in range(60):
        _, after = sld(momentum, index, momentum_scale=0.0, warmup_steps=100)
        gamma = after / 0.6 if momentum is None else gamma
        momentum = after
    assert gamma.abs().sum() > 0
    torch.testing.assert_close(momentum, gamma, atol=1e-8, rtol=1e-8)


def test_sld_refuses_other_shapes():
    for change in ({"text": TEXT[:1]}, {"concept": CONCEPT[:, :1]}, {"momentum": TEXT[:1]}):
        with pytest.raises(ValueError, match="need shape"):
            sld(**change)


def test_negative_guidance_at_its_strengths():
    def guided(concept, strength, scale=W):
        return negative_guidance(UNCOND, TEXT, concept, guidance_scale=scale, strength=strength)

    torch.testing.assert_close(guided(CONCEPT, 1.0), CONCEPT + W * (TEXT - CONCEPT))  # the negative prompt
    torch.testing.assert_close(guided(CONCEPT, 0.0), PLAIN)
    torch.testing.assert_close(guided(UNCOND, 1.0), PLAIN)
    torch.testing.assert_close(guided(CONCEPT, 1.0, scale=1.0), TEXT)


# SAFREE


@given(st.integers(0, 1000), st.integers(1, 4))
def test_projectors(seed, count):
    rows = draw(count, 7, seed=seed)
    projector = subspace_projector(rows)
    torch.testing.assert_close(projector, projector.T)
    torch.testing.assert_close(projector @ projector, projector)
    torch.testing.assert_close(projector @ rows.T, rows.T)
    assert float(projector.trace()) == pytest.approx(count)
    dependent = torch.cat([rows, 3 * rows[:1], rows.sum(dim=0, keepdim=True)])
    torch.testing.assert_close(subspace_projector(dependent), projector, atol=1e-8, rtol=1e-8)
    one = rows[0]
    torch.testing.assert_close(subspace_projector(one[None]), torch.outer(one, one) / one.square().sum())


def test_no_rows_span_nothing():
    with pytest.raises(ValueError, match="need at least one"):
        subspace_projector(draw(0, 5))


def test_equal_distances_trigger_nothing_and_leave_the_prompt_as_it_is():
    masked = torch.eye(8, dtype=torch.float64)[:3]
    concept = torch.eye(8, dtype=torch.float64)[7:]
    states = draw(5, 8)
    filtered, triggers = filter_prompt_embeddings(states, masked, concept)
    assert torch.equal(filtered, states) and not triggers.any()


def test_triggers_are_left_without_the_concept():
    states, masked, concept = draw(6, 8), draw(3, 8, seed=1), draw(1, 8, seed=2)
    filtered, triggers = filter_prompt_embeddings(states, masked, concept, alpha=-0.5)
    assert triggers.any()
    away = torch.eye(8, dtype=torch.float64) - subspace_projector(concept)
    expected = states[1:4] @ subspace_projector(masked) @ away
    torch.testing.assert_close(filtered[1:4][triggers], expected[triggers])
    torch.testing.assert_close(filtered[1:4][triggers] @ away, filtered[1:4][triggers])
    assert torch.equal(filtered[[0, 4, 5]], states[[0, 4, 5]])


def test_a_single_token_is_a_trigger():
    assert filter_prompt_embeddings(draw(3, 8), draw(1, 8), draw(1, 8, seed=1))[1].tolist() == [True]


def test_the_filter_turns_with_the_space():
    states, masked, concept = draw(6, 8), draw(3, 8, seed=1), draw(2, 8, seed=2)
    turn = torch.linalg.qr(draw(8, 8, seed=3)).Q
    filtered, triggers = filter_prompt_embeddings(states, masked, concept)
    turned, same = filter_prompt_embeddings(states @ turn, masked @ turn, concept @ turn)
    assert torch.equal(triggers, same)
    torch.testing.assert_close(turned, filtered @ turn)


@pytest.mark.parametrize(("count", "width"), [(4, 8), (0, 8), (3, 7)])
def test_impossible_prompts_are_refused(count, width):
    with pytest.raises(ValueError, match="masked"):
        filter_prompt_embeddings(draw(5, 8), draw(count, width), draw(1, 8))


def test_the_step_limit_rises_with_the_distance():
    states = torch.eye(4, dtype=torch.float64)
    attended = torch.tensor([1, 1, 1, 0])
    assert filtered_step_limit(states, states, attended) == 0
    assert filtered_step_limit(states, -states, attended) == 10
    shares = torch.linspace(0, 1, 21, dtype=torch.float64)
    limits = [
        filtered_step_limit(states, (1 - share) * states + share * states.roll(1, 0), attended) for share in shares
    ]
    assert limits == sorted(limits) and limits[0] == 0 and limits[-1] == 10
    assert any(0 < limit < 10 for limit in limits)
    unattended = states.clone()
    unattended[3] = -1.0
    assert filtered_step_limit(states, unattended, attended) == 0
    with pytest.raises(ValueError, match="no state counts"):
        filtered_step_limit(states, states, torch.zeros(4))
    with pytest.raises(ValueError, match="need"):
        filtered_step_limit(states, states[:3], attended)


# UCE

WEIGHT, ERASED, TARGETS, PRESERVED = draw(5, 6), draw(2, 6, seed=1), draw(2, 6, seed=2), draw(3, 6, seed=3)


def test_uce_minimises_its_objective():
    edited = uce_edit(WEIGHT, ERASED, TARGETS, PRESERVED, erase_weight=2.0, preserve_weight=0.3, ridge=0.1)
    edited.requires_grad_()
    objective = (
        2.0 * (ERASED @ edited.T - TARGETS @ WEIGHT.T).square().sum()
        + 0.3 * (PRESERVED @ (edited - WEIGHT).T).square().sum()
        + 0.1 * (edited - WEIGHT).square().sum()
    )
    (gradient,) = torch.autograd.grad(objective, edited)
    assert gradient.abs().max() < 1e-8


def test_uce_where_nothing_changes():
    before = WEIGHT.clone()
    torch.testing.assert_close(uce_edit(WEIGHT, ERASED, TARGETS, PRESERVED, ridge=1e12), WEIGHT, atol=1e-8, rtol=0)
    torch.testing.assert_close(uce_edit(WEIGHT, ERASED[:0], TARGETS[:0], PRESERVED[:0]), WEIGHT)
    torch.testing.assert_close(uce_edit(WEIGHT, ERASED, ERASED, PRESERVED), WEIGHT)
    assert torch.equal(WEIGHT, before)


def test_uce_maps_one_key_to_its_target():
    edited = uce_edit(WEIGHT, ERASED[:1], TARGETS[:1], PRESERVED[:0], erase_weight=1e10)
    torch.testing.assert_close(ERASED[0] @ edited.T, TARGETS[0] @ WEIGHT.T, atol=1e-7, rtol=1e-7)


def test_impossible_edits_are_refused():
    with pytest.raises(ValueError, match="ridge: must not be negative"):
        uce_edit(WEIGHT, ERASED, TARGETS, PRESERVED, ridge=-0.1)
    with pytest.raises(ValueError, match="ridge: must be positive"):
        uce_edit(WEIGHT, ERASED, TARGETS, PRESERVED, ridge=0.0)
    with pytest.raises(ValueError, match="preserved: need rows of 6"):
        uce_edit(WEIGHT, ERASED, TARGETS, PRESERVED[:, :5])
    with pytest.raises(ValueError, match="targets: need one"):
        uce_edit(WEIGHT, ERASED, TARGETS[:1], PRESERVED)
    spanning = draw(6, 6, seed=5)
    torch.testing.assert_close(uce_edit(WEIGHT, ERASED[:0], TARGETS[:0], spanning, ridge=0.0), WEIGHT)
