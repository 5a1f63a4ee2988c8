"""The Monte-Carlo form of the concrete score loss: unbiased by enumeration, and drawn from the weights."""

import itertools

import pytest
import torch
from csd_cases import UNORDERED, gradient_of, random_logits

from papers.csd.distillation_objectives import (
    concrete_score_loss,
    pairwise_concrete_score_loss,
    vocabulary_weights,
)
from papers.csd.sampled_pairs import draw_pairs, sampled_pair_loss


def pair(i: int, j: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[i]]), torch.tensor([[j]])


@pytest.mark.parametrize("weighting", UNORDERED)
def test_value_and_gradient_are_unbiased(weighting):
    """The expectation over all pairs (i, j) with their probabilities w1_i w2_j, term by term."""
    f, t = random_logits(1, 6)
    w1, w2 = (vocabulary_weights(f, t, name) for name in weighting)
    value, gradient = 0.0, torch.zeros_like(f)
    for i, j in itertools.product(range(6), repeat=2):
        probability = (w1[0, i] * w2[0, j]).item()
        value += probability * sampled_pair_loss(f, t, *pair(i, j))
        gradient += probability * gradient_of(lambda x, i=i, j=j: sampled_pair_loss(x, t, *pair(i, j)), f)

    def exact(x):
        return concrete_score_loss(x, t, weighting=weighting)

    torch.testing.assert_close(value, exact(f), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, gradient_of(exact, f), rtol=1e-10, atol=1e-14)


def test_unbiased_for_a_joint_weight_too():
    f, t = random_logits(1, 4)
    joint = torch.rand(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    joint /= joint.sum()
    value = sum(joint[i, j] * sampled_pair_loss(f, t, *pair(i, j)) for i, j in itertools.product(range(4), repeat=2))
    torch.testing.assert_close(value, pairwise_concrete_score_loss(f, t, joint), rtol=1e-12, atol=0)


def test_several_pairs_are_a_mean():
    f, t = random_logits(2, 3, 5)
    first, second = (torch.randint(5, (2, 3, 7), generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    singles = [sampled_pair_loss(f, t, first[..., k : k + 1], second[..., k : k + 1]) for k in range(7)]
    torch.testing.assert_close(sampled_pair_loss(f, t, first, second), torch.stack(singles).mean(0))


def test_pairs_come_from_the_weights():
    f, t = (x.expand(2, 5).contiguous() for x in random_logits(1, 5, scale=1.0))
    generator = torch.Generator().manual_seed(0)
    count = 40_000
    first, second = draw_pairs(
        f, t, count, generator=generator, weighting=("teacher", "mixture"), temperature=1.5, teacher_fraction=0.2
    )
    assert first.shape == second.shape == (2, count)
    weights = {"temperature": 1.5, "teacher_fraction": 0.2}
    w1, w2 = (vocabulary_weights(f, t, name, **weights)[0] for name in ("teacher", "mixture"))
    joint = torch.bincount((5 * first + second).flatten(), minlength=25).double().reshape(5, 5) / (2 * count)
    expected = torch.outer(w1, w2)
    deviation = (expected * (1 - expected) / (2 * count)).sqrt()
    assert ((joint - expected).abs() < 5 * deviation).all()


def test_half_precision_is_subtracted_in_float32_and_the_teacher_gets_no_gradient():
    f, t = (x.bfloat16() for x in random_logits(3, 8))
    first, second = draw_pairs(f, t, 4, generator=torch.Generator().manual_seed(0))
    loss = sampled_pair_loss(f, t, first, second)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, sampled_pair_loss(f.float(), t.float(), first, second))
    f.requires_grad_()
    t.requires_grad_()
    sampled_pair_loss(f, t, first, second).sum().backward()
    assert t.grad is None and f.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (2, 4), (2, 1), (2, 1)), "teacher_logits"),
        (((2, 3), (2, 3), (2, 1), (2, 2)), "first, second"),
        (((2, 3), (2, 3), (1, 1), (1, 1)), "first, second"),
        (((2, 3), (2, 3), (2, 0), (2, 0)), "K ≥ 1"),
    ],
)
def test_shapes_that_do_not_fit(shapes, message):
    f, t = (torch.zeros(shape) for shape in shapes[:2])
    first, second = (torch.zeros(shape, dtype=torch.long) for shape in shapes[2:])
    with pytest.raises(ValueError, match=message):
        sampled_pair_loss(f, t, first, second)


def test_no_pairs():
    with pytest.raises(ValueError, match="pairs must be at least 1, got 0"):
        draw_pairs(*random_logits(2, 3), 0, generator=torch.Generator())
