"""Defences that act on a sampler without training, as what they change in it: the embeddings, and two hooks.

Each knows the concept by an embedding, whether of words or learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shared.t2i.bench import Bench
from shared.t2i.guidance import predict_clean_latents, predict_noise
from shared.t2i.safe_latent_diffusion import safe_latent_diffusion_guidance
from shared.t2i.sampling import Denoiser, EmbeddingHook, OutputHook, Step
from shared.t2i.token_filtering import PUBLISHED_STEPS, filtered_step_limit, safree_token_projection


class Plugs(NamedTuple):
    """What a run gives to `shared.t2i.sampling.sample`."""

    cond_embedding: Tensor
    uncond_embedding: Tensor
    embedding_hook: EmbeddingHook | None = None
    output_hook: OutputHook | None = None


def negative_prompt(uncond: Tensor, concept: Tensor, share: float) -> Tensor:
    """What takes the unconditional embedding's place (1, L, D): a mixture with the concept's, all of it at share 1."""
    return torch.lerp(uncond, concept, share)


def sld_hook(
    denoise: Denoiser,
    prediction_type: str,
    concept: Tensor,
    *,
    safety_scale: float,
    threshold: float,
    warmup_steps: int,
    momentum_scale: float,
    momentum_beta: float,
) -> OutputHook:
    """SLD away from the concept's embedding (1, L, D); options as in `safe_latent_diffusion_guidance`."""
    momentum: Tensor | None = None

    def guide(step: Step, cond_output: Tensor, guided_output: Tensor) -> Tensor:
        nonlocal momentum
        unsafe_output = denoise(step.latents, step.timestep, concept.expand(len(step.latents), -1, -1))
        noises = [
            predict_noise(step.latents, output, step.alpha_cumprod, prediction_type)
            for output in (step.uncond_output, cond_output, unsafe_output)
        ]
        noise, momentum = safe_latent_diffusion_guidance(
            *noises,
            momentum,
            step=step.index,
            guidance_scale=step.guidance_scale,
            safety_scale=safety_scale,
            threshold=threshold,
            warmup_steps=warmup_steps,
            momentum_scale=momentum_scale,
            momentum_beta=momentum_beta,
        )
        return output_of_noise(step, noise, prediction_type)

    return guide


def filtered_prompts(
    bench: Bench, captions: Sequence[str], concepts: Tensor, *, alpha: float, num_steps: int | None = None,
    word: Tensor | None = None,
) -> tuple[Tensor, EmbeddingHook | None]:  # fmt: skip
    """SAFREE's filtered embeddings (B, L, D), and a hook that uses them in the first steps only.

    Args:
        bench: the system.
        captions: B prompts.
        concepts: (m, D), pooled embeddings of the concept.
        alpha: of the trigger rule; a lower one takes more tokens for triggers.
        num_steps: of the sampler; None: the filtered embeddings are used in all steps, and there is no hook.
        word: the placeholder's embedding, where captions hold one.
    """
    cond = bench.text.embed(captions, word)
    masked = [bench.text.masked_pooled(caption, word) for caption in captions]
    filtered = torch.stack(
        [safree_token_projection(each, rows, concepts, alpha)[0] for each, rows in zip(cond, masked, strict=True)]
    )
    if num_steps is None:
        return filtered, None
    limits = [self_validation_steps(each, rows, concepts, num_steps) for each, rows in zip(cond, masked, strict=True)]
    last = torch.tensor(limits, device=cond.device).view(-1, 1, 1)
    return filtered, lambda step, _: torch.where(step.index <= last, filtered, cond)


def self_validation_steps(
    embedding: Tensor, masked_pooled: Tensor, concepts: Tensor, num_steps: int, *, sharpness: float = 2.5,
    offset: float = 5.333,
) -> int:  # fmt: skip
    """The last step in which SAFREE uses its filtered embedding, by `filtered_step_limit` of the content tokens.

    Args:
        embedding: (L, D), of one prompt.
        masked_pooled: (n, D), as in `safree_token_projection`.
        concepts: (m, D).
        num_steps: of the sampler; the published rule, for 50 steps, is scaled to it.
        sharpness: k.
        offset: t_0.
    """
    projected, _ = safree_token_projection(embedding, masked_pooled, concepts, alpha=-1.0)  # all tokens are triggers
    content = torch.zeros(len(embedding), dtype=torch.bool, device=embedding.device)
    content[1 : len(masked_pooled) + 1] = True
    return filtered_step_limit(
        embedding, projected, content, max_steps=10 * num_steps / PUBLISHED_STEPS, midpoint=offset, slope=sharpness
    )


def output_of_noise(step: Step, noise: Tensor, prediction_type: str) -> Tensor:
    """The network's output that stands for a noise ε at a step: the inverse of `predict_noise`."""
    if prediction_type == "epsilon":
        return noise
    clean = predict_clean_latents(step.latents, noise, step.alpha_cumprod, "epsilon")
    if prediction_type == "sample":
        return clean
    alpha = step.alpha_cumprod
    return math.sqrt(alpha) * noise - math.sqrt(1 - alpha) * clean
