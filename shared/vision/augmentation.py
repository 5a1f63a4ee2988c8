"""Random changes to training images, vectorised over the batch."""

import torch
from torch import Tensor
from torch.nn import functional as F


def random_crop_and_flip(images: Tensor, generator: torch.Generator, *, padding: int = 4) -> Tensor:
    """CIFAR's usual augmentation: shift each image by up to `padding` pixels both ways, and mirror half of them.

    Equal to padding with zeros on all sides, cropping at random to the original size, and flipping left to right with
    probability 1/2.

    Args:
        images: (B, channels, H, W) of any dtype.
        generator: on the CPU, whatever the images' device.
        padding: in pixels, >= 0.

    Returns:
        New images of the same shape and dtype.

    Raises:
        ValueError: not 4-D, or a negative padding.
    """
    if images.ndim != 4:
        raise ValueError(f"images: need shape (B, channels, H, W), got {tuple(images.shape)}")
    if padding < 0:
        raise ValueError(f"padding: need at least 0 pixels, got {padding}")
    count, _, height, width = images.shape
    offsets = torch.randint(2 * padding + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.arange(width).expand(count, -1)
    columns = torch.where(mirrored, columns.flip(1), columns) + offsets[1]
    rows = torch.arange(height) + offsets[0]
    index = (torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :])
    padded = F.pad(images, [padding] * 4).permute(0, 2, 3, 1)
    return padded[tuple(part.to(images.device) for part in index)].permute(0, 3, 1, 2).contiguous()
