"""Padded batches of prompts and responses.

Two layouts occur. Training data is padded on the right, so that rows start together. Generation needs prompts padded
on the left, so that they end together; with the responses appended, all responses start in the same column. Both are
a `PromptResponseBatch`, and code that takes one works with either: positions count real tokens only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TokenRows = Sequence[Sequence[int]] | np.ndarray
"""Token ids of several texts: lists of any lengths, or an integer array (n, length)."""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts padded on the left to a common length P."""

    input_ids: Tensor
    """(B, P) int64."""
    attention_mask: Tensor
    """(B, P) int64, 1 on real tokens, 0 on padding."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: slice | Tensor) -> "PromptBatch":
        return PromptBatch(self.input_ids[rows], self.attention_mask[rows])

    @property
    def position_ids(self) -> Tensor:
        """(B, P) int64: the first real token of each row is at position 0."""
        return _positions(self.attention_mask)

    def to(self, device: torch.device | str) -> "PromptBatch":
        return PromptBatch(self.input_ids.to(device), self.attention_mask.to(device))


@dataclass(frozen=True)
class PromptResponseBatch:
    """Sequences of a prompt and its response, padded to a common length S."""

    input_ids: Tensor
    """(B, S) int64."""
    attention_mask: Tensor
    """(B, S) int64, 1 on real tokens, 0 on padding."""
    response_mask: Tensor
    """(B, S) bool, True on the tokens of the response, EOS included; one contiguous run per row."""
    response_start: int
    """No response of the batch starts before this column; at least 1, so that a token precedes every response."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: slice | Tensor) -> "PromptResponseBatch":
        return PromptResponseBatch(
            self.input_ids[rows], self.attention_mask[rows], self.response_mask[rows], self.response_start
        )

    @property
    def position_ids(self) -> Tensor:
        """(B, S) int64: the first real token of each row is at position 0."""
        return _positions(self.attention_mask)

    @property
    def response_lengths(self) -> Tensor:
        """(B,) int64, tokens of each response, EOS included."""
        return self.response_mask.sum(dim=-1)

    def to(self, device: torch.device | str) -> "PromptResponseBatch":
        return PromptResponseBatch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.response_mask.to(device),
            self.response_start,
        )


def left_padded(prompts: TokenRows, *, pad_id: int) -> PromptBatch:
    """Prompts of any lengths, ready for generation.

    Raises:
        ValueError: no prompts, or an empty one.
    """
    lengths = _lengths(prompts)
    columns = np.arange(lengths.max())
    real = columns >= lengths.max() - lengths[:, None]
    return PromptBatch(_fill(real, prompts, pad_id), torch.from_numpy(real).long())


def right_padded(prompts: TokenRows, responses: TokenRows, *, pad_id: int) -> PromptResponseBatch:
    """Prompts with their responses, ready for training. Responses carry their EOS and may be empty.

    Raises:
        ValueError: no prompts, an empty one, or a different number of responses.
    """
    starts = _lengths(prompts)
    if len(prompts) != len(responses):
        raise ValueError(f"responses: need one for each of the {len(prompts)} prompts, got {len(responses)}")
    ends = starts + np.array([len(response) for response in responses])
    columns = np.arange(ends.max())
    real = columns < ends[:, None]
    in_order = [row for pair in zip(prompts, responses, strict=True) for row in pair]
    return PromptResponseBatch(
        _fill(real, in_order, pad_id),
        torch.from_numpy(real).long(),
        torch.from_numpy(real & (columns >= starts[:, None])),
        int(starts.min()),
    )


def append_responses(prompts: PromptBatch, responses: Tensor, mask: Tensor) -> PromptResponseBatch:
    """Left-padded prompts (B, P) followed by responses (B, T) int64 with their mask (B, T) bool.

    All responses then start in column P: `response_start` is P.

    Raises:
        ValueError: the shapes do not fit.
    """
    if responses.shape != mask.shape or len(responses) != len(prompts):
        raise ValueError(
            f"responses: need shape ({len(prompts)}, T) like the mask, "
            f"got {tuple(responses.shape)} with mask {tuple(mask.shape)}"
        )
    mask = mask.bool()
    return PromptResponseBatch(
        torch.cat([prompts.input_ids, responses], dim=1),
        torch.cat([prompts.attention_mask, mask.long()], dim=1),
        torch.cat([torch.zeros_like(prompts.attention_mask, dtype=torch.bool), mask], dim=1),
        prompts.input_ids.shape[1],
    )


def _positions(attention_mask: Tensor) -> Tensor:
    return (attention_mask.cumsum(dim=-1) - 1).clamp_min(0)


def _lengths(prompts: TokenRows) -> np.ndarray:
    lengths = np.array([len(prompt) for prompt in prompts])
    if lengths.size == 0 or lengths.min() == 0:
        raise ValueError("prompts: need at least one prompt, and at least one token in each")
    return lengths


def _fill(real: np.ndarray, rows: TokenRows, pad_id: int) -> Tensor:
    """int64 like `real` (B, S): the tokens of the rows, one after the other, where True, `pad_id` elsewhere."""
    input_ids = np.full(real.shape, pad_id, dtype=np.int64)
    input_ids[real] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return torch.from_numpy(input_ids)
