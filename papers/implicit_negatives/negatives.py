"""Negatives: embeddings of a concept that a guidance moves away from, in words or learned, and controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from papers.implicit_negatives.runs import EXPLICIT, RANDOM, SYNONYMS, Run
from shared.errors import InputError
from shared.t2i.text_encoding import PLACEHOLDER, TextEncoder


class Negative(NamedTuple):
    """A concept as guidance knows it.

    Attributes:
        embedding: of all positions, (1, L, D).
        pooled: (K, D), which span what SAFREE projects out.
    """

    embedding: Tensor
    pooled: Tensor


def in_words(text: TextEncoder, concepts: Sequence[str]) -> Negative:
    """The concept's first phrase, and all of them pooled."""
    return Negative(text.embed(concepts[:1]), text.pooled(concepts))


def learned(text: TextEncoder, value: Tensor) -> Negative:
    """What concept inversion learned: a token's embedding (D), or the text encoder's output (L, D)."""
    if value.ndim == 1:
        return Negative(text.embed([PLACEHOLDER], value), text.pooled([PLACEHOLDER], value))
    end = text.content_length(text.tokenize([PLACEHOLDER])[0]) + 1
    return Negative(value[None].to(text.table), value[None, end].to(text.table).float())


def random_word(text: TextEncoder, seed: int) -> Tensor:
    """The embedding (D) of a random token, distributed like those of the vocabulary."""
    table = text.table.detach().float().cpu()
    noise = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(seed))
    return table.mean(dim=0) + table.std(dim=0) * noise


def mean_of(text: TextEncoder, phrases: Sequence[str]) -> Negative:
    """The mean of several phrases' embeddings."""
    return Negative(text.embed(phrases).mean(dim=0, keepdim=True), text.pooled(phrases).mean(dim=0, keepdim=True))


def negative_of(
    run: Run,
    text: TextEncoder,
    concepts: Sequence[str],
    synonyms: Sequence[str],
    inverted: Mapping[str, Tensor],
    seed: int,
) -> Negative:
    """The negative of a run.

    Args:
        run: with a negative.
        text: the text encoder, which all models share.
        concepts: the phrases that a defence knows.
        synonyms: those that it does not, for the control.
        inverted: what was learned on each model, by its name.
        seed: of the random word.

    Raises:
        InputError: nothing was learned on the model that the run names.
    """
    if run.negative == EXPLICIT:
        return in_words(text, concepts)
    if run.negative == RANDOM:
        return learned(text, random_word(text, seed))
    if run.negative == SYNONYMS:
        return mean_of(text, synonyms)
    if run.inverted_on not in inverted:
        there = ", ".join(inverted) or "no model"
        raise InputError(f"run {run.name!r}: nothing was inverted on {run.inverted_on!r}, only on: {there}")
    return learned(text, inverted[run.inverted_on])
