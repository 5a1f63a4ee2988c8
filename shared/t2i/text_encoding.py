"""A CLIP text encoder as the safety methods use it: states of all tokens, pooled ones, and words of one's own.

A word of one's own is a token whose embedding is a vector given with the call, as in textual inversion. Its id lies
beyond the vocabulary, so that no other token's embedding is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import CLIPTextModel

PLACEHOLDER = "<concept>"
"""The word of one's own, in captions."""


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder with its tokenizer.

    Attributes:
        model: of transformers, in evaluation mode.
        tokenize: from captions to ids (B, L) that begin with one start token and are padded behind their end token; the
            placeholder's id is the vocabulary's size.
        end_id: of the token that ends a text.
        mask_id: of the token that stands for a masked one.
    """

    model: CLIPTextModel
    tokenize: Callable[[Sequence[str]], Tensor]
    end_id: int
    mask_id: int = 0

    @property
    def table(self) -> Tensor:
        """Embeddings (V, D) of the vocabulary's tokens."""
        return self.model.get_input_embeddings().weight

    def states(self, ids: Tensor, word: Tensor | None = None) -> Tensor:
        """Hidden states (B, L, D) of token ids (B, L); differentiable in `word` (D), the placeholder's embedding."""
        ids = ids.to(self.table.device)
        if word is None:
            return self.model(input_ids=ids).last_hidden_state
        name = next(name for name, value in self.model.named_parameters() if value is self.table)
        longer = torch.cat([self.table.detach(), word.to(self.table)[None]])
        return functional_call(self.model, {name: longer}, kwargs={"input_ids": ids}).last_hidden_state

    @torch.no_grad()
    def embed(self, captions: Sequence[str], word: Tensor | None = None) -> Tensor:
        """Text embeddings (B, L, D) of captions."""
        return self.states(self.tokenize(captions), word)

    @torch.no_grad()
    def pooled(self, captions: Sequence[str], word: Tensor | None = None) -> Tensor:
        """Pooled embeddings (B, D) of captions: the states of their end tokens, in single precision."""
        return self._pool(self.tokenize(captions), word)

    @torch.no_grad()
    def masked_pooled(self, caption: str, word: Tensor | None = None) -> Tensor:
        """Pooled embeddings (n, D) of a caption with each of its n content tokens masked; of an empty one, (1, D)."""
        ids = self.tokenize([caption])
        masked = ids.repeat(max(self.content_length(ids[0]), 1), 1)
        rows = torch.arange(len(masked))
        masked[rows, rows + 1] = self.mask_id
        # An empty caption has its end token masked; the padding behind it is then its end.
        return self._pool(masked, word)

    def content_length(self, ids: Tensor) -> int:
        """How many tokens (L,) stand between the start and the end of a text."""
        return int(self._end(ids[None])) - 1

    def _pool(self, ids: Tensor, word: Tensor | None) -> Tensor:
        states = self.states(ids, word)
        return states[torch.arange(len(ids)), self._end(ids).to(states.device)].float()

    def _end(self, ids: Tensor) -> Tensor:
        return (ids == self.end_id).int().argmax(dim=1)
