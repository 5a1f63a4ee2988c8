"""LiDAR in diffusers' pipelines: Stable Diffusion 1.5 to 3, SDXL, FLUX, PixArt-α, latent consistency models::

from papers.lidar.pipeline import draw_lookahead, lookahead_sampling

lookahead, rewards = draw_lookahead(pipeline, prompt, reward, scheduler=dpm_solver, num_inference_steps=5, count=50)
with lookahead_sampling(pipeline, lookahead, rewards, reward_weight=5000, scale=12.5):
    images = pipeline(prompt, num_images_per_prompt=4, num_inference_steps=100, eta=1.0).images
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from papers.lidar.methods import lookahead_guidance
from shared.t2i.pipeline_calls import unpack
from shared.t2i.pipeline_hooks import plugged_in

Reward = Callable[[Tensor, Sequence[str]], Tensor]
"""From images (B, 3, H, W) in [0, 1] and their B prompts to rewards (B,); it may be a black box."""


def lookahead_sampling(
    pipeline: DiffusionPipeline,
    lookahead: Tensor,
    rewards: Tensor,
    *,
    reward_weight: float = 5000.0,
    scale: float = 12.5,
    end_timestep: float = 200.0,
) -> AbstractContextManager[None]:
    """Within the block, runs of the pipeline are guided by the lookahead samples.

    Args:
        pipeline: of diffusers, as `shared.t2i.pipeline_hooks` lists them; its scheduler must not clip what is clean.
        lookahead: final latents of the prompt's lookahead samples, (n, C, H, W), or of each image's prompt,
            (B, n, C, H, W); as `draw_lookahead` gives them, or a pipeline with `output_type="latent"` (FLUX packs
            them: see `image_latents`).
        rewards: of these, (n,) or (B, n).
        reward_weight: λ; 5000 for Stable Diffusion v1.5 and ImageReward.
        scale: s.
        end_timestep: t_end, on the scale 0 to 999; with flow matching σ counts as 1000 σ.

    Raises:
        ValueError: on entering, a pipeline without these parts or one whose scheduler clips; in a run, as
            `lookahead_score`.
    """
    settings = pipeline.scheduler.config if getattr(pipeline, "scheduler", None) is not None else {}
    for name in ("clip_sample", "thresholding"):
        if settings.get(name, False):
            raise ValueError(f"pipeline: the scheduler's {name} would undo the guidance; switch it off")
    method = lookahead_guidance(lookahead, rewards, reward_weight=reward_weight, scale=scale, end_timestep=end_timestep)
    return plugged_in(pipeline, method)


@torch.no_grad()
def draw_lookahead(
    pipeline: DiffusionPipeline,
    prompt: str | dict[str, Any],
    reward: Reward,
    *,
    scheduler: Any,
    count: int,
    decode_batch: int = 8,
    batch_size: int = 50,
    generator: torch.Generator | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Lookahead samples of one prompt, (n, C, H, W), and their rewards (n,).

    Args:
        pipeline: of diffusers; its own scheduler is back in place afterwards.
        prompt: its text, or arguments of the pipeline that stand for it (`prompt_embeds`, ...) with the text, or what
            the reward wants instead of one, as `prompt`.
        reward: black box.
        scheduler: of the lookahead sampler, such as a `DPMSolverMultistepScheduler`.
        count: n.
        decode_batch: latents that are decoded and scored together.
        batch_size: samples that are drawn together.
        generator: of the noise.
        options: of the pipeline's call, such as `num_inference_steps` and `guidance_scale`.
    """
    if count < 1:
        raise ValueError(f"count: must be at least 1, got {count}")
    arguments = {"prompt": prompt} if isinstance(prompt, str) else dict(prompt)
    text = arguments["prompt"]
    if "prompt_embeds" in arguments:
        del arguments["prompt"]
    own, pipeline.scheduler = pipeline.scheduler, scheduler
    try:
        parts = [
            pipeline(
                **arguments,
                **options,
                num_images_per_prompt=min(batch_size, count - done),
                generator=generator,
                output_type="latent",
            ).images
            for done in range(0, count, batch_size)
        ]
    finally:
        pipeline.scheduler = own
    latents = image_latents(pipeline, torch.cat(parts), options.get("height"), options.get("width"))
    rewards = [reward(decode_images(pipeline, part), [text] * len(part)) for part in latents.split(decode_batch)]
    return latents, torch.cat(rewards)


def image_latents(
    pipeline: DiffusionPipeline, latents: Tensor, height: int | None = None, width: int | None = None
) -> Tensor:
    """A pipeline's final latents as (B, C, H, W): those of FLUX, packed by squares of four, are unpacked.

    Args:
        pipeline: of diffusers.
        latents: (B, C, H, W), or (B, H W / 4, 4 C).
        height: of the images in pixels; None: the pipeline's own.
        width: likewise.
    """
    if latents.ndim == 4:
        return latents
    squares = [(side or pipeline.default_sample_size * pipeline.vae_scale_factor) for side in (height, width)]
    rows, columns = (side // (2 * pipeline.vae_scale_factor) for side in squares)
    return unpack(latents, rows, columns)


def decode_images(pipeline: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] of a pipeline's latents, in the precision of its VAE."""
    vae = pipeline.vae
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    scaled = latents.to(vae.dtype) / vae.config.scaling_factor + shift
    return (vae.decode(scaled, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)
