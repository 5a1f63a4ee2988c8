"""STG, safe data guidance and safe latent diffusion as hooks of the testbed's sampler (`shared.t2i.sampling.sample`).

A negative prompt needs no hook: the embedding of the concept takes the place of the unconditional one.
"""

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor

from papers.stg.safe_text_guidance import guide_text_embedding, safe_data_guidance, safe_latent_diffusion_guidance
from shared.t2i.hooks import PREDICTION_TYPE, as_noise, as_output, conditional_output, noise_prediction
from shared.t2i.model import LatentCodec
from shared.t2i.sampling import Denoiser, EmbeddingHook, OutputHook, Step

UnsafeScore = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From images (B, 3, 12, 12) in about [-1, 1] to values (B,), higher is less safe, and flags (B,) bool."""


def safe_embedding_hook(
    denoiser: Denoiser,
    unsafe_score: UnsafeScore,
    *,
    steps: Collection[int],
    step_size: float,
    on_flags: Callable[[Step, Tensor], None] = lambda step, flags: None,
    **options: Any,
) -> EmbeddingHook:
    """Updates of STG in some steps of one run of the sampler.

    Args:
        denoiser: of the sampler.
        unsafe_score: of images.
        steps: indices of sampler steps; see `centered_update_window`.
        step_size: ρ; the norm of the testbed's embeddings is 27.7.
        on_flags: called with the flags (B,) in each of the steps.
        options: start and prior_weight of `guide_text_embedding`.
    """
    anchor: list[Tensor] = []

    def hook(step: Step, embedding: Tensor) -> Tensor:
        if step.index == 0:
            anchor[:] = [embedding]
        if step.index not in steps:
            return embedding
        guided, flags, _ = guide_text_embedding(
            conditional_output(denoiser, step),
            unsafe_score,
            step.latents,
            embedding,
            uncond_output=step.uncond_output,
            guidance_scale=step.guidance_scale,
            alpha_cumprod=step.alpha_cumprod,
            step_size=step_size,
            prediction_type=PREDICTION_TYPE,
            decode=LatentCodec.decode,
            anchor_embedding=anchor[0],
            **options,
        )
        on_flags(step, flags)
        return guided

    return hook


def safe_data_guidance_hook(
    denoiser: Denoiser,
    unsafe_score: UnsafeScore,
    cond_embedding: Tensor,
    uncond_embedding: Tensor,
    *,
    steps: Collection[int],
    scale: float,
) -> OutputHook:
    """Safe data guidance in some steps of one run of the sampler, which has these embeddings."""

    def hook(step: Step, cond_output: Tensor, guided_output: Tensor) -> Tensor:
        if step.index not in steps:
            return guided_output
        noise, flags, _ = safe_data_guidance(
            noise_prediction(denoiser, step, cond_embedding, uncond_embedding),
            unsafe_score,
            step.latents,
            alpha_cumprod=step.alpha_cumprod,
            scale=scale,
            decode=LatentCodec.decode,
        )
        return as_output(step, noise).where(flags.view(-1, 1, 1, 1), guided_output)

    return hook


def safe_latent_diffusion_hook(
    denoiser: Denoiser,
    concept_embedding: Tensor,
    *,
    safety_scale: float,
    threshold: float,
    warmup_steps: int,
    momentum_scale: float,
    momentum_beta: float,
) -> OutputHook:
    """Safe latent diffusion in one run of the sampler; concept_embedding (1, L, D), options as in
    `safe_latent_diffusion_guidance`."""
    momentum: list[Tensor | None] = [None]

    def hook(step: Step, cond_output: Tensor, guided_output: Tensor) -> Tensor:
        unsafe_output = denoiser(step.latents, step.timestep, concept_embedding.expand(len(cond_output), -1, -1))
        noise, momentum[0] = safe_latent_diffusion_guidance(
            as_noise(step, step.uncond_output),
            as_noise(step, cond_output),
            as_noise(step, unsafe_output),
            None if step.index == 0 else momentum[0],
            step=step.index,
            guidance_scale=step.guidance_scale,
            safety_scale=safety_scale,
            threshold=threshold,
            warmup_steps=warmup_steps,
            momentum_scale=momentum_scale,
            momentum_beta=momentum_beta,
        )
        return as_output(step, noise)

    return hook
