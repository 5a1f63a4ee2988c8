"""What defences and their judges need of a text-to-image system, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.errors import InputError
from shared.t2i.concept_editing import edited_network
from shared.t2i.text_encoding import TextEncoder


@dataclass(frozen=True)
class Bench:
    """A text-to-image system as defences see it; images are what `decode` gives, in about [-1, 1].

    Attributes:
        unet: of diffusers, frozen.
        scheduler: with `alphas_cumprod`, whose prediction type is the U-Net's.
        latent_shape: (C, H, W).
        text: from captions to embeddings; that of "" is unconditional.
        decode: from latents to images.
        unsafe_score: from images and a threshold to values (B,), higher is less safe, and flags (B,) bool;
            None where no defence asks for it.
        concepts: phrases by which defences know the unsafe concept.
        target: what UCE puts in the concept's place.
        preserved: phrases that UCE keeps.
        models: U-Nets from which the concept was trained out, by name.
    """

    unet: nn.Module
    scheduler: Any
    latent_shape: tuple[int, int, int]
    text: TextEncoder
    decode: Callable[[Tensor], Tensor]
    unsafe_score: Callable[[Tensor, float], tuple[Tensor, Tensor]]
    concepts: tuple[str, ...]
    target: str
    preserved: tuple[str, ...]
    models: Mapping[str, nn.Module]

    @property
    def prediction_type(self) -> str:
        return self.scheduler.config.prediction_type

    def denoise(self, latents: Tensor, timestep: Tensor, embedding: Tensor) -> Tensor:
        """Output (B, C, H, W) of the U-Net."""
        return self.unet(latents, timestep, encoder_hidden_states=embedding).sample

    def on(self, model: str | None) -> Bench:
        """The same system with another U-Net; None: as it is.

        Raises:
            InputError: there is no model of this name.
        """
        if model is None:
            return self
        if model not in self.models:
            raise InputError(f"model {model!r}: there is none; there are: {', '.join(self.models) or 'none'}")
        return replace(self, unet=self.models[model])

    def edited(self, erase_weight: float, preserve_weight: float) -> Bench:
        """The same system with the first phrase of the concept edited out of its U-Net by UCE, token by token."""
        states, targets = self.text.embed([self.concepts[0], self.target])
        preserved = self.text.embed(self.preserved).flatten(0, 1) if self.preserved else states[:0]
        weights = {"erase_weight": erase_weight, "preserve_weight": preserve_weight}
        return replace(self, unet=edited_network(self.unet, states, targets, preserved, **weights))


class Meter:
    """Counts evaluations of a denoiser, one for each sample."""

    def __init__(self, denoise: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        self._denoise = denoise
        self.evaluations = 0

    def __call__(self, latents: Tensor, timestep: Tensor, embedding: Tensor) -> Tensor:
        self.evaluations += len(latents)
        return self._denoise(latents, timestep, embedding)


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one kind.

    Attributes:
        name: of the set.
        captions: the prompts.
        specs: what each asks for, in a form that the judge understands; None where nothing but the caption is known.
    """

    name: str
    captions: tuple[str, ...]
    specs: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Judge:
    """What says how good images are. No defence sees it.

    Attributes:
        measure: from a set and images to values by metric, float64 (B,); at least `dsr`, 1 for a safe image.
        features: from images to perceptual features (B, F).
        distance: from the images of a set to their Fréchet distance from right ones; None where those are unknown.
    """

    measure: Callable[[PromptSet, Tensor], dict[str, NDArray[np.float64]]]
    features: Callable[[Tensor], Tensor]
    distance: Callable[[PromptSet, Tensor], float] | None = None


def success(dsr: NDArray[np.float64], fidelity: NDArray[np.float64]) -> NDArray[np.float64]:
    """What strengths are selected by: how much of a prompt's harmless content is there, 0 for an unsafe image."""
    return dsr * fidelity


@torch.no_grad()
def in_parts(function: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    """A function of images, applied to at most `size` of them at a time."""
    return torch.cat([function(part) for part in images.split(size)])
