"""Documents of a text path as its models see them: word pieces with markers, cut into blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from papers.reic.codred import Evidence, LinkedDocument, TextPath
from papers.reic.input_construction import (
    Span,
    insert_markers,
    keep_mention_whole,
    split_into_blocks,
    window_around,
)
from shared.data_order import generator_for
from shared.errors import InputError

SIDES = ("head", "tail")
MOST_BRIDGES = 40
TARGET_MARKERS = {"head": ("[unused1]", "[unused2]"), "tail": ("[unused3]", "[unused4]")}
BRIDGE_MARKERS = tuple((f"[unused{2 * index + 5}]", f"[unused{2 * index + 6}]") for index in range(MOST_BRIDGES))
MARKERS = tuple(marker for pair in (*TARGET_MARKERS.values(), *BRIDGE_MARKERS) for marker in pair)
_BRIDGE_STREAM = 17


@dataclass(frozen=True)
class PathDocument:
    """One document of a path. Candidate m of the selector is block m, or m + 1 from the target block on."""

    title: str
    tokens: tuple[str, ...]
    """With markers."""
    ids: tuple[int, ...]
    """The tokens' ids."""
    blocks: tuple[Span, ...]
    target: int
    """Number of the block with the first mention of the target entity."""
    mention: Span
    """That mention, its markers included."""
    bridges: tuple[frozenset[int], ...]
    """Of each block, the Wikidata numbers of the bridge entities in it."""
    names_target: tuple[bool, ...]
    """Of each block, whether the target entity is mentioned in it."""
    evidence: frozenset[int]
    """Blocks that are gold evidence, so far as it is known."""

    @property
    def num_candidates(self) -> int:
        """M."""
        return len(self.blocks) - 1

    def block_of(self, candidate: int) -> int:
        """The block of a candidate."""
        return candidate + (candidate >= self.target)

    def candidate_of(self, block: int) -> int:
        """The candidate that a block is, other than the target block."""
        return block - (block > self.target)


@dataclass(frozen=True)
class PathText:
    """A path with its two documents, head first."""

    path: TextPath
    documents: tuple[PathDocument, PathDocument]


class Documents(Protocol):
    """What has documents by title."""

    def __getitem__(self, title: str) -> LinkedDocument:
        """The document; InputError if there is none."""


@dataclass(frozen=True)
class PathReader:
    """Makes the texts of paths; a small object that can travel to the processes of a data loader."""

    documents: Documents
    tokenizer: PreTrainedTokenizerBase
    """A fast one that knows the markers."""
    evidence: Evidence
    max_length: int
    """Of a block, in tokens."""
    seed: int = 0
    """Of the draw of bridges where there are more than `MOST_BRIDGES`."""

    def __call__(self, path: TextPath) -> PathText:
        """The text of a path.

        Raises:
            InputError: a document is missing, does not mention its entity, or lacks a sentence that is evidence; the
                message names title and key.
        """
        linked = [self.documents[title] for title in (path.head_title, path.tail_title)]
        common = sorted(set.intersection(*({number for number, _ in each.entities if number} for each in linked)))
        bridges = [number for number in common if number not in path.entities]
        if len(bridges) > MOST_BRIDGES:  # without replacement, the same ones whenever the path is read
            seed = generator_for(self.seed, _BRIDGE_STREAM, *path.entities).initial_seed()
            drawn = np.random.default_rng(seed).choice(len(bridges), MOST_BRIDGES, replace=False)
            bridges = [bridges[index] for index in sorted(drawn)]
        evidence = self.evidence.get((path.key, path.head_title, path.tail_title), (frozenset(), frozenset()))
        return PathText(
            path,
            tuple(
                self._document(path, side, linked[index], path.entities[index], bridges, evidence[index])
                for index, side in enumerate(SIDES)
            ),
        )

    def _document(
        self,
        path: TextPath,
        side: str,
        document: LinkedDocument,
        entity: int,
        bridges: Sequence[int],
        evidence: frozenset[tuple[int, int]],
    ) -> PathDocument:
        pieces, place = word_pieces(document, self.tokenizer)
        where = f"document {document.title!r} of pair {path.key}"
        mentions = mention_spans(document, place)
        if not mentions.get(entity):
            raise InputError(f"{where}: no mention of Q{entity}")
        first = mentions[entity][0]
        marked = [(first, *TARGET_MARKERS[side])]
        for index, number in enumerate(bridges):
            marked += [(span, *BRIDGE_MARKERS[index]) for span in mentions.get(number, [])]
        tokens, moved = insert_markers(pieces, marked)
        mention = (moved[first[0]] - 1, moved[first[1] - 1] + 2)
        blocks = keep_mention_whole(split_into_blocks(tokens, max_length=self.max_length), mention)

        def blocks_at(spans: Sequence[Span]) -> list[int]:
            found = [(moved[start], moved[end - 1] + 1) for start, end in spans if start < end]
            return [
                index
                for index, (low, high) in enumerate(blocks)
                if any(start < high and low < end for start, end in found)
            ]

        in_block: list[set[int]] = [set() for _ in blocks]
        for number in bridges:
            for index in blocks_at(mentions.get(number, [])):
                in_block[index].add(number)
        named = set(blocks_at(mentions[entity]))
        return PathDocument(
            document.title,
            tuple(tokens),
            tuple(self.tokenizer.convert_tokens_to_ids(tokens)),
            tuple(blocks),
            next(index for index, (_, high) in enumerate(blocks) if mention[0] < high),
            mention,
            tuple(map(frozenset, in_block)),
            tuple(index in named for index in range(len(blocks))),
            frozenset(blocks_at(evidence_spans(document, place, evidence, where))),
        )


