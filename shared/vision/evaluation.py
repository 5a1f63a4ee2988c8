"""Predictions of a classifier on a whole data set, and their accuracy."""

import torch
from torch import Tensor, nn

from shared.vision.data import as_float


@torch.no_grad()
def predict_logits(model: nn.Module, images: Tensor, *, batch_size: int = 512) -> Tensor:
    """Logits (N, classes) of the model in evaluation mode; its mode is restored.

    Args:
        model: maps float images to logits.
        images: (N, channels, H, W), floats in [0, 1] or uint8 in [0, 255], N >= 1; sent to the model's device in parts.
        batch_size: images at a time, >= 1.

    Returns:
        On the device of `images`.

    Raises:
        ValueError: no images, or batch_size < 1.
    """
    if len(images) == 0:
        raise ValueError("images: need at least one, got none")
    if batch_size < 1:
        raise ValueError(f"batch_size: need at least 1, got {batch_size}")
    device = next((parameter.device for parameter in model.parameters()), images.device)
    was_training = model.training
    model.eval()
    try:
        parts = [model(as_float(part.to(device))).to(images.device) for part in images.split(batch_size)]
    finally:
        model.train(was_training)
    return torch.cat(parts)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest logit is the label's; of several largest ones the first counts.

    Args:
        logits: (N, classes), N >= 1.
        labels: (N,) integers.

    Raises:
        ValueError: shapes that do not fit, no rows, or NaN among the logits.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or len(labels) == 0:
        raise ValueError(f"labels: need one per row of the logits {tuple(logits.shape)}, got {tuple(labels.shape)}")
    if logits.isnan().any():
        raise ValueError("logits: need numbers, got NaN")
    return (logits.argmax(1) == labels).double().mean().item()
