"""Text-to-image pipelines of the hub, of whatever class their `model_index.json` names, ready to be differentiated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState
from diffusers import DDIMScheduler, DiffusionPipeline, LCMScheduler
from torch import nn

from shared.errors import InputError
from shared.t2i.options import PipelineOptions
from shared.t2i.pipeline_calls import is_flow
from shared.t2i.pipeline_hooks import network_of


def open_pipeline(options: PipelineOptions) -> DiffusionPipeline:
    """The pipeline of the options, as `prepare_pipeline` leaves it, on this process's GPU where there is one.

    Raises:
        InputError: as there.
    """
    precision: torch.dtype | dict[str, torch.dtype] = getattr(torch, options.precision)
    if options.half_parts:
        precision = {"default": precision} | dict.fromkeys(options.half_parts, torch.bfloat16)
    pipeline = DiffusionPipeline.from_pretrained(options.model, torch_dtype=precision, use_safetensors=True)
    prepare_pipeline(pipeline, options)
    return pipeline.to(PartialState().device)


def prepare_pipeline(pipeline: DiffusionPipeline, options: PipelineOptions) -> None:
    """Freeze the networks, choose the scheduler, save memory as asked for; no safety checker and no progress bar.

    DDIM ends at the least noise of training. The safety checker would blank images.

    Raises:
        InputError: DDIM for a model that it cannot sample from.
    """
    if options.scheduler == "ddim":
        if is_flow(pipeline.scheduler) or isinstance(pipeline.scheduler, LCMScheduler):
            raise InputError(f"scheduler: {options.model} cannot be sampled from by DDIM, only by its own")
        own = pipeline.scheduler.config
        pipeline.scheduler = DDIMScheduler.from_config(own, set_alpha_to_one=False, clip_sample=False)
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    if options.gradient_checkpointing:
        network_of(pipeline).enable_gradient_checkpointing()
        pipeline.vae.enable_gradient_checkpointing()
    if options.vae_slicing:
        pipeline.vae.enable_slicing()
    if options.vae_tiling:
        pipeline.vae.enable_tiling()
    pipeline.set_progress_bar_config(disable=True)


def image_size(options: PipelineOptions) -> dict[str, int]:
    """Arguments of a pipeline's call for the size of its images."""
    return {"height": options.size, "width": options.size} if options.size else {}


@contextmanager
def counted_rows(pipeline: DiffusionPipeline) -> Iterator[list[int]]:
    """Within the block, the list grows by the rows of the batch each time the pipeline calls its network.

    What methods evaluate besides does not count.
    """
    rows: list[int] = []

    def count(network: nn.Module, arguments: tuple[object, ...], found: object) -> None:
        rows.append(len(found[0]))

    handle = network_of(pipeline).register_forward_hook(count)
    try:
        yield rows
    finally:
        handle.remove()
