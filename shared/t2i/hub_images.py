"""Images as the models of the hub want them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor


class Normalisation:
    """Differentiable preprocessing: clamp, resize to a square, subtract the processor's mean, divide by its spread.

    Args:
        model: whose processor it is; hub name or folder.
        size: side of the square; None: the processor's, of a square or of an image's shorter side.
        device: where it runs.
    """

    def __init__(self, model: str, size: int | None, device: torch.device) -> None:
        processor = AutoImageProcessor.from_pretrained(model)
        self._size = size or processor.size["height"] or processor.size["shortest_edge"]
        self._mean = torch.tensor(processor.image_mean, device=device).view(3, 1, 1)
        self._spread = torch.tensor(processor.image_std, device=device).view(3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in about [-1, 1], as the model wants them."""
        shown = images.float().clamp(-1, 1) / 2 + 0.5
        resized = F.interpolate(shown, size=(self._size, self._size), mode="bilinear", antialias=True)
        return (resized - self._mean) / self._spread
