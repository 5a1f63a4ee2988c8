"""Unlearn: train the unsafe shape out of the diffusion model's attention weights, by DUO or ESD."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from shared.stage import Input, Output, State, run
from shared.t2i.model import TRAINING_TIMESTEPS, LatentCodec
from shared.t2i.options import UnlearnOptions
from shared.t2i.pipeline import ScenePipeline, load_pipeline
from shared.t2i.scenes import render_scene
from shared.t2i.testbed import CONCEPTS
from shared.t2i.unlearning import (
    adapter_of,
    attention_parameters,
    draw_pair,
    negative_guidance_loss,
    per_sample_error,
    preference_loss,
)
from shared.tables import write_table
from shared.training import fit

LARGEST_TIMESTEP = 750
"""DUO learns below it: at more noise, both images of a pair look alike."""

Batch = tuple[Tensor, Tensor, Tensor]


def unlearn(
    options: UnlearnOptions, *, seed: int, pipeline: Input, adapter: Output, curve: Output, state: State
) -> None:
    """Write what changes in ``pipeline``'s U-Net, as an adapter, and the training curve."""
    system = load_pipeline(pipeline)
    network = copy.deepcopy(system.unet)
    for parameter in attention_parameters(network, options.attention).values():
        parameter.requires_grad_(True)
    accelerator = Accelerator(mixed_precision=options.training.mixed_precision)
    system.to(accelerator.device)
    rng = np.random.default_rng([seed, 1])
    captions, unsafe, safe = zip(*(draw_pair(rng, options.replaced) for _ in range(options.pairs)), strict=True)
    pairs = [torch.from_numpy(np.stack([render_scene(scene) for scene in scenes])) for scenes in (safe, unsafe)]
    texts = captions if options.prompted else [""] * len(captions)
    data = (*map(LatentCodec.encode, pairs), system.embed(texts).cpu())
    objective = duo_loss if options.objective == "duo" else esd_loss
    trained, records = fit(
        lambda model, batch: objective(model, system, batch, options),
        network,
        options.training,
        size=options.pairs,
        make_batch=lambda rows: tuple(values[torch.tensor(rows)].to(accelerator.device) for values in data),
        seed=seed,
        accelerator=accelerator,
        checkpoints=state,
        description=f"unlearning by {options.objective}",
    )
    if not accelerator.is_main_process:
        return
    before, after = (
        attention_parameters(each, options.attention) for each in (system.unet, accelerator.unwrap_model(trained))
    )
    save_file(adapter_of(before, after, options.rank), adapter)
    write_table(curve, pd.DataFrame(records))


def duo_loss(
    network: nn.Module, system: ScenePipeline, batch: Batch, options: UnlearnOptions
) -> tuple[Tensor, dict[str, Tensor]]:
    """DUO's loss and its parts.

    Args:
        network: in training.
        system: with the frozen network.
        batch: latents of safe and of unsafe images (B, 12, 6, 6), and embeddings of their texts.
        options: of the loss.
    """
    safe, unsafe, embedding = batch
    noise = torch.randn_like(safe)
    timesteps = torch.randint(1, LARGEST_TIMESTEP, (len(safe),), device=safe.device)
    noisy = torch.cat([system.scheduler.add_noise(clean, noise, timesteps) for clean in (safe, unsafe)])
    inputs = {"timestep": timesteps.repeat(2), "encoder_hidden_states": embedding.repeat(2, 1, 1)}
    clean, last = torch.cat([safe, unsafe]), torch.full_like(timesteps, TRAINING_TIMESTEPS - 1)
    with torch.no_grad():
        reference = per_sample_error(system.unet(noisy, **inputs).sample, clean)
        at_noise = system.unet(noise, last, encoder_hidden_states=embedding).sample
    errors = per_sample_error(network(noisy, **inputs).sample, clean)
    preference = preference_loss(*errors.chunk(2), *reference.chunk(2), options.beta)
    prior = per_sample_error(network(noise, last, encoder_hidden_states=embedding).sample, at_noise).mean()
    return preference + options.prior_weight * prior, {"preference": preference, "prior": prior}


def esd_loss(
    network: nn.Module, system: ScenePipeline, batch: Batch, options: UnlearnOptions
) -> tuple[Tensor, dict[str, Tensor]]:
    """ESD's loss for the one name of the concept that is known, on noisy unsafe images; arguments as in `duo_loss`."""
    _, unsafe, _ = batch
    timesteps = torch.randint(TRAINING_TIMESTEPS, (len(unsafe),), device=unsafe.device)
    noisy = system.scheduler.add_noise(unsafe, torch.randn_like(unsafe), timesteps)
    concept, empty = (system.embed([text]).expand(len(unsafe), -1, -1) for text in (CONCEPTS[0], ""))
    with torch.no_grad():
        outputs = [system.denoise(noisy, timesteps, states) for states in (concept, empty)]
    output = network(noisy, timesteps, encoder_hidden_states=concept).sample
    return negative_guidance_loss(output, *outputs, options.negative_scale), {}


if __name__ == "__main__":
    run(unlearn)
