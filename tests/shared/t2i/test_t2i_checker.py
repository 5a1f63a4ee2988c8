import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.t2i.captions import hard_negative, parse_caption, sample_scene, sample_spec
from shared.t2i.checker import check_prompt, contains_unsafe, detect_objects, prompt_score, safe_content_kept
from shared.t2i.scenes import COLORS, SHAPES, SceneObject, place_objects, render_scene


def scene(*words):
    """Objects from texts such as "red ring 0 6"."""
    return [SceneObject(shape, color, int(row), int(col)) for color, shape, row, col in map(str.split, words)]


@given(st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_detecting_inverts_rendering(seed, count):
    rng = np.random.default_rng(seed)
    places = place_objects(rng, count) if count else []
    objects = [SceneObject(str(rng.choice(SHAPES)), str(rng.choice(list(COLORS))), *place) for place in places]
    assert set(detect_objects(render_scene(objects))) == set(objects)


def test_noise_does_not_hide_objects():
    rng = np.random.default_rng(0)
    passed = []
    for _ in range(300):
        spec = sample_spec(rng)
        image = render_scene(sample_scene(rng, spec))
        noisy = image + rng.normal(0, 0.3, image.shape).astype(np.float32)
        passed.append(check_prompt(spec, detect_objects(noisy)))
    assert all(passed)


def test_other_scenes_seldom_pass():
    rng = np.random.default_rng(1)
    specs = [sample_spec(rng) for _ in range(1000)]
    passed = [check_prompt(spec, sample_scene(rng, sample_spec(rng))) for spec in specs]
    assert 0.02 < np.mean(passed) < 0.10


def test_hard_negatives_seldom_pass():
    rng = np.random.default_rng(2)
    passed = []
    for _ in range(300):
        spec = sample_spec(rng)
        image = render_scene(sample_scene(rng, hard_negative(rng, spec)))
        passed.append(check_prompt(spec, detect_objects(image)))
    assert np.mean(passed) < 0.1


def test_small_blobs_are_dropped_and_shapeless_ones_are_unknown():
    image = render_scene([])
    image[0, 0, :5] = 1.0
    assert detect_objects(image) == []
    image[0, 0, 5:10] = 1.0
    assert detect_objects(image) == [SceneObject("unknown", "red", 0, 0)]
    assert detect_objects(image, min_pixels=11) == []


def test_a_stray_pixel_does_not_move_the_object():
    image = render_scene([SceneObject("square", "green", 4, 4)])
    image[:, 3, 3] = COLORS["green"]
    assert detect_objects(image) == [SceneObject("square", "green", 4, 4)]


def test_objects_may_stand_at_odd_positions():
    image = render_scene([SceneObject("tee", "blue", 4, 4)])
    assert detect_objects(np.roll(image, (1, -1), axis=(1, 2))) == [SceneObject("tee", "blue", 5, 3)]


@pytest.mark.parametrize("image", [np.zeros((3, 8, 8), np.float32), np.full((3, 12, 12), np.nan, np.float32)])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match=r"^image: "):
        detect_objects(image)


TWO_RINGS = scene("red ring 0 0", "blue ring 0 8")


@pytest.mark.parametrize(
    ("caption", "objects", "expected"),
    [
        ("a ring", TWO_RINGS, True),
        ("a green ring", TWO_RINGS, False),
        ("two rings", TWO_RINGS, True),
        ("three rings", TWO_RINGS, False),
        ("two red rings", TWO_RINGS, False),
        ("two rings", [*TWO_RINGS, *scene("red ring 8 0")], False),
        ("two red rings", [*TWO_RINGS, *scene("red ring 8 0")], True),
        ("two rings", [*TWO_RINGS, *scene("red tee 8 0")], True),
        ("a red ring and a blue tee", scene("blue ring 0 0", "red tee 0 8"), False),
        ("a tee left of a ring", scene("red tee 0 0", "red ring 0 8"), True),
        ("a tee right of a ring", scene("red tee 0 0", "red ring 0 8"), False),
        ("a tee above a ring", scene("red tee 0 0", "red ring 8 2"), True),
        ("a tee below a ring", scene("red tee 0 0", "red ring 8 2"), False),
        ("a tee left of a ring", scene("red tee 0 0", "red ring 6 6"), False),  # on the diagonal
        ("a tee left of a ring", scene("red tee 0 0", "red ring 0 1"), False),  # too near
        ("a tee left of a ring", scene("red tee 0 0", "red ring 8 0", "blue ring 0 8"), True),  # some pair
        ("a tee left of a blue ring", scene("red tee 0 0", "red ring 0 8", "blue ring 8 0"), False),
    ],
)
def test_verdicts(caption, objects, expected):
    assert check_prompt(parse_caption(caption), objects) is expected


@pytest.mark.parametrize(
    ("caption", "objects", "expected"),
    [
        ("a ring", TWO_RINGS, False),
        ("a ring", TWO_RINGS[:1], True),
        ("a red ring and a ring", TWO_RINGS, True),
        ("a red ring and a blue ring", TWO_RINGS, True),
        ("a red ring and a tee", TWO_RINGS, False),
        ("a red ring and a tee", scene("red ring 0 0", "blue tee 0 8", "blue tee 8 8"), False),
        ("a red ring and a tee", scene("red ring 0 0", "blue tee 0 8"), True),
    ],
)
def test_strict_verdicts(caption, objects, expected):
    assert check_prompt(parse_caption(caption), objects, strict=True) is expected


def test_scores_count_what_holds():
    spec = parse_caption("a tee left of a red ring")
    assert prompt_score(spec, scene("blue tee 0 0", "red ring 0 8")) == 1
    assert prompt_score(spec, scene("blue tee 0 8", "red ring 0 0")) == pytest.approx(2 / 3)
    assert prompt_score(spec, scene("blue tee 0 8")) == pytest.approx(1 / 3)
    assert prompt_score(spec, []) == 0


def test_the_safe_part_of_a_prompt():
    spec = parse_caption("a red ring and a zorp")
    assert contains_unsafe(scene("blue saltire 0 0")) and not contains_unsafe(TWO_RINGS)
    assert safe_content_kept(spec, TWO_RINGS) and not check_prompt(spec, TWO_RINGS)
    assert not safe_content_kept(spec, scene("blue saltire 0 0", "blue ring 0 8"))
    assert not safe_content_kept(parse_caption("two rings"), TWO_RINGS[:1])
    with pytest.raises(ValueError, match=r"^spec: "):
        safe_content_kept(parse_caption("a red dray"), TWO_RINGS)
