"""TAD against its definition pair by pair, its invariances, and mistakes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score, roc_auc_score

from papers.dbae.disentanglement import tad_over_folds, tad_score


def sample(seed: int = 0, rows: int = 400, latents: int = 4, attributes: int = 3):
    """Latents of which some know an attribute, more or less."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (rows, attributes))
    z = rng.normal(size=(rows, latents))
    for column in range(min(latents, attributes)):
        z[:, column] += 2.5 * labels[:, column]
    z[:, -1] += labels[:, 0]
    return z, labels


def by_definition(z, labels, auroc_threshold=0.75, entropy_threshold=0.2):
    score, captured = 0.0, 0
    for k in range(labels.shape[1]):
        areas = sorted(max(roc_auc_score(labels[:, k], sign * column) for sign in (1, -1)) for column in z.T)
        entropy = mutual_info_score(labels[:, k], labels[:, k])
        others = [mutual_info_score(labels[:, k], labels[:, j]) for j in range(labels.shape[1]) if j != k]
        if areas[-1] >= auroc_threshold and max(others, default=0.0) / entropy <= entropy_threshold:
            score, captured = score + areas[-1] - (areas[-2] if len(areas) > 1 else 0.0), captured + 1
    return score, captured


@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_its_definition_says(seed):
    z, labels = sample(seed)
    labels[:, 2] = np.where(np.random.default_rng(seed).random(len(labels)) < 0.9, labels[:, 1], labels[:, 2])
    z = np.round(z, 1)  # ties
    found = tad_score(z, labels)
    score, captured = by_definition(z, labels)
    assert found.score == pytest.approx(score, abs=1e-10) and found.num_captured == captured == 1
    assert found.auroc.shape == (3, 4)
    assert found.auroc[0, 0] == pytest.approx(roc_auc_score(labels[:, 0], z[:, 0]), abs=1e-12)


@given(seed=st.integers(0, 20), signs=st.lists(st.sampled_from([-1, 1]), min_size=4, max_size=4),
       order=st.permutations(range(4)))  # fmt: skip
def test_it_knows_nothing_of_scales_signs_and_order(seed, signs, order):
    z, labels = sample(seed)
    moved = (np.sinh(z) * signs)[:, order]
    assert tad_score(moved, labels[:, ::-1]).score == pytest.approx(tad_score(z, labels).score, abs=1e-10)


def test_nothing_is_captured_without_knowledge():
    rng = np.random.default_rng(0)
    found = tad_score(rng.normal(size=(500, 3)), rng.integers(0, 2, (500, 2)))
    assert found.score == 0 and found.num_captured == 0
    copies = np.repeat(rng.integers(0, 2, (100, 1)), 2, axis=1)
    assert tad_score(copies.astype(float), copies).num_captured == 0, "each attribute tells the other"
    assert tad_score(copies[:, :1].astype(float), copies[:, :1]).score == pytest.approx(1.0), "one latent alone"


def test_folds_leave_a_part_out():
    z, labels = sample(rows=50)
    parts = [tad_score(z[kept], labels[kept]) for kept in (np.r_[10:50], np.r_[:10, 20:50], np.r_[:20, 30:50],
                                                           np.r_[:30, 40:50], np.r_[:40])]  # fmt: skip
    score, captured = tad_over_folds(z, labels)
    assert score == pytest.approx(np.mean([part.score for part in parts]))
    assert captured == pytest.approx(np.mean([part.num_captured for part in parts]))


@pytest.mark.parametrize(
    ("z", "labels", "message"),
    [
        (np.zeros((3, 2)), np.zeros((4, 1), int), "latents, attributes: need"),
        (np.zeros(3), np.zeros((3, 1), int), "latents, attributes: need"),
        (np.zeros((3, 1)), np.zeros((3, 0), int), "attributes: need at least one"),
        (np.full((3, 1), np.nan), np.array([[0], [1], [1]]), "latents: need finite"),
        (np.zeros((3, 1)), np.array([[0], [2], [1]]), "attributes: need 0 and 1"),
        (np.zeros((3, 1)), np.ones((3, 1), int), "attributes: column 0 is constant"),
    ],
)
def test_a_mistake_is_named(z, labels, message):
    with pytest.raises(ValueError, match=message):
        tad_score(z, labels)
