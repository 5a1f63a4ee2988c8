"""Images of several domains in one file, and the readers that make it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from papers.udim.options import DataOptions
from shared.errors import InputError
from shared.vision.data import LabeledImages, load_digits, read_image_parquet

TRAIN, TEST = "train", "test"
"""Names of the two parts of data that come in parts; these are not domains to generalise to."""

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class ImageSet:
    """Images, each of a class and of a domain."""

    images: Tensor
    """(N, channels, H, W) uint8."""
    labels: Tensor
    """(N,) int64 in [0, classes)."""
    domains: Tensor
    """(N,) int64, numbers of `names`."""
    names: tuple[str, ...]
    """Of the domains."""
    classes: int

    def domain(self, name: str) -> LabeledImages:
        """The images of one domain, in their order."""
        chosen = self.domains == self.names.index(name)
        return LabeledImages(self.images[chosen], self.labels[chosen])


def write_image_set(path: Path, image_set: ImageSet) -> None:
    """Write as safetensors; names and the number of classes are its metadata."""
    tensors = {"images": image_set.images, "labels": image_set.labels, "domains": image_set.domains}
    metadata = {"names": json.dumps(image_set.names), "classes": str(image_set.classes)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)


def read_image_set(path: Path) -> ImageSet:
    """Read what `write_image_set` wrote.

    Raises:
        InputError: the file is missing, damaged or something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in ("images", "labels", "domains")}
        return ImageSet(**tensors, names=tuple(json.loads(metadata["names"])), classes=int(metadata["classes"]))
    except (SafetensorError, KeyError) as error:
        raise InputError(f"{path}: not a whole set of images: {str(error).splitlines()[0]}") from None


def read_images(options: DataOptions) -> ImageSet:
    """The images that the options name.

    Raises:
        InputError: a file that is missing, damaged or of another format; parts that do not fit together.
    """
    if options.kind == "digits":
        digits = load_digits()
        images = (digits.images * 255).round().to(torch.uint8)
        return ImageSet(images, digits.labels, torch.zeros_like(digits.labels), ("digits",), 10)
    if options.kind == "parquet":
        return _read_parts({TRAIN: options.train, TEST: options.test})
    return _read_folders(options)


def _read_parts(files: dict[str, tuple[str, ...]]) -> ImageSet:
    parts = []
    for number, (name, paths) in enumerate(files.items()):
        if not paths:
            raise InputError(f"{name}: need at least one parquet file, got none")
        for path in paths:
            part = read_image_parquet(Path(path))
            if parts and part.images.shape[1:] != parts[0][0].images.shape[1:]:
                raise InputError(f"{path}: images of {tuple(part.images.shape[1:])}, other files have "
                                 f"{tuple(parts[0][0].images.shape[1:])}")  # fmt: skip
            parts.append((part, torch.full_like(part.labels, number)))
    images, labels = (torch.cat([getattr(part, name) for part, _ in parts]) for name in ("images", "labels"))
    return ImageSet(images, labels, torch.cat([domains for _, domains in parts]), tuple(files), 10)


def _read_folders(options: DataOptions) -> ImageSet:
    """Folders ``<root>/<domain>/<class>/<image>``, as PACS, VLCS, OfficeHome and TerraIncognita come."""
    if len(options.train) != 1:
        raise InputError(f"train: need one folder of domains, got {len(options.train)}")
    root = Path(options.train[0])
    names = _subfolders(root)
    classes = _subfolders(root / names[0])
    images, labels, domains = [], [], []
    for number, name in enumerate(names):
        if (found := _subfolders(root / name)) != classes:
            raise InputError(f"{root / name}: has the classes {', '.join(found)}; {names[0]} has {', '.join(classes)}")
        for label, folder in enumerate(classes):
            paths = sorted(path for path in (root / name / folder).iterdir() if path.suffix.lower() in _SUFFIXES)
            images += [_decoded(path, options.size) for path in paths]
            labels += [label] * len(paths)
            domains += [number] * len(paths)
        if number not in domains:
            raise InputError(f"{root / name}: holds no images")
    stacked = torch.from_numpy(np.stack(images))
    return ImageSet(stacked, torch.tensor(labels), torch.tensor(domains), tuple(names), len(classes))


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise InputError(f"{folder}: holds no folders")
    return names


def _decoded(path: Path, size: int) -> np.ndarray:
    """uint8 (3, size, size)."""
    try:
        with Image.open(path) as image:
            resized = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be decoded: {error}") from None
    return np.asarray(resized).transpose(2, 0, 1)
