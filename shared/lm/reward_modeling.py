"""Reward models trained on pairs of responses to one prompt.

A pair batch is a right-padded `PromptResponseBatch` of 2N rows: the N chosen responses, then the N rejected ones of the
same prompts in the same order, padded to one length. Right padding aligns the two sequences of a pair column by
column, which the token-level loss relies on.
"""

import torch
from torch import Tensor, nn

from shared.lm.batches import PromptResponseBatch, TokenRows, right_padded


def pair_batch(prompts: TokenRows, chosen: TokenRows, rejected: TokenRows, *, pad_id: int) -> PromptResponseBatch:
    """The 2N sequences of N pairs, chosen first.

    Raises:
        ValueError: not one chosen and one rejected response per prompt.
    """
    if not len(prompts) == len(chosen) == len(rejected):
        raise ValueError(
            f"prompts, chosen and rejected: need the same number, got {len(prompts)}, {len(chosen)}, {len(rejected)}"
        )
    return right_padded([*prompts, *prompts], [*chosen, *rejected], pad_id=pad_id)


def position_values(model: nn.Module, batch: PromptResponseBatch) -> Tensor:
    """Values of a model with a scalar head at every position: (B, S)."""
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids)


def last_token_values(values: Tensor, batch: PromptResponseBatch) -> Tensor:
    """The value (B,) at the last response token of each row, from values (B, S).

    Raises:
        ValueError: a row without response tokens.
    """
    if not batch.response_mask.any(dim=1).all():
        raise ValueError("batch: every row needs a response token to be scored at")
    columns = torch.arange(values.shape[1], device=values.device)
    last = torch.where(batch.response_mask, columns, -1).amax(dim=1)
    return values.gather(1, last.unsqueeze(1)).squeeze(1)


def score(model: nn.Module, batch: PromptResponseBatch) -> Tensor:
    """Reward of each response, (B,): the model's value at its last token."""
    return last_token_values(position_values(model, batch), batch)


def pairwise_loss(values: Tensor, batch: PromptResponseBatch) -> Tensor:
    """Token-level Bradley-Terry loss of a pair batch, a scalar, from values (2N, S).

    For each pair -log sigmoid(r_chosen - r_rejected) is averaged over the columns from the first token in which the
    two sequences differ to the later of their two ends, the padding of the shorter one included (DeepSpeed-Chat);
    then over pairs. A pair of identical sequences counts log 2 and has no gradient.

    Raises:
        ValueError: an odd number of rows, or values of another shape than the batch.
    """
    if len(batch) % 2 or values.shape != batch.input_ids.shape:
        raise ValueError(
            f"values: need the shape of an even number of sequences, got {tuple(values.shape)} "
            f"for sequences {tuple(batch.input_ids.shape)}"
        )
    chosen, rejected = batch.input_ids.chunk(2)
    differ = chosen != rejected
    columns = torch.arange(values.shape[1], device=values.device)
    real = batch.attention_mask.bool()
    end = torch.where(real[: len(differ)] | real[len(differ) :], columns, -1).amax(dim=1, keepdim=True)
    first = torch.where(differ, columns, end).amin(dim=1, keepdim=True)
    counted = (columns >= first) & (columns <= end)
    chosen_values, rejected_values = values.chunk(2)
    loss = -nn.functional.logsigmoid(chosen_values - rejected_values)
    return ((loss * counted).sum(dim=1) / counted.sum(dim=1)).mean()


def pair_accuracy(scores: Tensor) -> Tensor:
    """Share of pairs whose chosen response scores higher, ties counting half; scores (2N,), chosen first."""
    chosen, rejected = scores.chunk(2)
    return ((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).mean()
