"""Tiny random pipelines of diffusers: Stable Diffusion, and its larger sibling with pooled embeddings."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}


def scheduler(kind=DDIMScheduler, **options):
    extra = {"clip_sample": False, "set_alpha_to_one": False} if kind is DDIMScheduler else {}
    return kind(**SCHEDULE, **extra, **options)


def _vae():
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.18215,
    )


def _unet(**options):
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
        **options,
    )


def stable_diffusion(**scheduler_options) -> DiffusionPipeline:
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        _vae(), None, None, _unet(), scheduler(**scheduler_options), None, None, requires_safety_checker=False
    )
    return _quiet(pipeline)


def stable_diffusion_xl() -> DiffusionPipeline:
    torch.manual_seed(0)
    unet = _unet(
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + 10
    )
    return _quiet(StableDiffusionXLPipeline(_vae(), None, None, None, None, unet, scheduler()))


def _quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.eval()
    pipeline.vae.eval()
    return pipeline


def embeddings(pipeline, count=2, *, seed=0):
    """Keyword arguments with random prompt embeddings instead of prompts."""
    generator = torch.Generator().manual_seed(seed)
    found = {
        "prompt_embeds": torch.randn(count, 5, 12, generator=generator),
        "negative_prompt_embeds": torch.randn(count, 5, 12, generator=generator),
    }
    if isinstance(pipeline, StableDiffusionXLPipeline):
        found |= {
            "pooled_prompt_embeds": torch.randn(count, 10, generator=generator),
            "negative_pooled_prompt_embeds": torch.randn(count, 10, generator=generator),
        }
    return found


def draw(pipeline, *, seed=0, **options):
    """Final latents (2, 4, 8, 8) of two prompts."""
    return pipeline(
        **embeddings(pipeline),
        **{
            "num_inference_steps": 4,
            "guidance_scale": 3.0,
            "output_type": "latent",
            "height": 16,
            "width": 16,
            "generator": torch.Generator().manual_seed(seed),
            **options,
        },
    ).images
