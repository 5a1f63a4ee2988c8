"""The data: what is trained on, what results are compared with, and the files of images and of their judge."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from papers.diffrs.options import DataOptions, JudgeOptions
from shared.data_order import generator_for
from shared.diffusion.gaussian_mixtures import GaussianMixture, ring
from shared.diffusion.glyphs import SHAPES, draw_glyphs
from shared.errors import InputError
from shared.options import from_mapping, plain
from shared.vision.data import LabeledImages, read_image_parquet
from shared.vision.models import Classifier, build_classifier
from shared.vision.options import ClassifierOptions

TRAIN, REFERENCE, JUDGE = 1, 2, 3
"""Streams of random numbers: no sample is trained on and compared with."""
IMAGES, CLASSIFIER = "images.safetensors", "classifier.safetensors"


def mixture(options: DataOptions) -> GaussianMixture:
    """The density of a ring."""
    return ring(options.modes, options.std)


def training_set(options: DataOptions, seed: int, prepared: Path | None) -> Tensor:
    """Clean samples (N, ...), float32; images in [-1, 1].

    Args:
        options: which.
        seed: of drawn data; files are the same for all.
        prepared: folder of `papers.diffrs.prepare`, for images.
    """
    if options.kind == "images":
        return as_samples(read_prepared(prepared)["train"])
    return _drawn(options, options.train_size, generator_for(seed, TRAIN))


def reference_set(options: DataOptions, seed: int, prepared: Path | None) -> Tensor:
    """As `training_set`, for samples that nothing was trained on."""
    if options.kind == "images":
        return as_samples(read_prepared(prepared)["test"][: options.references])
    return _drawn(options, options.references, generator_for(seed, REFERENCE))


def _drawn(options: DataOptions, count: int, generator: torch.Generator) -> Tensor:
    if options.kind == "ring":
        return mixture(options).sample(count, generator)[0].float()
    return labelled_glyphs(count, options.std, generator).images


def labelled_glyphs(count: int, noise: float, generator: torch.Generator) -> LabeledImages:
    """Glyphs of random shapes (count, 1, 8, 8), in about [-1, 1]."""
    shapes = torch.randint(len(SHAPES), (count,), generator=generator)
    return LabeledImages(draw_glyphs(shapes, noise, generator), shapes)


def as_samples(images: Tensor) -> Tensor:
    """uint8 images as floats in [-1, 1]."""
    return images.float() / 127.5 - 1


def like_data(options: DataOptions, samples: Tensor) -> Tensor:
    """Samples as the data are kept: float32, and images of files in 8 bits, lest rounding tells the sets apart."""
    return as_samples(as_pixels(samples)) if options.kind == "images" else samples.float()


def as_pixels(samples: Tensor) -> Tensor:
    """Samples in [-1, 1] as uint8."""
    return ((samples.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def judge_set(options: DataOptions, judge: JudgeOptions, prepared: LabeledImages | None) -> LabeledImages:
    """Labelled images in about [-1, 1] on which a judge is trained."""
    if prepared is not None:
        return LabeledImages(as_samples(prepared.images), prepared.labels)
    return labelled_glyphs(judge.judge_size, options.std, generator_for(0, JUDGE))


def read_files(files: tuple[str, ...], key: str) -> LabeledImages:
    """Images of parquet files, one after another.

    Raises:
        InputError: no files, or as `read_image_parquet`.
    """
    if not files:
        raise InputError(f"{key}: images need at least one file")
    parts = [read_image_parquet(Path(file)) for file in files]
    return LabeledImages(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


def read_prepared(folder: Path | None) -> dict[str, Tensor]:
    """Arrays `train` and `test`, uint8 (N, channels, H, W), of a prepared folder.

    Raises:
        InputError: there is no such file, or it is not one of `prepare`.
    """
    if folder is None:
        raise InputError("prepared: images need the folder of papers.diffrs.prepare")
    try:
        return load_file(folder / IMAGES)
    except Exception as error:  # the file system and safetensors raise errors of their own
        raise InputError(f"{folder / IMAGES}: no images: {str(error).splitlines()[0]}") from None


def save_judge(path: Path, model: Classifier, options: ClassifierOptions, shape: tuple[int, ...], classes: int) -> None:
    """Write a classifier in half precision, with what builds it."""
    # One entry: safetensors writes several in random order.
    header = json.dumps({"options": plain(options), "shape": shape, "classes": classes})
    weights = {
        name: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(weights, path, metadata={"classifier": header})


def load_judge(path: Path) -> Classifier:
    """A classifier in evaluation mode.

    Raises:
        InputError: the file is not one of `save_judge`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["classifier"])
        options = from_mapping(header["options"], ClassifierOptions, where=str(path))
        channels, size, _ = header["shape"]
        model = build_classifier(options, channels=channels, size=size, num_classes=header["classes"], seed=0)
        model.load_state_dict(load_file(path))
    except Exception as error:  # safetensors, json and PyTorch each raise errors of their own
        raise InputError(f"{path}: no weights of a classifier: {str(error).splitlines()[0]}") from error
    return model.eval().requires_grad_(False)
