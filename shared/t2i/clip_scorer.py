"""CLIP models of the hub as rewards that can be differentiated in the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoProcessor, CLIPModel


class ClipScorer(nn.Module):
    """Cosine of images and texts by a frozen CLIP model, in float32.

    Images are (B, 3, H, W) in [0, 1]; they are resized bilinearly to the model's size and normalised as it asks for,
    without clamping, so that the gradient survives where a prediction leaves the range.
    """

    def __init__(self, model: CLIPModel, processor: AutoProcessor) -> None:
        super().__init__()
        self.model = model.float().eval().requires_grad_(False)
        self.tokenizer = processor.tokenizer
        images = processor.image_processor
        self.size = model.config.vision_config.image_size
        self.register_buffer("mean", torch.tensor(images.image_mean).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(images.image_std).view(3, 1, 1))

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D) of texts."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.mean.device)
        output = self.model.text_model(**tokens).pooler_output
        return F.normalize(self.model.text_projection(output), dim=-1)

    def image_features(self, images: Tensor) -> Tensor:
        """Unit vectors (B, D) of images."""
        resized = F.interpolate(images.float(), size=(self.size, self.size), mode="bilinear", align_corners=False)
        output = self.model.vision_model(pixel_values=(resized - self.mean) / self.deviation).pooler_output
        return F.normalize(self.model.visual_projection(output), dim=-1)

    def forward(self, images: Tensor, text_features: Tensor) -> Tensor:
        """Cosine (B,) of images and texts' features (B, D)."""
        return (self.image_features(images) * text_features).sum(dim=-1)


def load_clip(name: str) -> ClipScorer:
    """A CLIP model with its processor, by hub name or folder."""
    model = CLIPModel.from_pretrained(name, use_safetensors=True)
    return ClipScorer(model, AutoProcessor.from_pretrained(name))
