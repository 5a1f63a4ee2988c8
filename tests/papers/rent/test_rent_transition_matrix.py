import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papers.rent.transition_matrix import (
    CIFAR10_FLIPS,
    DIGIT_FLIPS,
    asymmetric_transition,
    check_labels,
    check_transition,
    empirical_transition,
    superclass_transition,
    symmetric_transition,
)

PROPERTY = settings(deadline=None, max_examples=50)


@PROPERTY
@given(st.integers(2, 12), st.floats(0, 1))
def test_symmetric_rows(num_classes, rate):
    transition = symmetric_transition(num_classes, rate)
    check_transition(transition, num_classes)
    torch.testing.assert_close(transition.diagonal(), torch.full((num_classes,), 1 - rate).double())
    assert torch.equal(transition, transition.T)
    off_diagonal = transition[~torch.eye(num_classes, dtype=torch.bool)]
    assert off_diagonal.max() == off_diagonal.min()


def test_asymmetric_has_the_true_class_in_rows():
    transition = asymmetric_transition(10, 0.4, CIFAR10_FLIPS)
    assert transition[9, 1].item() == pytest.approx(0.4)  # a truck is labelled automobile
    assert transition[1, 9].item() == 0.0
    assert transition[1, 1].item() == transition[0, 0].item() == 1.0
    assert transition[3, 5].item() == transition[5, 3].item() == pytest.approx(0.4)
    assert transition[[9, 2, 4, 3, 5], [9, 2, 4, 3, 5]].tolist() == pytest.approx([0.6] * 5)
    check_transition(transition, 10)


def test_digit_flips_are_mutual_and_leave_0_and_6():
    assert {DIGIT_FLIPS[target]: target for target in DIGIT_FLIPS} == DIGIT_FLIPS
    assert set(range(10)) - set(DIGIT_FLIPS) == {0, 6}


def test_superclasses_flip_among_siblings():
    transition = superclass_transition([0, 1, 0, 2, 0], 0.3)
    expected = torch.eye(5, dtype=torch.float64)
    for row in (0, 2, 4):
        expected[row, [0, 2, 4]] = 0.15
        expected[row, row] = 0.7
    torch.testing.assert_close(transition, expected)


def test_empirical_counts():
    true = torch.tensor([0, 0, 0, 0, 1, 2, 2])
    noisy = torch.tensor([0, 0, 1, 2, 0, 2, 2])
    expected = torch.tensor([[0.5, 0.25, 0.25], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    assert torch.equal(empirical_transition(true, noisy, 3), expected)
    assert torch.equal(empirical_transition(true.to(torch.uint8), noisy.int(), 3), expected)
    with pytest.raises(ValueError, match=r"true_labels: .* none of \[3\]"):
        empirical_transition(true, noisy, 4)
    with pytest.raises(ValueError, match="noisy_labels"):
        empirical_transition(true, noisy[:-1], 3)


def test_a_transposed_asymmetric_matrix_is_refused():
    with pytest.raises(ValueError, match=r"transition: every row.*transposed"):
        check_transition(asymmetric_transition(10, 0.4, CIFAR10_FLIPS).T, 10)


@pytest.mark.parametrize(
    ("transition", "message"),
    [
        (torch.eye(4), "shape"),
        (torch.eye(3).expand(2, 3, 3), "shape"),
        (torch.eye(3, dtype=torch.int64), "floats"),
        (torch.tensor([[1.5, -0.5, 0], [0, 1, 0], [0, 0, 1]]), ">= 0"),
        (torch.eye(3) * 1.001, "sum to 1"),
        (torch.full((3, 3), torch.nan), "sum to 1"),
    ],
)
def test_bad_transitions(transition, message):
    with pytest.raises(ValueError, match=f"transition: .*{message}"):
        check_transition(transition, 3)


def test_row_sums_have_a_tolerance():
    check_transition(torch.eye(3) * (1 + 5e-5), 3)
    with pytest.raises(ValueError, match="transition"):
        check_transition(torch.eye(3) * (1 + 2e-4), 3)


def test_one_matrix_per_sample():
    check_transition(torch.eye(3).expand(2, 3, 3), 3, batch_size=2)
    one_bad = torch.eye(3).repeat(2, 1, 1)
    one_bad[1, 2, 2] = 0.5
    with pytest.raises(ValueError, match="sum to 1"):
        check_transition(one_bad, 3, batch_size=2)
    with pytest.raises(ValueError, match="shape"):
        check_transition(torch.eye(3).expand(2, 3, 3), 3, batch_size=4)


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([0, 3]),
        torch.tensor([-1, 0]),
        torch.tensor([0.0, 1.0]),
        torch.tensor([True, False]),
        torch.tensor([[0, 1]]),
        torch.tensor(1),
    ],
)
def test_bad_labels(labels):
    with pytest.raises(ValueError, match="given"):
        check_labels(labels, 3, "given")


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_bad_rates(rate):
    for make in (
        lambda: symmetric_transition(3, rate),
        lambda: asymmetric_transition(3, rate, {0: 1}),
        lambda: superclass_transition([0, 0, 1], rate),
    ):
        with pytest.raises(ValueError, match="rate"):
            make()


def test_bad_classes():
    for flips in ({0: 0}, {0: 3}, {-1: 0}):
        with pytest.raises(ValueError, match="flips"):
            asymmetric_transition(3, 0.1, flips)
    with pytest.raises(ValueError, match="num_classes"):
        symmetric_transition(1, 0.0)
