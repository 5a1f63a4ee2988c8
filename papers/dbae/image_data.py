"""Images with what is known of them: drawn, or read from files; split into training and test images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from papers.dbae.options import DataOptions
from papers.dbae.sprites import FACTORS, SHAPES, draw_sprites
from shared.errors import InputError
from shared.vision.data import load_digits

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class ImageData:
    """Images and labels of one split."""

    images: Tensor
    """(N, C, H, W): float32 in [−1, 1], or uint8."""
    factors: NDArray[np.float32]
    """(N, F) real numbers."""
    factor_names: tuple[str, ...]
    classes: NDArray[np.int64]
    """(N, K): labels, each of a few classes."""
    class_names: tuple[str, ...]
    """Of the K labels."""
    texture: NDArray[np.float32]
    """(N, P): detail that no factor tells; P may be 0."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> ImageData:
        index = torch.tensor(rows) if isinstance(rows, np.ndarray) else rows
        return ImageData(self.images[index], self.factors[rows], self.factor_names, self.classes[rows],
                         self.class_names, self.texture[rows])  # fmt: skip

    def scaled(self, rows: NDArray[np.int64] | slice = slice(None)) -> Tensor:
        """float32 images in [−1, 1]."""
        images = self.images[torch.tensor(rows) if isinstance(rows, np.ndarray) else rows]
        return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def load_split(options: DataOptions, seed: int, path: Path | None) -> tuple[ImageData, ImageData]:
    """Training and test images of a seed.

    Args:
        options: which.
        seed: of the drawing, or of the split of what was read.
        path: of the images read, if they are not drawn.

    Raises:
        InputError: fewer images than options.test_images + 1, or images that are not of options.image_size.
    """
    if options.kind == "sprites":
        return tuple(_sprites(options, count, [seed, part])
                     for part, count in enumerate((options.train_images, options.test_images)))  # fmt: skip
    data = read_image_data(path)
    if data.images.shape[-1] != options.image_size:
        raise InputError(f"{path}: images of {data.images.shape[-1]} pixels, the options say {options.image_size}")
    if len(data) <= options.test_images:
        raise InputError(f"{path}: holds {len(data)} images, not more than the {options.test_images} to be tested on")
    order = np.random.default_rng([seed, 0]).permutation(len(data))
    tested, rest = order[: options.test_images], order[options.test_images :]
    return data[rest[: options.train_images]], data[tested]


def _sprites(options: DataOptions, count: int, key: list[int]) -> ImageData:
    drawn = draw_sprites(count, options.image_size, np.random.default_rng(key))
    return ImageData(
        torch.from_numpy(drawn.images),
        drawn.factors,
        FACTORS,
        drawn.shapes[:, None],
        ("shape",),
        drawn.texture.reshape(count, -1),
    )


def binary_attributes(data: ImageData) -> NDArray[np.int64]:
    """(N, A): factors above their median; labels of two classes as they are, of more whether it is the first."""
    of_classes = [column if set(np.unique(column)) <= {0, 1} else column == 0 for column in data.classes.T]
    above = [column > np.median(column) for column in data.factors.T]
    return np.stack([*above, *of_classes], axis=1).astype(np.int64)


def attribute_names(data: ImageData) -> tuple[str, ...]:
    """Of the columns of `binary_attributes`."""
    return (*data.factor_names, *(SHAPES[0] if name == "shape" else name for name in data.class_names))


def read_images(options: DataOptions) -> ImageData:
    """The digits, or the images of a folder; all that is known of those without attributes is whether they are bright.

    Raises:
        InputError: no such folder, no images in it, an image that cannot be decoded or is smaller than the crop; a file
            of attributes that is missing, of another layout, or without one of the images.
    """
    if options.kind == "digits":
        digits = load_digits(options.image_size)
        images = (digits.images * 255).round().to(torch.uint8)
        empty = np.zeros((len(images), 0), np.float32)
        return ImageData(images, empty, (), digits.labels.numpy()[:, None], ("digit",), empty)
    root = Path(options.folder)
    if not options.folder or not root.is_dir():
        raise InputError(f"folder: {options.folder!r} is not a folder")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise InputError(f"{root}: holds no images")
    pixels = np.empty((len(paths), 3, options.image_size, options.image_size), np.uint8)
    for number, path in enumerate(paths):
        pixels[number] = _decoded(path, options)
    brightness = pixels.mean(axis=(1, 2, 3))
    classes, names = (brightness > np.median(brightness)).astype(np.int64)[:, None], ("bright",)
    if options.attributes:
        names, table = read_celeba_attributes(Path(options.attributes))
        missing = next((path for path in paths if path.name not in table), None)
        if missing is not None:
            raise InputError(f"{options.attributes}: no line for {missing.name}")
        classes = np.stack([table[path.name] for path in paths])
    empty = np.zeros((len(paths), 0), np.float32)
    return ImageData(torch.from_numpy(pixels), empty, (), classes, names, empty)


def read_celeba_attributes(path: Path) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """Names and, by image, values 0 or 1 of a file like CelebA's `list_attr_celeba.txt`.

    Its lines: the number of images; the attributes' names; then for every image its name and −1 or 1 for each.

    Raises:
        InputError: missing, or not so.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    lines = path.read_text(encoding="utf-8").splitlines()
    if len(lines) < 3 or not lines[0].strip().isdigit():
        raise InputError(f"{path}:1: expected the number of images, then names, then a line for each image")
    names = tuple(lines[1].split())
    table = {}
    for number, line in enumerate(lines[2:], start=3):
        image, *values = line.split() or [""]
        if len(values) != len(names) or not set(values) <= {"-1", "1"}:
            raise InputError(f"{path}:{number}: expected an image and {len(names)} times -1 or 1, got {line[:60]!r}")
        table[image] = (np.array(values) == "1").astype(np.int64)
    return names, table


def _decoded(path: Path, options: DataOptions) -> NDArray[np.uint8]:
    """uint8 (3, size, size)."""
    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
            left, top, side = options.crop or _middle(image)
            if left + side > image.width or top + side > image.height:
                raise InputError(f"{path}: {image.width}x{image.height} pixels, too few for the crop {options.crop}")
            size = (options.image_size, options.image_size)
            resized = image.crop((left, top, left + side, top + side)).resize(size, Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be decoded: {error}") from None
    return np.asarray(resized).transpose(2, 0, 1)


def _middle(image: Image.Image) -> tuple[int, int, int]:
    side = min(image.size)
    return (image.width - side) // 2, (image.height - side) // 2, side


def write_image_data(path: Path, data: ImageData) -> None:
    """Write as safetensors; names are its metadata."""
    tensors = {
        "images": data.images,
        "factors": torch.from_numpy(data.factors),
        "classes": torch.from_numpy(data.classes),
        "texture": torch.from_numpy(data.texture),
    }
    # One entry: safetensors writes several in no fixed order.
    names = json.dumps({"factors": data.factor_names, "classes": data.class_names})
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"names": names})


def read_image_data(path: Path | None) -> ImageData:
    """Read what `write_image_data` wrote.

    Raises:
        InputError: no path, or a file that is missing, damaged or something else.
    """
    if path is None or not path.is_file():
        raise InputError(f"images: {path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            stored = json.loads((file.metadata() or {})["names"])
            names = {name: tuple(listed) for name, listed in stored.items()}
            images, factors, classes, texture = (
                file.get_tensor(name) for name in ("images", "factors", "classes", "texture")
            )
        return ImageData(images, factors.numpy(), names["factors"], classes.numpy(), names["classes"], texture.numpy())
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a whole set of images: {str(error).splitlines()[0]}") from None
