"""Options of UDIM's stages, and the schema of one scale of ``config.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from papers.udim.methods import Hyperparameters, parse_run
from shared.vision.options import ClassifierOptions

CORRUPTION_NAMES = (
    "gaussian_noise", "impulse_noise", "gaussian_blur", "contrast", "brightness", "occlusion", "pixelation", "rotation",
)  # fmt: skip

SOURCE, UNSEEN = "source", "unseen"
"""Names among those of domains: the sources' own held-out images, and all unknown domains together."""


@dataclass(frozen=True)
class DataOptions:
    """Where images come from."""

    kind: Literal["digits", "parquet", "folders"]
    """scikit-learn's digits; parquet files in the layout of CIFAR-10 on the hub; or ``<domain>/<class>/<image>``."""
    train: tuple[str, ...] = ()
    """parquet: files of the training part. folders: the folder of domains."""
    test: tuple[str, ...] = ()
    """parquet: files of the test part."""
    size: int = 8
    """folders: height and width that images are resized to."""


@dataclass(frozen=True)
class ProtocolOptions:
    """Which images are seen in training, and which domains accuracy is measured on."""

    protocol: Literal["corruptions", "leave_one_out", "single_source"]
    """Train on plain images, test on corruptions of others; or train on all domains but one (on one), test on the
    others, for every such choice."""
    size: int
    """Height and width of the images; smaller ones are interpolated."""
    styles: tuple[str, ...] = ()
    """Domains made of plain images, each of its own part of them; empty: the images have domains."""
    corruptions: tuple[str, ...] = CORRUPTION_NAMES
    """Of the protocol of that name."""
    levels: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Their severities."""
    train_images: int | None = None
    """Images of each source domain that are trained on, at most."""
    validation_fraction: float = 0.2
    """Share of each domain's images that is held out of training, for selection where the domain is a source."""
    test_images: int | None = None
    """Images of each target domain, at most."""
    test_fraction: float = 0.0
    """corruptions: share of the images that is held out for tests, where the data have no test part."""
    split_seed: int | None = None
    """Seed of the splits; None: the training seed."""


@dataclass(frozen=True)
class NetworkOptions:
    """A featurizer with a linear head."""

    classifier: ClassifierOptions
    """A network with random weights, if ``pretrained`` is None."""
    pretrained: str | None = None
    """Hub name or folder of a pretrained ResNet, whose head is replaced."""
    head_dropout: float = 0.0
    """Dropout of the features before the head."""
    batch_norm: Literal["frozen", "running", "batch"] = "running"
    """frozen: running statistics as they came, in training too. running: as usual. batch: the batch's own statistics
    in tests too, which adapts to the test domain."""


@dataclass(frozen=True)
class InputOptions:
    """How images become inputs."""

    augmentation: Literal["none", "crop_flip", "domainbed"] = "none"
    """crop_flip: CIFAR's. domainbed: random resized crop, flip, colour jitter and grey."""
    mean: tuple[float, ...] = ()
    """Subtracted from the channels in [0, 1]; empty: no normalisation. Radii are in the units of the result."""
    std: tuple[float, ...] = ()
    """The channels are divided by."""

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean, std: need as many of both, got {len(self.mean)} and {len(self.std)}")


@dataclass(frozen=True)
class TrainOptions:
    """Training and measuring: the same for every method."""

    network: NetworkOptions
    inputs: InputOptions
    hyperparameters: Hyperparameters
    """Of methods for which none were selected, and where a run names none."""
    steps: int
    batch_size: int
    """Images of each source domain in a step, over all processes."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """sgd: with momentum 0.9."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Shape of the learning rate over the steps."""
    weight_decay: float = 0.0
    """Added to the gradient, as an L2 penalty."""
    warmup_fraction: float = 0.2
    """Share of the steps in which a method with a term trains as its base alone."""
    evaluate_every: int = 100
    """Steps between evaluations on source validation images, from which the best step is selected."""
    probe_images: int = 200
    """Images of a domain on which curves and sharpness are measured, at most."""
    probe_level: int = 3
    """Severity of the corruptions in them."""
    radii: tuple[float, ...] = (0.01, 0.02, 0.03, 0.04, 0.05)
    """Perturbations of the weights at which sharpness is measured."""
    checkpoint_every: int = 1000
    """Steps between saved states."""
    saved: tuple[str, ...] = ()
    """Runs whose selected weights are written out, in float16."""


@dataclass(frozen=True)
class Suite:
    """One protocol on one data set."""

    data: str
    """Name of the data."""
    domains: ProtocolOptions
    train: TrainOptions
    families: dict[str, tuple[str, ...]]
    """Runs that one job trains one after another."""
    use_selected: bool = True
    """Whether the hyperparameters selected in tuning are used; else those of ``train``."""


@dataclass(frozen=True)
class TuningOptions:
    """The search for hyperparameters on the tuning seed."""

    suite: str
    """Where candidates are trained."""
    candidates: dict[str, tuple[str, ...]]
    """Runs ``<method>@<name>=<value>,...`` by family; for every method the best on source validation images is used."""


@dataclass(frozen=True)
class SliceOptions:
    """Slices of the loss around trained weights."""

    suite: str
    """Of whose saved models."""
    extent: float = 1.0
    """Slices go this far to both sides, in units of filter-normalised directions."""
    points: int = 15
    """Of each direction."""
    directions: int = 4
    """Random directions of the one-dimensional slices; the plane is that of the first two."""
    slice_images: int = 64
    """Images of each domain, at most."""

    def __post_init__(self) -> None:
        if self.directions < 2 or self.points < 2 or self.extent <= 0:
            raise ValueError(f"slices: need at least 2 directions and points and an extent above 0, got {self}")


@dataclass(frozen=True)
class Scale:
    """One scale of ``config.yaml``."""

    seeds: tuple[int, ...]
    tuning_seed: int
    """A seed for the selection of hyperparameters, none of the above."""
    data: dict[str, DataOptions]
    suites: dict[str, Suite]
    """By the name of the setting in the tables."""
    tuning: TuningOptions
    slices: SliceOptions
    figures: tuple[str, ...]
    """Figures of the report."""
    processes: int = 0
    """Processes of each training, one per GPU, under accelerate; 0: one process, on whatever device there is."""

    def __post_init__(self) -> None:
        if self.tuning_seed in self.seeds:
            raise ValueError(f"tuning_seed: must not be a reported seed, got {self.tuning_seed}")
        for name, suite in self.suites.items():
            if suite.data not in self.data:
                raise ValueError(f"suites.{name}.data: must be one of {', '.join(self.data)}, got {suite.data!r}")
            for run in (*suite.train.saved, *(run for runs in suite.families.values() for run in runs)):
                parse_run(run)
        for name in (self.tuning.suite, self.slices.suite):
            if name not in self.suites:
                raise ValueError(f"suite: must be one of {', '.join(self.suites)}, got {name!r}")
        for run in (run for runs in self.tuning.candidates.values() for run in runs):
            if not parse_run(run).overrides:
                raise ValueError(f"candidates: must name hyperparameters, got {run!r}")
