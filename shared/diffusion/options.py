"""Options of small diffusion models, apart from the code, so that reading a configuration needs no PyTorch."""

from dataclasses import dataclass
from typing import Literal

from shared.training_options import TrainingOptions


@dataclass(frozen=True)
class DenoiserOptions:
    """A denoiser with EDM's preconditioning, and its training."""

    training: TrainingOptions
    sigma_data: float = 0.5
    """Standard deviation of the data."""
    log_sigma_mean: float = -1.2
    """Mean of the logarithm of the noise levels of training examples."""
    log_sigma_std: float = 1.2
    """Standard deviation of that logarithm."""
    architecture: Literal["mlp", "unet"] = "mlp"
    """Network: an MLP over the flattened sample, or diffusers' U-Net."""
    widths: tuple[int, ...] = (64, 64, 64)
    """MLP: size of each hidden layer, all alike; U-Net: channels at each resolution, multiples of 4."""
    layers_per_block: int = 1
    """U-Net: residual blocks per resolution."""
    attention: bool = False
    """U-Net: whether all resolutions but the first attend."""
    ema_decay: float | None = None
    """Decay of the running mean of the weights, which is then the result of the training; None: the last weights."""

    def __post_init__(self) -> None:
        if self.architecture == "mlp" and len(set(self.widths)) != 1:
            raise ValueError(f"widths: the hidden layers of an MLP are all alike, got {self.widths}")


@dataclass(frozen=True)
class DiscriminatorOptions:
    """A discriminator of two sets of noisy samples, and its training."""

    training: TrainingOptions
    """Its batch size counts the examples of each set, its epochs passes over the second."""
    encoder: Literal["mlp", "unet"] = "mlp"
    """Network: an MLP over the flattened sample, or the contracting half of diffusers' U-Net."""
    width: int = 96
    """MLP: size of the hidden layers."""
    depth: int = 3
    """MLP: number of hidden layers."""
    frequencies: tuple[float, ...] = ()
    """MLP: sines and cosines of π f x are further inputs for every f."""
    channels: tuple[int, ...] = (32, 64)
    """U-Net: channels at each resolution, multiples of 4."""
