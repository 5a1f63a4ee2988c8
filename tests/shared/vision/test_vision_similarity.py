"""SSIM against its formula window by window."""

import numpy as np
import pytest

from shared.vision.similarity import ssim


def by_formula(a, b, data_range, window):
    """Mean over channels and windows that lie within the image, each computed alone."""
    values = []
    for channel in range(a.shape[0]):
        for top in range(a.shape[1] - window + 1):
            for left in range(a.shape[2] - window + 1):
                x, y = (image[channel, top : top + window, left : left + window].ravel() for image in (a, b))
                covariance = np.cov(x, y)
                low, high = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
                above = (2 * x.mean() * y.mean() + low) * (2 * covariance[0, 1] + high)
                below = (x.mean() ** 2 + y.mean() ** 2 + low) * (covariance[0, 0] + covariance[1, 1] + high)
                values.append(above / below)
    return np.mean(values)


@pytest.mark.parametrize(("data_range", "window"), [(1.0, 7), (2.0, 3)])
def test_it_is_what_its_formula_says(data_range, window):
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=(2, 2, 3, 9, 11))
    b = 0.5 * a + 0.5 * b
    expected = [by_formula(x, y, data_range, window) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim(a, b, data_range=data_range, window=window), expected, rtol=1e-10)
    np.testing.assert_allclose(ssim(b, a, data_range=data_range, window=window), expected, rtol=1e-10)
    np.testing.assert_allclose(ssim(a, a), 1.0, rtol=1e-12)


def test_channels_are_not_a_place():
    """A window over (width, colour) would see other neighbours."""
    rng = np.random.default_rng(1)
    a, b = rng.uniform(size=(2, 1, 8, 8, 8))
    assert abs(ssim(a, b) - ssim(a.transpose(0, 2, 3, 1), b.transpose(0, 2, 3, 1))) > 1e-3


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (np.zeros((1, 3, 8, 8)), np.zeros((1, 3, 8, 9)), {}, "first, second: need one shape"),
        (np.zeros((3, 8, 8)), np.zeros((3, 8, 8)), {}, "first, second: need one shape"),
        (np.zeros((1, 1, 6, 8)), np.zeros((1, 1, 6, 8)), {}, "window: need an odd number from 3 to 6, got 7"),
        (np.zeros((1, 1, 8, 8)), np.zeros((1, 1, 8, 8)), {"window": 4}, "window: need an odd number"),
        (np.full((1, 1, 8, 8), np.nan), np.zeros((1, 1, 8, 8)), {}, "first, second: need finite"),
    ],
)
def test_a_mistake_is_named(a, b, options, message):
    with pytest.raises(ValueError, match=message):
        ssim(a, b, **options)
