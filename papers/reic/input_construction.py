"""From a long document to the text that a relation model reads: blocks, markers, and the order of what was selected.

Tokens are word pieces; spans are half-open, (start, end). Functions take any sequence of tokens: strings, or ids where
nothing depends on what a token says.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from typing import TypeVar

Span = tuple[int, int]
Token = TypeVar("Token", bound=Hashable)

CUT_COSTS = {"\n": 0, "Ċ": 0, ".": 1, "?": 1, "!": 1, ",": 2}
"""Cost of cutting after a token; RoBERTa's pieces may carry its prefix for a space."""
FORCED_COST, BLOCK_COST = 8, 4
"""Cost of a cut where there is no punctuation, and what every block costs on top: sentences are merged."""
MOST_MOVED = 10
"""A cut inside the target mention moves behind it by at most this many tokens."""
ORDERS = ("selection", "document")


def split_into_blocks(tokens: Sequence[str], *, max_length: int = 63) -> list[Span]:
    """Cut a document into blocks of at most ``max_length`` tokens that end at punctuation where they can.

    Minimises the sum over blocks of the cost of the cut at its end, plus `BLOCK_COST`. Of equally good ways the one
    with the shortest last block is taken, and so on backwards.

    Args:
        tokens: n tokens.
        max_length: at least 1.

    Returns:
        Spans in order that partition [0, n); none of an empty document.

    Raises:
        ValueError: ``max_length`` < 1.
    """
    if max_length < 1:
        raise ValueError(f"max_length: must be at least 1, got {max_length}")
    cuts = candidate_cuts(tokens, max_length)
    ends = [0, *cuts]
    costs, before = [0], [0]
    for index in range(1, len(ends)):
        first = bisect_left(ends, ends[index] - max_length)
        # Later predecessors come first, so that of equal costs min takes the shortest block.
        best = min(range(index - 1, first - 1, -1), key=costs.__getitem__)
        costs.append(costs[best] + cuts[ends[index]] + BLOCK_COST)
        before.append(best)
    spans, index = [], len(ends) - 1
    while index > 0:
        spans.append((ends[before[index]], ends[index]))
        index = before[index]
    return spans[::-1]


def candidate_cuts(tokens: Sequence[str], max_length: int) -> dict[int, int]:
    """Positions behind which a block may end, in order, with their costs: no two neighbours are too far apart."""
    natural = {end: CUT_COSTS[word] for end, token in enumerate(tokens, 1)
               if (word := token.removeprefix("Ġ")) in CUT_COSTS}  # fmt: skip
    if tokens:
        natural[len(tokens)] = 0
    cuts: dict[int, int] = {}
    last = 0
    for end, cost in natural.items():
        while end - last > max_length:
            last += max_length
            cuts[last] = FORCED_COST
        cuts[end], last = cost, end
    return cuts


def keep_mention_whole(spans: Sequence[Span], mention: Span) -> list[Span]:
    """Blocks with the cut that lies inside the mention moved to its end, if that is at most `MOST_MOVED` tokens on.

    Args:
        spans: blocks in order.
        mention: the target mention with its markers.
    """
    start, end = mention
    moved = [
        (
            end if start < first < end and end - first <= MOST_MOVED else first,
            end if start < last < end and end - last <= MOST_MOVED else last,
        )
        for first, last in spans
    ]
    return [(first, last) for first, last in moved if first < last]


def insert_markers(
    tokens: Sequence[Token], marked: Sequence[tuple[Span, Token, Token]]
) -> tuple[list[Token], list[int]]:
    """Wrap spans in markers.

    Args:
        tokens: n tokens.
        marked: spans with their opening and closing marker. One that overlaps an earlier one of the list, or is empty,
            is left out.

    Returns:
        The tokens with markers, and the new position of every old one (n + 1 of them, the end included); the opening
        marker stands just before the new position of a span's start.
    """
    taken = [False] * len(tokens)
    opening: dict[int, Token] = {}
    closing: dict[int, Token] = {}
    for (start, end), before, after in marked:
        if start < end and not any(taken[start:end]):
            taken[start:end] = [True] * (end - start)
            opening[start], closing[end - 1] = before, after
    result: list[Token] = []
    positions = []
    for index, token in enumerate(tokens):
        if index in opening:
            result.append(opening[index])
        positions.append(len(result))
        result.append(token)
        if index in closing:
            result.append(closing[index])
    return result, [*positions, len(result)]


def assemble_document(
    tokens: Sequence[Token],
    target: Span,
    selected: Sequence[Span],
    *,
    budget: int,
    order: str = "selection",
) -> list[Token]:
    """The target block and the selected ones as one text of at most ``budget`` tokens, the target always inside.

    Args:
        tokens: of the document.
        target: span of the target block; one longer than the budget is cut at its tail.
        selected: spans in picking order.
        budget: at least 1.
        order: "selection": target, then picks, cut at the tail. "document": by position; what is too much falls away
            on both sides of the target alike, and what one side does not need the other gets.

    Raises:
        ValueError: unknown order, ``budget`` < 1, or spans that are empty, overlap or lie outside the document.
    """
    if order not in ORDERS:
        raise ValueError(f"order: unknown {order!r}; there are: {', '.join(ORDERS)}")
    if budget < 1:
        raise ValueError(f"budget: must be at least 1, got {budget}")
    in_place = sorted([target, *selected])
    last = 0
    for start, end in in_place:
        if not last <= start < end <= len(tokens):
            raise ValueError(
                f"selected: spans must be disjoint, not empty, and within {len(tokens)} tokens, got {in_place}"
            )
        last = end
    if order == "selection":
        return [token for start, end in (target, *selected) for token in tokens[start:end]][:budget]
    text = [token for start, end in in_place for token in tokens[start:end]]
    before = sum(end - start for start, end in in_place if start < target[0])
    start, end = window_around((before, before + target[1] - target[0]), len(text), budget)
    return text[start:end]


def window_around(center: Span, length: int, budget: int) -> Span:
    """The window of ``budget`` tokens in [0, ``length``) round a span, half of the rest on each side.

    What one side does not need the other gets; a span longer than the budget is cut at its tail.
    """
    start, end = center
    room = budget - (end - start)
    if room <= 0:
        return start, start + budget
    before, after = start, length - end
    left = min(before, max(room // 2, room - after))
    return start - left, end + min(after, room - left)


def repair_markers(tokens: Sequence[Token], pairs: Sequence[tuple[Token, Token]]) -> list[Token]:
    """A text without orphaned markers: closing ones without opening fall away, open mentions are closed at the end.

    Args:
        tokens: of the text.
        pairs: opening and closing marker of every kind.
    """
    closing_of = dict(pairs)
    closings = set(closing_of.values())
    result: list[Token] = []
    open_now: list[Token] = []
    for token in tokens:
        if token in closing_of:
            open_now.append(closing_of[token])
        elif token in closings:
            if token not in open_now:
                continue
            open_now.remove(token)
        result.append(token)
    return result + open_now[::-1]
