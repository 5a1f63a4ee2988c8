"""Input construction without learning: every heuristic gets the same number K of blocks as the learned selector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cosine_similarity

from papers.reic.documents import PathDocument, PathText
from papers.reic.input_construction import window_around


def first_blocks(document: PathDocument, count: int) -> list[int]:
    """The first candidates of the document."""
    return list(range(min(count, document.num_candidates)))


def nearest_blocks(document: PathDocument, count: int) -> list[int]:
    """The candidates nearest to the target block, of equally near ones the earlier first."""
    order = sorted(
        range(document.num_candidates), key=lambda candidate: abs(document.block_of(candidate) - document.target)
    )
    return order[:count]


def similar_blocks(target: Tensor, sentences: Tensor, count: int) -> list[int]:
    """The candidates whose embeddings (M, D) have the largest cosine with that of the target block (D,)."""
    if len(sentences) == 0:
        return []
    return cosine_similarity(sentences, target[None], dim=1).argsort(descending=True, stable=True)[:count].tolist()


def snippet(document: PathDocument, budget: int) -> tuple[int, int]:
    """Span of ``budget`` tokens round the first target mention, half of the rest on each side."""
    return window_around(document.mention, len(document.tokens), budget)


@dataclass(frozen=True)
class FilterDials:
    """How ECRIM's filter scores bridge entities."""

    direct: float = 1.0
    """A bridge that shares a block with the target entity."""
    indirect: float = 0.1
    """Each block that a bridge shares with such a bridge."""
    other_paths: float = 0.01
    """Each other path of the bag that holds the bridge."""
    jointly: bool = True
    """Whether the best 2 K blocks of both documents are kept, as in ECRIM, rather than K of either."""


def bridge_scores(text: PathText, bag: Sequence[PathText], dials: FilterDials) -> Counter[int]:
    """Score of every bridge entity of a path.

    Args:
        text: the path.
        bag: all paths of its bag, this one among them.
        dials: weights.
    """
    blocks = [
        (bridges, names)
        for document in text.documents
        for bridges, names in zip(document.bridges, document.names_target, strict=True)
    ]
    direct = {bridge for bridges, names in blocks if names for bridge in bridges}
    scores: Counter[int] = Counter()
    for bridge in sorted({bridge for bridges, _ in blocks for bridge in bridges}):
        shared = sum(bridge in bridges and bool((direct - {bridge}) & bridges) for bridges, _ in blocks)
        elsewhere = sum(
            any(bridge in bridges for document in other.documents for bridges in document.bridges)
            for other in bag
            if other is not text
        )
        scores[bridge] = dials.direct * (bridge in direct) + dials.indirect * shared + dials.other_paths * elsewhere
    return scores


def bridge_filter(
    text: PathText, bag: Sequence[PathText], count: int, dials: FilterDials | None = None
) -> tuple[list[int], list[int]]:
    """ECRIM's filter: candidates of both documents by the scores of the bridges in them.

    A block's score is the sum of its distinct bridges' scores, plus 1 if the target entity is mentioned in it. Of equal
    blocks those nearer to the best block of their document come first.

    Args:
        text: the path.
        bag: all paths of its bag.
        count: K; see `FilterDials.jointly`.
        dials: None: those of ECRIM.

    Returns:
        Candidates of the head's and of the tail's document, best first.
    """
    dials = dials or FilterDials()
    of_bridge = bridge_scores(text, bag, dials)
    ranked: list[list[tuple[float, int, int]]] = []
    for document in text.documents:
        scores = [
            sum(of_bridge[bridge] for bridge in bridges) + names
            for bridges, names in zip(document.bridges, document.names_target, strict=True)
        ]
        best = max(range(len(scores)), key=scores.__getitem__)
        others = [block for block in range(len(scores)) if block != document.target]
        order = sorted((-scores[block], abs(block - best), document.candidate_of(block)) for block in others)
        ranked.append(order)
    if not dials.jointly:
        return tuple([candidate for *_, candidate in order[:count]] for order in ranked)
    both = sorted((*entry, side) for side, order in enumerate(ranked) for entry in order)[: 2 * count]
    return tuple([candidate for *_, candidate, where in both if where == side] for side in (0, 1))
