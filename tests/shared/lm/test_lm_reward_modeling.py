import math

import pytest
import torch

from shared.lm.batches import append_responses, left_padded, right_padded
from shared.lm.models import ScalarHeadModel
from shared.lm.reward_modeling import (
    last_token_values,
    pair_accuracy,
    pair_batch,
    pairwise_loss,
    position_values,
    score,
)

PROMPTS = [[2, 5, 3], [2, 3], [2, 5, 6, 3]]
CHOSEN = [[7, 8, 9, 1], [7, 1], [5, 1]]
REJECTED = [[7, 9, 1], [7, 8, 8, 8, 1], [5, 1]]
BATCH = pair_batch(PROMPTS, CHOSEN, REJECTED, pad_id=0)


def _values(seed=0):
    return torch.randn(BATCH.input_ids.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_loss_is_the_sum_written_out():
    values = _values()
    # (first differing column, later end) of each pair, counted by hand; the third pair is identical.
    spans = [(4, 6), (3, 6), (5, 5)]
    expected = 0.0
    for pair, (first, end) in enumerate(spans):
        terms = [-math.log(1 / (1 + math.exp(-(values[pair, t] - values[pair + 3, t])))) for t in range(first, end + 1)]
        expected += sum(terms) / len(terms) / 3
    assert pairwise_loss(values, BATCH).item() == pytest.approx(expected, rel=1e-12)


def test_only_counted_columns_have_a_gradient():
    values = _values().requires_grad_()
    pairwise_loss(values, BATCH).backward()
    touched = values.grad != 0
    assert torch.equal(touched[:3], touched[3:])
    assert touched[0].nonzero().flatten().tolist() == [4, 5, 6]
    assert touched[1].nonzero().flatten().tolist() == [3, 4, 5, 6]
    assert (values.grad[:3] <= 0).all() and torch.equal(values.grad[:3], -values.grad[3:])


def test_identical_sequences_count_log_two():
    batch = pair_batch(PROMPTS[2:], CHOSEN[2:], REJECTED[2:], pad_id=0)
    values = torch.randn(1, batch.input_ids.shape[1]).repeat(2, 1)
    assert pairwise_loss(values, batch).item() == pytest.approx(math.log(2))


def test_extra_padding_changes_nothing():
    values = _values()
    wider = right_padded([*PROMPTS, *PROMPTS, [2] * 9], [*CHOSEN, *REJECTED, [1]], pad_id=0)[:6]
    extra = torch.randn(6, wider.input_ids.shape[1] - values.shape[1], dtype=torch.float64)
    torch.testing.assert_close(pairwise_loss(torch.cat([values, extra], 1), wider), pairwise_loss(values, BATCH))


def test_score_is_the_value_at_the_last_response_token(decoder):
    model = ScalarHeadModel(decoder.base_model)
    torch.nn.init.normal_(model.head.weight)
    sequences = [p + r for p, r in zip(PROMPTS * 2, CHOSEN + REJECTED, strict=True)]
    ones = [torch.ones(1, len(s), dtype=torch.long) for s in sequences]
    expected = torch.stack(
        [model(torch.tensor([s]), m, m.cumsum(1) - 1)[0, -1] for s, m in zip(sequences, ones, strict=True)]
    )
    torch.testing.assert_close(score(model, BATCH), expected, rtol=1e-5, atol=1e-5)
    responses = torch.tensor([[7, 8, 9, 1], [7, 1, 0, 0], [5, 1, 0, 0]])
    left = append_responses(left_padded(PROMPTS, pad_id=0), responses, responses != 0)
    torch.testing.assert_close(score(model, left), expected[:3], rtol=1e-5, atol=1e-5)


def test_a_reward_model_learns_to_tell_pairs_apart(gpt2):
    model = ScalarHeadModel(gpt2.base_model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = pair_batch(PROMPTS[:2], CHOSEN[:2], REJECTED[:2], pad_id=0)
    for _ in range(20):
        loss = pairwise_loss(position_values(model, batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert pair_accuracy(score(model, batch)) == 1.0


def test_accuracy_counts_ties_half():
    assert pair_accuracy(torch.tensor([1.0, 2.0, 0.0, 5.0, 0.5, 2.0, 1.0, 4.0])) == 0.625


def test_bad_batches_are_named():
    with pytest.raises(ValueError, match="values"):
        pairwise_loss(_values()[:, :-1], BATCH)
    with pytest.raises(ValueError, match="values"):
        pairwise_loss(_values()[:5], BATCH[:5])
    with pytest.raises(ValueError, match="chosen"):
        pair_batch(PROMPTS, CHOSEN[:2], REJECTED, pad_id=0)
    with pytest.raises(ValueError, match="batch"):
        last_token_values(torch.zeros(1, 2), right_padded([[2, 5]], [[]], pad_id=0))
