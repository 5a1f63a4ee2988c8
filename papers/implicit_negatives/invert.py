"""Invert: on each model, the embedding that draws the concept, and another one with which it is attacked."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from papers.implicit_negatives.concept_inversion import (
    PredictNoise,
    concept_inversion_loss,
    invert_concept,
    starting_word,
)
from papers.implicit_negatives.options import InversionOptions, UceOptions
from papers.implicit_negatives.runs import BASE
from papers.implicit_negatives.sample import LEARNED, SOFT_ATTACK, open_models
from papers.implicit_negatives.testbed import concept_latents
from shared.data_order import generator_for
from shared.stage import Input, Output, run
from shared.t2i.bench import Bench
from shared.t2i.guidance import predict_noise
from shared.t2i.text_encoding import PLACEHOLDER
from shared.tables import write_table

HELD_OUT = 64
"""Images of the concept on which losses are compared; from a third seed."""
KINDS = (LEARNED, SOFT_ATTACK)


def invert(
    options: InversionOptions,
    uce: UceOptions,
    *,
    seed: int,
    pipeline: Input,
    unlearned: tuple[Input, ...],
    models: tuple[str, ...],
    words: Output,
    curves: Output,
    losses: Output,
) -> None:
    """Write what was learned, ``concept.<model>`` and ``attack.<model>``, and how.

    The attack learns from other images and draws than the negative, so that no defence knows it. ``curves`` has the
    columns model, kind, step, loss; ``losses`` model, embedding (concept or word), loss on held-out images.
    """
    bench, learned, steps, compared = open_models(pipeline, models, unlearned, uce), {}, [], []
    for index, model in enumerate(models):
        system = bench.on(None if model == BASE else model)
        for kind in KINDS:
            draw = (seed, index, KINDS.index(kind))
            # A soft attack has its word in a sentence: it always learns a token.
            target = options.inversion_target if kind == LEARNED else "token"
            value, curve = invert_on(system, concept_latents(options.inversion_images, draw), options, target, draw)
            learned[f"{kind}.{model}"] = value.contiguous()
            steps.append(pd.DataFrame({"model": model, "kind": kind, "step": range(len(curve)), "loss": curve}))
        draw = (seed, index, len(KINDS))
        held_out, found = concept_latents(HELD_OUT, draw), learned[f"{LEARNED}.{model}"]
        for name, embedding in (
            (LEARNED, embedding_of(system, found).detach()),
            ("word", system.text.embed(system.concepts[:1])[0]),
        ):
            loss = loss_of(system, held_out, embedding, draw, options.inversion_first_timestep)
            compared.append({"model": model, "embedding": name, "loss": loss})
    save_file(learned, words)
    write_table(curves, pd.concat(steps, ignore_index=True).astype({"loss": "float32", "step": "int32"}))
    write_table(losses, pd.DataFrame(compared))


def invert_on(
    bench: Bench, latents: Tensor, options: InversionOptions, target: str, draw: Sequence[int]
) -> tuple[Tensor, list[float]]:
    """What was learned from latents of the concept, on the CPU, and the loss of every step.

    Args:
        bench: the system, with the model's U-Net.
        latents: (M, C, H, W), of images of the concept.
        options: of the inversion.
        target: `token`: a token's embedding (D); `hidden`: the text encoder's output (L, D).
        draw: numbers that seed all draws.
    """
    text, curve = bench.text, []
    word = starting_word(text.table)
    start = word if target == "token" else text.embed([PLACEHOLDER], word)[0].float()
    learned = invert_concept(
        noise_predictor(bench),
        lambda value: embedding_of(bench, value),
        start,
        latents,
        bench.scheduler.alphas_cumprod.to(latents.device),
        steps=options.inversion_steps,
        batch_size=options.inversion_batch_size,
        learning_rate=options.inversion_rate,
        generator=generator_for(*draw),
        first_timestep=options.inversion_first_timestep,
        on_step=lambda step, loss: curve.append(loss),
    )
    return learned.float().cpu(), curve


def embedding_of(bench: Bench, value: Tensor) -> Tensor:
    """c (L, D) of what is learned: through the text encoder for a token (D); as it is otherwise."""
    text = bench.text
    return text.states(text.tokenize([PLACEHOLDER]), value)[0] if value.ndim == 1 else value


def noise_predictor(bench: Bench) -> PredictNoise:
    """ε_θ' of a batch with timesteps (B,), whatever the network predicts; in the network's precision."""
    precision = next(bench.unet.parameters()).dtype
    levels = bench.scheduler.alphas_cumprod

    def predict(noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        output = bench.denoise(noisy.to(precision), timesteps, condition.to(precision)).to(noisy)
        return predict_noise(noisy, output, levels.to(noisy)[timesteps], bench.prediction_type)

    return predict


@torch.no_grad()
def loss_of(bench: Bench, latents: Tensor, embedding: Tensor, draw: Sequence[int], first_timestep: int) -> float:
    """The inversion loss of an embedding (L, D) on latents, at timesteps spread evenly from `first_timestep` on."""
    levels = bench.scheduler.alphas_cumprod.to(latents.device)
    timesteps = torch.linspace(first_timestep, len(levels) - 1, len(latents), device=latents.device).long()
    noise = torch.randn(latents.shape, generator=generator_for(*draw)).to(latents)
    return float(concept_inversion_loss(noise_predictor(bench), latents, noise, timesteps, levels, embedding))


if __name__ == "__main__":
    run(invert)
