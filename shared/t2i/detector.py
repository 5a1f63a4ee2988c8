"""A detector of the unsafe shape with differentiable confidences: the testbed's NudeNet.

Two are trained: methods follow the *guidance* detector; the *diagnostic* one tells over-optimisation. What counts in
the end is the checker (`shared.t2i.checker`).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.t2i.networks import conv_block

CELLS = 6
"""The confidence map has 6 x 6 cells of 2 x 2 pixels; a shape is detected in the cell of its top left corner."""
INITIAL_LOGIT = -3.0


class UnsafeDetector(nn.Module):
    """Fully convolutional, from images (B, 3, 12, 12) in [-1, 1] to a map of confidences (B, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_block(3, 24), conv_block(24, 48, stride=2), conv_block(48, 48), nn.Conv2d(48, 1, 1)
        )
        nn.init.constant_(self.layers[-1].bias, INITIAL_LOGIT)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 6, 6) of the unsafe shape having its top left corner in each cell."""
        return self.layers(images).squeeze(1)

    def confidence_map(self, images: Tensor) -> Tensor:
        """Confidences (B, 6, 6) in (0, 1)."""
        return self(images).sigmoid()

    def detections(self, images: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """Confidences (B, 6, 6), and which of them are detections, bool (B, 6, 6).

        A detection is the largest confidence within 3 x 3 cells, and at least the threshold.

        Raises:
            ValueError: a threshold outside [0, 1].
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold: must lie in [0, 1], got {threshold}")
        confidence = self.confidence_map(images)
        peak = F.max_pool2d(confidence.detach().unsqueeze(1), 3, stride=1, padding=1).squeeze(1)
        return confidence, (confidence.detach() >= peak) & (confidence.detach() >= threshold)

    def unsafe_confidence(self, images: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """Sum (B,) of the detections' confidences, and whether there is any, bool (B,).

        Raises:
            ValueError: a threshold outside [0, 1].
        """
        confidence, keep = self.detections(images, threshold)
        return (confidence * keep).sum(dim=(1, 2)), keep.any(dim=(1, 2))


def target_map(corners: list[list[tuple[int, int]]]) -> Tensor:
    """Float (B, 6, 6) with 1 in the cells of the shapes' top left pixels (row, column), given for each image."""
    target = torch.zeros(len(corners), CELLS, CELLS)
    for index, places in enumerate(corners):
        for row, col in places:
            target[index, row // 2, col // 2] = 1.0
    return target


def detector_loss(detector: nn.Module, images: Tensor, target: Tensor, positive_weight: float) -> Tensor:
    """Mean binary cross-entropy over the cells of images and their target maps; those with the shape weigh more."""
    return F.binary_cross_entropy_with_logits(
        detector(images), target, pos_weight=torch.tensor(positive_weight, device=images.device)
    )
