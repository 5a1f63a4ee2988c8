import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from papers.rent.importance_weighting import (
    backward_corrected_cross_entropy,
    forward_corrected_cross_entropy,
    transition_importance_weights,
    weighted_cross_entropy,
)
from papers.rent.transition_matrix import asymmetric_transition, symmetric_transition

PROPERTY = settings(deadline=None, max_examples=50)
LOSSES = {"forward": forward_corrected_cross_entropy, "backward": backward_corrected_cross_entropy}
seeds = st.integers(0, 2**32 - 1)
class_counts = st.integers(2, 7)


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def _case(seed, num_classes=5, batch_size=8, scale=2.0):
    """Logits, labels and a random row-stochastic T with a strong diagonal, in float64."""
    generator = _generator(seed)
    logits = scale * torch.randn(batch_size, num_classes, dtype=torch.float64, generator=generator)
    labels = torch.randint(num_classes, (batch_size,), generator=generator)
    noise = torch.rand(num_classes, num_classes, dtype=torch.float64, generator=generator)
    transition = 0.5 * torch.eye(num_classes).double() + 0.5 * noise / noise.sum(1, keepdim=True)
    return logits, labels, transition


# Importance weights


@PROPERTY
@given(seeds, class_counts)
def test_weights_written_out(seed, num_classes):
    logits, labels, transition = _case(seed, num_classes)
    expected = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        p = [math.exp(value) for value in row]
        p = [value / sum(p) for value in p]
        q = sum(transition[j, label].item() * p[j] for j in range(num_classes))
        expected.append(p[label] / (q + 1e-12))
    assert transition_importance_weights(logits, labels, transition).tolist() == pytest.approx(expected, rel=1e-10)


@PROPERTY
@given(seeds, class_counts)
def test_weights_average_to_one_under_the_models_own_noisy_distribution(seed, num_classes):
    logits, _, transition = _case(seed, num_classes, batch_size=1)
    every_label = torch.arange(num_classes)
    weights = transition_importance_weights(logits.expand(num_classes, -1), every_label, transition)
    q = logits.softmax(1)[0] @ transition
    assert (q @ weights).item() == pytest.approx(1, abs=1e-9)


def test_identity_and_uninformative_transition():
    logits, labels, _ = _case(0, num_classes=6, batch_size=500)
    p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    assert p.min() > 1e-5
    torch.testing.assert_close(
        transition_importance_weights(logits, labels, torch.eye(6)), torch.ones_like(p), rtol=0, atol=1e-6
    )
    uninformative = torch.full((6, 6), 1 / 6, dtype=torch.float64)
    torch.testing.assert_close(transition_importance_weights(logits, labels, uninformative), 6 * p)


@PROPERTY
@given(seeds, st.floats(0.01, 0.8))
def test_symmetric_weights_grow_with_the_probability_of_the_label(seed, rate):
    logits, _, _ = _case(seed, num_classes=10, batch_size=30)
    labels = torch.full((30,), 3)
    p = logits.softmax(1)[:, 3]
    weights = transition_importance_weights(logits, labels, symmetric_transition(10, rate))
    order = p.argsort()
    assert (weights[order].diff() > 0).all()


@PROPERTY
@given(seeds, class_counts)
def test_renaming_the_classes_changes_nothing(seed, num_classes):
    logits, labels, transition = _case(seed, num_classes)
    order = torch.randperm(num_classes, generator=_generator(seed))
    new_labels = order.argsort()[labels]
    weights = transition_importance_weights(logits, labels, transition)
    renamed = transition_importance_weights(logits[:, order], new_labels, transition[order][:, order])
    torch.testing.assert_close(renamed, weights)


def test_one_matrix_per_sample():
    logits, labels, first = _case(1)
    _, _, second = _case(2)
    per_sample = torch.stack([first if i % 2 else second for i in range(len(labels))])
    weights = transition_importance_weights(logits, labels, per_sample)
    assert torch.equal(weights[1::2], transition_importance_weights(logits, labels, first)[1::2])
    assert torch.equal(weights[::2], transition_importance_weights(logits, labels, second)[::2])
    for loss in LOSSES.values():
        mean = sum(loss(logits[i : i + 1], labels[i : i + 1], per_sample[i]) for i in range(len(labels))) / len(labels)
        torch.testing.assert_close(loss(logits, labels, per_sample), mean)


