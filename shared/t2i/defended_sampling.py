"""Sampling sets of prompts under a defence, and what is measured of the images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from shared.t2i.bench import Bench, Judge, Meter, PromptSet, in_parts
from shared.t2i.defences import Plugs
from shared.t2i.metrics import feature_similarity
from shared.t2i.sampling import StepCallback, initial_noise, sample
from shared.t2i.step_method import sampler_hooks

DIGITS = 4
"""Decimals that tables keep of measured values."""


class Sampled(NamedTuple):
    """What a run sampled.

    Attributes:
        images: (N, 3, H, W) on the CPU, of all sets one after another.
        evaluations: of the denoiser for each image.
        seconds: of processor time for each image; on a GPU that of the process which waits for it.
        wall_seconds: of the whole run.
    """

    images: Tensor
    evaluations: float
    seconds: float
    wall_seconds: float


def sample_sets(
    bench: Bench,
    sets: Sequence[PromptSet],
    plug_in: Callable[[Sequence[str]], Plugs],
    *,
    seed: int,
    num_steps: int,
    guidance_scale: float,
    batch_size: int,
    watch: Callable[[int], StepCallback] | None = None,
) -> Sampled:
    """Images of all prompts, which start from the same noise in every run of a seed.

    Args:
        bench: the system with the U-Net that is sampled from.
        sets: of prompts.
        plug_in: from the captions of a batch to the defence.
        seed: of the noise.
        num_steps: of the sampler.
        guidance_scale: w.
        batch_size: prompts that are sampled together.
        watch: from the number of a batch's first prompt to what looks on.
    """
    captions = [caption for part in sets for caption in part.captions]
    noises = initial_noise(seed, range(len(captions)), bench.latent_shape)
    meter, images = Meter(bench.denoise), []
    started, processor = time.perf_counter(), time.process_time()
    for first in range(0, len(captions), batch_size):
        rows = slice(first, first + batch_size)
        plugs = plug_in(captions[rows])
        embeddings = (plugs.cond_embedding, plugs.uncond_embedding)
        batch = sample(
            meter,
            bench.scheduler,
            *embeddings,
            initial_noise=noises[rows].to(plugs.cond_embedding),
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            decode=bench.decode,
            step_callback=watch(first) if watch else None,
            **sampler_hooks(
                plugs.method, meter, *embeddings, prediction_type=bench.prediction_type, decode=bench.decode
            ),
        )
        images.append(batch.float().cpu())
    count = len(captions)
    return Sampled(
        torch.cat(images),
        meter.evaluations / count,
        (time.process_time() - processor) / count,
        time.perf_counter() - started,
    )


def judge_images(
    images: Tensor, base: Tensor, sets: Sequence[PromptSet], judge: Judge, batch_size: int
) -> pd.DataFrame:
    """Values of every image: columns set, prompt, the judge's metrics, and ``similarity``.

    The last is of features with those of the base model's image from the same noise, 1 where a defence changes nothing
    (the papers' prior preservation).

    Args:
        images: of all sets, one after another.
        base: the base model's.
        sets: of prompts.
        judge: of images.
        batch_size: images whose features are computed together.
    """
    features = [in_parts(judge.features, each, batch_size) for each in (images, base)]
    similarity = feature_similarity(*features).double().cpu().numpy()
    tables = []
    for part, rows in rows_of(sets):
        values = judge.measure(part, images[rows]) | {"similarity": similarity[rows]}
        tables.append(pd.DataFrame({"set": part.name, "prompt": range(len(part.captions)), **values}))
    return pd.concat(tables, ignore_index=True).round(DIGITS)


def rows_of(sets: Sequence[PromptSet]) -> list[tuple[PromptSet, slice]]:
    """Where each set's images are among those of all."""
    found, first = [], 0
    for part in sets:
        found.append((part, slice(first, first + len(part.captions))))
        first += len(part.captions)
    return found


def first_images(images: Tensor, sets: Sequence[PromptSet], count: int) -> Tensor:
    """The first images of every set, uint8 (sets x count, 3, H, W), set by set."""
    firsts = torch.cat([images[rows][:count] for _, rows in rows_of(sets)])
    return ((firsts.clamp(-1, 1) + 1) * 127.5).round().byte()
