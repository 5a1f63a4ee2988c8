"""Predictive entropy of generated responses, a diversity measure of arXiv:2505.19601."""

import math

import torch
from torch import Tensor


def token_entropies(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Entropy -sum_v p log p of softmax(logits / temperature) in nats: (..., V) -> (...).

    Args:
        logits: floating point; -inf is a token of probability zero.
        temperature: > 0.

    Returns:
        Values in [0, log V], differentiable; float32 for half-precision logits, else their dtype.

    Raises:
        ValueError: temperature not in (0, inf).
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    log_p = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, dim=-1)
    p = log_p.exp()
    # p log p -> 0 as p -> 0; the product itself would be 0 * -inf.
    return -(p * log_p.masked_fill(p == 0, 0)).sum(-1)


def mean_token_entropy(logits: Tensor, response_mask: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Entropy -sum_v p log p of the next-token distribution in nats, averaged over all response tokens.

    Args:
        logits: (B, L, V), floating point; position t predicts the response token at mask position t. -inf is a token
            of probability zero. What stands at unmasked positions is never read, NaN included.
        response_mask: (B, L), bool or 0/1; at least one position is set.
        temperature: > 0; the entropy is that of softmax(logits / temperature), from which the response was sampled.

    Returns:
        Scalar in [0, log V], differentiable; float32 for half-precision logits, else their dtype.

    Raises:
        ValueError: shapes that do not match, empty mask, temperature not in (0, inf).
    """
    if logits.dim() != 3 or logits.shape[:2] != response_mask.shape:
        raise ValueError(
            "logits must be (B, L, V) and response_mask (B, L), "
            f"got {tuple(logits.shape)} and {tuple(response_mask.shape)}"
        )
    selected = logits[response_mask.bool()]
    if selected.shape[0] == 0:
        raise ValueError("response_mask must select at least one token, got an empty mask")
    return token_entropies(selected, temperature=temperature).mean()