def test_weights_are_constants():
    logits, labels, transition = _case(3)
    weights = transition_importance_weights(logits.requires_grad_(), labels, transition.requires_grad_())
    assert not weights.requires_grad and weights.grad_fn is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_have_the_dtype_of_the_logits(dtype):
    logits, labels, transition = _case(4)
    logits = logits.to(dtype)
    weights = transition_importance_weights(logits, labels, transition.float())
    assert weights.dtype == dtype
    exact = transition_importance_weights(logits.double(), labels, transition.double())
    torch.testing.assert_close(weights.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_weights_of_extreme_logits_are_finite(dtype):
    # A label that T rules out for every class, seen by a network that is sure of it: p/q is 1/eps, or even 1/0.
    impossible = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    logits = torch.tensor([[1e3, -1e3], [-1e3, 1e3], [0.0, -torch.inf]], dtype=dtype)
    for eps in (1e-12, 0.0):
        weights = transition_importance_weights(logits, torch.tensor([0, 0, 1]), impossible, eps=eps)
        assert weights.isfinite().all() and (weights >= 0).all()
        assert weights[0] > 1e4 and weights[1] == 0


def test_eps_is_in_the_denominator_only():
    weights = transition_importance_weights(torch.zeros(1, 2).double(), torch.tensor([0]), torch.eye(2), eps=0.5)
    assert weights.item() == pytest.approx(0.5 / (0.5 + 0.5))


@pytest.mark.parametrize("labels_dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integers_are_labels(labels_dtype):
    logits, labels, transition = _case(5)
    weights = transition_importance_weights(logits, labels.to(labels_dtype), transition)
    assert torch.equal(weights, transition_importance_weights(logits, labels, transition))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"logits": torch.zeros(8)}, "logits"),
        ({"logits": torch.zeros(0, 5)}, "logits"),
        ({"logits": torch.zeros(8, 5, dtype=torch.int64)}, "logits"),
        ({"logits": torch.full((8, 5), torch.nan)}, "logits"),
        ({"logits": torch.full((8, 5), torch.inf)}, "logits"),
        ({"noisy_labels": torch.zeros(7, dtype=torch.int64)}, "noisy_labels"),
        ({"noisy_labels": torch.zeros(8)}, "noisy_labels"),
        ({"noisy_labels": torch.full((8,), 5)}, "noisy_labels"),
        ({"noisy_labels": torch.full((8,), -1)}, "noisy_labels"),
        ({"transition": torch.eye(4)}, "transition"),
        ({"transition": torch.eye(5).expand(3, 5, 5)}, "transition"),
        ({"transition": asymmetric_transition(5, 0.4, {0: 1, 2: 3}).T}, "transition"),
        ({"transition": 1.5 * torch.eye(5) - 0.1}, "transition"),
        ({"eps": -1e-12}, "eps"),
        ({"eps": math.nan}, "eps"),
        ({"eps": math.inf}, "eps"),
    ],
)
def test_bad_weight_arguments(change, name):
    logits, labels, transition = _case(6)
    arguments = {"logits": logits, "noisy_labels": labels, "transition": transition}
    with pytest.raises(ValueError, match=f"^{name}: "):
        transition_importance_weights(**(arguments | change))


# Weighted cross-entropy


def test_uniform_weights_give_the_mean():
    logits, labels, _ = _case(7)
    weights = torch.full((8,), 1 / 8)
    cross_entropy = F.cross_entropy(logits, labels)
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, weights), cross_entropy)
    reweighted = transition_importance_weights(logits, labels, torch.eye(5)) / 8
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, reweighted), cross_entropy, rtol=1e-6, atol=0)


def test_weights_are_not_normalised():
    logits, labels, _ = _case(8)
    weights = torch.rand(8, dtype=torch.float64, generator=_generator(8))
    expected = sum(w * -row.log_softmax(0)[label] for w, row, label in zip(weights, logits, labels, strict=True))
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, weights), expected)
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, 3 * weights), 3 * expected)


def test_gradient_is_the_weighted_residual_and_none_goes_to_the_weights():
    logits, labels, _ = _case(9)
    counts = torch.tensor([0, 3, 1, 0, 2, 0, 1, 1], dtype=torch.float64, requires_grad=True)
    logits.requires_grad_()
    weighted_cross_entropy(logits, labels, counts / 8).backward()
    residual = logits.detach().softmax(1) - F.one_hot(labels, 5)
    torch.testing.assert_close(logits.grad, counts.detach()[:, None] / 8 * residual)
    assert counts.grad is None


def test_half_precision_logits_are_summed_in_float32():
    logits, labels, _ = _case(10)
    loss = weighted_cross_entropy(logits.bfloat16(), labels, torch.full((8,), 1 / 8))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.bfloat16().float(), labels))


def test_bad_weighted_cross_entropy_arguments():
    logits, labels, _ = _case(11)
    with pytest.raises(ValueError, match=r"^weights: "):
        weighted_cross_entropy(logits, labels, torch.ones(8, 1))
    with pytest.raises(ValueError, match=r"^labels: "):
        weighted_cross_entropy(logits, labels + 5, torch.ones(8))
    with pytest.raises(ValueError, match=r"^logits: "):
        weighted_cross_entropy(logits[0], labels, torch.ones(8))


