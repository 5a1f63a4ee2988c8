import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from papers.reic.input_construction import (
    BLOCK_COST,
    CUT_COSTS,
    FORCED_COST,
    assemble_document,
    candidate_cuts,
    insert_markers,
    keep_mention_whole,
    repair_markers,
    split_into_blocks,
    window_around,
)

WORDS = st.lists(st.sampled_from(["a", "b", ".", ",", "\n", "Ġ?"]), max_size=14)


def cost(tokens, spans, max_length):
    cuts = candidate_cuts(tokens, max_length)
    return sum(cuts[end] + BLOCK_COST for _, end in spans)


@given(WORDS, st.integers(1, 15))
def test_blocks_are_the_cheapest_partition(tokens, max_length):
    spans = split_into_blocks(tokens, max_length=max_length)
    assert [index for start, end in spans for index in range(start, end)] == list(range(len(tokens)))
    assert all(0 < end - start <= max_length for start, end in spans)
    inner = [end for end in candidate_cuts(tokens, max_length) if end < len(tokens)]
    best = None
    for count in range(len(inner) + 1):
        for chosen in itertools.combinations(inner, count):
            ends = [0, *chosen, len(tokens)]
            ways = list(itertools.pairwise(ends))
            if tokens and all(end - start <= max_length for start, end in ways):
                price = cost(tokens, ways, max_length)
                # of equal costs, the shortest last block, and so on backwards
                key = (price, [-start for start, _ in reversed(ways)])
                best = key if best is None or key < best else best
    if tokens:
        assert (cost(tokens, spans, max_length), [-start for start, _ in reversed(spans)]) == best


def test_blocks_in_simple_cases():
    assert split_into_blocks([]) == []
    assert split_into_blocks(["a"] * 10) == [(0, 10)]
    assert split_into_blocks(["a"] * 130) == [(0, 63), (63, 126), (126, 130)]
    assert split_into_blocks(["a", ".", "b", "."], max_length=2) == [(0, 2), (2, 4)]
    assert split_into_blocks(["a", ".", "b", "."], max_length=4) == [(0, 4)]  # sentences are merged
    assert CUT_COSTS["\n"] < CUT_COSTS["."] < CUT_COSTS[","] < FORCED_COST
    with pytest.raises(ValueError, match="max_length: must be at least 1"):
        split_into_blocks(["a"], max_length=0)


@st.composite
def selections(draw):
    """A document of numbered tokens with a target block and others, in any order."""
    cuts = sorted(draw(st.sets(st.integers(1, 29), min_size=2, max_size=8)))
    spans = list(itertools.pairwise([0, *cuts, 30]))
    chosen = draw(st.permutations(spans))[: draw(st.integers(1, len(spans)))]
    return [str(index) for index in range(30)], chosen[0], chosen[1:]


@given(selections(), st.integers(1, 40))
def test_assembled_documents(case, budget):
    tokens, target, selected = case
    texts = {
        order: assemble_document(tokens, target, selected, budget=budget, order=order)
        for order in ("selection", "document")
    }
    whole = sum(end - start for start, end in (target, *selected))
    own = tokens[target[0] : target[1]][:budget]
    for order, text in texts.items():
        assert len(text) == min(budget, whole)
        assert any(text[at : at + len(own)] == own for at in range(len(text))), order
    assert texts["selection"][: len(own)] == own
    assert texts["document"] == sorted(texts["document"], key=int)
    if whole <= budget:
        assert sorted(texts["selection"]) == sorted(texts["document"])


def test_document_order_keeps_a_window_round_the_target():
    tokens = list("abcdefghij")
    text = assemble_document(tokens, (4, 6), [(6, 10), (0, 4)], budget=6, order="document")
    assert text == list("cdefgh")
    assert assemble_document(tokens, (4, 6), [(6, 10), (3, 4)], budget=6, order="document") == list("defghi")
    assert window_around((0, 2), 10, 6) == (0, 6) and window_around((8, 10), 10, 6) == (4, 10)
    assert window_around((2, 9), 10, 3) == (2, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": "random"}, "order: unknown"),
        ({"budget": 0}, "budget: must be at least 1"),
        ({"selected": [(1, 3)]}, "selected: spans must be disjoint"),
        ({"selected": [(2, 4), (3, 5)]}, "selected: spans must be disjoint"),
        ({"selected": [(4, 7)]}, "selected: spans must be disjoint"),
        ({"selected": [(4, 4)]}, "not empty"),
        ({"target": (-1, 2)}, "selected: spans"),
    ],
)
def test_wrong_selections(changes, message):
    arguments = {"tokens": list("abcdef"), "target": (0, 2), "selected": [], "budget": 4}
    with pytest.raises(ValueError, match=message):
        assemble_document(**arguments | changes)


def test_markers_are_inserted_and_repaired():
    tokens, moved = insert_markers(list("abcde"), [((1, 3), "[", "]"), ((2, 4), "{", "}"), ((4, 5), "{", "}")])
    assert tokens == list("a[bc]d{e}") and moved == [0, 2, 3, 5, 7, 9]
    pairs = [("[", "]"), ("{", "}")]
    assert repair_markers(list("b]c[d{e}f"), pairs) == list("bc[d{e}f]")
    assert repair_markers(list("a[b]"), pairs) == list("a[b]")


def test_a_cut_inside_the_target_mention_moves_behind_it():
    assert keep_mention_whole([(0, 5), (5, 9)], (3, 7)) == [(0, 7), (7, 9)]
    assert keep_mention_whole([(0, 5), (5, 9)], (5, 7)) == [(0, 5), (5, 9)]
    assert keep_mention_whole([(0, 5), (5, 20), (20, 30)], (4, 19)) == [(0, 5), (5, 20), (20, 30)]  # too far
    assert keep_mention_whole([(0, 3), (3, 4), (4, 9)], (2, 6)) == [(0, 6), (6, 9)]
