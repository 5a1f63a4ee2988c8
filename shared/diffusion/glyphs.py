"""Small images of four shapes, drawn from signed distances: unlimited data with exact labels.

A glyph has a random centre, size, angle and brightness. Images are (N, 1, 8, 8) float32; without noise they lie in
[-1, 1].
"""

import math

import torch
from torch import Tensor

SIZE = 8
SHAPES = ("disk", "square", "plus", "cross")
SHARPNESS = 6.0
"""Steepness of the edges, per half width of the image: about one pixel from dark to bright."""


def draw_glyphs(shapes: Tensor, noise: float, generator: torch.Generator | None = None) -> Tensor:
    """One image of each shape.

    Args:
        shapes: int64 (N,), indices in `SHAPES`.
        noise: standard deviation of independent noise on the pixels, ≥ 0.
        generator: of shape parameters and noise; None: PyTorch's global one.

    Raises:
        ValueError: an index outside of `SHAPES`, or negative noise.
    """
    if not ((shapes >= 0) & (shapes < len(SHAPES))).all():
        raise ValueError(f"shapes: need indices in [0, {len(SHAPES) - 1}], got {shapes.min()} to {shapes.max()}")
    if not noise >= 0:
        raise ValueError(f"noise: need a number of at least 0, got {noise}")
    uniform = torch.rand(len(shapes), 5, generator=generator)
    center = 0.5 * uniform[:, :2] - 0.25
    radius = 0.45 + 0.25 * uniform[:, 2]
    angle = math.pi / 12 * (2 * uniform[:, 3] - 1)  # ± 15°, lest a plus becomes a cross
    brightness = 0.7 + 0.3 * uniform[:, 4]
    # Crosses are plus signs turned by 45°.
    x, y = _in_own_frame(center, angle + math.pi / 4 * (shapes == SHAPES.index("cross")))
    covered = torch.sigmoid(-SHARPNESS * _signed_distance(shapes, x, y, radius[:, None, None]))
    images = 2 * brightness[:, None, None] * covered - 1
    return images[:, None] + noise * torch.randn(len(shapes), 1, SIZE, SIZE, generator=generator)


def _in_own_frame(center: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates (N, SIZE, SIZE) of the pixels, in [-1, 1] in the image, as seen from shifted and turned shapes."""
    axis = (torch.arange(SIZE) + 0.5) * (2 / SIZE) - 1
    row, column = torch.meshgrid(axis, axis, indexing="ij")
    x, y = column - center[:, 0, None, None], row - center[:, 1, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * x + sin * y, cos * y - sin * x


def _signed_distance(shapes: Tensor, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Distance (N, SIZE, SIZE) to the outline of each shape, negative inside; approximate near corners."""
    x, y = x.abs(), y.abs()
    thickness = 0.16
    disk = (x**2 + y**2).sqrt() - radius
    square = (torch.maximum(x, y) - (radius - thickness)).abs() - thickness
    plus = torch.minimum(_bar(x, y, radius, thickness), _bar(y, x, radius, thickness))
    candidates = torch.stack([disk, square, plus, plus])
    return candidates[shapes, torch.arange(len(shapes))]


def _bar(along: Tensor, across: Tensor, radius: Tensor, thickness: float) -> Tensor:
    return torch.maximum(along - radius, across - thickness)
