"""The concrete score and direct logit losses: identities of the method, by brute force and finite differences."""

import itertools
import math

import pytest
import torch
from csd_cases import PAIRS, drawn_logits, gradient_of, random_logits
from hypothesis import given, settings
from hypothesis import strategies as st

from papers.csd.distillation_objectives import (
    CENTERINGS,
    WEIGHTINGS,
    concrete_score_loss,
    direct_logit_loss,
    pairwise_concrete_score_loss,
    token_divergence,
    vocabulary_weights,
)


def plain_weights(f, t, name, temperature=1.0, fraction=0.5):
    s, p = (torch.exp(x / temperature) / torch.exp(x / temperature).sum(-1, keepdim=True) for x in (f, t))
    uniform = torch.ones_like(f) / f.shape[-1]
    return {"student": s, "teacher": p, "uniform": uniform, "mixture": fraction * p + (1 - fraction) * s}[name].detach()


def double_sum(f, t, w1, w2):
    """¼ Σ_i Σ_j w1_i w2_j (d_i - d_j)², term by term."""
    d = f - t
    total = torch.zeros(f.shape[:-1], dtype=f.dtype)
    for i, j in itertools.product(range(f.shape[-1]), repeat=2):
        total = total + w1[..., i] * w2[..., j] * (d[..., i] - d[..., j]) ** 2 / 4
    return total


# --- The objective itself


def test_known_answer():
    # d = (0, 1, 3); p = (1/2, 1/4, 1/4) since t = log (2, 1, 1); uniform weights 1/3.
    t = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64).log()
    f = t + torch.tensor([0.0, 1.0, 3.0])
    # Squared differences 1, 9, 4, each counted in both orders.
    uniform = (1 + 9 + 4) * 2 / 9 / 4
    teacher = 2 * (1 / 8 * 1 + 1 / 8 * 9 + 1 / 16 * 4) / 4
    mixed = ((1 / 2 + 1 / 4) / 3 * 1 + (1 / 2 + 1 / 4) / 3 * 9 + (1 / 4 + 1 / 4) / 3 * 4) / 4
    for pair, expected in (
        (("uniform", "uniform"), uniform),
        (("teacher", "teacher"), teacher),
        (("teacher", "uniform"), mixed),
    ):
        assert concrete_score_loss(f, t, weighting=pair).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("pair", PAIRS)
def test_linear_form_equals_double_sum(pair):
    """Invariant 5, values and gradients, at a temperature and a mixture of its own."""
    f, t = random_logits(3, 7)
    w1, w2 = (plain_weights(f, t, name, temperature=1.7, fraction=0.15) for name in pair)

    def linear(x):
        return concrete_score_loss(x, t, weighting=pair, temperature=1.7, teacher_fraction=0.15)

    torch.testing.assert_close(linear(f), double_sum(f, t, w1, w2), rtol=1e-9, atol=0)
    expected = gradient_of(lambda x: double_sum(x, t, w1, w2), f)
    torch.testing.assert_close(gradient_of(linear, f), expected, rtol=1e-9, atol=1e-14)

    joint = w1.unsqueeze(-1) * w2.unsqueeze(-2)
    torch.testing.assert_close(pairwise_concrete_score_loss(f, t, joint), linear(f), rtol=1e-9, atol=0)
    pairwise = gradient_of(lambda x: pairwise_concrete_score_loss(x, t, joint), f)
    torch.testing.assert_close(pairwise, expected, rtol=1e-9, atol=1e-14)


def test_pairwise_takes_a_joint_weight_that_does_not_factorise():
    f, t = random_logits(2, 5)
    generator = torch.Generator().manual_seed(3)
    joint = torch.rand(5, 5, generator=generator, dtype=torch.float64)
    expected = torch.zeros(2, dtype=torch.float64)
    d = f - t
    for i, j in itertools.product(range(5), repeat=2):
        expected += joint[i, j] * (d[:, i] - d[:, j]) ** 2 / 4
    torch.testing.assert_close(pairwise_concrete_score_loss(f, t, joint), expected)
    torch.testing.assert_close(pairwise_concrete_score_loss(f, t, joint.expand(2, 5, 5)), expected)
    x = f.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pairwise_concrete_score_loss(x, t, joint), x)


