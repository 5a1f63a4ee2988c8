import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from papers.rent.transition_estimation import (
    LEARNED,
    TOTAL_VARIATION_INITIAL,
    VOLUME_INITIAL,
    LearnedTransition,
    cycle_consistency_loss,
    dual_transition,
    estimate_transition_from_anchors,
    total_variation_transition,
    volume_minimization_loss,
    volume_transition,
)
from papers.rent.transition_matrix import CIFAR10_FLIPS, asymmetric_transition, check_transition

PROPERTY = settings(deadline=None, max_examples=50)
PARAMETRIZATIONS = {"volume": volume_transition, "tv": total_variation_transition}


def _predictions(seed, num_samples=300, num_classes=4):
    generator = torch.Generator().manual_seed(seed)
    probabilities = (3 * torch.randn(num_samples, num_classes, dtype=torch.float64, generator=generator)).softmax(1)
    return probabilities, torch.randint(num_classes, (num_samples,), generator=generator)


# Anchors


@PROPERTY
@given(st.integers(0, 2**32), st.floats(0.001, 1.0))
def test_anchors_written_out(seed, top_fraction):
    probabilities, labels = _predictions(seed)
    transition = estimate_transition_from_anchors(probabilities, labels, top_fraction)
    for label in range(4):
        rows = [row for row, other in zip(probabilities.tolist(), labels.tolist(), strict=True) if other == label]
        rank = max(1, int(len(rows) * top_fraction))
        assert transition[label].tolist() == sorted(rows, key=lambda row: -row[label])[rank - 1]


def test_rank_counts_the_samples_of_the_class():
    # 50 samples labelled 0 with confidences 0.01, 0.02, ...: floor(50 · 0.06) = 3 is the third largest, 0.48.
    confidence = torch.arange(1, 51).double() / 100
    probabilities = torch.stack([confidence, 1 - confidence], 1)
    probabilities = torch.cat([probabilities, torch.tensor([[0.9, 0.1]]).double()])  # the surest of 0 is labelled 1
    labels = torch.tensor([0] * 50 + [1])
    transition = estimate_transition_from_anchors(probabilities, labels, 0.06)
    torch.testing.assert_close(transition, torch.tensor([[0.48, 0.52], [0.9, 0.1]]).double())


def test_a_perfect_noisy_posterior_gives_the_true_transition():
    truth = asymmetric_transition(10, 0.3, CIFAR10_FLIPS)
    true_labels = torch.arange(2000) % 10
    noisy = torch.multinomial(truth[true_labels], 1, generator=torch.Generator().manual_seed(0))[:, 0]
    # Rows of T are the noisy posterior of samples whose class is certain; where labels differ, ties are of one class.
    kept = noisy == true_labels
    estimate = estimate_transition_from_anchors(truth[true_labels][kept], noisy[kept])
    assert torch.equal(estimate, truth)


def test_the_dtype_is_kept():
    probabilities, labels = _predictions(0)
    assert estimate_transition_from_anchors(probabilities.float(), labels.int()).dtype == torch.float32
    assert not estimate_transition_from_anchors(probabilities.requires_grad_(), labels).requires_grad


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"probabilities": torch.zeros(300, 4)}, "probabilities"),
        ({"probabilities": torch.full((300, 4), torch.nan)}, "probabilities"),
        ({"probabilities": torch.tensor([[1.5, -0.5, 0.0, 0.0]]).expand(300, 4)}, "probabilities"),
        ({"probabilities": torch.full((300,), 1.0)}, "probabilities"),
        ({"probabilities": torch.ones(300, 1, dtype=torch.int64)}, "probabilities"),
        ({"noisy_labels": torch.arange(300) % 3}, "noisy_labels"),
        ({"noisy_labels": torch.arange(300) % 5}, "noisy_labels"),
        ({"noisy_labels": torch.arange(299) % 4}, "noisy_labels"),
        ({"noisy_labels": (torch.arange(300) % 4).float()}, "noisy_labels"),
        ({"top_fraction": 0.0}, "top_fraction"),
        ({"top_fraction": 1.01}, "top_fraction"),
        ({"top_fraction": math.nan}, "top_fraction"),
    ],
)
def test_bad_anchor_arguments(change, name):
    probabilities, labels = _predictions(1)
    arguments = {"probabilities": probabilities, "noisy_labels": labels}
    with pytest.raises(ValueError, match=f"^{name}: "):
        estimate_transition_from_anchors(**(arguments | change))


# Dual-T