# Forward loss


@PROPERTY
@given(seeds, class_counts)
def test_forward_written_out(seed, num_classes):
    logits, labels, transition = _case(seed, num_classes)
    q = logits.softmax(1) @ transition
    expected = -q.gather(1, labels[:, None]).log().mean()
    torch.testing.assert_close(forward_corrected_cross_entropy(logits, labels, transition), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_without_noise_a_correction_is_cross_entropy(name):
    logits, labels, _ = _case(12)
    logits.requires_grad_()
    loss = LOSSES[name](logits, labels, torch.eye(5))
    expected = F.cross_entropy(logits, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_match_finite_differences(name):
    logits, labels, transition = _case(13, num_classes=4, batch_size=3)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, labels, transition), logits.requires_grad_())


def test_forward_gradient_reaches_the_transition():
    logits, labels, transition = _case(14)
    loss = forward_corrected_cross_entropy(logits, labels, transition.requires_grad_())
    (gradient,) = torch.autograd.grad(loss, transition)
    p = logits.softmax(1)
    q = (p @ transition).gather(1, labels[:, None])
    expected = torch.zeros_like(transition)
    for i, label in enumerate(labels):
        expected[:, label] -= (p[i] / q[i]).detach() / len(labels)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@PROPERTY
@given(seed=seeds)
def test_forward_is_finite_for_large_logits_and_zero_entries(dtype, seed):
    generator = _generator(seed)
    logits = 1e3 * torch.randn(16, 4, generator=generator).sign().to(dtype)
    labels = torch.randint(4, (16,), generator=generator)
    transition = asymmetric_transition(4, 0.3, {0: 1, 2: 3}).requires_grad_()
    loss = forward_corrected_cross_entropy(logits.requires_grad_(), labels, transition)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all() and transition.grad.isfinite().all()


def test_forward_of_large_logits_known_answer():
    # The label 1 can only come from classes 0 (0.3) and 1 (1.0), whose log-probabilities are -2000 and -4000.
    logits = torch.tensor([[-1e3, -3e3, 1e3]], requires_grad=True)
    transition = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    loss = forward_corrected_cross_entropy(logits, torch.tensor([1]), transition)
    loss.backward()
    assert loss.item() == pytest.approx(2000 - math.log(0.3))
    assert logits.grad.tolist() == [[-1.0, 0.0, 1.0]]


def test_forward_is_infinite_where_the_label_is_impossible():
    transition = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert forward_corrected_cross_entropy(torch.zeros(1, 2), torch.tensor([1]), transition).item() == math.inf


# Backward loss


@PROPERTY
@given(seeds, class_counts)
def test_backward_is_unbiased(seed, num_classes):
    logits, _, transition = _case(seed, num_classes, batch_size=1)
    for true_class in range(num_classes):
        expectation = sum(
            transition[true_class, noisy] * backward_corrected_cross_entropy(logits, torch.tensor([noisy]), transition)
            for noisy in range(num_classes)
        )
        clean = F.cross_entropy(logits, torch.tensor([true_class]))
        torch.testing.assert_close(expectation, clean, rtol=0, atol=1e-9 * max(1.0, clean.item()))


def test_backward_refuses_a_singular_transition():
    logits, labels, _ = _case(15)
    nearly = torch.full((5, 5), 0.2, dtype=torch.float64) * (1 - 1e-7) + 1e-7 * torch.eye(5)
    for transition in (torch.full((5, 5), 0.2), nearly):
        with pytest.raises(ValueError, match=r"^transition: cannot be inverted"):
            backward_corrected_cross_entropy(logits, labels, transition)


@pytest.mark.parametrize("name", LOSSES)
def test_bad_correction_arguments(name):
    logits, labels, transition = _case(16)
    loss = LOSSES[name]
    with pytest.raises(ValueError, match=r"^logits: "):
        loss(logits[None], labels, transition)
    with pytest.raises(ValueError, match=r"^labels: "):
        loss(logits, labels[:3], transition)
    with pytest.raises(ValueError, match=r"^labels: "):
        loss(logits, labels.double(), transition)
    with pytest.raises(ValueError, match=r"^transition: "):
        loss(logits, labels, asymmetric_transition(5, 0.4, {0: 1}).T)


@pytest.mark.parametrize("name", LOSSES)
def test_corrections_of_half_precision_are_float32(name):
    logits, labels, transition = _case(17)
    loss = LOSSES[name](logits.half(), labels, transition.float())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LOSSES[name](logits.half().double(), labels, transition).float())
