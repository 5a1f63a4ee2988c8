import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from shared.frechet import frechet_distance


def test_frechet_distance_of_known_normals():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4))
    b = rng.normal(size=(400, 4)) + 1
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(ca @ cb).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(16, rel=1e-9)
    assert frechet_distance(a[:, :1], 3 * a[:, :1]) == pytest.approx(
        (2 * a[:, 0].mean()) ** 2 + 4 * a[:, 0].var(ddof=1), rel=1e-6
    )


@given(st.integers(0, 2**32 - 1))
def test_frechet_distance_is_zero_for_equal_sets_and_ignores_rotations(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(6, 10)), rng.normal(size=(7, 10))  # fewer than features
    rotation = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    assert abs(frechet_distance(a, a)) < 1e-6
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(frechet_distance(a, b), rel=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "name"),
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), "features_a"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "features_b"),
        (np.zeros((4, 3)), np.full((4, 3), np.nan), "features_b"),
        (np.zeros(4), np.zeros((4, 3)), "features_a"),
    ],
)
def test_frechet_distance_refuses_what_has_none(a, b, name):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        frechet_distance(a, b)
