"""What is trained on and tested on: the protocols of domain generalisation, as lists of tasks.

``corruptions``
    one task: train on plain images, test on corruptions of others, in several levels (CIFAR-10-C)
``leave_one_out``
    a task for each domain: train on all the others, test on it
``single_source``
    a task for each domain: train on it, test on all the others

Each domain is split into training and validation images. A source is trained on the one part and its steps are selected
on the other; a target is tested on the larger part, the one a source would be trained on, as in DomainBed. Nothing of a
target is seen in training or selection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from papers.udim.image_sets import TEST, TRAIN, ImageSet
from papers.udim.options import ProtocolOptions
from shared.data_order import generator_for
from shared.errors import InputError
from shared.vision.data import LabeledImages, as_float, split_indices
from shared.vision.domains import STYLES, corrupt, resize, stylize

_SPLITS, _STYLES, _CORRUPTIONS = range(3)  # streams of random numbers


@dataclass(frozen=True)
class Target:
    """A domain that accuracy is measured on."""

    name: str
    level: int
    """Severity of a corruption; 0 for other domains."""
    data: LabeledImages
    """Images uint8."""


@dataclass(frozen=True)
class Task:
    """One choice of sources and targets."""

    name: str
    """Of the source, of the target that is left out, or ``corruptions``."""
    sources: tuple[LabeledImages, ...]
    """Training images of each source domain, uint8."""
    validation: LabeledImages
    """Held-out images of all sources."""
    source_test: LabeledImages
    """Images of the sources that were neither trained on nor selected on; those of ``validation`` if there are none."""
    targets: tuple[Target, ...]
    classes: int


def make_tasks(image_set: ImageSet, options: ProtocolOptions, seed: int) -> list[Task]:
    """The tasks of a protocol, all random choices as functions of the seed.

    Raises:
        InputError: images or domains that the options cannot be applied to.
    """
    if not 0 < options.validation_fraction < 1:
        raise InputError(f"validation_fraction: must lie in (0, 1), got {options.validation_fraction}")
    seed = seed if options.split_seed is None else options.split_seed
    if options.protocol == "corruptions":
        return [_corruption_task(image_set, options, seed)]
    domains = _styled(image_set, options, seed) if options.styles else _named_domains(image_set, options)
    if len(domains) < 2:
        raise InputError(f"{options.protocol}: need at least 2 domains, got {', '.join(domains) or 'none'}")
    parts = {
        name: _split(data, options, generator_for(seed, _SPLITS, number))
        for number, (name, data) in enumerate(domains.items())
    }
    tasks = []
    for name in parts:
        sources = [name] if options.protocol == "single_source" else [other for other in parts if other != name]
        validation = _joined([parts[source][1] for source in sources])
        targets = [Target(other, 0, parts[other][0][: options.test_images]) for other in parts if other not in sources]
        training = tuple(parts[source][0][: options.train_images] for source in sources)
        tasks.append(Task(name, training, validation, validation, tuple(targets), image_set.classes))
    return tasks


def _corruption_task(image_set: ImageSet, options: ProtocolOptions, seed: int) -> Task:
    generator = generator_for(seed, _SPLITS)
    if TEST in image_set.names:
        training, test = _resized(image_set.domain(TRAIN), options.size), _resized(image_set.domain(TEST), options.size)
    else:
        everything = _resized(LabeledImages(image_set.images, image_set.labels), options.size)
        count = round(options.test_fraction * len(everything))
        if not 0 < count < len(everything):
            raise InputError(f"test_fraction: needs to leave images on both sides, got {options.test_fraction}")
        held_out, rest = split_indices(len(everything), (count, len(everything) - count), generator)
        training, test = everything[rest], everything[held_out]
    training, validation = _split(training, options, generator)
    test = test[: options.test_images]
    targets = tuple(
        Target(name, level, _mapped(test, _corruption(name, level, seed)))
        for name in options.corruptions
        for level in options.levels
    )
    sources = (training[: options.train_images],)
    return Task("corruptions", sources, validation, test, targets, image_set.classes)


def _corruption(name: str, level: int, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    rng = np.random.default_rng([seed, _CORRUPTIONS, *name.encode(), level])
    return lambda images: corrupt(images, name, level, rng)


def _styled(image_set: ImageSet, options: ProtocolOptions, seed: int) -> dict[str, LabeledImages]:
    """Plain images of one channel, divided among styles."""
    if image_set.images.shape[1] != 1:
        raise InputError(f"styles: need images of one channel, got {image_set.images.shape[1]}")
    for style in options.styles:
        if style not in STYLES:
            raise InputError(f"styles: must be some of {', '.join(STYLES)}, got {style!r}")
    plain = _resized(LabeledImages(image_set.images, image_set.labels), options.size)
    share = len(plain) // len(options.styles)
    parts = split_indices(len(plain), [share] * len(options.styles), generator_for(seed, _STYLES))
    rng = np.random.default_rng([seed, _STYLES])
    return {
        style: _mapped(plain[part], lambda images, style=style: stylize(images, style, rng))
        for style, part in zip(options.styles, parts, strict=True)
    }


def _named_domains(image_set: ImageSet, options: ProtocolOptions) -> dict[str, LabeledImages]:
    if TEST in image_set.names:
        raise InputError(f"{options.protocol}: the images are parts of one domain; give styles")
    return {name: _resized(image_set.domain(name), options.size) for name in image_set.names}


def _split(
    data: LabeledImages, options: ProtocolOptions, generator: torch.Generator
) -> tuple[LabeledImages, LabeledImages]:
    """The larger part and the held-out part."""
    held_out = max(1, round(options.validation_fraction * len(data)))
    chosen = split_indices(len(data), (len(data) - held_out, held_out), generator)
    return data[chosen[0]], data[chosen[1]]


def _resized(data: LabeledImages, size: int) -> LabeledImages:
    return data if data.images.shape[-1] == size else _mapped(data, lambda images: resize(images, size))


def _mapped(data: LabeledImages, change: Callable[[np.ndarray], np.ndarray]) -> LabeledImages:
    """Data with images in [0, 1] changed; the result has 256 steps again, as images in files do."""
    changed = change(as_float(data.images).numpy())
    return LabeledImages(torch.from_numpy(changed).mul(255).round().to(torch.uint8), data.labels)


def _joined(parts: list[LabeledImages]) -> LabeledImages:
    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return LabeledImages(joined("images"), joined("labels"))
