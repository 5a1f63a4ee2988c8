"""Options of TIW-DSM's stages, and the schema of one scale of ``config.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.diffusion.options import DenoiserOptions, DiscriminatorOptions
from shared.training_options import TrainingOptions
from shared.vision.options import ClassifierOptions

Testbed = Literal["mixture", "toy", "glyphs", "cifar10"]
GROUPS = {"mixture": 4, "toy": 2, "glyphs": 4, "cifar10": 10}
"""Modes of a mixture, or classes of images, whose proportions are biased."""


@dataclass(frozen=True)
class DataOptions:
    """A biased set with a long tail of groups, and a small set of references with equal groups."""

    testbed: Testbed
    """A Gaussian mixture with orthonormal centres, one of two modes in the plane, drawn glyphs, or CIFAR-10."""
    reference_fraction: float
    """References for every biased sample."""
    biased_size: int = 2000
    imbalance: float = 27.0
    """The most frequent group of the biased set has so many times the samples of the rarest; geometric in between."""
    dimension: int = 32
    """Of the mixture with orthonormal centres."""
    std: float = 0.3
    """Of a mixture's components, or of the noise on a glyph's pixels."""

    def __post_init__(self) -> None:
        if not 0 < self.reference_fraction <= 1 or self.reference_size < GROUPS[self.testbed]:
            raise ValueError(
                f"reference_fraction: need at least one reference of each of the {GROUPS[self.testbed]} groups, "
                f"and no more than biased samples, got {self.reference_fraction} of {self.biased_size}"
            )
        if not self.imbalance >= 1:
            raise ValueError(f"imbalance: need a number of at least 1, got {self.imbalance}")

    @property
    def reference_size(self) -> int:
        """Size of the reference set."""
        return round(self.reference_fraction * self.biased_size)

    @property
    def has_images(self) -> bool:
        """Whether samples are images, which a classifier judges."""
        return self.testbed in ("glyphs", "cifar10")


@dataclass(frozen=True)
class RatioOptions:
    """The two discriminators of references and biased data: of noisy samples, and of clean ones."""

    ratio_steps: int
    """Training steps of both; arms may ask for others."""
    ratio_candidates: tuple[int, ...]
    """Numbers of steps, multiples of the first, of which held-out references choose one for each where arms ask so."""
    ratio_architecture: Literal["mlp", "unet"] = "mlp"
    """An MLP, or the contracting half of diffusers' U-Net."""
    ratio_widths: tuple[int, ...] = (64, 64, 64)
    """MLP: hidden layers, all alike; U-Net: channels at each resolution."""
    ratio_batch_size: int = 128
    """Samples of each of the two sets in a batch."""
    ratio_learning_rate: float = 0.001
    ratio_held_out: float = 0.2
    """Share of both sets that chooses; afterwards the discriminator is trained on all."""

    def __post_init__(self) -> None:
        first, rising = self.ratio_candidates[0], sorted(set(self.ratio_candidates))
        if first < 1 or rising != list(self.ratio_candidates) or any(steps % first for steps in rising):
            raise ValueError(f"ratio_candidates: need rising multiples of the first, got {self.ratio_candidates}")

    def discriminator(self, steps: int, size: int, checkpoint_every: int = 1000) -> DiscriminatorOptions:
        """Options of a discriminator trained for a number of steps on batches from `size` biased samples."""
        batch = min(self.ratio_batch_size, size)
        training = TrainingOptions(
            epochs=steps / (size // batch),
            batch_size=batch,
            learning_rate=self.ratio_learning_rate,
            schedule="constant",
            max_grad_norm=None,
            checkpoint_every=checkpoint_every,
        )
        return DiscriminatorOptions(
            training,
            encoder=self.ratio_architecture,
            width=self.ratio_widths[0],
            depth=len(self.ratio_widths),
            channels=self.ratio_widths,
        )


@dataclass(frozen=True)
class SamplingOptions:
    """Heun's method on EDM's noise levels."""

    samples: int
    """That every arm draws, and that it is compared with."""
    solver_steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 20.0
    sample_batch: int = 10_000
    """Samples drawn at a time."""


@dataclass(frozen=True)
class TrainOptions:
    """One setting: its data, and how everything is trained on it."""

    data: DataOptions
    denoiser: DenoiserOptions
    """Its batch size counts biased samples, to which a batch adds references; its epochs are passes over them."""
    ratio: RatioOptions
    sampling: SamplingOptions
    ref_fraction: float = 0.5
    """π, the share of references in a batch."""
    mirror: bool = False
    """Whether training images are mirrored at random, before noise is added."""

    def __post_init__(self) -> None:
        if not 0 < self.ref_fraction < 1:
            raise ValueError(f"ref_fraction: must lie in (0, 1), got {self.ref_fraction}")
        if self.mirror and not self.data.has_images:
            raise ValueError(f"mirror: {self.data.testbed} has no images")

    @property
    def references_per_batch(self) -> int:
        """References in a batch beside its biased samples."""
        biased = self.denoiser.training.batch_size
        return max(1, round(biased * self.ref_fraction / (1 - self.ref_fraction)))


@dataclass(frozen=True)
class Setting:
    """A setting with what is trained on it."""

    train: TrainOptions
    families: dict[str, tuple[int, ...]]
    """Of arms, with the seeds that each is trained on, one job for each. A seed has data, references, initial weights
    and noise of its own, which all arms share."""

    @property
    def jobs(self) -> list[tuple[str, int]]:
        """(family, seed) of every job."""
        return [(family, seed) for family, seeds in self.families.items() for seed in seeds]


@dataclass(frozen=True)
class JudgeOptions:
    """The classifier whose predictions and features judge images, trained on unbiased, labelled ones."""

    classifier: ClassifierOptions
    judge_training: TrainingOptions
    judge_images: int = 8000
    """Glyphs drawn to train it; CIFAR-10 has 50000."""
    judge_noise: float = 0.02
    """On the pixels of these glyphs."""


@dataclass(frozen=True)
class Sources:
    """Files of CIFAR-10, parquet in the layout of the hub, and of its subsets."""

    train: str
    """Path, or ``hf://datasets/<owner>/<name>/<file>``, of the training images."""
    test: str
    """Likewise, of the test images: the unbiased set to compare samples with."""
    manifest: str | None = None
    """Parquet file with the columns subset (biased, reference, unbiased) and index, a row of the training images; None:
    drawn by the seed."""


@dataclass(frozen=True)
class Scale:
    """One scale of ``config.yaml``."""

    settings: dict[str, Setting]
    families: dict[str, tuple[str, ...]]
    """Arms, by the names of :mod:`papers.tiw_dsm.methods`."""
    figures: tuple[str, ...]
    """Figures of the report."""
    judges: dict[str, JudgeOptions]
    """For the testbeds with images."""
    sources: Sources | None = None
    """Of CIFAR-10."""
    processes: int = 0
    """Processes of each training, one per GPU, under accelerate; 0: one process, on whatever device there is."""

    def __post_init__(self) -> None:
        for name, setting in self.settings.items():
            if unknown := set(setting.families) - set(self.families):
                raise ValueError(f"settings.{name}.families: no family {min(unknown)!r}")
            data, batch = setting.train.data, setting.train.denoiser.training.batch_size
            if data.has_images and data.testbed not in self.judges:
                raise ValueError(f"judges: settings.{name} needs one for {data.testbed}")
            if (data.testbed == "cifar10") != (self.sources is not None):
                raise ValueError(f"sources: settings.{name} needs {'none' if self.sources else 'the files of cifar10'}")
            if self.processes and batch % self.processes:
                raise ValueError(f"processes: must divide the batch size of settings.{name}, {batch}")
