"""Padded batches of prompts and responses.

Two layouts occur. Training data is padded on the right, so that rows start together. Generation needs prompts padded
on the left, so that they end together; with the responses appended, all responses start in the same column. Both are
a `PromptResponseBatch`, and code that takes one works with either: positions count real tokens only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TokenRows = Sequence[Sequence[int]]


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
    _require_tokens(prompts)
    length = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), length), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, length - len(prompt) :] = torch.as_tensor(prompt)
        attention_mask[row, length - len(prompt) :] = 1
    return PromptBatch(input_ids, attention_mask)


def right_padded(prompts: TokenRows, responses: TokenRows, *, pad_id: int) -> PromptResponseBatch:
    """Prompts with their responses, ready for training. Responses carry their EOS and may be empty.

    Raises:
        ValueError: no prompts, an empty one, or a different number of responses.
    """
    _require_tokens(prompts)
    if len(prompts) != len(responses):
        raise ValueError(f"responses: need one for each of the {len(prompts)} prompts, got {len(responses)}")
    length = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    input_ids = torch.full((len(prompts), length), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    response_mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        start, end = len(prompt), len(prompt) + len(response)
        input_ids[row, :start] = torch.as_tensor(prompt)
        input_ids[row, start:end] = torch.as_tensor(response)
        attention_mask[row, :end] = 1
        response_mask[row, start:end] = True
    start = min(len(prompt) for prompt in prompts)
    return PromptResponseBatch(input_ids, attention_mask, response_mask, start)


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


def _require_tokens(prompts: TokenRows) -> None:
    if len(prompts) == 0 or min(len(prompt) for prompt in prompts) == 0:
        raise ValueError("prompts: need at least one prompt, and at least one token in each")
