import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc

from papers.reic.evaluation import evidence_precision, evidence_recall, precision_recall_summary

CASES = st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=2, max_size=12)


@given(CASES, st.integers(0, 3))
def test_numbers_against_their_definitions(case, unscored):
    scores, correct = zip(*case, strict=True)
    facts = max(1, sum(correct) + unscored)
    found = precision_recall_summary(scores, correct, facts, at=(1, 5, 100))
    order = sorted(range(len(case)), key=lambda index: -scores[index])  # Python's sort is stable
    hits = [sum(correct[index] for index in order[: k + 1]) for k in range(len(case))]
    precision = [hit / (k + 1) for k, hit in enumerate(hits)]
    recall = [hit / facts for hit in hits]
    f1 = max(2 * p * r / (p + r) if p + r else 0.0 for p, r in zip(precision, recall, strict=True))
    assert found["f1"] == pytest.approx(f1, abs=1e-10)
    assert found["auc"] == pytest.approx(auc(recall, precision), abs=1e-10)
    assert found["mean_precision"] == pytest.approx(np.mean(precision), abs=1e-10)
    assert found["p@1"] == precision[0] and math.isnan(found["p@100"])
    transformed = precision_recall_summary(np.exp(np.array(scores) / 3), correct, facts, at=(1, 5, 100))
    assert transformed == pytest.approx(found, nan_ok=True)


def test_a_perfect_ranking_and_facts_that_are_never_scored():
    perfect = precision_recall_summary([3.0, 2.0, 1.0], [True, True, False], 2, at=())
    assert perfect["f1"] == 1.0 and perfect["auc"] == pytest.approx(0.5)  # from the first prediction's recall on
    assert precision_recall_summary([3.0, 2.0, 1.0], [True, True, False], 4, at=())["f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [True], 1), "scores: need at least 2"),
        (([1.0, math.nan], [True, False], 1), "scores: must be finite"),
        (([1.0, 2.0], [True], 1), "correct: need the shape"),
        (([1.0, 2.0], [False, False], 0), "num_facts"),
        (([1.0, 2.0], [True, True], 1), "num_facts"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        precision_recall_summary(*arguments)
    with pytest.raises(ValueError, match="at: ranks"):
        precision_recall_summary([1.0, 2.0], [True, False], 1, at=(0,))


def test_evidence():
    assert evidence_recall({1, 2}, [2, 5]) == 0.5 and evidence_precision({1, 2}, [2, 5, 6, 7]) == 0.25
    assert math.isnan(evidence_recall(set(), [1])) and math.isnan(evidence_precision({1}, []))
