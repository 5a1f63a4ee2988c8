"""Log-probabilities of tokens and responses under causal language models.

Reductions over the vocabulary are in float32 at least, whatever the precision of the logits: bfloat16 keeps three
digits of a log-probability, fewer than its changes from step to step.
"""

import torch
from torch import Tensor, nn

from shared.lm.batches import PromptResponseBatch


def token_log_probs(logits: Tensor, tokens: Tensor, *, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) at `tokens`: logits (..., V), tokens (...) -> (...), float32 or float64.

    One gather and one logsumexp; the log-softmax of the whole vocabulary is never stored.

    Raises:
        ValueError: shapes that do not fit, or a temperature that is not positive.
    """
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(f"tokens: need shape {tuple(logits.shape[:-1])} for these logits, got {tuple(tokens.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature: must be positive, got {temperature}")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        logits = logits / temperature
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)


def response_logits(model: nn.Module, batch: PromptResponseBatch) -> tuple[Tensor, Tensor, Tensor]:
    """One teacher-forced forward, restricted to the columns that predict response tokens.

    `model` is a causal language model of transformers; its output layer is applied to the K = S - response_start
    columns before the response tokens only, which for large vocabularies is most of the memory of a forward pass.

    Returns:
        logits (B, K, V) in the model's precision, where logits[:, t] predicts token t of the targets;
        targets (B, K) int64, the tokens of columns response_start ... S - 1;
        mask (B, K) bool, True on response tokens.

    Raises:
        ValueError: all responses are empty.
    """
    start, length = batch.response_start, batch.input_ids.shape[1]
    if start == length:
        raise ValueError("batch: has no column for response tokens")
    # The last column predicts nothing that is known.
    logits = model(
        input_ids=batch.input_ids[:, :-1],
        attention_mask=batch.attention_mask[:, :-1],
        position_ids=batch.position_ids[:, :-1],
        use_cache=False,
        logits_to_keep=length - start,
    ).logits
    return logits, batch.input_ids[:, start:], batch.response_mask[:, start:]


def response_token_log_probs(
    model: nn.Module, batch: PromptResponseBatch, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability of every response token: (B, K), 0 outside the mask, and the mask (B, K) bool.

    Only response positions are reduced over the vocabulary, so padding costs nothing there.
    """
    logits, targets, mask = response_logits(model, batch)
    selected = token_log_probs(logits[mask], targets[mask], temperature=temperature)
    return torch.zeros(mask.shape, dtype=selected.dtype, device=selected.device).masked_scatter(mask, selected), mask


def response_log_probs(model: nn.Module, batch: PromptResponseBatch, *, temperature: float = 1.0) -> Tensor:
    """log p(response | prompt), EOS included: (B,), 0 for an empty response."""
    log_probs, _ = response_token_log_probs(model, batch, temperature=temperature)
    return log_probs.sum(dim=-1)