@pytest.mark.parametrize("pair", PAIRS)
def test_gradient_is_centre_with_one_weight_and_weigh_with_the_other(pair):
    """Theorem 3; with weights that are constants (invariant 10)."""
    f, t = random_logits(2, 3, 11)
    w1, w2 = (plain_weights(f, t, name) for name in pair)
    d = f - t
    first, second = (w1 * d).sum(-1, keepdim=True), (w2 * d).sum(-1, keepdim=True)
    expected = (w1 * (d - second) + w2 * (d - first)) / 2
    actual = gradient_of(lambda x: concrete_score_loss(x, t, weighting=pair), f)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("pair", [("teacher", "uniform"), ("teacher", "teacher"), ("uniform", "uniform")])
def test_gradient_by_finite_differences_where_the_weights_do_not_move(pair):
    f, t = random_logits(2, 5)
    assert torch.autograd.gradcheck(lambda x: concrete_score_loss(x, t, weighting=pair), f.requires_grad_())


def test_weights_that_carry_gradient_would_be_another_loss():
    """Invariant 10: the check above can tell."""
    f, t = random_logits(2, 5)

    def attached(x):
        w = x.softmax(-1)
        d = x - t
        return (w * (d - (w * d).sum(-1, keepdim=True)) ** 2).sum(-1) / 2

    torch.testing.assert_close(attached(f), concrete_score_loss(f, t))
    difference = gradient_of(attached, f) - gradient_of(lambda x: concrete_score_loss(x, t), f)
    assert difference.abs().max() > 0.01


@given(drawn_logits(), st.sampled_from(PAIRS))
@settings(max_examples=60, deadline=None)
def test_non_negative_with_a_gradient_that_sums_to_zero(pair_of_logits, pair):
    """Invariants 2 and 3."""
    f, t = pair_of_logits
    assert (concrete_score_loss(f, t, weighting=pair) >= 0).all()
    gradient = gradient_of(lambda x: concrete_score_loss(x, t, weighting=pair), f)
    assert gradient.sum(-1).abs().max() <= 1e-12


