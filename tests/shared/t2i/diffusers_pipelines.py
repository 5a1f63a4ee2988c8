"""Tiny random pipelines of diffusers, one of each class that the papers' cards name."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
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


def _vae(**options):
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.18215,
        **options,
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


def latent_consistency() -> DiffusionPipeline:
    torch.manual_seed(0)
    unet = _unet(time_cond_proj_dim=8)
    parts = (_vae(), None, None, unet, scheduler(LCMScheduler), None, None)
    return _quiet(LatentConsistencyModelPipeline(*parts, requires_safety_checker=False))


def stable_diffusion_3() -> DiffusionPipeline:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=10, pos_embed_max_size=8,
    )  # fmt: skip
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _quiet(StableDiffusion3Pipeline(transformer, flow, _vae(shift_factor=0.06), *[None] * 6))


def flux() -> DiffusionPipeline:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=10, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return _quiet(FluxPipeline(flow, _vae(shift_factor=0.06), *[None] * 4, transformer))


def pixart() -> DiffusionPipeline:
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=1, norm_num_groups=4, cross_attention_dim=24,
        caption_channels=12, sample_size=128,
    )  # fmt: skip
    return _quiet(PixArtAlphaPipeline(None, None, _vae(), transformer, scheduler()))


PIPELINES = (stable_diffusion, stable_diffusion_xl, latent_consistency, stable_diffusion_3, flux, pixart)


def network(pipeline):
    return getattr(pipeline, "unet", None) or pipeline.transformer


def _quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    for part in (network(pipeline), pipeline.vae):
        part.eval()
    return pipeline


POOLED = (StableDiffusionXLPipeline, StableDiffusion3Pipeline, FluxPipeline)
WITHOUT_NEGATIVE = (FluxPipeline, LatentConsistencyModelPipeline)


def embeddings(pipeline, count=2, *, seed=0):
    """Keyword arguments with random prompt embeddings instead of prompts."""
    generator = torch.Generator().manual_seed(seed)
    found = {
        "prompt_embeds": torch.randn(count, 5, 12, generator=generator),
        "negative_prompt_embeds": torch.randn(count, 5, 12, generator=generator),
    }
    if isinstance(pipeline, POOLED):
        found |= {
            "pooled_prompt_embeds": torch.randn(count, 10, generator=generator),
            "negative_pooled_prompt_embeds": torch.randn(count, 10, generator=generator),
        }
    if isinstance(pipeline, PixArtAlphaPipeline):
        mask = torch.ones(count, 5, dtype=torch.long)
        mask[0, 3:] = 0
        found |= {"prompt_attention_mask": mask, "negative_prompt_attention_mask": torch.ones_like(mask)}
    if isinstance(pipeline, WITHOUT_NEGATIVE):
        found = {name: value for name, value in found.items() if not name.startswith("negative")}
    return found


def draw(pipeline, *, seed=0, **options):
    """Final latents (2, 4, 8, 8) of two prompts."""
    if isinstance(pipeline, PixArtAlphaPipeline):
        options |= {"use_resolution_binning": False, "negative_prompt": None}
    latents = pipeline(
        **{
            **embeddings(pipeline),
            "num_inference_steps": 4,
            "guidance_scale": 3.0,
            "output_type": "latent",
            "height": 16,
            "width": 16,
            "generator": torch.Generator().manual_seed(seed),
            **options,
        },
    ).images
    return FluxPipeline._unpack_latents(latents, 16, 16, 2) if latents.ndim == 3 else latents


def load_without_text(monkeypatch):
    """Let `from_pretrained` load saved pipelines of this file, which lack parts that are not optional otherwise."""
    original = DiffusionPipeline.from_pretrained

    def load(folder, **options):
        index = json.loads((Path(folder) / "model_index.json").read_text())
        return original(folder, **{name: None for name, part in index.items() if part == [None, None]}, **options)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", load)


def encode_texts(pipeline):
    """Give a pipeline that lacks text encoders embeddings of its own for each text."""

    def rows(texts, *shape):
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(len(each))) for each in texts])

    def encode_prompt(prompt, *_, **__):
        states, pooled = rows(prompt, 5, 12), rows(prompt, 10)
        if isinstance(pipeline, FluxPipeline):
            return states, pooled, torch.zeros(5, 3)
        if isinstance(pipeline, StableDiffusion3Pipeline | StableDiffusionXLPipeline):
            return states, torch.zeros_like(states), pooled, torch.zeros_like(pooled)
        return states, torch.zeros_like(states)

    pipeline.encode_prompt = encode_prompt
    return pipeline
