"""DATE and Universal Guidance as hooks of the testbed's sampler (`shared.t2i.sampling.sample`)."""

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor

from papers.date.text_embedding_guidance import adapt_text_embedding, data_space_guidance
from shared.t2i.hooks import PREDICTION_TYPE, as_output, conditional_output, noise_prediction
from shared.t2i.model import LatentCodec
from shared.t2i.sampling import Denoiser, EmbeddingHook, OutputHook, Step

Reward = Callable[[Tensor], Tensor]
"""From images (B, 3, 12, 12) in about [-1, 1] to (B,)."""


def adaptive_embedding_hook(
    denoiser: Denoiser, evaluate: Reward, *, steps: Collection[int], step_size: float, **options: Any
) -> EmbeddingHook:
    """Updates of DATE in some steps of one run of the sampler.

    Args:
        denoiser: of the sampler.
        evaluate: the reward, of the prompts of the run.
        steps: indices of sampler steps.
        step_size: ρ; the norm of the testbed's embeddings is 27.7.
        options: start, num_updates, prior_weight and normalize of `adapt_text_embedding`.
    """
    anchor: list[Tensor] = []

    def hook(step: Step, embedding: Tensor) -> Tensor:
        if step.index == 0:
            anchor[:] = [embedding]
        if step.index not in steps:
            return embedding
        adapted, _ = adapt_text_embedding(
            conditional_output(denoiser, step),
            evaluate,
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
        return adapted

    return hook


def universal_guidance_hook(
    denoiser: Denoiser,
    evaluate: Reward,
    cond_embedding: Tensor,
    uncond_embedding: Tensor,
    *,
    steps: Collection[int],
    scale: float,
) -> OutputHook:
    """Universal Guidance in some steps of one run of the sampler, which has these embeddings."""

    def hook(step: Step, cond_output: Tensor, guided_output: Tensor) -> Tensor:
        if step.index not in steps:
            return guided_output
        noise, _ = data_space_guidance(
            noise_prediction(denoiser, step, cond_embedding, uncond_embedding),
            evaluate,
            step.latents,
            alpha_cumprod=step.alpha_cumprod,
            scale=scale,
            decode=LatentCodec.decode,
        )
        return as_output(step, noise)

    return hook
