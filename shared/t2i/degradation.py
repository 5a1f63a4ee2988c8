"""What is done to images so that networks bear it (noise, fading) or dislike it (degraded copies).

Images are (B, 3, H, W) in [-1, 1]. The random functions draw from PyTorch's global generator, on the images' device.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

NOISE_STD = 0.4
FADE = (0.5, 1.0)
DEGRADED_FADE = (0.2, 0.7)
BLEND = (0.3, 0.7)


def fade(images: Tensor, strength: Tensor) -> Tensor:
    """Images moved towards the dark background: a (x + 1) - 1 with a = strength (B,)."""
    return strength.view(-1, 1, 1, 1) * (images + 1) - 1


def blend(images: Tensor, others: Tensor, share: Tensor) -> Tensor:
    """Mixtures m x + (1 - m) x' of images with others, m = share (B,)."""
    share = share.view(-1, 1, 1, 1)
    return share * images + (1 - share) * others


def mix_colors(images: Tensor, matrix: Tensor) -> Tensor:
    """Colours x + 1 multiplied by a matrix (B, 3, 3) for each image; row-stochastic ones keep values in range."""
    return torch.einsum("bij,bjhw->bihw", matrix, images + 1) - 1


def blur(images: Tensor) -> Tensor:
    """Images under a 3 x 3 box filter; the border repeats."""
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def perturb(images: Tensor, *, noise_probability: float, fade_probability: float) -> Tensor:
    """Augmented copies: a share of them faded by a ~ U(0.5, 1), a share noisy with standard deviation ~ U(0, 0.4)."""
    faded = fade(images, _uniform(images, *FADE))
    images = torch.where(_chosen(images, fade_probability), faded, images)
    noise = torch.randn_like(images) * _uniform(images, 0.0, NOISE_STD).view(-1, 1, 1, 1)
    return torch.where(_chosen(images, noise_probability), images + noise, images)


def degrade(images: Tensor) -> Tensor:
    """Worse copies of images, each faded, blended with its neighbour in the batch, mixed in colour, or blurred."""
    mixing = torch.rand(len(images), 3, 3, device=images.device, dtype=images.dtype)
    copies = torch.stack(
        [
            fade(images, _uniform(images, *DEGRADED_FADE)),
            blend(images, images.roll(1, dims=0), _uniform(images, *BLEND)),
            mix_colors(images, mixing / mixing.sum(dim=2, keepdim=True)),
            blur(images),
        ]
    )
    kinds = torch.randint(len(copies), (len(images),), device=images.device)
    return copies[kinds, torch.arange(len(images), device=images.device)]


def _uniform(images: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(len(images), device=images.device, dtype=images.dtype)


def _chosen(images: Tensor, probability: float) -> Tensor:
    """Which images of the batch are drawn with a probability, bool (B, 1, 1, 1)."""
    return torch.rand(len(images), 1, 1, 1, device=images.device) < probability
