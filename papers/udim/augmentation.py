"""DomainBed's random changes to training images, vectorised over the batch; all but the change of hue."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_GREY = (0.299, 0.587, 0.114)


def domainbed_augmentation(
    images: Tensor,
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = (0.7, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    jitter: float = 0.3,
    grey: float = 0.1,
) -> Tensor:
    """Random resized crop and flip, then brightness, contrast and saturation, and sometimes no colour.

    Args:
        images: (B, 3, H, W) floats in [0, 1].
        generator: on the CPU, whatever the images' device.
        scale: range of the crop's share of the area.
        ratio: range of its width to height, log-uniform.
        jitter: each colour factor is uniform in [1 - jitter, 1 + jitter].
        grey: probability of an image without colour.

    Returns:
        New images of the same shape, in [0, 1].

    Raises:
        ValueError: not floats of three channels.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"images: need floats (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    return _recoloured(_cropped(images, generator, scale, ratio), generator, jitter, grey)


def _cropped(
    images: Tensor, generator: torch.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """A random part of each image at full size, every other one mirrored; bilinear."""
    count = len(images)
    draws = torch.rand(5, count, generator=generator)
    area = scale[0] + (scale[1] - scale[0]) * draws[0]
    log_ratio = math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * draws[1]
    width = (area * log_ratio.exp()).sqrt().clamp(max=1)
    height = (area / log_ratio.exp()).sqrt().clamp(max=1)
    # In coordinates from -1 to 1 the crop of half size w has its centre within 1 - w.
    across, down = (1 - width) * (2 * draws[2] - 1), (1 - height) * (2 * draws[3] - 1)
    mirrored = torch.where(draws[4] < 0.5, -width, width)
    zero = torch.zeros(count)
    matrix = torch.stack([torch.stack([mirrored, zero, across], 1), torch.stack([zero, height, down], 1)], 1)
    grid = F.affine_grid(matrix.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _recoloured(images: Tensor, generator: torch.Generator, jitter: float, grey: float) -> Tensor:
    factors = 1 + jitter * (2 * torch.rand(3, len(images), 1, 1, 1, generator=generator) - 1)
    brightness, contrast, saturation = factors.to(images)
    colourless = (torch.rand(len(images), 1, 1, 1, generator=generator) < grey).to(images.device)
    images = (images * brightness).clamp(0, 1)
    mean = _luminance(images).mean((2, 3), keepdim=True)
    images = (mean + contrast * (images - mean)).clamp(0, 1)
    images = (_luminance(images) + saturation * (images - _luminance(images))).clamp(0, 1)
    return torch.where(colourless, _luminance(images).expand_as(images), images)


def _luminance(images: Tensor) -> Tensor:
    weights = torch.tensor(_GREY).to(images)[:, None, None]
    return (images * weights).sum(1, keepdim=True)
