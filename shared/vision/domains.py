"""Domains built from plain images: corruptions in five levels, and styles of ink and background.

Images are floating arrays [N, Ch, H, W] with values in [0, 1], and so are all results (a new array, of the same dtype).
Everything random comes from the generator passed in, and differs from image to image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.floating]

LEVELS = (1, 2, 3, 4, 5)


def resize(images: Images, size: int) -> Images:
    """Bilinear interpolation to [N, Ch, size, size], pixel centres at half integers, borders repeated.

    Raises:
        ValueError: not images in [0, 1]; size < 1.
    """
    _check_images(images)
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    rows, columns = (_interpolation_matrix(length, size) for length in images.shape[2:])
    return _separable(images, rows, columns)


# --- Corruptions


def gaussian_noise(images: Images, sd: float, rng: np.random.Generator) -> Images:
    """Independent normal noise on each pixel, clipped to [0, 1]."""
    noise = sd * rng.standard_normal(images.shape)
    return np.clip(images + noise, 0, 1).astype(images.dtype)


def impulse_noise(images: Images, fraction: float, rng: np.random.Generator) -> Images:
    """Pixels become black or white, each with probability fraction/2, in all channels alike."""
    draw = rng.random((len(images), 1, *images.shape[2:]))
    return np.where(draw < fraction / 2, 0, np.where(draw < fraction, 1, images)).astype(images.dtype)


def gaussian_blur(images: Images, sd: float, rng: np.random.Generator) -> Images:
    """Convolution with a Gaussian of `sd` pixels, renormalised where the border cuts it. Not random."""
    rows, columns = (_blur_matrix(length, sd) for length in images.shape[2:])
    return _separable(images, rows, columns)


def contrast(images: Images, factor: float, rng: np.random.Generator) -> Images:
    """Each image's distance to its own mean times `factor` in [0, 1]. Not random."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    return (mean + factor * (images - mean)).astype(images.dtype)


def brightness(images: Images, amount: float, rng: np.random.Generator) -> Images:
    """`amount` added and clipped to [0, 1]. Not random."""
    return np.clip(images + amount, 0, 1).astype(images.dtype)


def occlusion(images: Images, side: float, rng: np.random.Generator) -> Images:
    """A grey (0.5) square of `side` pixels per image, anywhere inside it."""
    n, _, height, width = images.shape
    top = rng.integers(height - int(side) + 1, size=(n, 1, 1, 1))
    left = rng.integers(width - int(side) + 1, size=(n, 1, 1, 1))
    row, column = np.arange(height)[:, None], np.arange(width)
    covered = (row >= top) & (row < top + side) & (column >= left) & (column < left + side)
    return np.where(covered, 0.5, images).astype(images.dtype)


def pixelation(images: Images, size: float, rng: np.random.Generator) -> Images:
    """Means over `size` x `size` equal blocks, which need not be whole pixels, at full resolution. Not random."""
    rows, columns = (_pixelation_matrix(length, int(size)) for length in images.shape[2:])
    return _separable(images, rows, columns)


def rotation(images: Images, degrees: float, rng: np.random.Generator) -> Images:
    """Each image rotated by plus or minus `degrees`, either equally likely; black comes in."""
    return rotate(images, degrees * rng.choice([-1.0, 1.0], size=len(images)))


def rotate(images: Images, degrees: NDArray[np.floating]) -> Images:
    """Each image turned about its centre by its own angle [N], counter-clockwise; bilinear, black outside."""
    height, width = images.shape[2:]
    angle = np.deg2rad(degrees)[:, None, None]
    down = np.arange(height)[:, None] - (height - 1) / 2
    right = np.arange(width) - (width - 1) / 2
    row = np.cos(angle) * down + np.sin(angle) * right + (height - 1) / 2
    column = np.cos(angle) * right - np.sin(angle) * down + (width - 1) / 2
    return _sample_bilinear(images, row, column)


@dataclass(frozen=True)
class Corruption:
    """A corruption and its strength at levels 1 to 5."""

    apply: Callable[[Images, float, np.random.Generator], Images]
    strengths: tuple[float, float, float, float, float]
    is_length: bool = False
    """Whether strengths are for images of 16 x 16, and grow in proportion with larger images."""


CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian_noise": Corruption(gaussian_noise, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "impulse_noise": Corruption(impulse_noise, (0.04, 0.08, 0.12, 0.18, 0.25)),
    "gaussian_blur": Corruption(gaussian_blur, (0.8, 1.1, 1.4, 1.8, 2.2), is_length=True),
    "contrast": Corruption(contrast, (0.7, 0.5, 0.35, 0.25, 0.18)),
    "brightness": Corruption(brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "occlusion": Corruption(occlusion, (3, 4, 5, 6, 7), is_length=True),
    "pixelation": Corruption(pixelation, (12, 10, 8, 6, 5)),
    "rotation": Corruption(rotation, (10, 20, 30, 40, 50)),
}
"""By name. Lengths are in pixels of images of 16 x 16, angles in degrees."""

_REFERENCE_SIZE = 16


