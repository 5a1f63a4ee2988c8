"""A constant added to all logits at a position: a change of the teacher that no distribution can see."""

from __future__ import annotations

import torch
from torch import Tensor

from shared.data_order import generator_for
from shared.lm.batches import PromptResponseBatch

_STREAM = 20_250_928


def token_levels(vocabulary_size: int) -> Tensor:
    """One standard normal number for every token, always the same: (V,) float32."""
    return torch.randn(vocabulary_size, generator=generator_for(_STREAM))


def context_offsets(batch: PromptResponseBatch, levels: Tensor, amplitude: float) -> Tensor:
    """Offset of the logits that predict each response token, a function of the tokens before it.

    c = A Σ_{s<t} v(x_s) / √t over the t real tokens before position t: over random contexts it has mean 0 and standard
    deviation A.

    Args:
        batch: sequences of length S.
        levels: v (V,), see :func:`token_levels`.
        amplitude: A ≥ 0, in nats.

    Returns:
        (B, S - response_start) float32, for the columns from ``response_start`` on; padding adds nothing.
    """
    real = batch.attention_mask.to(levels.dtype)
    sums = (levels[batch.input_ids] * real).cumsum(dim=1)
    counts = real.cumsum(dim=1).clamp_min(1.0)
    return amplitude * (sums / counts.sqrt())[:, batch.response_start - 1 : -1]
