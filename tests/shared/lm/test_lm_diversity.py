"""Self-BLEU and distinct-n against hand-counted answers and BLEU written out."""

import math
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.lm.diversity import distinct_n, self_bleu

PROPERTY = settings(deadline=None, max_examples=50)
TEXTS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=9).map(" ".join)


def sentence_bleu(hypothesis: list[str], reference: list[str], max_order: int) -> float:
    """BLEU (Papineni et al., 2002) with the exponential smoothing of absent orders and the effective order."""
    orders = min(max_order, len(hypothesis))
    log_precision, halvings = 0.0, 0
    for n in range(1, orders + 1):
        counts, reference_counts = (
            Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for words in (hypothesis, reference)
        )
        matches = (counts & reference_counts).total()
        if n == 1 and matches == 0:
            return 0.0  # no match of any order
        halvings += matches == 0
        log_precision += math.log((matches or 2.0**-halvings) / counts.total())
    brevity = min(0.0, 1 - len(reference) / len(hypothesis))
    return math.exp(log_precision / orders + brevity)


@PROPERTY
@given(samples=st.lists(st.lists(TEXTS, min_size=2, max_size=4), min_size=1, max_size=3), order=st.integers(1, 4))
def test_self_bleu_is_the_mean_over_pairs_then_prompts(samples, order):
    expected = 0.0
    for texts in samples:
        scores = [sentence_bleu(a.split(), b.split(), order) for a, b in permutations(texts, 2)]
        expected += sum(scores) / len(scores) / len(samples)
    got = self_bleu(samples, max_ngram_order=order, tokenize="none")
    assert got == pytest.approx(expected, abs=1e-9)
    assert 0 <= got <= 1


def test_known_self_bleu():
    # 2 of 3 words and 1 of 2 word pairs match, in both directions, lengths are equal: sqrt(2/3 * 1/2).
    assert self_bleu([["a b c", "a b d"]], max_ngram_order=2) == pytest.approx(math.sqrt(1 / 3))
    assert self_bleu([["a b c", "a b d"]], max_ngram_order=1) == pytest.approx(2 / 3)
    # One direction pays the brevity penalty exp(1 - 3/2), the other a precision of 2/3.
    assert self_bleu([["a b", "a b c"]], max_ngram_order=1) == pytest.approx((math.exp(-0.5) + 2 / 3) / 2)


def test_prompts_weigh_equally_whatever_their_number_of_samples():
    one, many = ["a b", "a b"], ["a b", "c d", "e f", "g h"]
    assert self_bleu([one]) == 1.0
    assert self_bleu([many]) == 0.0
    assert self_bleu([one, many]) == pytest.approx(0.5)


@PROPERTY
@given(texts=st.lists(TEXTS, min_size=2, max_size=5), data=st.data())
def test_order_of_the_samples_does_not_matter(texts, data):
    shuffled = data.draw(st.permutations(texts))
    assert self_bleu([shuffled], tokenize="none") == pytest.approx(self_bleu([texts], tokenize="none"), abs=1e-12)


def test_default_order_is_4():
    texts = ["a b c d e f", "a b c d f e"]
    assert self_bleu([texts]) == self_bleu([texts], max_ngram_order=4) < self_bleu([texts], max_ngram_order=2)


def test_an_empty_text_scores_zero():
    assert self_bleu([["", "a b"]]) == 0.0
    assert self_bleu([["", ""]]) == 0.0
    assert self_bleu([["a b", "a b", ""]]) == pytest.approx(1 / 3)


def test_tokenizer_and_smoothing_are_passed_on():
    texts = [["stop.", "stop !"]]
    assert self_bleu(texts, tokenize="none") == 0.0
    assert self_bleu(texts, tokenize="13a") > 0.0
    gapped = [["a b c d", "a x c y"]]
    assert self_bleu(gapped, smooth_method="none") == 0.0 < self_bleu(gapped, smooth_method="exp")


@pytest.mark.parametrize(
    ("samples", "options", "match"),
    [
        ([], {}, "samples.*none"),
        ([["a", "b"], ["a"]], {}, "at least 2 texts.*1 at prompt 1"),
        ([["a", "b"]], {"max_ngram_order": 0}, "max_ngram_order.*0"),
        ([["a", "b"]], {"tokenize": "words"}, "tokenize.*'words'"),
        ([["a", "b"]], {"smooth_method": "laplace"}, "smooth_method.*'laplace'"),
    ],
)
def test_bad_self_bleu_input_is_named(samples, options, match):
    with pytest.raises(ValueError, match=match):
        self_bleu(samples, **options)


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        (["a b c"], 1, 1.0),
        (["a b a b"], 1, 0.5),
        (["a b a b"], 2, 2 / 3),
        (["a a a a"], 2, 1 / 3),
        (["a a", "a b"], 1, 0.75),  # averaged over texts: what repeats between them does not count
        (["a b", ""], 1, 0.5),
        (["a"], 2, 0.0),
        (["  a\tb \n a "], 1, 2 / 3),
    ],
)
def test_known_distinct_n(texts, n, expected):
    assert distinct_n(texts, n) == pytest.approx(expected, abs=1e-12)


def test_default_of_distinct_n_is_words():
    assert distinct_n(["a b a b"]) == distinct_n(["a b a b"], 1)


@PROPERTY
@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_distinct_1_is_a_share(texts):
    got = distinct_n(texts)
    assert 0 < got <= 1
    assert (got == 1) == all(len(set(text.split())) == len(text.split()) for text in texts)


@pytest.mark.parametrize(("texts", "n", "match"), [([], 1, "texts.*none"), (["a"], 0, "n must.*0")])
def test_bad_distinct_n_input_is_named(texts, n, match):
    with pytest.raises(ValueError, match=match):
        distinct_n(texts, n)
