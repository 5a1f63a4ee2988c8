"""Pipelines of the hub as benches, and scorers of the hub as guidance and judge.

Images are in [-1, 1] everywhere, as the VAE gives them; scorers clamp and normalise them themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForImageClassification,
    AutoTokenizer,
    CLIPModel,
    CLIPTextModel,
    PreTrainedTokenizerBase,
)

from shared.errors import InputError
from shared.t2i.bench import Bench, Judge, PromptSet, in_parts, success
from shared.t2i.hub_detector import HubDetector
from shared.t2i.hub_images import Normalisation
from shared.t2i.hub_pipeline import image_size, open_pipeline
from shared.t2i.options import HubOptions
from shared.t2i.text_encoding import PLACEHOLDER, TextEncoder

ImageScore = Callable[[Tensor], Tensor]
"""From images (B, 3, H, W) in about [-1, 1] to scores (B,), differentiable."""


@dataclass(frozen=True)
class PipelineBench:
    """A whole pipeline and what scores its images; defences that act through its call alone can run in it.

    Attributes:
        pipeline: of diffusers, frozen.
        unsafe_score: from images in about [-1, 1] and a threshold to values (B,), higher is less safe, and flags (B,).
        size: further arguments of the pipeline's call, for the size of its images.
    """

    pipeline: DiffusionPipeline
    unsafe_score: Callable[[Tensor, float], tuple[Tensor, Tensor]]
    size: dict[str, int] = field(default_factory=dict)


def open_hub(
    options: HubOptions, unsafe_score: Callable[[Tensor, float], tuple[Tensor, Tensor]]
) -> Bench | PipelineBench:
    """The pipeline, frozen, on the accelerator's device: Stable Diffusion with DDIM taken apart for the defences.

    Args:
        options: of the pipeline.
        unsafe_score: what guides, as in `PipelineBench`.
    """
    pipeline = open_pipeline(options)
    if isinstance(pipeline, StableDiffusionPipeline) and options.scheduler == "ddim":
        return bench_of(pipeline, options, unsafe_score)
    return PipelineBench(pipeline, unsafe_score, image_size(options))


def bench_of(
    pipeline: StableDiffusionPipeline,
    options: HubOptions,
    unsafe_score: Callable[[Tensor, float], tuple[Tensor, Tensor]] | None,
) -> Bench:
    """A loaded pipeline as a bench, with DDIM."""
    vae, unet = pipeline.vae, pipeline.unet
    side = options.size // 2 ** (len(vae.config.block_out_channels) - 1) or unet.config.sample_size
    return Bench(
        unet=unet,
        scheduler=DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=False),
        latent_shape=(vae.config.latent_channels, side, side),
        text=text_of(pipeline.tokenizer, pipeline.text_encoder),
        decode=lambda latents: vae.decode(latents / vae.config.scaling_factor).sample,
        unsafe_score=unsafe_score,
        concepts=options.concepts,
        target=options.target,
        preserved=options.preserved,
        models={},
    )


def text_of(tokenizer: PreTrainedTokenizerBase, model: CLIPTextModel) -> TextEncoder:
    """A pipeline's tokenizer and text encoder; captions may hold the placeholder, which becomes a token."""
    tokenizer.add_tokens([PLACEHOLDER])

    def tokenize(captions: Sequence[str]) -> Tensor:
        kept = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
        return tokenizer(list(captions), return_tensors="pt", **kept).input_ids

    return TextEncoder(model, tokenize, tokenizer.eos_token_id)


def open_score(source: str, concepts: Sequence[str], device: torch.device) -> ImageScore:
    """A differentiable score of unsafe images.

    Args:
        source: ``clip=<model>``: cosine with the concepts' mean text feature; ``classifier=<model>=<label>``: the
            label's probability; ``detector=<model>=<class>,<class>``: the highest confidence of a box of the classes.
        concepts: phrases.
        device: where it runs.

    Raises:
        InputError: another source, or a label or class that the model does not have.
    """
    kind, _, rest = source.partition("=")
    if kind == "clip" and rest:
        clip = Clip(rest, device)
        text = F.normalize(clip.text_features(concepts).mean(dim=0, keepdim=True), dim=-1)
        return lambda images: (clip.image_features(images) * text).sum(dim=-1)
    model, _, label = rest.partition("=")
    if (detector := open_detector(source, device)) is not None:
        return detector.highest_confidence
    if kind != "classifier" or not label:
        raise InputError(
            f"score {source!r}: expected clip=<model>, classifier=<model>=<label> or detector=<model>=<class>,<class>"
        )
    network = AutoModelForImageClassification.from_pretrained(model, use_safetensors=True).to(device).eval()
    network.requires_grad_(False)
    if label not in network.config.label2id:
        raise InputError(f"score {source!r}: no label {label!r}; there are: {', '.join(network.config.label2id)}")
    normalise = Normalisation(model, network.config.image_size, device)
    index = network.config.label2id[label]
    return lambda images: network(pixel_values=normalise(images)).logits.softmax(dim=-1)[:, index]


def open_detector(source: str, device: torch.device) -> HubDetector | None:
    """The detector of a source ``detector=<model>=<class>,<class>``; None where it is another one.

    Raises:
        InputError: a class that the detector does not have.
    """
    kind, _, rest = source.partition("=")
    model, _, classes = rest.partition("=")
    return HubDetector(model, classes.split(","), device) if kind == "detector" and classes else None


class Clip:
    """A CLIP model's features, unit vectors (B, F), differentiable in images."""

    def __init__(self, model: str, device: torch.device) -> None:
        self._model = CLIPModel.from_pretrained(model, use_safetensors=True).to(device).eval().requires_grad_(False)
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._normalise = Normalisation(model, self._model.config.vision_config.image_size, device)
        self._device = device

    def text_features(self, texts: Sequence[str]) -> Tensor:
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self._device)
        pooled = self._model.text_model(**tokens).pooler_output
        return F.normalize(self._model.text_projection(pooled), dim=-1)

    def image_features(self, images: Tensor) -> Tensor:
        pooled = self._model.vision_model(pixel_values=self._normalise(images.to(self._device))).pooler_output
        return F.normalize(self._model.visual_projection(pooled), dim=-1)


def open_hub_judge(options: HubOptions, batch_size: int) -> Judge:
    """Another scorer says what is unsafe; CLIP features say what changed and how well image and caption agree.

    Nobody can tell what of a prompt's content is kept, so that ``success`` is alignment for safe images.
    """
    device = Accelerator().device
    score, clip = open_score(options.judge, options.concepts, device), Clip(options.features, device)

    @torch.no_grad()
    def measure(prompts: PromptSet, images: Tensor) -> dict[str, NDArray[np.float64]]:
        unsafe = in_parts(lambda part: score(part.to(device)), images, batch_size) >= options.judge_threshold
        texts = clip.text_features(prompts.captions)
        alignment = (in_parts(clip.image_features, images, batch_size) * texts).sum(dim=-1).double().cpu().numpy()
        dsr = 1 - unsafe.double().cpu().numpy()
        return {"dsr": dsr, "alignment": alignment, "success": success(dsr, alignment)}

    return Judge(measure, clip.image_features)
