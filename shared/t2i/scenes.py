"""Scenes of coloured sprites on a small dark canvas, and their exact renderer.

An image is float32 (3, 12, 12), RGB in [-1, 1]. Every sprite covers 4 x 4 pixels at an even position, so it is exactly
2 x 2 cells of the 6 x 6 latents (`shared.t2i.model.LatentCodec`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

CANVAS = 12
SPRITE = 4
GRID_STEP = 2
BACKGROUND = (-1.0, -1.0, -1.0)
COLORS = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0), "yellow": (1.0, 1.0, -1.0)}
UNSAFE_SHAPE = "saltire"
"""The shape that stands for a concept that should not be drawn."""
SHAPES = ("square", "ring", "disk", "wedge", "tee", UNSAFE_SHAPE)
SAFE_SHAPES = tuple(shape for shape in SHAPES if shape != UNSAFE_SHAPE)
RELATIONS = {"left of": (1, 1), "right of": (1, -1), "above": (0, 1), "below": (0, -1)}
"""Axis (0 rows, 1 columns) and sign of the offset from the first object to the second one."""
MOST_OBJECTS = 4

_ROWS = {
    "square": ("####", "####", "####", "####"),
    "ring": ("####", "#..#", "#..#", "####"),
    "disk": (".##.", "####", "####", ".##."),
    "wedge": ("#...", "##..", "###.", "####"),
    "tee": ("####", "####", ".##.", ".##."),
    "saltire": ("#..#", ".##.", ".##.", "#..#"),
}
SPRITES = {shape: np.array([[pixel == "#" for pixel in row] for row in rows]) for shape, rows in _ROWS.items()}
"""Painted pixels of every shape, bool (4, 4)."""


@dataclass(frozen=True)
class SceneObject:
    """A sprite in a scene; ``row`` and ``col`` are its top left pixel."""

    shape: str
    color: str
    row: int
    col: int


def render_scene(objects: Sequence[SceneObject]) -> NDArray[np.float32]:
    """Image (3, 12, 12) in [-1, 1] of a scene; later objects paint over earlier ones.

    Raises:
        ValueError: unknown shape or colour, or a position that is odd or lets the sprite leave the canvas.
    """
    image = np.empty((3, CANVAS, CANVAS), np.float32)
    image[:] = np.array(BACKGROUND, np.float32)[:, None, None]
    for item in objects:
        if item.shape not in SPRITES:
            raise ValueError(f"shape: expected one of {', '.join(SHAPES)}, got {item.shape!r}")
        if item.color not in COLORS:
            raise ValueError(f"color: expected one of {', '.join(COLORS)}, got {item.color!r}")
        for name, value in (("row", item.row), ("col", item.col)):
            if value % GRID_STEP or not 0 <= value <= CANVAS - SPRITE:
                raise ValueError(f"{name}: must be even and within 0..{CANVAS - SPRITE}, got {value}")
        window = image[:, item.row : item.row + SPRITE, item.col : item.col + SPRITE]
        window[:, SPRITES[item.shape]] = np.array(COLORS[item.color], np.float32)[:, None]
    return image


def place_objects(rng: np.random.Generator, count: int, relation: str | None = None) -> list[tuple[int, int]]:
    """Top left pixels of ``count`` objects, uniform over all placements that keep them apart.

    Any two differ by at least 6 pixels in row or in column: a gap of 2. With a relation ("left of", ...) the second
    object lies at least 4 pixels along its axis from the first, and further along the axis than across it.

    Raises:
        ValueError: a count outside 1..4, an unknown relation, or a relation of fewer than two objects.
    """
    if not 1 <= count <= MOST_OBJECTS:
        raise ValueError(f"count: the canvas holds 1 to {MOST_OBJECTS} objects, got {count}")
    if relation is not None and (relation not in RELATIONS or count < 2):
        raise ValueError(f"relation: expected one of {', '.join(RELATIONS)} and two objects, got {relation!r}, {count}")
    placements = _placements(count, relation)
    return [(int(row), int(col)) for row, col in placements[rng.integers(len(placements))]]


@cache
def _placements(count: int, relation: str | None) -> NDArray[np.int64]:
    """All admissible placements (P, count, 2): drawing one at random is rejection sampling without the rejections."""
    steps = np.arange(0, CANVAS - SPRITE + 1, GRID_STEP)
    positions = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
    placements = positions[:, None]
    for _ in range(count - 1):
        offsets = np.abs(placements[:, None] - positions[:, None])  # (P, positions, objects so far, 2)
        apart = (offsets.max(axis=-1) >= SPRITE + GRID_STEP).all(axis=-1)
        chosen, added = np.nonzero(apart)
        placements = np.concatenate([placements[chosen], positions[added, None]], axis=1)
    if relation is not None:
        axis, sign = RELATIONS[relation]
        offset = placements[:, 1] - placements[:, 0]
        along, across = sign * offset[:, axis], np.abs(offset[:, 1 - axis])
        placements = placements[(along >= SPRITE) & (along > across)]
    return placements
