"""Small colour images of one shape on grey, with known factors: unlimited data for probes.

The shape, its place, size, angle and hue and the grey level are what a code should hold; a faint texture of two plane
waves is detail beyond it. Images are drawn at three times their size and averaged over blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

SHAPES = ("disc", "square", "triangle")
FACTORS = ("x", "y", "size", "hue_cos", "hue_sin", "background")
OVERSAMPLING = 3
AMPLITUDE = 0.075
"""Of each of the two waves, where black is 0 and white 1."""


class Sprites(NamedTuple):
    """Images with what they show."""

    images: Array
    """(N, 3, size, size) in [−1, 1]."""
    factors: Array
    """(N, 6): `FACTORS`."""
    shapes: NDArray[np.int64]
    """(N,), indices in `SHAPES`."""
    texture: Array
    """(N, size, size): the waves."""


def draw_sprites(count: int, size: int, rng: np.random.Generator) -> Sprites:
    """Draw images, each with factors of its own.

    Args:
        count: N.
        size: height and width.
        rng: of all factors.

    Raises:
        ValueError: a count or size below 1.
    """
    if count < 1 or size < 1:
        raise ValueError(f"count, size: need numbers of at least 1, got {count}, {size}")
    shapes = rng.integers(len(SHAPES), size=count)
    x, y = rng.uniform(-0.35, 0.35, (2, count))
    half, angle = rng.uniform(0.4, 0.7, count), rng.uniform(0, np.pi / 2, count)
    hue, grey = rng.uniform(0, 1, count), 0.15 + 0.5 * rng.uniform(0, 1, count)
    fine = size * OVERSAMPLING
    axis = (np.arange(fine) + 0.5) * (2 / fine) - 1
    down, across = np.meshgrid(axis, axis, indexing="ij")
    inside = _inside(shapes, *_own_frame(across, down, x, y, angle), half)[:, None]
    colour = 0.25 + 0.75 * _saturated(hue)
    clean = np.where(inside, colour[:, :, None, None], grey[:, None, None, None])
    texture = _waves(across, down, count, rng)
    images = _averaged(np.clip(clean + texture[:, None], 0, 1))
    turn = 2 * np.pi * hue
    factors = np.stack([x, y, half, np.cos(turn), np.sin(turn), grey], axis=1)
    return Sprites(
        (2 * images - 1).astype(np.float32),
        factors.astype(np.float32),
        shapes,
        _averaged(texture[:, None])[:, 0].astype(np.float32),
    )


def _own_frame(across, down, x, y, angle):
    """Coordinates (N, fine, fine) of the points as seen from shifted and turned shapes."""
    u, v = across - x[:, None, None], down - y[:, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    return cos * u + sin * v, cos * v - sin * u


def _inside(shapes, u, v, half):
    """Which points (N, fine, fine) each shape covers; all shapes span 2 · half."""
    half = half[:, None, None]
    disc = u**2 + v**2 <= half**2
    square = np.maximum(np.abs(u), np.abs(v)) <= half
    triangle = (np.abs(v) <= half) & (np.abs(u) <= (half - v) / 2)
    return np.stack([disc, square, triangle])[shapes, np.arange(len(shapes))]


def _saturated(hue):
    """RGB (N, 3) in [0, 1] of hues (N,) in [0, 1]."""
    offsets = np.array([0.0, 2 / 3, 1 / 3])
    return np.clip(np.abs((hue[:, None] + offsets) % 1 * 6 - 3) - 1, 0, 1)


def _waves(across, down, count, rng):
    """(N, fine, fine): the sum of two plane waves of 1 to 4 cycles across the image."""
    total = np.zeros((count, *across.shape))
    for _ in range(2):
        cycles, angle, phase = (
            rng.uniform(low, high, count)[:, None, None] for low, high in ((1, 4), (0, np.pi), (0, 2 * np.pi))
        )
        total += np.sin(np.pi * cycles * (np.cos(angle) * across + np.sin(angle) * down) + phase)
    return AMPLITUDE * total


def _averaged(images):
    """Means over blocks of OVERSAMPLING² points."""
    count, channels, fine, _ = images.shape
    size = fine // OVERSAMPLING
    return images.reshape(count, channels, size, OVERSAMPLING, size, OVERSAMPLING).mean(axis=(3, 5))
