"""Train the latent diffusion model of scenes under a frozen text encoder, and look at what it draws."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared.data_order import chunks
from shared.stage import Input, Output, State, run
from shared.t2i.captions import WordTokenizer, caption_of
from shared.t2i.metrics import by_task, gold_accuracy
from shared.t2i.model import LatentCodec, RunningMean, build_scheduler, build_unet, diffusion_loss, embed_tokens
from shared.t2i.networks import load_network
from shared.t2i.options import DiffusionOptions
from shared.t2i.pipeline import ScenePipeline, load_pipeline
from shared.t2i.prompts import mini_geneval
from shared.t2i.sampling import initial_noise
from shared.t2i.scene_table import read_scenes
from shared.t2i.scorer import DualEncoderScorer
from shared.t2i.sheets import save_sheet
from shared.tables import write_table
from shared.training import adamw, fit

SHEET_PROMPTS_PER_TASK = 8
CHECK_SEED = 1000
"""Of the prompts and noise of sheets and check: development prompts that nothing else uses."""


def train_diffusion(
    options: DiffusionOptions,
    *,
    seed: int,
    scenes: Input,
    conditioner: Input,
    pipeline: Output,
    curve: Output,
    sheets: Output,
    state: State,
) -> dict[str, float | bool]:
    """Train on ``scenes``, with captions embedded by the text encoder of ``conditioner``.

    ``sheets`` is a folder of sample sheets, a row for each task; during training they are in ``state/sheets``. The
    share of right images on development prompts goes into the record.
    """
    captions, images = read_scenes(scenes)
    text_encoder = load_network(conditioner, DualEncoderScorer).text_model
    embeddings, empty = embed_captions(text_encoder, captions), embed_captions(text_encoder, [""])
    latents = LatentCodec.encode(images)

    training = options.training
    accelerator = Accelerator(mixed_precision=training.mixed_precision)
    unet, scheduler = build_unet(options.unet, seed=seed), build_scheduler()
    mean = accelerator.prepare_model(RunningMean(unet, options.ema_decay), evaluation_mode=True)
    sampler = ScenePipeline(
        accelerator.unwrap_model(mean).model, text_encoder.to(accelerator.device), build_scheduler()
    )
    drawn = state / "sheets"  # here a resumed training finds those from before
    drawn.mkdir(parents=True, exist_ok=True)

    def after_step(*_: object) -> None:
        average = accelerator.unwrap_model(mean)
        average.update(unet)
        if int(average.updates) % options.sheet_every == 0 and accelerator.is_main_process:
            draw_sheet(drawn / f"step-{int(average.updates):05d}.png", sampler, options)

    def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        clean, embedded = batch
        dropped = torch.rand(len(clean), 1, 1, device=clean.device) < options.caption_dropout
        return diffusion_loss(model, scheduler, clean, torch.where(dropped, empty.to(clean), embedded)), {}

    def make_batch(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(rows)
        return latents[chosen].to(accelerator.device), embeddings[chosen].to(accelerator.device)

    optimizer = adamw(unet, training.learning_rate, weight_decay=training.weight_decay)
    optimizer.register_step_post_hook(after_step)
    _, records = fit(
        loss_of,
        unet,
        training,
        size=len(latents),
        make_batch=make_batch,
        seed=seed,
        accelerator=accelerator,
        checkpoints=state,
        optimizer=optimizer,
        description="training the diffusion model",
    )
    if not accelerator.is_main_process:
        return {}
    write_table(curve, pd.DataFrame(records))
    shutil.copytree(drawn, sheets)
    for network in (sampler.unet, sampler.text_encoder):
        network.half()
    sampler.save_pretrained(pipeline, safe_serialization=True)
    return check(load_pipeline(pipeline), options)


def embed_captions(text_encoder: nn.Module, captions: list[str]) -> Tensor:
    """Text embeddings (N, 12, 64) of captions."""
    ids = WordTokenizer().encode(captions)
    return torch.cat([embed_tokens(text_encoder, ids[rows]) for rows in chunks(np.arange(len(ids)), 1024)])


def draw_sheet(path: Path, sampler: ScenePipeline, options: DiffusionOptions) -> None:
    """Sample the same prompts from the same noise each time, a row for each task."""
    specs = mini_geneval(SHEET_PROMPTS_PER_TASK, CHECK_SEED, "dev")
    save_sheet(path, _sampled(sampler, [caption_of(spec) for spec in specs], options), columns=SHEET_PROMPTS_PER_TASK)


def check(sampler: ScenePipeline, options: DiffusionOptions) -> dict[str, float | bool]:
    """Share of right images on development prompts, by task and over all; says so where that is out of range."""
    specs = mini_geneval(options.prompts_per_task, CHECK_SEED, "dev")
    accuracy = by_task(specs, gold_accuracy(specs, _sampled(sampler, [caption_of(spec) for spec in specs], options)))
    found = {f"gold_accuracy_{task}": value for task, value in accuracy.items()}
    if options.gold_range is None:
        return found
    low, high = options.gold_range
    suitable = low <= accuracy["all"] <= high
    if not suitable:
        print(f"warning: gold accuracy: methods need it in [{low}, {high}], got {accuracy['all']:.3f}", file=sys.stderr)
    return found | {"gold_accuracy_suitable": suitable}


def _sampled(sampler: ScenePipeline, captions: list[str], options: DiffusionOptions) -> Tensor:
    noise = initial_noise(CHECK_SEED, range(len(captions)))
    return sampler(captions, noise, num_steps=options.num_steps, guidance_scale=options.guidance_scale)


if __name__ == "__main__":
    run(train_diffusion)
