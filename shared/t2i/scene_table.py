"""Captioned scenes on disk, a parquet table.

========  =======================================================================
column    meaning
========  =======================================================================
caption   str, in the language of `shared.t2i.captions`
scene     str, the objects in painting order: "red square 0 6; blue ring 8 2"
loser     str, a scene that the caption does not describe (preference pairs only)
========  =======================================================================
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from shared.errors import InputError
from shared.t2i.scenes import SceneObject, render_scene
from shared.tables import read_table, write_table


def scene_text(objects: Sequence[SceneObject]) -> str:
    """A scene as text."""
    return "; ".join(f"{item.color} {item.shape} {item.row} {item.col}" for item in objects)


def parse_scene(text: str) -> list[SceneObject]:
    """The scene of a text.

    Raises:
        ValueError: the text is none of a scene.
    """
    objects = []
    for part in text.split("; ") if text else []:
        words = part.split(" ")
        if len(words) != 4 or not (words[2].isdecimal() and words[3].isdecimal()):
            raise ValueError(f"scene: expected 'colour shape row column', got {part!r}")
        objects.append(SceneObject(words[1], words[0], int(words[2]), int(words[3])))
    return objects


def write_scenes(path: Path, rows: Iterable[dict[str, str]], *, columns: Sequence[str] = ("caption", "scene")) -> None:
    """Write rows of the table described above."""
    write_table(path, pd.DataFrame(list(rows), columns=list(columns)))


def read_scenes(path: Path, column: str = "scene") -> tuple[list[str], Tensor]:
    """Captions (N) and rendered images (N, 3, 12, 12) in [-1, 1], float32.

    Args:
        path: the table.
        column: which scenes are rendered: `scene` or `loser`.

    Raises:
        InputError: a column is missing, the table is empty, or a scene cannot be rendered.
    """
    table = read_table(path, ("caption", column))
    if table.empty:
        raise InputError(f"{path}: the table holds no scenes")
    try:
        images = np.stack([render_scene(parse_scene(text)) for text in table[column]])
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return table["caption"].tolist(), torch.from_numpy(images)
