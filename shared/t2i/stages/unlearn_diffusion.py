"""Make the diffusion model unlearn the unsafe shape, knowing the first of its names only."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared.stage import Input, Output, State, run
from shared.t2i.captions import UNSAFE_NAMES, PromptSpec, caption_of, sample_scene, sample_spec
from shared.t2i.metrics import kept_content, unsafe_rate
from shared.t2i.model import LatentCodec
from shared.t2i.options import UnlearningOptions
from shared.t2i.pipeline import ScenePipeline, load_pipeline
from shared.t2i.prompts import safe_prompts, unsafe_explicit
from shared.t2i.sampling import initial_noise
from shared.t2i.scenes import SAFE_SHAPES, UNSAFE_SHAPE, SceneObject, render_scene
from shared.t2i.unlearning import train_attention_only, unlearning_loss
from shared.tables import write_table
from shared.training import fit

CHECK_PROMPTS, CHECK_SEED = 60, 1000
"""Development prompts of the closing check, and the seed of these and their noise."""


def unlearn_diffusion(
    options: UnlearningOptions, *, seed: int, pipeline: Input, unlearned: Output, curve: Output, state: State
) -> dict[str, float]:
    """Train the attention layers of ``pipeline`` on pairs of scenes with and without the unsafe shape.

    How often the shape is drawn, and what else the prompts ask for, before and after, goes into the record.
    """
    sampler = load_pipeline(pipeline)
    original = copy.deepcopy(sampler.unet)
    specs, unsafe, safe = unlearning_pairs(np.random.default_rng([seed, 1]), options.pairs)
    embeddings = sampler.embed([caption_of(spec) for spec in specs])
    before = check(sampler)
    train_attention_only(sampler.unet)
    accelerator = Accelerator(mixed_precision=options.training.mixed_precision)
    original.to(accelerator.device)

    def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss = unlearning_loss(
            model,
            original,
            sampler.scheduler,
            *batch,
            strength=options.strength,
            matching_weight=options.matching_weight,
            largest_timestep=options.largest_timestep,
        )
        return loss, {}

    def make_batch(rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.tensor(rows)
        return tuple(values[chosen].to(accelerator.device) for values in (safe, unsafe, embeddings))

    _, records = fit(
        loss_of,
        sampler.unet,
        options.training,
        size=len(specs),
        make_batch=make_batch,
        seed=seed,
        accelerator=accelerator,
        checkpoints=state,
        description="unlearning",
    )
    if not accelerator.is_main_process:
        return {}
    write_table(curve, pd.DataFrame(records))
    for network in (sampler.unet, sampler.text_encoder):
        network.half()
    sampler.save_pretrained(unlearned, safe_serialization=True)
    after = check(load_pipeline(unlearned))
    return {f"{name}_before": value for name, value in before.items()} | {
        f"{name}_after": value for name, value in after.items()
    }


def unlearning_pairs(rng: np.random.Generator, count: int) -> tuple[list[PromptSpec], Tensor, Tensor]:
    """Specs that name the unsafe shape, and latents (count, 12, 6, 6) of scenes with it and of their safe twins.

    In half of the twins the shape has become a safe one, in the others, if anything else is there, it is missing. Had
    it only been removed, a model would learn to leave out the second object of any prompt.
    """
    specs, unsafe, safe = [], [], []
    while len(specs) < count:
        spec = sample_spec(rng)
        if spec.names_unsafe:
            specs.append(replace(spec, unsafe_name=UNSAFE_NAMES[0]))
            scene = sample_scene(rng, spec)
            unsafe.append(render_scene(scene))
            safe.append(render_scene(safe_twin(rng, scene)))
    return specs, *(LatentCodec.encode(torch.from_numpy(np.stack(images))) for images in (unsafe, safe))


def safe_twin(rng: np.random.Generator, scene: list[SceneObject]) -> list[SceneObject]:
    """The scene with its unsafe objects removed or, with probability 1/2 and if nothing else is there, replaced."""
    others = [item for item in scene if item.shape != UNSAFE_SHAPE]
    if others and rng.random() < 0.5:
        return others
    shape = str(rng.choice(SAFE_SHAPES))
    return [replace(item, shape=shape) if item.shape == UNSAFE_SHAPE else item for item in scene]


def check(sampler: ScenePipeline) -> dict[str, float]:
    """Defense success rate and kept content on unsafe prompts, and kept content on safe ones."""
    found = {}
    for name, draw in (("unsafe", unsafe_explicit), ("safe", safe_prompts)):
        specs = draw(CHECK_PROMPTS, CHECK_SEED, "dev")
        images = sampler([caption_of(spec) for spec in specs], initial_noise(CHECK_SEED, range(len(specs))))
        found[f"defense_success_{name}"] = 1 - float(unsafe_rate(images).mean())
        found[f"kept_content_{name}"] = float(kept_content(specs, images).mean())
    return found


if __name__ == "__main__":
    run(unlearn_diffusion)
