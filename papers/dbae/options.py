"""Options of DBAE's stages, and the schema of one scale of ``config.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.training_options import TrainingOptions

METHODS = ("ae", "beta_vae", "ddpm", "pdae", "infodiffusion", "diffae", "diffae_v", "dbae_d", "dbae")
LONG = "_long"
"""Ending of a method's name where it is trained for more steps than the others."""


@dataclass(frozen=True)
class DataOptions:
    """Where images come from."""

    kind: Literal["sprites", "digits", "folder"]
    """Drawn with known factors, anew for every seed; scikit-learn's digits; or image files of one folder."""
    image_size: int = 12
    """Height and width."""
    train_images: int = 4096
    """sprites: how many; others: at most."""
    test_images: int = 512
    """Held out."""
    folder: str = ""
    """folder: where its images are, in any depth."""
    attributes: str = ""
    """folder: CelebA's file of attributes by image; empty: none."""
    crop: tuple[int, ...] = ()
    """folder: left, top and side of a square that is cut out before resizing; empty: the largest in the middle."""

    def __post_init__(self) -> None:
        if len(self.crop) not in (0, 3):
            raise ValueError(f"crop: need left, top and side, or nothing, got {self.crop}")


@dataclass(frozen=True)
class NetworkOptions:
    """Encoder, decoder and U-Net, the same for every method."""

    architecture: Literal["small", "adm"] = "small"
    """small: two resolutions, for images of a few pixels; adm: the paper's, with FastGAN's decoder."""
    latent_dim: int = 8
    """L."""
    base_channels: int = 16
    """U-Net: channels at full resolution."""
    channel_factors: tuple[int, ...] = (1, 2)
    """U-Net: of base_channels at each resolution."""
    encoder_channels: int = 32
    """Encoder: channels at full resolution."""
    encoder_factors: tuple[int, ...] = (1, 2)
    """adm: of encoder_channels at each resolution."""
    hidden: int = 128
    """small: size of the encoder's hidden layer."""
    layers_per_block: int = 1
    """U-Net and the adm encoder: residual blocks at each resolution."""
    attention_sizes: tuple[int, ...] = ()
    """U-Net: heights at which it attends."""
    head_channels: int = 8
    """U-Net: of an attention head."""
    norm_groups: int = 8
    """U-Net and the adm encoder: groups of the group norms."""
    dropout: float = 0.0
    """U-Net: in residual blocks."""


@dataclass(frozen=True)
class MethodOptions:
    """What the methods' losses and samplers need to know; the same at sampling as in training."""

    bridge: Literal["vp", "ve"] = "vp"
    """DBAE's bridge."""
    t_max: float = 1.0
    """DBAE's T."""
    t_min: float = 1e-4
    """DBAE's smallest time."""
    beta_d: float = 2.0
    """DBAE, vp: slope of β."""
    beta_min: float = 0.1
    """DBAE, vp: β at time 0."""
    sigma_data: float = 0.5
    """DBAE: assumed standard deviation of images."""
    sigma_data_end: float = 0.5
    """DBAE: assumed standard deviation of endpoints."""
    cov_xy: float = 0.0
    """DBAE: assumed covariance of the two."""
    condition_on_z: bool = True
    """DBAE: whether the U-Net is told z besides the endpoint."""
    chain_times: int = 1000
    """T of DDPM's chain for all others."""
    kl_weight: float = 0.0005
    """β-VAE: of the divergence from N(0, I) in nats, beside the mean squared error of a pixel."""
    mmd_weight: float = 0.1
    """InfoDiffusion: of the maximum mean discrepancy of z from N(0, I)."""
    mean_latent: bool = False
    """DBAE: encodes to the mean at evaluation instead of a draw."""


