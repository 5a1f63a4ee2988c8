"""How alike two images are."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter

Array = NDArray[np.float64]


def ssim(first: ArrayLike, second: ArrayLike, *, data_range: float = 1.0, window: int = 7) -> Array:
    """Structural similarity of images (Wang et al., 2004), with a uniform window, mean over channels and positions.

    In every window, with means m, variances v and covariance c (of a sample: divided by the pixels minus one),
    (2 m m' + C₁)(2 c + C₂)/((m² + m'² + C₁)(v + v' + C₂)), C₁ = (0.01 range)², C₂ = (0.03 range)². The mean is over
    positions where the window lies within the image. These are scikit-image's defaults.

    Args:
        first: (B, C, H, W); channels come before height and width.
        second: of that shape.
        data_range: largest minus smallest value that pixels can have.
        window: odd height and width of the window.

    Returns:
        (B,), 1 for equal images.

    Raises:
        ValueError: shapes that do not match or are smaller than the window, an even window, or numbers not finite.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 4 or a.shape != b.shape:
        raise ValueError(f"first, second: need one shape (B, C, H, W), got {a.shape} and {b.shape}")
    if window < 3 or window % 2 == 0 or min(a.shape[2:]) < window:
        raise ValueError(f"window: need an odd number from 3 to {min(a.shape[2:])}, got {window}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("first, second: need finite numbers")
    sample = window**2 / (window**2 - 1)

    def mean(values: Array) -> Array:
        return uniform_filter(values, size=(1, 1, window, window))

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = (sample * (mean(x * x) - m * m) for x, m in ((a, mean_a), (b, mean_b)))
    covariance = sample * (mean(a * b) - mean_a * mean_b)
    low, high = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = (2 * mean_a * mean_b + low) * (2 * covariance + high)
    similarity /= (mean_a**2 + mean_b**2 + low) * (variance_a + variance_b + high)
    edge = window // 2
    return similarity[:, :, edge : a.shape[2] - edge, edge : a.shape[3] - edge].mean(axis=(1, 2, 3))
