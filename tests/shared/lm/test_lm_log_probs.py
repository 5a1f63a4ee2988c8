import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shared.lm.batches import append_responses, left_padded, right_padded
from shared.lm.log_probs import (
    response_log_probs,
    response_logits,
    response_token_log_probs,
    token_log_probs,
)

PROMPTS = [[2, 5, 3], [2, 5, 6, 7, 3], [4]]
RESPONSES = [[8, 9, 1], [8, 1], [5, 6, 7, 1]]


@given(
    arrays("float64", (2, 3, 5), elements=st.floats(-50, 50)),
    arrays("int64", (2, 3), elements=st.integers(0, 4)),
    st.floats(0.1, 10),
)
def test_token_log_probs_are_those_of_the_softmax(logits, tokens, temperature):
    logits, tokens = torch.from_numpy(logits), torch.from_numpy(tokens)
    expected = torch.log_softmax(logits / temperature, -1).gather(-1, tokens[..., None])[..., 0]
    result = token_log_probs(logits, tokens, temperature=temperature)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-10)


def test_half_precision_logits_are_reduced_in_float32():
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    tokens = torch.arange(4)
    result = token_log_probs(logits, tokens)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.log_softmax(logits.double(), -1)[torch.arange(4), tokens].float())


def test_gradient_is_that_of_the_log_softmax():
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: token_log_probs(x, torch.tensor([0, 3, 1]), temperature=0.7), (logits,))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="tokens"):
        token_log_probs(torch.zeros(2, 3, 5), torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="temperature"):
        token_log_probs(torch.zeros(2, 5), torch.zeros(2, dtype=torch.long), temperature=0.0)


def _log_prob_of_one(model, prompt, response, temperature=1.0):
    """Sum over the response of the log-probability given its prefix, one unpadded forward per token."""
    total = 0.0
    for t, token in enumerate(response):
        logits = model(torch.tensor([prompt + response[:t]])).logits[0, -1].double()
        total += torch.log_softmax(logits / temperature, -1)[token]
    return total


@torch.no_grad()
def test_response_log_probs_in_both_layouts_equal_the_unpadded_forward(decoder):
    expected = torch.stack([_log_prob_of_one(decoder, p, r, 0.8) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    right = right_padded(PROMPTS, RESPONSES, pad_id=0)
    length = max(map(len, RESPONSES))
    padded = torch.tensor([r + [0] * (length - len(r)) for r in RESPONSES])
    left = append_responses(left_padded(PROMPTS, pad_id=0), padded, padded != 0)
    for batch in (right, left):
        result = response_log_probs(decoder, batch, temperature=0.8)
        assert result.shape == (3,) and result.dtype == torch.float32
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_only_response_columns_are_kept(gpt2):
    batch = right_padded(PROMPTS, RESPONSES, pad_id=0)
    logits, targets, mask = response_logits(gpt2, batch)
    n_columns = batch.input_ids.shape[1] - 1  # the shortest prompt has one token
    assert logits.shape == (3, n_columns, 13) and targets.shape == mask.shape == (3, n_columns)
    for row, response in enumerate(RESPONSES):
        assert targets[row][mask[row]].tolist() == response
    full = gpt2(batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    torch.testing.assert_close(logits[mask], full[batch.response_mask[:, 1:]])


def test_log_probs_are_zero_outside_the_mask_and_carry_gradients(gpt2):
    batch = right_padded(PROMPTS, RESPONSES, pad_id=0)
    log_probs, mask = response_token_log_probs(gpt2, batch)
    assert (log_probs[~mask] == 0).all() and (log_probs[mask] < 0).all()
    log_probs.sum().backward()
    assert gpt2.get_input_embeddings().weight.grad.abs().sum() > 0


@torch.no_grad()
def test_extra_padding_and_batching_change_nothing(decoder):
    alone = response_log_probs(decoder, right_padded(PROMPTS[:1], RESPONSES[:1], pad_id=0))
    together = response_log_probs(decoder, right_padded(PROMPTS, RESPONSES, pad_id=0))
    torch.testing.assert_close(alone[0], together[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_empty_response_has_probability_one(gpt2):
    assert response_log_probs(gpt2, right_padded([[2], [2]], [[1], []], pad_id=0))[1] == 0


def test_a_batch_of_empty_responses_only_is_refused(gpt2):
    with pytest.raises(ValueError, match="batch"):
        response_logits(gpt2, right_padded([[2, 5], [2, 6]], [[], []], pad_id=0))