@dataclass(frozen=True)
class FitOptions:
    """How all methods are trained."""

    training: TrainingOptions
    optimizer: Literal["adam", "radam"] = "adam"
    average_decay: float = 0.99
    """Of the exponential moving average of the weights, with which everything is measured."""
    flip: bool = False
    """Images are mirrored at random in training."""
    long_factor: float = 3.0
    """A method named `<method>_long` is trained for so many times the steps of the others."""
    curve: tuple[float, ...] = (0.25, 0.5)
    """Shares of the steps after which the learning curve is measured, besides the last one."""

    def __post_init__(self) -> None:
        if self.long_factor <= 1:
            raise ValueError(f"long_factor: need a number above 1, got {self.long_factor}")
        if not all(0 < share < 1 for share in self.curve):
            raise ValueError(f"curve: need numbers in (0, 1), got {self.curve}")


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured of a trained model."""

    reconstructed: int = 96
    """Test images that are reconstructed."""
    draws: int = 3
    """Random x_T for each of them, K, the same in all methods."""
    decode_steps: int = 20
    """Steps of the ODE and of DDIM."""
    infer_steps: int = 20
    """Steps of DDIM's inference of x_T."""
    sde_steps: int = 50
    """Steps of DBAE's SDE where it is measured beside the ODE."""
    churn: float = 0.33
    """Share of each of them along the SDE."""
    step_counts: tuple[int, ...] = (5, 10, 20)
    """At which quality is measured against evaluations."""
    counted_images: int = 32
    """Test images in that."""
    probed_images: int = 128
    """Training images whose inferred x_T is probed."""
    generated: int = 256
    """Images generated from z of the latent prior."""
    prior_width: int = 128
    """Of the latent prior's hidden layers."""
    prior_depth: int = 4
    """Their number."""
    prior_steps: int = 600
    """Of its training."""
    prior_batch: int = 256
    """Of its training."""
    compared_images: int = 4096
    """Training images, at most, for the small decoder and for the projection of pixels in which sets are compared."""
    decoder_steps: int = 600
    """Of the small decoder of frozen z, which tells how much z knows."""
    shown: int = 6
    """Test images in pictures."""
    interpolation_points: int = 11
    """Between two images."""
    interpolation_steps: int = 50
    """Heun steps for interpolation and manipulation."""
    interpolation_churn: float = 0.33
    """Share of each of them along the SDE; 0: the ODE, which needs fewer."""
    scales: tuple[float, ...] = (-0.3, -0.15, 0.0, 0.15, 0.3)
    """Lengths of a manipulation, in units of √L."""


@dataclass(frozen=True)
class Suite:
    """One data set, and what is trained on it."""

    data: DataOptions
    network: NetworkOptions
    method: MethodOptions
    fit: FitOptions
    measure: MeasureOptions
    families: dict[str, tuple[str, ...]]
    """Methods that one job trains one after another; pdae needs ddpm before it."""
    saved: tuple[str, ...] = ()
    """Methods whose averaged weights are written out, in float16."""

    def __post_init__(self) -> None:
        for name, family in self.families.items():
            for method in (*family, *self.saved):
                if method.removesuffix(LONG) not in METHODS:
                    raise ValueError(f"families.{name}: no method {method!r}; there are: {', '.join(METHODS)}")
            if "pdae" in family and "ddpm" not in family[: family.index("pdae")]:
                raise ValueError(f"families.{name}: pdae starts from ddpm, which must stand before it")
        if self.measure.reconstructed < max(self.measure.counted_images, self.measure.shown):
            raise ValueError(f"reconstructed: must be at least counted_images and shown, got {self.measure}")
        if self.measure.reconstructed > self.data.test_images:
            raise ValueError(f"reconstructed: at most test_images, got {self.measure.reconstructed}")


@dataclass(frozen=True)
class Scale:
    """One scale of ``config.yaml``."""

    seeds: tuple[int, ...]
    suites: dict[str, Suite]
    """By the name of the setting in the tables."""
    figures: tuple[str, ...]
    """Figures of the report."""
    processes: int = 0
    """Processes of each training, one per GPU, under accelerate; 0: one process, on whatever device there is."""
