"""Prepare: the biased, the reference and the unbiased set of CIFAR-10, and the test images to compare samples with.

``subsets`` is a table with the columns subset, index (a row of the training images) and label; a table of the first two
given as ``manifest`` takes the place of the draw. ``images`` holds the four sets as uint8 (N, 3, 32, 32).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file

from papers.tiw_dsm.data import choose_subsets
from papers.tiw_dsm.options import GROUPS, DataOptions
from shared.errors import InputError
from shared.stage import Input, Output, run
from shared.tables import read_table, write_table
from shared.vision.data import read_image_parquet

SUBSETS = ("biased", "reference", "unbiased")


def prepare(
    options: DataOptions,
    *,
    seed: int,
    files: tuple[Input, ...],
    manifest: tuple[Input, ...] = (),
    images: Output,
    subsets: Output,
) -> dict[str, int]:
    """Choose the subsets of the training images; `files` are the training and the test images."""
    train, test = (read_image_parquet(path, num_classes=GROUPS[options.testbed]) for path in files)
    if manifest:
        chosen = read_manifest(manifest[0], len(train))
    else:
        try:
            chosen = choose_subsets(train.labels, options, seed)
        except ValueError as error:
            raise InputError(f"{files[0]}: {error}") from None
    save_file({**{name: train.images[rows] for name, rows in chosen.items()}, "test": test.images}, images)
    parts = [
        pd.DataFrame({"subset": name, "index": rows.numpy(), "label": train.labels[rows].numpy()})
        for name, rows in chosen.items()
    ]
    write_table(subsets, pd.concat(parts, ignore_index=True).astype({"index": "int32", "label": "int16"}))
    return {name: len(rows) for name, rows in chosen.items()}


def read_manifest(path: Path, size: int) -> dict[str, torch.Tensor]:
    """Rows of every subset.

    Raises:
        InputError: a subset that is missing or unknown, or an index outside of the images.
    """
    table = read_table(path, ("subset", "index"))
    if odd := set(table["subset"]) ^ set(SUBSETS):
        raise InputError(f"{path}: subset: need {', '.join(SUBSETS)}, {min(odd)!r} is missing or none of them")
    if not table["index"].between(0, size - 1).all():
        raise InputError(f"{path}: index: need rows in [0, {size - 1}], got {table['index'].max()}")
    return {name: torch.tensor(table.loc[table["subset"] == name, "index"].to_numpy()).long() for name in SUBSETS}


if __name__ == "__main__":
    run(prepare)