def word_pieces(
    document: LinkedDocument, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[str], dict[tuple[int, int], list[int]]]:
    """Word pieces of all words, each word by itself, and where words begin.

    Returns:
        The pieces, and for each (paragraph, sentence) the position of each word's first piece, and of its end.
    """
    pieces: list[str] = []
    place = {}
    for paragraph, sentence, words in document.sentences:
        starts = [len(pieces)]
        for word in words:
            pieces += _pieces_of_word(tokenizer, word)
            starts.append(len(pieces))
        place[paragraph, sentence] = starts
    return pieces, place


@lru_cache(maxsize=100_000)
def _pieces_of_word(tokenizer: PreTrainedTokenizerBase, word: str) -> tuple[str, ...]:
    return tuple(tokenizer.tokenize(word))


def mention_spans(document: LinkedDocument, place: Mapping[tuple[int, int], Sequence[int]]) -> dict[int, list[Span]]:
    """Spans of pieces of every entity with a number: of its first vertex, in the vertex's order; empty ones left
    out."""
    found: dict[int, list[Span]] = {}
    for number, mentions in document.entities:
        if number is not None and number not in found:
            spans = [(place[where[0], where[1]][where[2]], place[where[0], where[1]][where[3]]) for where in mentions]
            found[number] = [(start, end) for start, end in spans if start < end]
    return found


def evidence_spans(
    document: LinkedDocument,
    place: Mapping[tuple[int, int], Sequence[int]],
    evidence: frozenset[tuple[int, int]],
    where: str,
) -> list[Span]:
    """Spans of pieces of the evidence sentences.

    Raises:
        InputError: the document has no such sentence.
    """
    for paragraph, sentence in sorted(evidence):
        if (paragraph, sentence) not in place:
            raise InputError(f"{where}: evidence [{paragraph}, {sentence}] lies outside the document")
    return [(place[each][0], place[each][-1]) for each in sorted(evidence)]


def intra_document_texts(
    document: LinkedDocument,
    tokenizer: PreTrainedTokenizerBase,
    class_of: Mapping[int, int],
    budgets: tuple[int, int],
) -> list[tuple[list[int], list[int], int]]:
    """Training examples from one document: for each of its edges a window round either entity's first mention.

    Args:
        document: with edges.
        tokenizer: that knows the markers.
        class_of: classes by the relations' Wikidata numbers; other relations are n/a.
        budgets: tokens of the two windows.

    Returns:
        (ids of the head's window, of the tail's window, class) of every relation of every edge.
    """
    pieces, place = word_pieces(document, tokenizer)
    spans = [
        [(place[m[0], m[1]][m[2]], place[m[0], m[1]][m[3]]) for m in mentions] for _, mentions in document.entities
    ]
    examples = []
    for head, tail, relations in document.edges:
        windows = []
        for vertex, side, budget in zip((head, tail), SIDES, budgets, strict=True):
            first = next(((start, end) for start, end in spans[vertex] if start < end), None)
            if first is None:
                break
            tokens, moved = insert_markers(pieces, [(first, *TARGET_MARKERS[side])])
            start, end = window_around((moved[first[0]] - 1, moved[first[1] - 1] + 2), len(tokens), budget)
            windows.append(tokenizer.convert_tokens_to_ids(tokens[start:end]))
        if len(windows) == 2:
            examples += [(*windows, label) for label in sorted({class_of.get(each, 0) for each in relations or (0,)})]
    return examples
