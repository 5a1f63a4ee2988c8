"""Domains: known answers for each corruption and style, ranges, determinism, and scipy as an independent reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from sklearn.datasets import load_digits

from shared.vision import domains
from shared.vision.domains import CORRUPTIONS, LEVELS, STYLES, corrupt, resize, rotate, stylize

PROPERTY = settings(deadline=None, max_examples=40)
EVERY_CORRUPTION = pytest.mark.parametrize("name", CORRUPTIONS)
EVERY_STYLE = pytest.mark.parametrize("style", STYLES)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    images = load_digits().images[:200, None] / 16
    return resize(images.astype(np.float32), 16)


IMAGES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.sampled_from([1, 3]), st.just(12), st.integers(12, 14)),
    elements=st.floats(0, 1, width=32),
)


# --- All of them


@PROPERTY
@given(images=IMAGES, name=st.sampled_from(sorted(CORRUPTIONS)), level=st.sampled_from(LEVELS))
def test_corruptions_keep_shape_type_and_range(images, name, level):
    before = images.copy()
    got = corrupt(images, name, level, rng())
    assert got.shape == images.shape and got.dtype == np.float32
    assert got.min() >= 0 and got.max() <= 1
    np.testing.assert_array_equal(images, before)
    assert not np.shares_memory(got, images)


@PROPERTY
@given(images=IMAGES.map(lambda a: a[:, :1]), style=st.sampled_from(sorted(STYLES)))
def test_styles_keep_size_type_and_range(images, style):
    got = stylize(images, style, rng())
    assert got.shape == (len(images), 3, *images.shape[2:]) and got.dtype == np.float32
    assert got.min() >= 0 and got.max() <= 1
    assert not np.shares_memory(got, images)


@EVERY_CORRUPTION
def test_corruptions_are_reproducible_and_grow_with_the_level(digits, name):
    changes = []
    for level in LEVELS:
        got = corrupt(digits, name, level, rng(5))
        np.testing.assert_array_equal(got, corrupt(digits, name, level, rng(5)))
        changes.append(np.square(got - digits).mean())
    if name == "pixelation":  # the digits are 8 x 8 blocks themselves, which makes level 3 a mild one
        del changes[2]
    assert changes == sorted(changes) and changes[0] > 0


@pytest.mark.parametrize(("name", "share"), [("gaussian_blur", 0.02), ("occlusion", 0.0), ("pixelation", 1e-6)])
def test_larger_images_are_corrupted_alike(digits, name, share):
    """An image enlarged, corrupted and reduced again is the image corrupted."""
    large = np.repeat(np.repeat(digits, 2, axis=2), 2, axis=3)
    got = corrupt(large, name, 3, rng(0))
    if name == "occlusion":
        assert ((got == 0.5).sum(axis=(2, 3)) >= 10 * 10).all()
    else:
        reduced = got.reshape(len(got), 1, 16, 2, 16, 2).mean((3, 5))
        assert np.square(reduced - corrupt(digits, name, 3, rng(0))).mean() ** 0.5 < share


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "occlusion", "rotation"])
def test_random_corruptions_depend_on_the_generator(digits, name):
    assert not np.array_equal(corrupt(digits, name, 3, rng(0)), corrupt(digits, name, 3, rng(1)))


@EVERY_CORRUPTION
def test_random_draws_differ_between_images(digits, name):
    copies = np.repeat(digits[:1], 20, axis=0)
    got = corrupt(copies, name, 5, rng())
    distinct = len(np.unique(got, axis=0))
    expected = {"gaussian_noise": 20, "impulse_noise": 20, "rotation": 2}.get(name, 1)
    assert distinct > 10 if name == "occlusion" else distinct == expected


# --- One by one


def test_resize_is_the_identity_at_the_same_size_and_averages_at_half():
    images = rng().random((2, 3, 8, 8))
    np.testing.assert_allclose(resize(images, 8), images, atol=1e-15)
    blocks = images.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    np.testing.assert_allclose(resize(images, 4), blocks, atol=1e-15)


def test_resize_matches_scipy_interpolation():
    image = rng().random((1, 1, 8, 8))
    position = np.clip((np.arange(16) + 0.5) / 2 - 0.5, 0, 7)
    expected = ndimage.map_coordinates(image[0, 0], np.meshgrid(position, position, indexing="ij"), order=1)
    np.testing.assert_allclose(resize(image, 16)[0, 0], expected, atol=1e-12)


def test_gaussian_noise_has_its_standard_deviation():
    grey = np.full((50, 1, 16, 16), 0.5)
    assert (domains.gaussian_noise(grey, 0.1, rng()) - grey).std() == pytest.approx(0.1, rel=0.02)


def test_impulse_noise_makes_equal_black_and_white_pixels_in_all_channels():
    grey = np.full((100, 3, 16, 16), 0.5)
    got = domains.impulse_noise(grey, 0.2, rng())
    assert (got == 0).mean() == pytest.approx(0.1, abs=0.01)
    assert (got == 1).mean() == pytest.approx(0.1, abs=0.01)
    np.testing.assert_array_equal(got[:, 0], got[:, 2])


def test_blur_is_a_gaussian_inside_and_keeps_constants():
    point = np.zeros((1, 1, 31, 31))
    point[..., 15, 15] = 1
    got = domains.gaussian_blur(point, 1.8, rng())
    np.testing.assert_allclose(got[0, 0], ndimage.gaussian_filter(point[0, 0], 1.8, truncate=9), atol=1e-9)
    np.testing.assert_allclose(domains.gaussian_blur(np.full((1, 1, 16, 16), 0.3), 2.2, rng()), 0.3, atol=1e-12)


def test_contrast_keeps_the_mean_of_each_image_and_scales_its_spread():
    images = rng().random((3, 3, 16, 16))
    got = domains.contrast(images, 0.25, rng())
    np.testing.assert_allclose(got.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=1e-12)
    np.testing.assert_allclose(got.std((1, 2, 3)), 0.25 * images.std((1, 2, 3)), atol=1e-12)


def test_brightness_adds_and_clips():
    images = np.array([0.0, 0.4, 0.9]).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(domains.brightness(images, 0.2, rng()).ravel(), [0.2, 0.6, 1.0])


@pytest.mark.parametrize("side", [3, 7, 16])
def test_occlusion_covers_one_whole_square(side):
    black = np.zeros((2000, 1, 16, 16))
    got = domains.occlusion(black, side, rng())[:, 0]
    assert set(np.unique(got)) <= {0, 0.5}
    for axis in (1, 2):
        np.testing.assert_array_equal(got.any(axis).sum(1), side)
    assert (got > 0).sum() == 2000 * side * side
    assert (got > 0).any(0).all(), "every pixel can be covered, the border's too"


def test_pixelation_averages_whole_blocks_and_weighs_fractional_ones():
    images = rng().random((2, 1, 16, 16))
    expected = images.reshape(2, 1, 8, 2, 8, 2).mean((3, 5)).repeat(2, 2).repeat(2, 3)
    np.testing.assert_allclose(domains.pixelation(images, 8, rng()), expected, atol=1e-12)
    # Three pixels in two blocks: each takes one and a half.
    row = np.array([0.0, 0.3, 0.9]).reshape(1, 1, 1, 3).repeat(3, 2)
    got = domains.pixelation(row, 2, rng())[0, 0, 0]
    np.testing.assert_allclose(got, [0.1, 0.7, 0.7], atol=1e-12)


def test_rotation_by_right_angles_is_exact_and_counter_clockwise():
    images = rng().random((4, 3, 16, 16))
    got = rotate(images, np.array([0.0, 90.0, 180.0, -90.0]))
    for turns, (image, turned) in enumerate(zip(images, got, strict=True)):
        np.testing.assert_allclose(turned, np.rot90(image, turns, axes=(1, 2)), atol=1e-12)


def test_rotation_matches_scipy_inside(digits):
    got = rotate(digits[:5].astype(np.float64), np.full(5, 25.0))
    for image, turned in zip(digits[:5, 0], got[:, 0], strict=True):
        expected = ndimage.rotate(image.astype(np.float64), 25.0, reshape=False, order=1)
        np.testing.assert_allclose(turned[2:-2, 2:-2], expected[2:-2, 2:-2], atol=1e-6)


def test_rotation_brings_in_black_and_turns_both_ways():
    white = np.ones((40, 1, 16, 16))
    np.testing.assert_allclose(rotate(white, np.full(40, 45.0))[:, :, 0, 0], 0, atol=1e-12)
    one = np.zeros((40, 1, 16, 16))
    one[:, :, 4, 11] = 1
    got = domains.rotation(one, 30.0, rng())
    clockwise, counter = (rotate(one[:1], np.array([a]))[0] for a in (-30.0, 30.0))
    is_clockwise = np.isclose(got, clockwise).all((1, 2, 3))
    is_counter = np.isclose(got, counter).all((1, 2, 3))
    assert (is_clockwise | is_counter).all() and 10 < is_clockwise.sum() < 30


def test_styles_paint_ink_and_background_as_described():
    ink = np.zeros((50, 1, 16, 16), np.float32)
    ink[:, :, :, 8:] = 1
    background, foreground = slice(0, 6), slice(10, 16)
    plain = stylize(ink, "white_on_black", rng())
    np.testing.assert_array_equal(plain, np.repeat(ink, 3, axis=1))

    tinted = stylize(ink, "tinted", rng())
    assert tinted[..., foreground].max() <= 0.35 and tinted[..., background].min() >= 0.65
    assert np.ptp(tinted[..., foreground], axis=(2, 3)).max() < 1e-6, "one colour per image and channel"
    assert tinted[:, :, 0, 0].std(0).min() > 0.05, "colours differ between images"

    textured = stylize(ink, "textured", rng())
    assert textured[..., background].max() <= 0.6 + 1e-6
    np.testing.assert_allclose(textured[..., foreground].max((1, 2, 3)), 1, atol=1e-6)
    assert np.ptp(textured[..., background], axis=(2, 3)).min() > 0
    assert np.abs(np.diff(textured[..., background], axis=2)).max() < 0.6 / 4 + 1e-6, "smooth: 4 pixels per grid cell"

    sketched = stylize(ink, "sketched", rng())
    np.testing.assert_array_equal(sketched[..., :6], 1)
    np.testing.assert_array_equal(sketched[..., 7:9], 0)


# --- Bad input


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 16, 16)), np.zeros((2, 1, 16, 16), int), np.full((2, 1, 16, 16), 1.1), np.full((1, 1, 16, 16), -0.1)],
)
def test_images_are_checked(images):
    for call in (
        lambda: corrupt(images, "contrast", 1, rng()),
        lambda: stylize(images, "tinted", rng()),
        lambda: resize(images, 4),
    ):
        with pytest.raises(ValueError, match="images must"):
            call()


def test_nan_is_not_an_image():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        corrupt(np.full((1, 1, 16, 16), np.nan), "contrast", 1, rng())


def test_names_levels_and_sizes_are_checked():
    images = np.zeros((1, 1, 16, 16))
    with pytest.raises(ValueError, match=r"name must be one of gaussian_noise, .* got 'fog'"):
        corrupt(images, "fog", 1, rng())
    for level in (0, 6):
        with pytest.raises(ValueError, match=f"level must be one of .* got {level}"):
            corrupt(images, "contrast", level, rng())
    for name, level in (("occlusion", 5), ("pixelation", 3)):
        with pytest.raises(ValueError, match="images must be at least"):
            corrupt(images[..., :6, :6], name, level, rng())
    with pytest.raises(ValueError, match=r"style must be one of white_on_black, .* got 'oil'"):
        stylize(images, "oil", rng())
    with pytest.raises(ValueError, match="ink must have shape"):
        stylize(np.zeros((1, 3, 16, 16)), "tinted", rng())
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        resize(images, 0)
