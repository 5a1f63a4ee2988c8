"""A denoiser of the Hugging Face hub: a `UNet2DModel` of diffusers that was trained to predict noise."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor, nn

from shared.diffusion.denoisers import NoisePredictionDenoiser
from shared.errors import InputError


class NoisePredictor(nn.Module):
    """The output of diffusers' network as a tensor."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.unet(x, time).sample


def load_pretrained(folder: Path) -> tuple[NoisePredictionDenoiser, tuple[int, ...]]:
    """A denoiser in VE coordinates, frozen and in evaluation mode, and the shape of its samples.

    Args:
        folder: of a DDPM pipeline (`google/ddpm-cifar10-32`), its network in it or in `unet`, likewise the scheduler.

    Raises:
        InputError: something is not there, or the network does not predict noise.
    """
    from diffusers import DDPMScheduler, UNet2DModel  # takes seconds to import, and other denoisers do without

    parts = {name: folder / name if (folder / name).is_dir() else folder for name in ("unet", "scheduler")}
    try:
        unet = UNet2DModel.from_pretrained(parts["unet"])
        scheduler = DDPMScheduler.from_pretrained(parts["scheduler"])
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise InputError(f"{folder}: no DDPM of diffusers: {str(error).splitlines()[0]}") from None
    if scheduler.config.prediction_type != "epsilon":
        raise InputError(f"{folder}: needs a network that predicts noise, got {scheduler.config.prediction_type}")
    size = unet.config.sample_size
    denoiser = NoisePredictionDenoiser(NoisePredictor(unet), scheduler.alphas_cumprod)
    return denoiser.eval().requires_grad_(False), (unet.config.in_channels, size, size)
