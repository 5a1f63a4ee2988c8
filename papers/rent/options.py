"""Options of RENT's stages, and the schema of one scale of ``config.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.vision.options import ClassifierOptions


@dataclass(frozen=True)
class DataOptions:
    """Images, and which of them are trained and tested on."""

    dataset: Literal["digits", "cifar10", "cifar100"]
    """Digits are those that scikit-learn contains; the others are read from parquet files."""
    train_images: int | None = None
    """Of the digits, drawn anew for each seed; the others are tested on. The CIFARs have a split of their own."""


@dataclass(frozen=True)
class Sources:
    """Where the CIFARs' files come from: a local path, or ``hf://datasets/<owner>/<name>/<file>``."""

    train: str
    """Parquet file of the training images."""
    test: str
    """Parquet file of the test images."""
    human_labels: str | None = None
    """Local csv or parquet file with a row for each training image: columns of labels that people gave."""


@dataclass(frozen=True)
class TrainOptions:
    """Training: the same for every method; only the loss and the transition matrix change."""

    classifier: ClassifierOptions
    epochs: int
    """Passes over the training data, the warm-up included."""
    warmup_epochs: int
    """Of them, in the beginning, with plain cross-entropy."""
    batch_size: int
    """Samples per step, over all processes. A last, smaller batch of an epoch is dropped."""
    dual_warmup_epochs: int | None = None
    """Length of the warm-up under Dual-T; None: that of the others."""
    learning_rate: float = 0.001
    """Of Adam, constant."""
    transition_learning_rate: float = 0.01
    """Of Adam, for transition matrices that are learned."""
    top_fraction: float = 0.03
    """Anchors are at this quantile of their class's most confident samples."""
    augment: bool = False
    """Whether training images are randomly cropped, after padding by 4 pixels, and mirrored."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Precision of the network's forward and backward passes; weights and draws are always float32 or float64."""
    checkpoint_every: int = 1000
    """Epochs between saved states, from which an interrupted training resumes."""

    def __post_init__(self) -> None:
        if not 1 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"warmup_epochs: must lie in [1, epochs), got {self.warmup_epochs} of {self.epochs}")
        if not 1 <= self.dual_warmup < self.epochs:
            raise ValueError(f"dual_warmup_epochs: must lie in [1, epochs), got {self.dual_warmup} of {self.epochs}")

    @property
    def dual_warmup(self) -> int:
        """Epochs of Dual-T's warm-up."""
        return self.warmup_epochs if self.dual_warmup_epochs is None else self.dual_warmup_epochs


@dataclass(frozen=True)
class Scale:
    """One scale of ``config.yaml``."""

    seeds: tuple[int, ...]
    """Each has a noise, initial weights and an order of the data of its own, which all methods share."""
    settings: dict[str, tuple[str, ...]]
    """Noises, by the names of :mod:`papers.rent.corruption`, with the families that are trained on each."""
    data: DataOptions
    train: TrainOptions
    families: dict[str, tuple[str, ...]]
    """Methods, by the names of :mod:`papers.rent.methods`, that one job trains: side by side where they are MLPs."""
    figures: tuple[str, ...]
    """Figures of the report."""
    sources: Sources | None = None
    """Of the CIFARs."""
    processes: int = 0
    """Processes of each training, one per GPU, under accelerate; 0: one process, on whatever device there is."""

    def __post_init__(self) -> None:
        if (self.data.dataset == "digits") != (self.sources is None):
            raise ValueError(f"sources: {self.data.dataset} needs {'none' if self.sources else 'its files'}")
        for setting, families in self.settings.items():
            if unknown := set(families) - set(self.families):
                raise ValueError(f"settings.{setting}: no family {min(unknown)!r}")
        if self.processes and self.train.batch_size % self.processes:
            raise ValueError(f"processes: must divide the batch size, {self.train.batch_size}")
        if (self.data.dataset == "digits") != (self.data.train_images is not None):
            raise ValueError("data.train_images: is for digits, and needed there")
