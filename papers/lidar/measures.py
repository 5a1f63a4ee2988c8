"""Measures of images and rewards that this paper adds to those of the testbed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.t2i.scenes import BACKGROUND, COLORS

Array = NDArray[np.float64]

CRISP_DISTANCE = 1.0
"""Largest distance of a pixel from its palette colour in a crisp image: half of that between two colours."""
CRISP_SHARE = 0.95
"""Share of an image's pixels that must be so close."""


def crisp(images: Tensor) -> Array:
    """1 for every image (B, 3, H, W) that is drawn in the palette's colours, 0 for a blurred or faded one: (B,)."""
    palette = torch.tensor([BACKGROUND, *COLORS.values()], dtype=torch.float32)
    distances = (images.float().cpu()[:, None] - palette[:, :, None, None]).norm(dim=2).amin(dim=1)
    close = (distances <= CRISP_DISTANCE).flatten(1).double().mean(dim=1)
    return (close >= CRISP_SHARE).double().numpy()


def diversity(features: Tensor, right: Tensor | None = None) -> Array:
    """Mean squared distance between two images of one prompt, (P,): Σ_{i≠j} ‖f_i - f_j‖² / (M (M - 1)).

    Args:
        features: unit vectors, (P, M, F).
        right: bool, (P, M): which images count; None: all. A prompt with fewer than two of them is NaN.
    """
    counted = torch.ones(features.shape[:2]) if right is None else right
    counted = counted.double()
    squares = torch.cdist(features.double(), features.double()).square()
    pairs = counted[:, :, None] * counted[:, None, :]
    count = counted.sum(dim=1)
    total = (squares * pairs).sum(dim=(1, 2))
    return torch.where(count > 1, total / (count * (count - 1)), torch.nan).numpy()


def ranking(rewards: Array, right: Array) -> float:
    """How often the reward is higher for a right image than for a wrong one (the AUC); ties count half.

    Args:
        rewards: of N images, (N,).
        right: 0 or 1, (N,).

    Returns:
        the share over all such pairs; one half without any.
    """
    difference = rewards[right == 1][:, None] - rewards[right == 0][None]
    return float((np.sign(difference) / 2 + 0.5).mean()) if difference.size else 0.5


def ranking_within(rewards: Array, right: Array) -> float:
    """The same over pairs of images of one prompt; rewards and right are (P, N)."""
    pairs = (right == 1).sum(axis=1) * (right == 0).sum(axis=1)
    values = [ranking(own, correct) for own, correct in zip(rewards, right, strict=True)]
    return float(np.average(values, weights=pairs)) if pairs.any() else 0.5