def corrupt(images: Images, name: str, level: int, rng: np.random.Generator) -> Images:
    """Images under the corruption `name` of `CORRUPTIONS` at `level`, 1 (mild) to 5 (severe).

    Raises:
        ValueError: not images in [0, 1], smaller than the corruption's square or number of blocks; unknown name or
            level.
    """
    _check_images(images)
    if name not in CORRUPTIONS:
        raise ValueError(f"name must be one of {', '.join(CORRUPTIONS)}, got {name!r}")
    if level not in LEVELS:
        raise ValueError(f"level must be one of {LEVELS}, got {level!r}")
    corruption = CORRUPTIONS[name]
    strength = corruption.strengths[LEVELS.index(level)]
    if corruption.is_length:
        strength *= max(1.0, min(images.shape[2:]) / _REFERENCE_SIZE)
    if name in ("occlusion", "pixelation") and min(images.shape[2:]) < strength:
        raise ValueError(f"images must be at least {strength:g} pixels wide for {name}, got {images.shape[2:]}")
    return corruption.apply(images, strength, rng)


# --- Styles


def white_on_black(ink: Images, rng: np.random.Generator) -> Images:
    """The image itself in three equal channels. Not random."""
    return np.repeat(ink, 3, axis=1)


def tinted(ink: Images, rng: np.random.Generator) -> Images:
    """Dark tinted ink on a light tinted background: one colour each, components in [0, 0.35] and [0.65, 1]."""
    dark, light = (rng.uniform(low, low + 0.35, size=(len(ink), 3, 1, 1)) for low in (0.0, 0.65))
    return _painted(ink, dark, light)


def textured(ink: Images, rng: np.random.Generator) -> Images:
    """Coloured ink, brightest component 1, on a smooth texture: random colours in [0, 0.6] on a 4 x 4 grid, resized."""
    n, _, height, width = ink.shape
    grid = rng.uniform(0, 0.6, size=(n, 3, 4, 4))
    texture = _separable(grid, _interpolation_matrix(4, height), _interpolation_matrix(4, width))
    colour = rng.uniform(0.2, 1, size=(n, 3, 1, 1))
    return _painted(ink, colour / colour.max(axis=1, keepdims=True), texture)


def sketched(ink: Images, rng: np.random.Generator) -> Images:
    """Edges, dark by twice the size of the gradient, on white, in three equal channels. Not random."""
    down, right = np.gradient(ink, axis=(2, 3))
    edges = np.clip(2 * np.hypot(down, right), 0, 1)
    return np.repeat(1 - edges, 3, axis=1).astype(ink.dtype)


STYLES: Mapping[str, Callable[[Images, np.random.Generator], Images]] = {
    "white_on_black": white_on_black,
    "tinted": tinted,
    "textured": textured,
    "sketched": sketched,
}


def stylize(ink: Images, style: str, rng: np.random.Generator) -> Images:
    """Images [N, 3, H, W] in a style of `STYLES`, of ink [N, 1, H, W] (0 none, 1 full), H and W at least 2.

    Raises:
        ValueError: not images in [0, 1] of one channel and 2 pixels; unknown style.
    """
    _check_images(ink)
    if ink.shape[1] != 1 or min(ink.shape[2:]) < 2:
        raise ValueError(f"ink must have shape [N, 1, H >= 2, W >= 2], got {ink.shape}")
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    return STYLES[style](ink, rng)


def _painted(ink: Images, foreground: Images, background: Images) -> Images:
    return (ink * foreground + (1 - ink) * background).astype(ink.dtype)


# --- Linear maps of rows and columns, and sampling


def _separable(images: Images, rows: Images, columns: Images) -> Images:
    """rows @ image @ columnsᵀ for each channel; rows and columns of weights sum to 1, so [0, 1] maps into itself."""
    mapped = rows @ images.astype(np.float64) @ columns.T
    return np.clip(mapped, 0, 1).astype(images.dtype)  # only rounding is clipped


def _interpolation_matrix(length: int, size: int) -> Images:
    """[size, length] bilinear weights of the `length` inputs for each of `size` outputs."""
    position = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    return np.clip(1 - np.abs(position[:, None] - np.arange(length)), 0, None)


def _blur_matrix(length: int, sd: float) -> Images:
    offsets = np.arange(length)[:, None] - np.arange(length)
    weights = np.exp(-0.5 * (offsets / sd) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)


def _pixelation_matrix(length: int, blocks: int) -> Images:
    """[length, length] weights: the mean over a block for each pixel whose centre lies in that block."""
    pixel = np.arange(length)
    edges = np.arange(blocks + 1)[:, None] * length / blocks
    overlap = np.clip(np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel), 0, None)
    own_block = ((pixel + 0.5) * blocks / length).astype(int)
    return (overlap * blocks / length)[own_block]


def _sample_bilinear(images: Images, row: Images, column: Images) -> Images:
    """Values at fractional positions [N, H', W'], with the outside black: [N, Ch, H', W']."""
    height, width = images.shape[2:]
    framed = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1))).transpose(0, 2, 3, 1)
    row, column = np.clip(row + 1, 0, height + 1), np.clip(column + 1, 0, width + 1)
    top, left = np.minimum(row.astype(int), height), np.minimum(column.astype(int), width)
    down, right = (row - top)[..., None], (column - left)[..., None]
    which = np.arange(len(images))[:, None, None]
    upper = framed[which, top, left] * (1 - right) + framed[which, top, left + 1] * right
    lower = framed[which, top + 1, left] * (1 - right) + framed[which, top + 1, left + 1] * right
    sampled = upper * (1 - down) + lower * down
    return np.clip(sampled, 0, 1).transpose(0, 3, 1, 2).astype(images.dtype)


def _check_images(images: Images) -> None:
    if images.ndim != 4 or not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images must be floating [N, Ch, H, W], got {images.dtype} {images.shape}")
    if images.size and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"images must lie in [0, 1], got [{images.min()}, {images.max()}]")
