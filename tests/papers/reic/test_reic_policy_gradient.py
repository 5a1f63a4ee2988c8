import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from papers.reic.policy_gradient import advantages, reinforce_loss, relation_reward

NUMBERS = st.floats(-20, 20)


def vector(values):
    return torch.tensor(values, dtype=torch.float64)


@given(st.lists(NUMBERS, min_size=2, max_size=5), st.data())
def test_the_margin_is_that_of_the_probabilities(values, data):
    label = data.draw(st.integers(0, len(values) - 1))
    logits = vector(values)
    found = relation_reward(logits, torch.tensor(label))
    p = logits.softmax(0)
    other = max(float(p[index]) for index in range(len(values)) if index != label)
    expected = max(0.0, (float(p[label]) - other) / float(p[label])) if p[label] > 0 else 0.0
    assert float(found) == pytest.approx(expected, abs=1e-10)
    assert float(relation_reward(logits + 7.5, torch.tensor(label))) == pytest.approx(float(found), abs=1e-10)
    strict = all(values[label] > value for index, value in enumerate(values) if index != label)
    assert 0 <= found < 1 and (found > 0) == strict


def test_rewards_of_a_batch_and_extreme_logits():
    logits = vector([[800.0, -800.0, 0.0], [-800.0, 800.0, 0.0], [1.0, 1.0, 1.0]]).requires_grad_()
    found = relation_reward(logits, torch.tensor([0, 0, 2]))
    assert found.isfinite().all() and not found.requires_grad
    assert 0.999 < found[0] < 1 and found[1] == 0 == found[2]
    assert relation_reward(logits[None], torch.tensor([[0, 0, 2]])).shape == (1, 3)
    threshold = relation_reward(logits, torch.tensor([0, 0, 2]), kind="threshold", threshold=10.0)
    assert threshold.tolist() == [790.0, -810.0, -9.0]
    assert relation_reward(logits.bfloat16(), torch.tensor([0, 0, 2])).dtype == torch.float32


@given(st.lists(NUMBERS, min_size=2, max_size=6), st.floats(-5, 5))
def test_baselines(values, shift):
    rewards, log_probs = vector(values), torch.linspace(-3, -1, len(values), dtype=torch.float64)
    weights = torch.linspace(0.5, 3, len(values), dtype=torch.float64)
    mean = reinforce_loss(log_probs, rewards, weights=weights)
    torch.testing.assert_close(reinforce_loss(log_probs, rewards + shift, weights=weights), mean, atol=1e-9, rtol=0)
    count = len(values)
    others = (rewards.sum() - rewards) / (count - 1)
    torch.testing.assert_close(advantages(rewards, "leave_one_out"), rewards - others, atol=1e-10, rtol=0)
    torch.testing.assert_close(
        reinforce_loss(log_probs, rewards, baseline="leave_one_out"),
        count / (count - 1) * reinforce_loss(log_probs, rewards), atol=1e-9, rtol=0,
    )  # fmt: skip


@pytest.mark.parametrize("baseline", ["none", "mean", "leave_one_out"])
def test_the_gradient_is_the_weighted_advantage(baseline):
    rewards, weights = vector([0.1, 0.7, 0.4]), vector([1.0, 10.0, 3.0])
    log_probs = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    reinforce_loss(log_probs, rewards.requires_grad_(), baseline=baseline, weights=weights).backward()
    expected = -(weights * advantages(rewards, baseline))
    torch.testing.assert_close(log_probs.grad, expected[:, None].expand(-1, 2), atol=1e-12, rtol=0)
    assert rewards.grad is None
    log_probs.grad = None
    reinforce_loss(log_probs, vector([0.3] * 3), baseline=baseline).backward()
    assert (log_probs.grad.abs().max() < 1e-15) == (baseline != "none")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: relation_reward(torch.zeros(2, 3), torch.zeros(2).long(), kind="entropy"), "kind: unknown"),
        (lambda: relation_reward(torch.zeros(2, 3), torch.zeros(3).long()), "labels: need the shape"),
        (lambda: relation_reward(torch.zeros(2, 3), torch.tensor([0, 3])), r"labels: must lie in \[0, 3\)"),
        (lambda: relation_reward(torch.zeros(2, 3), torch.tensor([0, -1])), "labels: must lie"),
        (lambda: relation_reward(torch.zeros(2, 1), torch.zeros(2).long()), "at least 2 classes"),
        (lambda: reinforce_loss(torch.zeros(2), torch.zeros(2), baseline="best"), "baseline: unknown"),
        (lambda: reinforce_loss(torch.zeros(3), torch.zeros(2)), "log_probs: need shape"),
        (lambda: reinforce_loss(torch.zeros(2, 1, 1), torch.zeros(2)), "log_probs: need shape"),
        (lambda: reinforce_loss(torch.zeros(2), torch.zeros(2), weights=torch.ones(3)), "weights: need shape"),
        (lambda: reinforce_loss(torch.zeros(1), torch.zeros(1), baseline="leave_one_out"), "at least 2 paths"),
        (lambda: reinforce_loss(torch.zeros(0), torch.zeros(0)), "rewards: need shape"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_batch_of_one_with_the_mean_learns_nothing():
    assert reinforce_loss(vector([-1.0]), vector([0.7])).item() == 0.0
    assert not math.isclose(reinforce_loss(vector([-1.0]), vector([0.7]), baseline="none").item(), 0.0)
