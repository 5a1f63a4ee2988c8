"""Object detectors of the hub whose boxes' confidences can be differentiated in the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForObjectDetection

from shared.errors import InputError
from shared.t2i.hub_images import Normalisation


class HubDetector:
    """A detector of the DETR family (DETR, YOLOS): a fixed number of boxes, and a class for "nothing" after the others.

    Such detectors need no suppression of overlapping boxes, which would have no gradient.

    Args:
        model: hub name or folder.
        classes: names of those that are looked for.
        device: where it runs.

    Raises:
        InputError: a class that the detector does not have.
    """

    def __init__(self, model: str, classes: Sequence[str], device: torch.device) -> None:
        network = AutoModelForObjectDetection.from_pretrained(model, use_safetensors=True).to(device).eval()
        self._network, self._device = network.requires_grad_(False), device
        known = network.config.label2id
        if unknown := [name for name in classes if name not in known]:
            raise InputError(f"detector {model}: no class {unknown[0]!r}; there are: {', '.join(known)}")
        self.classes = tuple(known[name] for name in classes)
        self._normalise = Normalisation(model, None, device)

    def boxes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Confidence of every box in its best class, and that class: (B, N) float and integer.

        Args:
            images: (B, 3, H, W) in about [-1, 1].

        Raises:
            InputError: a detector of another family, whose classes are not exclusive.
        """
        logits = self._network(pixel_values=self._normalise(images.to(self._device))).logits
        labels = self._network.config.num_labels
        if logits.shape[-1] != labels + 1:
            raise InputError(
                f"detector {self._network.config.model_type}: need {labels} classes and one for nothing, got "
                f"{logits.shape[-1]}"
            )
        return logits.softmax(dim=-1)[..., :-1].max(dim=-1)

    def highest_confidence(self, images: Tensor) -> Tensor:
        """The highest confidence (B,) of a box of the classes that are looked for, 0 without one; images as above."""
        confidence, found = self.boxes(images)
        wanted = torch.isin(found, torch.tensor(self.classes, device=found.device))
        return torch.where(wanted, confidence, 0.0).amax(dim=1)
