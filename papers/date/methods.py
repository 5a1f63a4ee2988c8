"""What each variant does in a sampler step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from papers.date.text_embedding_guidance import adapt_text_embedding, normalized_ascent_step
from papers.date.variants import Variant
from shared.data_order import generator_for
from shared.t2i.flow_matching import flow_step
from shared.t2i.guidance import predict_noise
from shared.t2i.pipeline_calls import is_flow, signal_level
from shared.t2i.step_method import EmbeddingUpdate, NetworkStep

Evaluate = Callable[[Tensor], Tensor]
"""h: decoded images (B, ...) -> rewards (B,)."""


def weighted_sum(rewards: Mapping[str, Evaluate], weights: Mapping[str, float]) -> Evaluate:
    """Several rewards as one: the sum of those that have a weight, each times its weight."""
    return lambda images: sum(weight * rewards[name](images) for name, weight in weights.items())


def embedding_update(
    variant: Variant,
    strength: float,
    evaluate: Evaluate,
    *,
    scheduler: Any,
    seed: int,
    rows: Sequence[int],
    num_updates: int = 1,
    prior_weight: float = 0.0,
) -> EmbeddingUpdate:
    """How a variant moves the text embedding in a step of its schedule.

    Args:
        variant: of kind `date` or `random`.
        strength: the length of its steps; with `normalize` off, the factor of the gradient.
        evaluate: the reward that is followed.
        scheduler: of the sampler, which tells where its next step leads.
        seed: of random directions.
        rows: (B,), the prompts' numbers, so that random directions do not depend on the batch.
        num_updates: K, of kind `date`.
        prior_weight: λ, of kind `date`.
    """

    def follow(step: NetworkStep, embedding: Tensor, anchor: Tensor) -> Tensor:
        if variant.scores_noisy:
            step = scoring_noisy(step, scheduler)
        adapted, _ = adapt_text_embedding(
            step.denoise,
            evaluate,
            step.latents,
            embedding,
            **step.guidance,
            step_size=strength,
            anchor_embedding=anchor,
            start=variant.start,
            num_updates=num_updates,
            prior_weight=prior_weight,
            normalize=variant.normalize,
        )
        return adapted

    def wander(step: NetworkStep, embedding: Tensor, anchor: Tensor) -> Tensor:
        directions = [torch.randn(anchor.shape[1:], generator=generator_for(seed, row, step.index)) for row in rows]
        return normalized_ascent_step(embedding, torch.stack(directions).to(embedding), strength)

    return {"date": follow, "random": wander}[variant.kind]


def scoring_noisy(step: NetworkStep, scheduler: Any) -> NetworkStep:
    """The step with the next noisy latents decoded, and so scored, in place of the clean prediction."""
    next_alpha = next_signal_level(scheduler, step.index)

    def decode(clean: Tensor) -> Tensor:
        return step.decode(next_noisy_latents(clean, step.latents, step.alpha_cumprod, next_alpha))

    return step._replace(decode=decode)


def next_signal_level(scheduler: Any, index: int) -> float:
    """ᾱ after the step of this index; of flow matching that of the latents scaled to unit variance."""
    if is_flow(scheduler):
        sigma = float(scheduler.sigmas[index + 1])
        return flow_step(sigma).alpha_cumprod if sigma else 1.0
    later = scheduler.timesteps[index + 1 :]
    if len(later):
        return signal_level(scheduler.alphas_cumprod, float(later[0]))
    return float(getattr(scheduler, "final_alpha_cumprod", 1.0))


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
