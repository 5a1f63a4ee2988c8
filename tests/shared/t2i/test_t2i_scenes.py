import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.t2i.scenes import COLORS, RELATIONS, SHAPES, SceneObject, place_objects, render_scene

seeds = st.integers(0, 2**32 - 1)


def test_an_object_is_painted_where_it_stands():
    image = render_scene([SceneObject("wedge", "yellow", 2, 8)])
    assert image.shape == (3, 12, 12) and image.dtype == np.float32
    painted = (image != -1).any(axis=0)
    rows = ["#...", "##..", "###.", "####"]
    expected = np.zeros((12, 12), bool)
    expected[2:6, 8:12] = [[pixel == "#" for pixel in row] for row in rows]
    assert np.array_equal(painted, expected)
    assert (image[:, painted] == np.array([[1], [1], [-1]])).all()


def test_later_objects_cover_earlier_ones():
    image = render_scene([SceneObject("square", "red", 0, 0), SceneObject("square", "blue", 0, 2)])
    assert image[0, 0, 1] == 1 and image[0, 0, 2] == -1 and image[2, 0, 2] == 1


def test_an_empty_scene_is_background():
    assert (render_scene([]) == -1).all()


@pytest.mark.parametrize(
    ("item", "name"),
    [
        (SceneObject("cube", "red", 0, 0), "shape"),
        (SceneObject("ring", "pink", 0, 0), "color"),
        (SceneObject("ring", "red", 1, 0), "row"),
        (SceneObject("ring", "red", 0, 10), "col"),
        (SceneObject("ring", "red", -2, 0), "row"),
    ],
)
def test_what_cannot_be_drawn_is_refused(item, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        render_scene([item])


@given(seeds, st.integers(1, 4))
def test_objects_keep_apart(seed, count):
    places = place_objects(np.random.default_rng(seed), count)
    assert len(places) == count
    for index, (row, col) in enumerate(places):
        assert {row % 2, col % 2} == {0} and 0 <= row <= 8 and 0 <= col <= 8
        assert all(max(abs(row - r), abs(col - c)) >= 6 for r, c in places[:index])


@given(seeds, st.sampled_from(sorted(RELATIONS)), st.integers(2, 3))
def test_the_first_two_objects_stand_in_their_relation(seed, relation, count):
    (row, col), (other_row, other_col), *_ = place_objects(np.random.default_rng(seed), count, relation)
    right, down = other_col - col, other_row - row
    along, across = {
        "left of": (right, down),
        "right of": (-right, down),
        "above": (down, right),
        "below": (-down, right),
    }[relation]
    assert along >= 4 and along > abs(across)


def test_every_placement_is_drawn_equally_often():
    rng = np.random.default_rng(0)
    drawn = [tuple(place_objects(rng, 2)) for _ in range(40_000)]
    steps = range(0, 10, 2)
    cells = [(row, col) for row in steps for col in steps]
    pairs = [(a, b) for a in cells for b in cells if max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= 6]
    counts = np.array([drawn.count(pair) for pair in pairs])
    assert counts.sum() == len(drawn)
    expected = len(drawn) / len(pairs)
    chi_square = ((counts - expected) ** 2 / expected).sum() / (len(pairs) - 1)
    assert 0.8 < chi_square < 1.2


@pytest.mark.parametrize(("count", "relation"), [(0, None), (5, None), (1, "above"), (2, "beside")])
def test_impossible_placements_are_refused(count, relation):
    with pytest.raises(ValueError, match=r"^(count|relation): "):
        place_objects(np.random.default_rng(0), count, relation)


def test_shapes_differ_in_many_pixels():
    images = [render_scene([SceneObject(shape, color, 4, 4)]) for shape in SHAPES for color in COLORS]
    distances = [(a != b).any(axis=0).sum() for i, a in enumerate(images) for b in images[:i]]
    assert min(distances) >= 4