@PROPERTY
@given(st.integers(0, 2**32))
def test_dual_is_a_product_of_stochastic_matrices(seed):
    probabilities, labels = _predictions(seed)
    anchors = estimate_transition_from_anchors(probabilities, labels)
    predictions = probabilities.argmax(1)
    transition = dual_transition(anchors, predictions, labels)
    check_transition(transition, 4)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for j in range(4):
        for k in range(4):
            for l in range(4):  # noqa: E741 - the paper's index
                expected[j, k] += anchors[j, l] * (labels[predictions == l] == k).double().mean()
    torch.testing.assert_close(transition, expected)


def test_dual_of_a_network_that_predicts_the_noisy_labels_is_the_anchor_estimate():
    probabilities, labels = _predictions(2)
    anchors = estimate_transition_from_anchors(probabilities.float(), labels)
    transition = dual_transition(anchors, labels, labels)
    torch.testing.assert_close(transition, anchors)
    assert transition.dtype == torch.float32


def test_dual_keeps_the_anchors_mass_where_a_class_is_never_predicted():
    anchors = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.0, 0.1, 0.9]])
    predictions, labels = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    # S = [[.5, .5, 0], [0, 1, 0], [0, 0, 1]]
    expected = torch.tensor([[0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.0, 0.1, 0.9]])
    torch.testing.assert_close(dual_transition(anchors, predictions, labels), expected)


def test_bad_dual_arguments():
    labels = torch.arange(6) % 3
    with pytest.raises(ValueError, match=r"^transition: "):
        dual_transition(torch.full((3, 3), 0.5), labels, labels)
    with pytest.raises(ValueError, match=r"^predictions: "):
        dual_transition(torch.eye(3), labels[:5], labels)
    with pytest.raises(ValueError, match=r"^predictions: "):
        dual_transition(torch.eye(3), labels + 1, labels)
    with pytest.raises(ValueError, match=r"^noisy_labels: "):
        dual_transition(torch.eye(3), labels, labels.float())


# Learned matrices


def test_starting_points():
    volume = volume_transition(torch.full((10, 10), VOLUME_INITIAL, dtype=torch.float64))
    off_diagonal = 1 / (1 + math.exp(2))
    assert volume[0, 0].item() == pytest.approx(1 / (1 + 9 * off_diagonal))
    assert volume[0, 1].item() == pytest.approx(off_diagonal / (1 + 9 * off_diagonal))
    variation = total_variation_transition(torch.full((10, 10), TOTAL_VARIATION_INITIAL, dtype=torch.float64))
    assert variation[3, 3].item() == pytest.approx(0.5)
    assert variation[3, 4].item() == pytest.approx(0.5 / 9)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@PROPERTY
