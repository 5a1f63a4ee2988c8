"""Implicit negatives in any of diffusers' pipelines with a U-Net.

Pipelines take a learned embedding as they take a negative prompt, by name::

    images = pipeline(prompts, negative_prompt_embeds=negative.expand(len(prompts), -1, -1)).images

`safe_latent_diffusion` is for those that have no safe guidance of their own::

    with safe_latent_diffusion(pipeline, negative, safety_scale=1000.0, warmup_steps=10):
        images = pipeline(prompts, num_inference_steps=50, guidance_scale=7.5).images
"""

from contextlib import AbstractContextManager

from diffusers import DiffusionPipeline
from torch import Tensor

from shared.t2i.defences import sld
from shared.t2i.pipeline_hooks import plugged_in


def safe_latent_diffusion(
    pipeline: DiffusionPipeline,
    negative: Tensor,
    *,
    safety_scale: float = 1000.0,
    threshold: float = 0.01,
    warmup_steps: int = 10,
    momentum_scale: float = 0.3,
    momentum_beta: float = 0.4,
) -> AbstractContextManager[None]:
    """Within the block, runs of the pipeline are guided away from a negative by SLD (defaults: its preset medium).

    Args:
        pipeline: of diffusers, with `unet`, `vae` and `scheduler`; to be run with classifier-free guidance.
        negative: embedding of the concept, in words or learned, (1, L, D).
        safety_scale: s_S.
        threshold: λ_S.
        warmup_steps: δ, of the sampler's steps.
        momentum_scale: s_m.
        momentum_beta: β_m.

    Raises:
        ValueError: on entering, a pipeline without these parts; in a run, shapes that do not fit.
    """
    method = sld(
        negative.to(pipeline.unet.device, pipeline.unet.dtype),
        safety_scale=safety_scale,
        threshold=threshold,
        warmup_steps=warmup_steps,
        momentum_scale=momentum_scale,
        momentum_beta=momentum_beta,
    )
    return plugged_in(pipeline, method)
