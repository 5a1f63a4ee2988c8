import pytest
import torch

from shared.lm.batches import append_responses, left_padded, right_padded
from shared.lm.supervised import supervised_loss, target_count

PROMPTS = [[2, 5, 3], [2, 5, 6, 7, 3]]
RESPONSES = [[8, 9, 1], [8, 1]]


def _expected(model, include_prompt):
    losses = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        sequence = prompt + response
        log_probs = model(torch.tensor([sequence])).logits[0].log_softmax(-1)
        first = 1 if include_prompt else len(prompt)
        losses += [-log_probs[t - 1, sequence[t]] for t in range(first, len(sequence))]
    return torch.stack(losses).mean(), len(losses)


@torch.no_grad()
@pytest.mark.parametrize("include_prompt", [False, True])
@pytest.mark.parametrize("layout", ["right", "left"])
def test_loss_is_the_mean_over_target_tokens(decoder, include_prompt, layout):
    batch = right_padded(PROMPTS, RESPONSES, pad_id=0)
    if layout == "left":
        responses = torch.tensor([[8, 9, 1], [8, 1, 0]])
        batch = append_responses(left_padded(PROMPTS, pad_id=0), responses, responses != 0)
    expected, count = _expected(decoder, include_prompt)
    torch.testing.assert_close(supervised_loss(decoder, batch, include_prompt=include_prompt), expected)
    assert target_count(batch, include_prompt=include_prompt) == count


@torch.no_grad()
def test_padding_with_eos_keeps_the_real_eos_as_a_target(gpt2):
    with_pad = right_padded(PROMPTS, RESPONSES, pad_id=0)
    with_eos = right_padded(PROMPTS, RESPONSES, pad_id=1)
    torch.testing.assert_close(supervised_loss(gpt2, with_eos), supervised_loss(gpt2, with_pad))


def test_weighted_mean_over_parts_is_the_loss_of_the_whole(gpt2):
    batch = right_padded(PROMPTS, RESPONSES, pad_id=0)
    whole = supervised_loss(gpt2, batch)
    parts = [batch[:1], batch[1:]]
    weights = [target_count(part) for part in parts]
    mean = sum(w * supervised_loss(gpt2, part) for w, part in zip(weights, parts, strict=True)) / sum(weights)
    torch.testing.assert_close(mean, whole)


def test_low_precision_logits_give_a_float32_loss(gpt2):
    batch = right_padded(PROMPTS, RESPONSES, pad_id=0)
    assert supervised_loss(gpt2.bfloat16(), batch).dtype == torch.float32


def test_nothing_to_learn_is_an_error(gpt2):
    with pytest.raises(ValueError, match="batch"):
        supervised_loss(gpt2, right_padded([[2, 5]], [[]], pad_id=0))