@given(seed=st.integers(0, 2**32), num_classes=st.integers(2, 6))
def test_learned_matrices_are_stochastic_and_ignore_the_diagonal(name, seed, num_classes):
    parameters = torch.randn(
        num_classes, num_classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    transition = PARAMETRIZATIONS[name](parameters)
    check_transition(transition, num_classes)
    assert torch.equal(transition, PARAMETRIZATIONS[name](parameters + 5 * torch.eye(num_classes)))
    if name == "volume":
        assert (transition.diagonal() == transition.amax(1)).all()


def test_volume_rows_written_out():
    transition = volume_transition(
        torch.tensor([[9.0, 0.0, math.log(3)], [-math.inf, 9.0, -math.inf], [0.0, 0.0, 9.0]])
    )
    expected = torch.tensor([[1, 0.5, 0.75], [0, 1, 0], [0.5, 0.5, 1]])
    torch.testing.assert_close(transition, expected / expected.sum(1, keepdim=True))


def test_total_variation_rows_written_out():
    # exp(U log(0.5/2)) = 4^-U against 1/2 on the diagonal
    transition = total_variation_transition(torch.tensor([[9.0, 0.0, 0.5], [1.0, 9.0, 2.0], [0.5, 0.5, 9.0]]))
    expected = torch.tensor([[0.5, 1, 0.5], [0.25, 0.5, 0.0625], [0.5, 0.5, 0.5]])
    torch.testing.assert_close(transition, expected / expected.sum(1, keepdim=True))


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_loss_trains_the_matrix_and_not_the_network(name):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(20, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.randint(4, (20,), generator=generator)
    parameters = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)

    def loss(values):
        return volume_minimization_loss(logits, labels, PARAMETRIZATIONS[name](values), volume_weight=0.1)

    transition = PARAMETRIZATIONS[name](parameters.detach())
    q = (logits.softmax(1) @ transition).gather(1, labels[:, None])
    expected = -q.log().mean() + 0.1 * math.log(abs(torch.linalg.det(transition).item()))
    torch.testing.assert_close(loss(parameters).detach(), expected.detach())
    assert torch.autograd.gradcheck(loss, parameters)
    loss(parameters).backward()
    assert logits.grad is None
    assert (parameters.grad[~torch.eye(4, dtype=torch.bool)] != 0).all()


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_learning_finds_the_transition_of_a_perfect_classifier(name):
    truth = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.9, 0.1], [0.3, 0.0, 0.7]])
    true_labels = torch.arange(3000) % 3
    noisy = torch.multinomial(truth[true_labels], 1, generator=torch.Generator().manual_seed(4))[:, 0]
    logits = 20.0 * F.one_hot(true_labels, 3)
    parameters = torch.zeros(3, 3, requires_grad=True)
    optimizer = torch.optim.Adam([parameters], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        volume_minimization_loss(logits, noisy, PARAMETRIZATIONS[name](parameters)).backward()
        optimizer.step()
    torch.testing.assert_close(PARAMETRIZATIONS[name](parameters.detach()), truth, rtol=0, atol=0.03)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@pytest.mark.parametrize("shape", [(3, 4), (3,), (2, 3, 3)])
def test_bad_parameters(name, shape):
    with pytest.raises(ValueError, match=r"^parameters: "):
        PARAMETRIZATIONS[name](torch.zeros(shape))


def test_total_variation_needs_two_classes():
    with pytest.raises(ValueError, match=r"^parameters: "):
        total_variation_transition(torch.zeros(1, 1))


# Cycle, and matrices as modules


def _soft_batch(seed=5, size=30):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    return logits, torch.randint(4, (size,), generator=generator)


def test_cycle_loss_written_out():
    logits, labels = _soft_batch()
    there, back = (volume_transition(torch.randn(4, 4, dtype=torch.float64)) for _ in range(2))
    p = logits.detach().softmax(1)
    q = p @ there
    expected = -q.gather(1, labels[:, None]).log().mean()
    expected -= torch.stack([(p[i] * back[labels[i]].log()).sum() for i in range(30)]).mean()
    expected += 0.7 * (p * (p / (q @ back)).log()).sum(1).mean()
    found = cycle_consistency_loss(logits, labels, there, back, consistency_weight=0.7)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad  # logits are constants


def test_a_cycle_that_leads_back_is_consistent():
    logits, labels = _soft_batch()
    there = torch.eye(4, dtype=torch.float64).roll(1, 0)
    back = 0.999999999999 * there.T + 1e-12 / 4
    losses = [cycle_consistency_loss(logits, labels, 0.9 * there + 0.025, back, weight) for weight in (0, 1)]
    assert losses[1] > losses[0] + 1e-3
    exact = [cycle_consistency_loss(logits, labels, 1e-9 / 4 + (1 - 1e-9) * there, back, weight) for weight in (0, 1)]
    assert exact[1].item() == pytest.approx(exact[0].item(), abs=1e-6)


def test_cycle_refuses_what_is_no_transition():
    logits, labels = _soft_batch()
    identity = torch.eye(4, dtype=torch.float64)
    for there, back in ((identity, 2 * identity), (2 * identity, identity)):
        with pytest.raises(ValueError, match=r"^transition: every row"):
            cycle_consistency_loss(logits, labels, there, back)


@pytest.mark.parametrize("estimator", LEARNED)
def test_learned_transitions_start_and_learn_as_their_method_says(estimator):
    logits, labels = _soft_batch()
    logits = logits.float()
    module = LearnedTransition(estimator, 4)
    matrices = module()
    assert len(matrices) == len(list(module.parameters())) == (2 if estimator == "cycle" else 1)
    start = (
        total_variation_transition(torch.ones(4, 4)) if estimator == "tv" else volume_transition(-2 * torch.ones(4, 4))
    )
    assert all(torch.equal(matrix, start) for matrix in matrices)
    loss = module.loss(logits, labels, matrices)
    expected = {
        "volminnet": lambda: volume_minimization_loss(logits, labels, start),
        "tv": lambda: volume_minimization_loss(logits, labels, start, 0.0),
        "cycle": lambda: cycle_consistency_loss(logits, labels, start, start),
    }[estimator]()
    assert loss.item() == expected.item()
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())


def test_unknown_learned_estimator():
    with pytest.raises(ValueError, match=r"^estimator: need one of volminnet, tv, cycle, got 'forward'"):
        LearnedTransition("forward", 4)
