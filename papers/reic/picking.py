"""What every method shows of a document, and the relation module's input that it makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from papers.reic import baselines
from papers.reic.baselines import FilterDials
from papers.reic.documents import BRIDGE_MARKERS, TARGET_MARKERS, PathDocument, PathText
from papers.reic.input_construction import assemble_document, repair_markers
from papers.reic.options import InputOptions
from papers.reic.relation_modules import BagBatch

Embed = Callable[[Sequence[PathDocument]], list[Tensor]]
"""Embeddings (1 + M, D) of documents: the target block's, then the candidates'."""


@dataclass(frozen=True)
class Shown:
    """What is shown of one document."""

    ids: list[int]
    """Of the text, markers repaired."""
    blocks: tuple[int, ...]
    """Blocks that are shown whole, the target's first, then in the order of picking."""

    def recall(self, document: PathDocument) -> float | None:
        """Share of the gold evidence that is shown; None without evidence."""
        if not document.evidence:
            return None
        return len(document.evidence & set(self.blocks)) / len(document.evidence)


@dataclass(frozen=True)
class TextMaker:
    """Texts of the relation module's input."""

    options: InputOptions
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def marker_ids(self) -> list[tuple[int, int]]:
        """Opening and closing marker of every kind."""
        pairs = (*TARGET_MARKERS.values(), *BRIDGE_MARKERS)
        return [tuple(self.tokenizer.convert_tokens_to_ids(list(pair))) for pair in pairs]

    def budget(self, side: int, count: int) -> int:
        """Tokens of the head's (0) or the tail's (1) document when K is ``count``: as the options say at their K, and
        growing with the blocks for others."""
        budget = (self.options.head_budget, self.options.tail_budget)[side]
        return budget * (count + 1) // (self.options.picks + 1)

    def of_picks(self, document: PathDocument, picks: Sequence[int], side: int, count: int) -> Shown:
        """The target block with picked candidates, at most ``count``; -1 is none."""
        blocks = [document.block_of(pick) for pick in picks if pick >= 0]
        text = assemble_document(
            document.ids,
            document.blocks[document.target],
            [document.blocks[block] for block in blocks],
            budget=self.budget(side, count),
            order=self.options.order,
        )
        return Shown(repair_markers(text, self.marker_ids), (document.target, *blocks))

    def of_span(self, document: PathDocument, span: tuple[int, int]) -> Shown:
        """A window of the document."""
        start, end = span
        whole = tuple(index for index, (low, high) in enumerate(document.blocks) if start <= low and high <= end)
        return Shown(repair_markers(document.ids[start:end], self.marker_ids), whole)

    def batch(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], bag_of: Sequence[int]) -> BagBatch:
        """[CLS] head's text [SEP] tail's text [SEP] of paths."""
        tokenizer = self.tokenizer
        rows = [
            ([tokenizer.cls_token_id, *head, tokenizer.sep_token_id, *tail, tokenizer.sep_token_id], len(head) + 2)
            for head, tail in pairs
        ]
        longest = max(len(row) for row, _ in rows)
        pad = tokenizer.pad_token_id
        lengths = torch.tensor([len(row) for row, _ in rows])[:, None]
        columns = torch.arange(longest)
        second = (columns >= torch.tensor([first for _, first in rows])[:, None]) & (columns < lengths)
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row, _ in rows])
        return BagBatch(ids, (columns < lengths).long(), second.long(), torch.tensor(bag_of), max(bag_of) + 1)


@dataclass(frozen=True)
class Heuristic:
    """A method without learning.

    Draws come from the generator it is called with; everything else is a function of the texts.
    """

    method: str
    maker: TextMaker
    embed: Embed
    dials: FilterDials = FilterDials()  # noqa: RUF009 - a frozen dataclass
    triggers: frozenset[str] = frozenset()

    def __call__(
        self, bags: Sequence[Sequence[PathText]], count: int, generator: torch.Generator
    ) -> list[tuple[Shown, Shown]]:
        """What is shown of the documents of every path, all bags one after the other.

        Args:
            bags: their texts.
            count: K, blocks per document besides the target's.
            generator: of random picks.
        """
        if self.method == "filter":
            chosen = [baselines.bridge_filter(text, bag, count, self.dials) for bag in bags for text in bag]
            texts = [text for bag in bags for text in bag]
            return [
                tuple(self.maker.of_picks(text.documents[side], picks[side], side, 2 * count) for side in (0, 1))
                for text, picks in zip(texts, chosen, strict=True)
            ]
        return [
            tuple(self._show(document, side, count, generator) for side, document in enumerate(text.documents))
            for bag in bags
            for text in bag
        ]

    def _show(self, document: PathDocument, side: int, count: int, generator: torch.Generator) -> Shown:
        if self.method == "snippet":
            return self.maker.of_span(document, baselines.snippet(document, self.maker.budget(side, count)))
        return self.maker.of_picks(document, self._picks(document, count, generator), side, count)

    def _picks(self, document: PathDocument, count: int, generator: torch.Generator) -> list[int]:
        if self.method == "first":
            return baselines.first_blocks(document, count)
        if self.method == "nearest":
            return baselines.nearest_blocks(document, count)
        if self.method == "similarity":
            vectors = self.embed([document])[0]
            return baselines.similar_blocks(vectors[0], vectors[1:], count)
        order = torch.randperm(document.num_candidates, generator=generator).tolist()
        if self.method in ("oracle", "oracle_triggers"):
            order.sort(key=lambda candidate: self._rank(document, document.block_of(candidate)))
        return order[:count]

    def _rank(self, document: PathDocument, block: int) -> int:
        """0 for evidence, 1 for what the oracle fills up with, 2 for the rest."""
        if block in document.evidence:
            return 0
        start, end = document.blocks[block]
        fills = self.method == "oracle_triggers" and not self.triggers.isdisjoint(document.tokens[start:end])
        return 1 if fills else 2


def pad_embeddings(vectors: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Targets (B, D), candidates (B, M, D) padded with zeros, and their numbers (B,), of embeddings (1 + M, D) each."""
    padded = torch.nn.utils.rnn.pad_sequence(list(vectors), batch_first=True)
    lengths = torch.tensor([len(each) - 1 for each in vectors])
    return padded[:, 0].to(device), padded[:, 1:].to(device), lengths.to(device)
