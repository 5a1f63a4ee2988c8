"""Rewards and generalized advantages."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papers.wpr.divergences import f_divergence_penalty
from papers.wpr.ppo import generalized_advantages, token_rewards

PENALTY = torch.tensor([[9.0, 1.0, -2.0, 9.0], [0.5, 3.0, 9.0, 9.0]])
MASK = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)


def contiguous_mask(starts: torch.Tensor, lengths: torch.Tensor, width: int) -> torch.Tensor:
    positions = torch.arange(width)
    return (positions >= starts[:, None]) & (positions < (starts + lengths)[:, None])


def batch(seed: int, rows: int = 4, width: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards, values and a mask with one run per row."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(2))
    starts = torch.randint(0, width, (rows,), generator=generator)
    lengths = 1 + (torch.rand(rows, generator=generator) * (width - starts)).long()
    return rewards, values, contiguous_mask(starts, lengths, width)


def test_score_is_added_on_the_last_response_token():
    rewards = token_rewards(PENALTY, torch.tensor([1.0, -2.0]), MASK, beta=0.5)
    assert rewards.tolist() == [[0.0, -0.5, 2.0, 0.0], [-0.25, -3.5, 0.0, 0.0]]


def test_score_and_penalty_are_clipped_apart():
    rewards = token_rewards(PENALTY, torch.tensor([4.0, -4.0]), MASK, beta=2.0, score_clip=2.5, penalty_clip=3.0)
    assert rewards.tolist() == [[0.0, -2.0, 5.5, 0.0], [-1.0, -5.5, 0.0, 0.0]]
    unclipped = token_rewards(PENALTY, torch.tensor([4.0, -4.0]), MASK, beta=2.0, score_clip=None)
    assert unclipped.tolist() == [[0.0, -2.0, 8.0, 0.0], [-1.0, -10.0, 0.0, 0.0]]
    assert token_rewards(PENALTY, torch.tensor([4.0, -4.0]), MASK, beta=0.0).sum() == 0  # 2.5 is the default


def test_nothing_outside_the_mask_enters_the_rewards():
    dirty = torch.where(MASK, PENALTY, math.nan)
    score = torch.tensor([1.0, 2.0])
    assert torch.equal(token_rewards(dirty, score, MASK, beta=1.0), token_rewards(PENALTY, score, MASK, beta=1.0))


def test_one_bad_score_stays_in_its_place():
    rewards = token_rewards(PENALTY, torch.tensor([math.nan, 1.0]), MASK, beta=1.0)
    assert rewards.isnan().nonzero().tolist() == [[0, 2]]


def test_without_regularisation_all_penalties_give_the_same_rewards():
    """Bit for bit, signs of zeros included, so that the runs are identical as well."""
    ratio = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    penalties = [torch.zeros(2, 4), ratio, -ratio]
    penalties += [f_divergence_penalty(ratio, name) for name in ("forward_kl", "js", "alpha", "tv", "chi2")]
    score = torch.tensor([0.3, -0.1])
    for clip in (None, 2.5):
        rewards = [token_rewards(penalty, score, MASK, beta=0.0, penalty_clip=clip) for penalty in penalties]
        assert all(torch.equal(reward.view(torch.int32), rewards[0].view(torch.int32)) for reward in rewards)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"penalty": PENALTY[:, :3]}, r"penalty .*\(2, 4\), got \(2, 3\)"),
        ({"score": torch.zeros(3)}, r"score .*\(2,\), got \(3,\)"),
        ({"score": torch.zeros(2, 1)}, r"score .* got \(2, 1\)"),
        ({"mask": MASK[0]}, r"mask .* got torch.bool \(4,\)"),
        ({"mask": MASK.float()}, "mask must be bool"),
        ({"mask": MASK & torch.tensor([[True], [False]])}, r"mask .* rows \[1\]"),
        ({"beta": -0.1}, "beta .* got -0.1"),
        ({"beta": math.nan}, "beta .* got nan"),
        ({"score_clip": -1.0}, "score_clip .* got -1.0"),
        ({"penalty_clip": -1.0}, "penalty_clip .* got -1.0"),
    ],
)
def test_bad_rewards_are_refused(changes, message):
    arguments = {"penalty": PENALTY, "score": torch.zeros(2), "mask": MASK, "beta": 1.0}
    with pytest.raises(ValueError, match=message):
        token_rewards(**{**arguments, **changes})


def by_the_sum(rewards, values, mask, gamma, lam):
    """A_t = Σ_l (γλ)^l δ_{t+l} over the row's own response tokens."""
    advantages = torch.zeros_like(rewards)
    for b in range(len(mask)):
        run = mask[b].nonzero()[:, 0].tolist()
        value_at = {t: values[b, t].item() for t in run}
        delta = {t: rewards[b, t].item() + gamma * value_at.get(t + 1, 0.0) - value_at[t] for t in run}
        for t in run:
            advantages[b, t] = sum((gamma * lam) ** (s - t) * delta[s] for s in run if s >= t)
    return advantages


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_advantages_are_the_discounted_sum_of_differences(seed, gamma, lam):
    rewards, values, mask = batch(seed)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=gamma, lam=lam)
    expected = by_the_sum(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(advantages, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(returns, torch.where(mask, expected + values, 0), rtol=1e-12, atol=1e-12)
    assert (advantages[~mask] == 0).all()
    assert (returns[~mask] == 0).all()


def test_defaults_are_those_of_the_paper():
    rewards, values, mask = batch(0)
    torch.testing.assert_close(
        generalized_advantages(rewards, values, mask)[0], by_the_sum(rewards, values, mask, 1.0, 0.95)
    )


def test_monte_carlo_and_one_step_limits():
    rewards, values, mask = batch(1)
    gamma = 0.9
    to_go = by_the_sum(rewards, torch.zeros_like(values), mask, gamma, 1.0)
    _, returns = generalized_advantages(rewards, values, mask, gamma=gamma, lam=1.0)
    torch.testing.assert_close(returns, to_go)
    following = torch.cat([torch.where(mask, values, 0)[:, 1:], torch.zeros(4, 1)], dim=-1)
    advantages, _ = generalized_advantages(rewards, values, mask, gamma=gamma, lam=0.0)
    torch.testing.assert_close(advantages, torch.where(mask, rewards + gamma * following - values, 0))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 3), st.integers(0, 3))
