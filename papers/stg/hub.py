"""A pipeline of the hub with what guides STG and SDG there, and unlearned models of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from accelerate import PartialState
from torch import Tensor

from papers.stg.options import GuidedHubOptions
from papers.stg.safe_text_guidance import unsafe_confidence
from shared.errors import InputError
from shared.t2i.bench import Bench
from shared.t2i.hub import PipelineBench, open_detector, open_hub, open_score
from shared.t2i.lora import adapted_unet

UnsafeScore = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""From images (B, 3, H, W) in about [-1, 1] and τ to values (B,), higher is less safe, and flags (B,) bool."""


def open_guided(options: GuidedHubOptions, models: Sequence[str] = ()) -> Bench | PipelineBench:
    """The pipeline, and those of its unlearned models that are asked for.

    Raises:
        InputError: a model of a pipeline in which only whole runs are possible, or what cannot be read.
    """
    bench = open_hub(options, open_unsafe_score(options.guidance, options.concepts, PartialState().device))
    if not models:
        return bench
    if not isinstance(bench, Bench):
        raise InputError(f"loras: they need Stable Diffusion with DDIM, got a {type(bench.pipeline).__name__}")
    return replace(bench, models={name: adapted_unet(bench.unet, options.loras, name) for name in models})


def open_unsafe_score(source: str, concepts: Sequence[str], device: torch.device) -> UnsafeScore:
    """What guides: a detector's boxes by `unsafe_confidence`, or a score that flags what is above τ.

    Args:
        source: as in `shared.t2i.hub.open_score`.
        concepts: phrases.
        device: where it runs.
    """
    detector = open_detector(source, device)
    if detector is not None:
        return lambda images, threshold: unsafe_confidence(*detector.boxes(images), detector.classes, threshold)
    score = open_score(source, concepts, device)

    def unsafe_score(images: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        values = score(images)
        return values, values.detach() > threshold

    return unsafe_score
