"""What each variant does in a sampler step."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from papers.date.text_embedding_guidance import adapt_text_embedding, normalized_ascent_step
from papers.date.variants import Variant
from shared.data_order import generator_for
from shared.t2i.guidance import predict_noise
from shared.t2i.step_method import EmbeddingUpdate, NetworkStep

Evaluate = Callable[[Tensor], Tensor]
"""h: decoded images (B, ...) -> rewards (B,)."""


def embedding_update(
    variant: Variant, strength: float, evaluate: Evaluate, *, seed: int, rows: Sequence[int]
) -> EmbeddingUpdate:
    """How a variant moves the text embedding in a step of its schedule.

    Args:
        variant: of kind `date` or `random`.
        strength: the length of its steps; with `normalize` off, the factor of the gradient.
        evaluate: the reward that is followed.
        seed: of random directions.
        rows: (B,), the prompts' numbers, so that random directions do not depend on the batch.
    """

    def follow(step: NetworkStep, embedding: Tensor, anchor: Tensor) -> Tensor:
        adapted, _ = adapt_text_embedding(
            step.denoise,
            evaluate,
            step.latents,
            embedding,
            **step.guidance,
            step_size=strength,
            anchor_embedding=anchor,
            start=variant.start,
            normalize=variant.normalize,
        )
        return adapted

    def wander(step: NetworkStep, embedding: Tensor, anchor: Tensor) -> Tensor:
        directions = [torch.randn(anchor.shape[1:], generator=generator_for(seed, row, step.index)) for row in rows]
        return normalized_ascent_step(embedding, torch.stack(directions).to(embedding), strength)

    return {"date": follow, "random": wander}[variant.kind]


def next_noisy_latents(clean: Tensor, latents: Tensor, alpha_cumprod: float, next_alpha_cumprod: float) -> Tensor:
    """Where DDIM's deterministic step leads: √ᾱ' x̄0 + √(1-ᾱ') ε, with the noise ε that x̄0 leaves in x.

    Args:
        clean: x̄0, (B, C, H, W).
        latents: x, (B, C, H, W).
        alpha_cumprod: ᾱ < 1 of x.
        next_alpha_cumprod: ᾱ' of the next step.
    """
    noise = predict_noise(latents, clean, alpha_cumprod, "sample")
    return next_alpha_cumprod**0.5 * clean + (1 - next_alpha_cumprod) ** 0.5 * noise
