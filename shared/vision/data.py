"""Image data sets as two tensors, images and labels."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, UnidentifiedImageError
from sklearn import datasets
from torch import Tensor

from shared.errors import InputError
from shared.vision.domains import resize

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class LabeledImages:
    """Images with their classes."""

    images: Tensor
    """(N, channels, H, W): float32 in [0, 1], or uint8 in [0, 255]."""
    labels: Tensor
    """(N,) int64."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor | slice) -> "LabeledImages":
        """The images that a slice, a tensor of indices or a boolean mask selects."""
        return LabeledImages(self.images[indices], self.labels[indices])


def load_digits(size: int = 8) -> LabeledImages:
    """The 1797 handwritten digits that scikit-learn contains: 10 classes, one channel, float32 in [0, 1].

    Args:
        size: height and width; from the original 8 pixels by bilinear interpolation.

    Raises:
        ValueError: size < 1.
    """
    digits = datasets.load_digits()
    images = digits.images[:, None].astype(np.float32) / 16
    if size != images.shape[-1]:
        images = resize(images, size)
    return LabeledImages(torch.from_numpy(images), torch.from_numpy(digits.target).long())


def read_image_parquet(
    path: Path, *, image_column: str = "img", label_column: str = "label", num_classes: int = 10
) -> LabeledImages:
    """Images of a parquet file in the layout of the Hugging Face hub, by default that of `uoft-cs/cifar10`.

    Args:
        path: file with a column of structs `{bytes, path}`, where bytes is an encoded image (PNG, JPEG, ...), and a
            column of integer classes.
        image_column: name of the first.
        label_column: name of the second; CIFAR-100 has `fine_label` and `coarse_label`.
        num_classes: labels lie in [0, num_classes).

    Returns:
        Images uint8 (N, 3, H, W) in the order of the file.

    Raises:
        InputError: the file is missing or damaged, has no rows or other columns, an image cannot be decoded or has
            another size than the first, or a label is out of range. The message names the file and the row.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow, image_column, label_column)
            images = _read_images(path, file, image_column)
            labels = file.read(columns=[label_column]).column(0).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: damaged, or not a parquet file: {str(error).splitlines()[0]}") from None
    for row, label in enumerate(labels):
        if label is None or not 0 <= label < num_classes:
            raise InputError(f"{path}: row {row}: {label_column} is {label}, expected a class in [0, {num_classes})")
    return LabeledImages(torch.from_numpy(images), torch.tensor(labels))


def as_float(images: Tensor) -> Tensor:
    """Images in [0, 1] as float32, from uint8 in [0, 255]; floats are returned as they are.

    Raises:
        ValueError: another dtype.
    """
    if images.is_floating_point():
        return images
    if images.dtype != torch.uint8:
        raise ValueError(f"images: need uint8 or floats, got {images.dtype}")
    return images.float() / 255


def split_indices(total: int, counts: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Random disjoint parts of range(total), of the given sizes.

    Returns:
        One int64 tensor (count,) for each count.

    Raises:
        ValueError: a negative count, or counts that sum to more than the total.
    """
    if min(counts, default=0) < 0 or sum(counts) > total:
        raise ValueError(f"counts: need numbers >= 0 that sum to at most {total}, got {list(counts)}")
    order = torch.randperm(total, generator=generator)
    return list(order[: sum(counts)].split(list(counts)))


def _check_columns(path: Path, schema: pa.Schema, image_column: str, label_column: str) -> None:
    for name in (image_column, label_column):
        if name not in schema.names:
            raise InputError(f"{path}: no column {name!r}; there are: {', '.join(schema.names)}")
    image_type, label_type = schema.field(image_column).type, schema.field(label_column).type
    if not pa.types.is_struct(image_type) or image_type.get_field_index("bytes") < 0:
        raise InputError(
            f"{path}: column {image_column!r} is {image_type}, expected struct<bytes: binary, path: string>"
        )
    if not pa.types.is_integer(label_type):
        raise InputError(f"{path}: column {label_column!r} is {label_type}, expected integers")


def _read_images(path: Path, file: pq.ParquetFile, column: str) -> np.ndarray:
    """uint8 (N, 3, H, W)."""
    batches = file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[column])
    images = None
    for row, cell in enumerate(cell for batch in batches for cell in batch.column(0)):
        image = _decode(path, row, cell.as_py())
        if images is None:
            images = np.empty((file.metadata.num_rows, *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise InputError(f"{path}: row {row}: image of {_size(image)} pixels, row 0 has {_size(images[0])}")
        images[row] = image
    if images is None:
        raise InputError(f"{path}: no rows")
    return images


def _decode(path: Path, row: int, cell: dict | None) -> np.ndarray:
    """uint8 (3, H, W)."""
    encoded = (cell or {}).get("bytes")
    if not isinstance(encoded, bytes):
        raise InputError(f"{path}: row {row}: no image bytes")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except UnidentifiedImageError:
        raise InputError(f"{path}: row {row}: image cannot be decoded: unknown format") from None
    # Pillow reports a damaged file by any of these.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: row {row}: image cannot be decoded: {error}") from None


def _size(image: np.ndarray) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"