@given(drawn_logits(), st.sampled_from(PAIRS), st.floats(-50, 50), st.floats(-50, 50))
@settings(max_examples=60, deadline=None)
def test_shifts_change_nothing(pair_of_logits, pair, c1, c2):
    """Invariant 1."""
    f, t = pair_of_logits
    offsets = torch.arange(1.0, f.shape[0] + 1, dtype=torch.float64).unsqueeze(-1)

    def loss(x, y):
        return concrete_score_loss(x, y, weighting=pair, temperature=1.3)

    moved_f, moved_t = f + c1 * offsets, t - c2 * offsets
    torch.testing.assert_close(loss(moved_f, moved_t), loss(f, t), rtol=1e-9, atol=1e-12)
    moved = gradient_of(lambda x: loss(x, moved_t), moved_f)
    torch.testing.assert_close(moved, gradient_of(lambda x: loss(x, t), f), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("shift", [1e7, -1e7])
def test_large_shift_keeps_the_digits(pair, shift):
    """Invariant 1: E[d²] - E[d]² would lose all of them."""
    f, t = random_logits(4, 9)

    def loss(x):
        return concrete_score_loss(x, t, weighting=pair)

    torch.testing.assert_close(loss(f + shift), loss(f), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient_of(loss, f + shift), gradient_of(loss, f), rtol=1e-6, atol=1e-8)


def test_offset_of_gpt2_size_in_float32():
    """A residual with an offset of a hundred: 1e4 when squared, of which float32 keeps 1e-3."""
    f, t = random_logits(8, 1000, scale=1.0)
    exact = concrete_score_loss(f, t)
    shifted = concrete_score_loss((f - 100).float(), t.float())
    torch.testing.assert_close(shifted.double(), exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("pair", PAIRS)
def test_zero_at_the_teacher_up_to_a_constant(pair):
    """Invariant 2."""
    _, t = random_logits(3, 8)
    offsets = torch.tensor([[0.0], [5.0], [-70.0]], dtype=torch.float64)
    loss = concrete_score_loss(t + offsets, t, weighting=pair)
    assert loss.abs().max() < 1e-24
    assert gradient_of(lambda x: concrete_score_loss(x, t, weighting=pair), t + offsets).abs().max() < 1e-13


@pytest.mark.parametrize("pair", PAIRS)
def test_order_of_the_pair_does_not_matter(pair):
    """Invariant 6."""
    f, t = random_logits(3, 9)
    swapped = concrete_score_loss(f, t, weighting=pair[::-1])
    torch.testing.assert_close(concrete_score_loss(f, t, weighting=pair), swapped, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        gradient_of(lambda x: concrete_score_loss(x, t, weighting=pair), f),
        gradient_of(lambda x: concrete_score_loss(x, t, weighting=pair[::-1]), f),
        rtol=1e-9,
        atol=1e-14,
    )


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_equal_weights_are_half_a_variance_and_the_best_shift_of_the_direct_loss(name):
    """Invariant 6."""
    f, t = random_logits(4, 9)
    w, d = plain_weights(f, t, name), f - t
    mean = (w * d).sum(-1, keepdim=True)
    loss = concrete_score_loss(f, t, weighting=(name, name))
    torch.testing.assert_close(loss, (w * (d - mean) ** 2).sum(-1) / 2, rtol=1e-9, atol=0)

    def direct(shift):
        return direct_logit_loss(f + shift, t, weighting=name)

    torch.testing.assert_close(direct(-mean), loss, rtol=1e-9, atol=0)
    for step in (-0.1, 0.1):
        # ½ Σ w (d - mean + step)² = loss + ½ step².
        torch.testing.assert_close(direct(-mean + step), loss + step**2 / 2, rtol=1e-9, atol=0)


def test_uniform_weights_are_the_mean_centred_direct_loss():
    """Invariant 7."""
    f, t = random_logits(4, 9)

    def direct(x):
        return direct_logit_loss(x, t, weighting="uniform", centering="mean")

    def concrete(x):
        return concrete_score_loss(x, t, weighting=("uniform", "uniform"))

    torch.testing.assert_close(direct(f), concrete(f), rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient_of(direct, f), gradient_of(concrete, f), rtol=1e-9, atol=1e-14)


def test_high_temperature_and_the_ends_of_the_mixture():
    """Invariant 7."""
    f, t = random_logits(4, 9)
    flat = concrete_score_loss(f, t, temperature=1e8)
    torch.testing.assert_close(flat, concrete_score_loss(f, t, weighting=("uniform",) * 2), rtol=1e-6, atol=0)
    for fraction, name in ((0.0, "student"), (1.0, "teacher")):
        mixture = concrete_score_loss(f, t, weighting=("mixture",) * 2, temperature=1.5, teacher_fraction=fraction)
        expected = concrete_score_loss(f, t, weighting=(name,) * 2, temperature=1.5)
        torch.testing.assert_close(mixture, expected, rtol=1e-9, atol=0)


def test_temperature_acts_on_the_weights_only():
    f, t = random_logits(4, 9)
    w, d = plain_weights(f, t, "student", temperature=2.0), f - t
    expected = (w * (d - (w * d).sum(-1, keepdim=True)) ** 2).sum(-1) / 2
    torch.testing.assert_close(concrete_score_loss(f, t, temperature=2.0), expected, rtol=1e-9, atol=0)


def test_teacher_student_pair_holds_the_jeffreys_divergence():
    """Invariant 8."""
    f, t = random_logits(4, 9)
    p, q, d = t.softmax(-1), f.softmax(-1), f - t
    variances = sum((w * (d - (w * d).sum(-1, keepdim=True)) ** 2).sum(-1) for w in (p, q))
    jeffreys = ((p - q) * (t - f)).sum(-1)
    expected = (variances + jeffreys**2) / 4
    actual = concrete_score_loss(f, t, weighting=("teacher", "student"))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)


# --- What it is equal or close to


@given(drawn_logits())
@settings(max_examples=40, deadline=None)
def test_default_has_the_gradient_of_the_reverse_kl(pair_of_logits):
    """Invariant 4: one training algorithm under two names."""
    f, t = pair_of_logits

    def reverse_kl(x):
        q = x.softmax(-1)
        return (q * (x.log_softmax(-1) - t.log_softmax(-1))).sum(-1)

    concrete = gradient_of(lambda x: concrete_score_loss(x, t), f)
    torch.testing.assert_close(concrete, gradient_of(reverse_kl, f), rtol=0, atol=1e-10)
    divergence = gradient_of(lambda x: token_divergence(x, t, "reverse_kl"), f)
    torch.testing.assert_close(concrete, divergence, rtol=0, atol=1e-10)


@pytest.mark.parametrize("pair", [("teacher", "teacher"), ("teacher", "student"), ("uniform", "student")])
def test_other_weightings_are_not_the_reverse_kl(pair):
    f, t = random_logits(4, 9)
    other = gradient_of(lambda x: concrete_score_loss(x, t, weighting=pair), f)
    divergence = gradient_of(lambda x: token_divergence(x, t, "reverse_kl"), f)
    assert (other - divergence).abs().max() > 0.01


def test_weightings_by_p_or_q_agree_with_the_divergences_near_the_optimum():
    """Invariant 9: relative distance O(ε), so that it halves with ε."""
    noise, t = random_logits(4, 9, scale=1.0)
    losses = {
        "forward_kl": lambda x: token_divergence(x, t, "forward_kl"),
        "student": lambda x: concrete_score_loss(x, t),
        "teacher": lambda x: concrete_score_loss(x, t, weighting=("teacher", "teacher")),
        "mixed": lambda x: concrete_score_loss(x, t, weighting=("teacher", "student")),
    }

    def distances(epsilon):
        reference = gradient_of(lambda x: token_divergence(x, t, "reverse_kl"), t + epsilon * noise)
        return {
            name: ((gradient_of(loss, t + epsilon * noise) - reference).norm() / reference.norm()).item()
            for name, loss in losses.items()
        }

    coarse, fine = distances(1e-3), distances(5e-4)
    assert fine.pop("student") < 1e-9
    for name, distance in fine.items():
        assert 1e-6 < distance < 5e-3
        assert coarse[name] / distance == pytest.approx(2, rel=0.01)


def test_sampled_pairs_estimate_the_loss():
    """Invariant 14: i ~ w1, j ~ w2, mean of ¼ (d_i - d_j)²."""
    f, t = random_logits(12)
    w1, w2 = (vocabulary_weights(f, t, name) for name in ("teacher", "student"))
    generator = torch.Generator().manual_seed(5)
    i, j = (torch.multinomial(w, 100_000, replacement=True, generator=generator) for w in (w1, w2))
    d = f - t
    samples = (d[i] - d[j]) ** 2 / 4
    error = samples.std() / math.sqrt(len(samples))
    loss = concrete_score_loss(f, t, weighting=("teacher", "student"))
    assert (samples.mean() - loss).abs() < 4 * error
    assert error < 0.02 * loss


def test_permuting_the_vocabulary():
    """Invariant 11."""
    f, t = random_logits(3, 9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))

    losses = [lambda x, y, pair=pair: concrete_score_loss(x, y, weighting=pair) for pair in PAIRS]
    losses += [lambda x, y, c=c: direct_logit_loss(x, y, centering=c) for c in CENTERINGS]
    for loss in losses:
        torch.testing.assert_close(loss(f[:, order], t[:, order]), loss(f, t), rtol=1e-9, atol=0)
        permuted = gradient_of(lambda x, loss=loss: loss(x, t[:, order]), f[:, order])
        plain = gradient_of(lambda x, loss=loss: loss(x, t), f)
        torch.testing.assert_close(permuted, plain[:, order], rtol=1e-9, atol=1e-14)


