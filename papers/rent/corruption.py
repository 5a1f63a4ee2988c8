"""Settings: which noise is put on the labels of which data set.

sym<r>      r % of the labels flipped, to every other class alike
asym<r>     flipped with probability r % to one similar class (CIFAR-100: to another class of the superclass)
idn<r>      flipped with a probability around r % that is each sample's own
human-<c>   labels that people gave: the column c of a table with a row for each training sample (CIFAR-10N)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from papers.rent.label_noise import class_conditional_noise, instance_dependent_noise, symmetric_noise
from papers.rent.transition_matrix import (
    CIFAR10_FLIPS,
    CIFAR100_SUPERCLASSES,
    DIGIT_FLIPS,
    asymmetric_transition,
    empirical_transition,
    superclass_transition,
    symmetric_transition,
)
from shared.data_order import generator_for
from shared.errors import InputError

NUM_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100}
# Streams of random numbers, by the kind of noise.
_STREAMS = {"sym": 1, "asym": 2, "idn": 3}
_FLIPS = {"digits": DIGIT_FLIPS, "cifar10": CIFAR10_FLIPS}
_PATTERN = re.compile(r"(?P<kind>sym|asym|idn)(?P<percent>\d{1,2})|human-(?P<column>\w+)")


@dataclass(frozen=True)
class Setting:
    """The noise of one condition."""

    kind: str
    """`sym`, `asym`, `idn` or `human`."""
    percent: int = 0
    """Noise rate in percent, of synthetic noise."""
    column: str | None = None
    """Of human labels."""

    @property
    def rate(self) -> float:
        return self.percent / 100


def parse_setting(name: str) -> Setting:
    """The setting of a name.

    Raises:
        InputError: no such setting.
    """
    match = _PATTERN.fullmatch(name)
    if match is None:
        raise InputError(f"setting {name!r}: need sym<percent>, asym<percent>, idn<percent> or human-<column>")
    if match["column"]:
        return Setting("human", column=match["column"])
    return Setting(match["kind"], int(match["percent"]))


def corrupted_labels(setting: Setting, dataset: str, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Noisy labels of synthetic noise, a function of the arguments.

    Args:
        setting: of any kind but `human`.
        dataset: a key of `NUM_CLASSES`.
        images: (N, ...) floats in [0, 1]; looked at by instance-dependent noise alone.
        labels: (N,) true classes.
        seed: of the noise.

    Returns:
        (N,) int64.

    Raises:
        ValueError: a rate that the kind of noise cannot have.
    """
    generator = generator_for(seed, _STREAMS[setting.kind], setting.percent)
    classes = NUM_CLASSES[dataset]
    if setting.kind == "sym":
        return symmetric_noise(labels, classes, setting.rate, generator)
    if setting.kind == "asym":
        return class_conditional_noise(labels, _asymmetric(setting, dataset), generator)
    return instance_dependent_noise(images, labels, classes, setting.rate, generator)


def true_transition(setting: Setting, dataset: str, labels: Tensor, noisy_labels: Tensor) -> Tensor:
    """T (C, C) float64: of the process that made the noise, or, where that has no T, of the labels that it gave."""
    if setting.kind == "sym":
        return symmetric_transition(NUM_CLASSES[dataset], setting.rate)
    if setting.kind == "asym":
        return _asymmetric(setting, dataset)
    return empirical_transition(labels, noisy_labels, NUM_CLASSES[dataset])


def transition_error(estimates: Tensor, truth: Tensor) -> Tensor:
    """Total variation distance of the rows of each T (M, C, C) from those of the truth, on average; (M,) in [0, 1]."""
    return (estimates.double() - truth.double()).abs().sum(-1).mean(-1) / 2


def _asymmetric(setting: Setting, dataset: str) -> Tensor:
    if dataset == "cifar100":
        return superclass_transition(CIFAR100_SUPERCLASSES, setting.rate)
    return asymmetric_transition(NUM_CLASSES[dataset], setting.rate, _FLIPS[dataset])
