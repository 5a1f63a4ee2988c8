"""Supervised fine-tuning: next-token prediction on prompts with their responses."""

import torch
from torch import Tensor, nn

from shared.lm.batches import PromptResponseBatch
from shared.lm.log_probs import response_logits


def supervised_loss(model: nn.Module, batch: PromptResponseBatch, *, include_prompt: bool = False) -> Tensor:
    """Mean negative log-likelihood in nats per target token, a scalar in float32.

    Targets are the response tokens, EOS included; with `include_prompt` all real tokens that have a predecessor.
    Padding is never a target, even where pad and EOS are one token.

    Raises:
        ValueError: the batch has no target.
    """
    if include_prompt:
        # The same sequences seen as all response but for their first token.
        mask = _all_but_first(batch.attention_mask)
        batch = PromptResponseBatch(batch.input_ids, batch.attention_mask, mask, response_start=1)
    logits, targets, mask = response_logits(model, batch)
    if not mask.any():
        raise ValueError("batch: has no response token to learn from")
    return nn.functional.cross_entropy(logits[mask].float(), targets[mask])


def target_count(batch: PromptResponseBatch, *, include_prompt: bool = False) -> int:
    """How many tokens `supervised_loss` averages over: the weight of this batch in a mean over several."""
    mask = _all_but_first(batch.attention_mask) if include_prompt else batch.response_mask
    return int(mask.sum())


def _all_but_first(attention_mask: Tensor) -> Tensor:
    """True on real tokens that follow another: (B, S) -> (B, S) bool, for either side of padding."""
    mask = attention_mask.bool()
    return mask & torch.nn.functional.pad(mask[:, :-1], (1, 0), value=False)