def test_vocabulary_of_one_has_nothing_to_match():
    f, t = random_logits(3, 1)
    for pair in PAIRS:
        assert (concrete_score_loss(f, t, weighting=pair) == 0).all()


# --- Weights


@given(drawn_logits(), st.sampled_from(WEIGHTINGS), st.floats(0.2, 5), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_weights_are_a_detached_distribution(pair_of_logits, name, temperature, fraction):
    f, t = (x.requires_grad_() for x in pair_of_logits)
    w = vocabulary_weights(f, t, name, temperature=temperature, teacher_fraction=fraction)
    assert w.shape == f.shape and not w.requires_grad
    assert (w >= 0).all()
    torch.testing.assert_close(w.sum(-1), torch.ones(w.shape[:-1], dtype=w.dtype), rtol=0, atol=1e-12)
    expected = plain_weights(f.detach(), t.detach(), name, temperature, fraction)
    torch.testing.assert_close(w, expected, rtol=1e-9, atol=1e-300)


def test_uniform_weights_can_be_written_to():
    f, t = random_logits(2, 4)
    w = vocabulary_weights(f, t, "uniform")
    w[0, 0] = 0.0
    assert w[1, 0] == w[0, 1] == 0.25


# --- Direct logit loss


def centered(x: torch.Tensor, name: str) -> torch.Tensor:
    rows = []
    for row in x.reshape(-1, x.shape[-1]):
        mean = sum(row) / len(row)
        low, high = min(row), max(row)
        deviation = torch.sqrt(sum((v - mean) ** 2 for v in row) / max(1, len(row) - 1))
        rows.append(
            {
                "none": row,
                "mean": row - mean,
                "min": row - low,
                "max": row - high,
                "standardize": (row - mean) / (deviation + 1e-9),
                "range": 2 * (row - low) / (high - low + 1e-9) - 1,
            }[name]
        )
    return torch.stack(rows).reshape(x.shape)


@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_direct_loss_by_the_definition(weighting, centering):
    f, t = random_logits(2, 6)
    w = plain_weights(f, t, weighting, temperature=1.4)

    def expected(x):
        return (w * (centered(x, centering) - centered(t, centering)) ** 2).sum(-1) / 2

    def actual(x):
        return direct_logit_loss(x, t, weighting=weighting, centering=centering, temperature=1.4)

    torch.testing.assert_close(actual(f), expected(f), rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient_of(actual, f), gradient_of(expected, f), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("centering", CENTERINGS)
def test_direct_loss_by_finite_differences(centering):
    f, t = random_logits(2, 5)

    def loss(x):
        return direct_logit_loss(x, t, weighting="teacher", centering=centering)

    assert torch.autograd.gradcheck(loss, f.requires_grad_())


def test_direct_loss_grows_with_a_shift_that_centering_removes():
    f, t = random_logits(3, 6)
    plain = direct_logit_loss(f + 10, t, weighting="uniform")
    assert (plain > direct_logit_loss(f, t, weighting="uniform")).all()
    for centering in CENTERINGS[1:]:
        before, after = (direct_logit_loss(x, t, weighting="uniform", centering=centering) for x in (f, f + 10))
        torch.testing.assert_close(after, before, rtol=1e-9, atol=0)


def test_tied_extremes_share_the_gradient():
    t = torch.zeros(1, 4, dtype=torch.float64)
    f = torch.tensor([[0.0, 0.0, 1.0, 2.0]], dtype=torch.float64)
    gradient = gradient_of(lambda x: direct_logit_loss(x, t, weighting="uniform", centering="min"), f)
    assert gradient[0, 0] == gradient[0, 1] == pytest.approx(-(1 + 2) / 4 / 2)


def test_constant_logits_stay_finite_when_standardized():
    t = torch.arange(4.0, dtype=torch.float64).unsqueeze(0)
    f = torch.zeros_like(t)
    for centering in ("standardize", "range"):
        loss = direct_logit_loss(f, t, centering=centering)
        gradient = gradient_of(lambda x, c=centering: direct_logit_loss(x, t, centering=c), f)
        assert loss.isfinite().all() and gradient.isfinite().all()