def test_padding_changes_nothing(seed, before, after):
    rewards, values, mask = batch(seed)
    padded = (
        torch.nn.functional.pad(rewards, (before, after), value=math.nan),
        torch.nn.functional.pad(values, (before, after), value=math.inf),
        torch.nn.functional.pad(mask, (before, after), value=False),
    )
    for short, long in zip(generalized_advantages(rewards, values, mask), generalized_advantages(*padded), strict=True):
        assert torch.equal(torch.nn.functional.pad(short, (before, after)), long)


def test_targets_are_constants_of_the_update():
    rewards, values, mask = batch(2)
    values.requires_grad_()
    assert not any(x.requires_grad for x in generalized_advantages(rewards, values, mask))
    assert not token_rewards(PENALTY.clone().requires_grad_(), torch.zeros(2), MASK, beta=1.0).requires_grad


@pytest.mark.parametrize("name", ["rewards", "values"])
def test_bad_shapes_are_refused(name):
    arguments = {"rewards": PENALTY, "values": PENALTY, "mask": MASK}
    with pytest.raises(ValueError, match=rf"{name} .*\(2, 4\), got \(1, 4\)"):
        generalized_advantages(**{**arguments, name: PENALTY[:1]})
    with pytest.raises(ValueError, match="mask must be bool"):
        generalized_advantages(PENALTY, PENALTY, MASK.int())
