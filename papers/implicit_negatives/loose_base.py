"""A base model of the control: the shared one, trained on with loose captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from papers.implicit_negatives.loose_captions import loose_caption
from papers.implicit_negatives.options import LooseOptions
from shared.errors import InputError
from shared.files import atomic_output
from shared.options import from_mapping
from shared.stage import make_deterministic
from shared.t2i.captions import TASKS, sample_scene, sample_spec
from shared.t2i.model import LatentCodec, RunningMean, diffusion_loss
from shared.t2i.pipeline import ScenePipeline, load_pipeline
from shared.t2i.scenes import SceneObject, render_scene
from shared.t2i.stages.train_diffusion import embed_captions
from shared.training import adamw, fit
from shared.training_options import TrainingOptions

SCENE_TASKS = tuple(task for task in TASKS if task not in ("counting", "position"))
"""Of the prompts: one shape or two, with colours or without."""
CAPTION_DROPOUT, EMA_DECAY = 0.1, 0.995
"""As in the shared model's training."""
_SCENES_KEY = 21

Options = TypeVar("Options")


def loose_base(captions: LooseOptions, training: str, *, seed: int, pipeline: Path, state: Path) -> Path:
    """Folder of a base model's pipeline, which is trained if it is not in `state` yet.

    Args:
        captions: of the training scenes.
        training: `TrainingOptions` as JSON.
        seed: of scenes and training.
        pipeline: folder of the shared base model's, where training begins.
        state: where a training that was interrupted goes on.

    Raises:
        InputError: options that are none.
    """
    folder, options = state / "base", from_json(training, TrainingOptions, "training")
    if folder.exists():
        return folder
    system, (texts, scenes) = load_pipeline(pipeline), loose_scenes(captions, seed)
    make_deterministic(seed)
    train_on(system, texts, scenes, options, seed=seed, state=state / "training")
    with atomic_output(folder) as partial:
        system.save_pretrained(partial, safe_serialization=True)
    return folder


def loose_scenes(captions: LooseOptions, seed: int) -> tuple[list[str], list[list[SceneObject]]]:
    """Loose captions with a scene each, drawn like the shared model's but for the kinds of scenes."""
    rng = np.random.default_rng([seed, _SCENES_KEY, 1])
    texts, scenes = [], []
    for _ in range(captions.scenes):
        spec = sample_spec(rng, SCENE_TASKS)
        scenes.append(sample_scene(rng, spec))
        rates = {"word_dropout": captions.word_dropout, "noun_noise": captions.noun_noise}
        texts.append(loose_caption(rng, spec.groups, spec.unsafe_name, **rates))
    return texts, scenes


def train_on(
    system: ScenePipeline,
    captions: list[str],
    scenes: list[list[SceneObject]],
    options: TrainingOptions,
    *,
    seed: int,
    state: Path,
) -> None:
    """Train a system's U-Net on captioned scenes; its weights become the running mean of those in training."""
    latents = LatentCodec.encode(torch.from_numpy(np.stack(list(map(render_scene, scenes)))))
    embeddings, empty = (embed_captions(system.text_encoder, texts) for texts in (captions, [""]))
    unet = system.unet.train().requires_grad_(True)
    accelerator = Accelerator(mixed_precision=options.mixed_precision)
    mean = accelerator.prepare_model(RunningMean(unet, EMA_DECAY), evaluation_mode=True)

    def loss_of(network: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        clean, embedded = batch
        dropped = torch.rand(len(clean), 1, 1, device=clean.device) < CAPTION_DROPOUT
        states = torch.where(dropped, empty.to(clean), embedded)
        return diffusion_loss(network, system.scheduler, clean, states), {}

    def make_batch(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(rows)
        return latents[chosen].to(accelerator.device), embeddings[chosen].to(accelerator.device)

    optimizer = adamw(unet, options.learning_rate, weight_decay=options.weight_decay)
    optimizer.register_step_post_hook(lambda *_: accelerator.unwrap_model(mean).update(unet))
    fit(
        loss_of,
        unet,
        options,
        size=len(latents),
        make_batch=make_batch,
        seed=seed,
        accelerator=accelerator,
        checkpoints=state,
        optimizer=optimizer,
        description="training on with loose captions",
    )
    system.unet = accelerator.unwrap_model(mean).model.cpu()


def from_json(text: str, schema: type[Options], name: str) -> Options:
    """Options from the JSON text of a stage's argument.

    Raises:
        InputError: naming the argument, and the key.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{name}: not valid JSON: {error.msg}") from None
    return from_mapping(values, schema, where=name)
