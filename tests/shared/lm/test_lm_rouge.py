import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.lm.rouge import rouge_l

WORDS = st.lists(st.sampled_from(["red", "blue", "green", "tree", "sky"]), max_size=8)


def longest_common_subsequence(a: list[str], b: list[str]) -> int:
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


@given(WORDS, WORDS)
def test_f1_of_the_longest_common_subsequence(text, reference):
    expected = 2 * longest_common_subsequence(text, reference) / max(1, len(text) + len(reference))
    assert rouge_l([" ".join(text)], [[" ".join(reference)]]) == pytest.approx([expected])


def test_known_answer_not_symmetric_in_order():
    # LCS of "a b c d" and "a c b" is 2 (a b, or a c): precision 2/4, recall 2/3.
    assert rouge_l(["a b c d"], [["a c b"]]) == pytest.approx([2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)])


def test_best_reference_counts_per_text():
    scores = rouge_l(["a b", "c d"], [["x", "a b"], ["c x", "x y"]])
    assert scores == pytest.approx([1.0, 0.5])


def test_empty_text_scores_zero_and_stays_in_the_list():
    assert rouge_l(["", "a"], [["a"], ["a"]]) == [0.0, 1.0]


def test_case_and_punctuation_are_ignored():
    assert rouge_l(["The, END."], [["the end"]]) == [1.0]


def test_stemmer_is_an_option():
    assert rouge_l(["running dogs"], [["runs dog"]], stemmer=True) == [1.0]
    assert rouge_l(["running dogs"], [["runs dog"]], stemmer=False) == [0.0]
    assert rouge_l(["running"], [["runs"]]) == [1.0]


def test_no_texts():
    assert rouge_l([], []) == []


@pytest.mark.parametrize(
    ("texts", "references", "named"),
    [
        (["a"], [], "references must be one list per text"),
        (["a", "b"], [["a"], []], r"references\[1\]"),
        (["a"], ["a"], r"references\[0\]"),
    ],
)
def test_bad_references(texts, references, named):
    with pytest.raises(ValueError, match=named):
        rouge_l(texts, references)
