"""Options of the stages, and the schema of one scale of ``config.yaml``; no PyTorch here: workflows read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from papers.diffrs.methods import parse_run
from shared.diffusion.options import DenoiserOptions, DiscriminatorOptions
from shared.training_options import TrainingOptions
from shared.vision.options import ClassifierOptions

PRIMARY = {"ring": "sliced_w2", "glyphs": "frechet", "images": "frechet"}
"""The metric by which hyperparameters are selected and claims are tested, lower is better."""


@dataclass(frozen=True)
class DataOptions:
    """The data."""

    kind: Literal["ring", "glyphs", "images"]
    """ring: Gaussians on a circle, with their exact density. glyphs: drawn shapes of 8 x 8 pixels. images: of files."""
    train_size: int = 10_000
    """ring, glyphs: samples that denoiser and discriminator are trained on, drawn by the seed."""
    references: int = 20_000
    """Samples that results are compared with, never trained on; images: at most those of the test files."""
    modes: int = 8
    """ring: number of Gaussians."""
    std: float = 0.07
    """ring: of every Gaussian; glyphs: of noise on the pixels."""
    train_files: tuple[str, ...] = ()
    """images: parquet files in the layout of the hub's `uoft-cs/cifar10`."""
    test_files: tuple[str, ...] = ()
    """images: the same, to compare with."""
    inception: str | None = None
    """images: TorchScript file of Inception, as StyleGAN's and EDM's metrics use it, whose features are then compared;
    None: those of a classifier that is trained here."""


@dataclass(frozen=True)
class JudgeOptions:
    """A classifier, whose features and classes judge images."""

    classifier: ClassifierOptions
    training: TrainingOptions
    judge_size: int = 10_000
    """glyphs: images that it is trained on."""
    judge_noise: float = 0.0
    """Standard deviation of noise added to its training images."""


@dataclass(frozen=True)
class Model:
    """A denoiser of one data set, trained here or already."""

    data: DataOptions
    seeds: tuple[int, ...]
    """Of data and trainings; results are reported for each."""
    denoiser: DenoiserOptions | None = None
    """How it is trained here."""
    judge: JudgeOptions | None = None
    """Of images."""
    pretrained: str | None = None
    """Folder of diffusers' `UNet2DModel` with its DDPM scheduler, such as that of `google/ddpm-cifar10-32`."""

    def __post_init__(self) -> None:
        if (self.denoiser is None) == (self.pretrained is None):
            raise ValueError("denoiser, pretrained: need one of the two")


@dataclass(frozen=True)
class SamplerOptions:
    """Sampling and measuring, the same for every method."""

    steps: int
    """K of the base sampler."""
    samples: int
    """Of each run."""
    solver: Literal["heun", "euler"] = "heun"
    """euler: deterministic DDIM."""
    sigma_min: float = 0.002
    """Last noise level above 0."""
    sigma_max: float = 20.0
    """First noise level; not above what the denoiser was trained on."""
    slots: int = 10_000
    """Samples in flight, in each process."""
    warm_up: int = 1000
    """Runs of the base sampler from which DiffRS' constants are taken."""
    budget: float | None = 3.0
    """DiffRS starts a sample anew that would cost more than so many passes; None: never."""
    fakes: int = 10_000
    """Samples of the base sampler for the discriminator's training."""
    judged: int = 2000
    """Samples and references of those metrics whose cost is quadratic."""
    kept: int = 0
    """Samples of each run that are kept, for figures."""
    followed: int = 0
    """Requests of DiffRS that are followed step by step, for figures."""
    keep_discriminator: bool = False
    """Whether the discriminator is written out."""


@dataclass(frozen=True)
class Setting:
    """A sampler with its discriminator, and everything that is run with it."""

    model: str
    sampler: SamplerOptions
    discriminator: DiscriminatorOptions
    runs: tuple[str, ...]
    """On the reported seeds."""
    candidates: tuple[str, ...] = ()
    """On the tuning seed; for each method the best by the primary metric is used where a run names none."""


@dataclass(frozen=True)
class ExactOptions:
    """Gaussians, of which denoiser, ratio and answer are known."""

    exact_samples: int
    """Of each run."""
    exact_steps: int = 18
    """K."""
    exact_runs: tuple[str, ...] = ("base",)
    """In one dimension and in two."""


@dataclass(frozen=True)
class Scale:
    """One scale of ``config.yaml``."""

    tuning_seed: int
    """A seed for the selection of hyperparameters, none of those reported."""
    models: dict[str, Model]
    settings: dict[str, Setting]
    """By their name in the tables."""
    exact: ExactOptions
    figures: tuple[str, ...]
    """Figures of the report."""
    seeds_per_job: int = 5
    """Seeds that one job makes one after another."""
    processes: int = 0
    """Processes of each job, one per GPU, under accelerate; 0: one process, on whatever device there is."""

    def __post_init__(self) -> None:
        for name, model in self.models.items():
            if self.tuning_seed in model.seeds:
                raise ValueError(f"tuning_seed: must not be a reported seed of {name}, got {self.tuning_seed}")
            if (model.data.kind == "ring") == (model.judge is not None):
                raise ValueError(f"models.{name}.judge: images have one, and rings have none")
        for name, setting in self.settings.items():
            if setting.model not in self.models:
                raise ValueError(
                    f"settings.{name}.model: must be one of {', '.join(self.models)}, got {setting.model!r}"
                )
            for run in (*setting.runs, *setting.candidates):
                parse_run(run)
        for run in self.exact.exact_runs:
            parse_run(run)
