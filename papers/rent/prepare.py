"""Prepare: all images of a data set in one file, and the noisy labels of every setting and seed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from papers.rent.corruption import NUM_CLASSES, corrupted_labels, parse_setting
from papers.rent.options import DataOptions
from shared.data_order import generator_for
from shared.errors import InputError
from shared.stage import Input, Output, run
from shared.tables import read_table, write_table
from shared.vision.data import LabeledImages, as_float, load_digits, read_image_parquet, split_indices

_LABEL_COLUMN = {"cifar10": "label", "cifar100": "fine_label"}
_SPLIT_STREAM = 0


def prepare(
    options: DataOptions,
    *,
    seeds: tuple[int, ...],
    settings: tuple[str, ...],
    images: Output,
    labels: Output,
    files: tuple[Input, ...] = (),
) -> None:
    """Write the images and the labels.

    ``images`` has one tensor of this name, (N, channels, H, W), float32 in [0, 1] or uint8. ``labels`` has a row for
    each seed and image: seed, image (its number), part (``train`` or ``test``), label (the true class), and for every
    setting a column of noisy labels, which are the true ones on the test part.

    Args:
        files: of the CIFARs: training images, test images, and labels that people gave, if there are any.
    """
    parsed = {name: parse_setting(name) for name in settings}
    pool, train_count = read_pool(options, files)
    human = read_human_labels(files[2], train_count) if len(files) > 2 else pd.DataFrame()
    save_file({"images": pool.images.contiguous()}, images)
    parts = []
    for seed in seeds:
        train, test = split(options, pool, train_count, seed)
        table = pd.DataFrame({"seed": seed, "image": torch.cat([train, test]).numpy(), "part": "test"})
        table.loc[: len(train) - 1, "part"] = "train"
        table["label"] = pool.labels[torch.cat([train, test])].numpy()
        for name, setting in parsed.items():
            if setting.kind == "human":
                noisy = human_labels(human, setting.column, NUM_CLASSES[options.dataset])[train]
            else:
                noisy = corrupted_labels(
                    setting, options.dataset, as_float(pool.images[train]), pool.labels[train], seed
                )
            table[name] = torch.cat([noisy, pool.labels[test]]).numpy()
        parts.append(table)
    small = dict.fromkeys(("seed", "label", *settings), "int16") | {"image": "int32"}
    write_table(labels, pd.concat(parts, ignore_index=True).astype(small))


def read_pool(options: DataOptions, files: tuple[Path, ...]) -> tuple[LabeledImages, int]:
    """All images, the training images first, and the number of these.

    Raises:
        InputError: a file is missing or damaged, or the files are not those of the data set.
    """
    if options.dataset == "digits":
        return load_digits(), options.train_images
    if len(files) < 2:
        raise InputError(f"files: {options.dataset} needs a file of training images and one of test images")
    column, classes = _LABEL_COLUMN[options.dataset], NUM_CLASSES[options.dataset]
    train, test = (read_image_parquet(path, label_column=column, num_classes=classes) for path in files[:2])
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(f"{files[1]}: its images have another size than those of {files[0]}")
    both = (torch.cat([getattr(train, name), getattr(test, name)]) for name in ("images", "labels"))
    return LabeledImages(*both), len(train)


def split(options: DataOptions, pool: LabeledImages, train_count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the training and of the test images, in ascending order.

    Raises:
        InputError: not enough images.
    """
    if options.dataset != "digits":
        return torch.arange(train_count), torch.arange(train_count, len(pool))
    if not 0 < train_count < len(pool):
        raise InputError(f"train_images: need a number between 0 and {len(pool)}, got {train_count}")
    counts = (train_count, len(pool) - train_count)
    train, test = split_indices(len(pool), counts, generator_for(seed, _SPLIT_STREAM))
    return train.sort().values, test.sort().values


def read_human_labels(path: Path, count: int) -> pd.DataFrame:
    """A table with a row for each training image.

    Raises:
        InputError: the file is missing or damaged, or has another number of rows.
    """
    if path.suffix == ".csv":
        try:
            table = pd.read_csv(path)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not a csv table: {str(error).splitlines()[0]}") from None
    else:
        table = read_table(path)
    if len(table) != count:
        raise InputError(f"{path}: need {count} rows, one for each training image, got {len(table)}")
    return table


def human_labels(table: pd.DataFrame, column: str, classes: int) -> Tensor:
    """One column of labels, (N,) int64.

    Raises:
        InputError: no such column, or values that are no classes.
    """
    if column not in table:
        raise InputError(f"human labels: no column {column!r}; there are: {', '.join(map(str, table.columns)) or '-'}")
    values = table[column]
    if not (values.dtype.kind in "iu" and values.between(0, classes - 1).all()):
        raise InputError(f"human labels: column {column!r} needs classes in [0, {classes})")
    return torch.from_numpy(values.to_numpy().copy()).long()


if __name__ == "__main__":
    run(prepare)
