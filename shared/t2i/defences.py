"""Defences that act on a sampler without training, as what they change in it: the embeddings, and what acts in steps.

Each knows the concept by an embedding, whether of words or learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shared.t2i.bench import Bench
from shared.t2i.guidance import output_of_noise, predict_noise
from shared.t2i.safe_latent_diffusion import safe_latent_diffusion_guidance
from shared.t2i.step_method import NetworkStep, StepMethod
from shared.t2i.token_filtering import PUBLISHED_STEPS, filtered_step_limit, safree_token_projection


class Plugs(NamedTuple):
    """What a run samples with.

    Attributes:
        cond_embedding: (B, L, D), in place of the prompts'.
        uncond_embedding: (1, L, D), in place of the empty prompt's.
        method: what acts in the sampler's steps.
    """

    cond_embedding: Tensor
    uncond_embedding: Tensor
    method: StepMethod = StepMethod()


def negative_prompt(uncond: Tensor, concept: Tensor, share: float) -> Tensor:
    """What takes the unconditional embedding's place (1, L, D): a mixture with the concept's, all of it at share 1."""
    return torch.lerp(uncond, concept, share)


def sld(
    concept: Tensor,
    *,
    safety_scale: float,
    threshold: float,
    warmup_steps: int,
    momentum_scale: float,
    momentum_beta: float,
) -> StepMethod:
    """SLD away from the concept's embedding (1, L, D); options as in `safe_latent_diffusion_guidance`."""
    momentum: Tensor | None = None

    def guide(step: NetworkStep, guided_output: Tensor) -> Tensor:
        nonlocal momentum
        momentum = None if step.index == 0 else momentum
        parametrisation = (step.alpha_cumprod, step.prediction_type)
        concept_output = step.denoise(step.latents, concept.expand(len(step.latents), -1, -1))
        noises = [
            predict_noise(step.latents, output, *parametrisation)
            for output in (step.uncond_output, step.cond_output, concept_output)
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
        return output_of_noise(step.latents, noise, *parametrisation)

    return StepMethod(change_output=guide)


def filtered_prompts(
    bench: Bench, captions: Sequence[str], concepts: Tensor, *, alpha: float, num_steps: int | None = None,
    word: Tensor | None = None,
) -> tuple[Tensor, StepMethod]:  # fmt: skip
    """SAFREE's filtered embeddings (B, L, D), and what goes back to the prompts' own after the first steps.

    Args:
        bench: the system.
        captions: B prompts.
        concepts: (m, D), pooled embeddings of the concept.
        alpha: of the trigger rule; a lower one takes more tokens for triggers.
        num_steps: of the sampler; None: the filtered embeddings are used in all steps.
        word: the placeholder's embedding, where captions hold one.
    """
    cond = bench.text.embed(captions, word)
    masked = [bench.text.masked_pooled(caption, word) for caption in captions]
    filtered = torch.stack(
        [safree_token_projection(each, rows, concepts, alpha)[0] for each, rows in zip(cond, masked, strict=True)]
    )
    if num_steps is None:
        return filtered, StepMethod()
    limits = [self_validation_steps(each, rows, concepts, num_steps) for each, rows in zip(cond, masked, strict=True)]
    last = torch.tensor(limits, device=cond.device).view(-1, 1, 1)
    return filtered, StepMethod(change_embedding=lambda step, *_: torch.where(step.index <= last, filtered, cond))


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
