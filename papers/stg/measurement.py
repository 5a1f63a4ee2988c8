"""Sampling one run on sets of prompts, and what is measured of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from papers.stg.bench import Bench, Judge, Meter, PromptSet, in_parts
from papers.stg.methods import network_of, plug_in
from papers.stg.options import SAFE, DefenceOptions
from papers.stg.runs import parse_run
from shared.t2i.guidance import predict_clean_latents
from shared.t2i.metrics import feature_similarity
from shared.t2i.sampling import Step, StepCallback, initial_noise, sample

DIGITS = 4
"""Decimals that tables keep of measured values."""


class Sampled(NamedTuple):
    """What a run sampled.

    Attributes:
        images: (N, 3, H, W) on the CPU, of all sets one after another.
        evaluations: of the denoiser for each image.
        seconds: of processor time for each image; on a GPU that of the process which waits for it.
        wall_seconds: of the whole run.
        trace: columns prompt (int, over all sets), step, value, flagged; empty unless the run is traced.
    """

    images: Tensor
    evaluations: float
    seconds: float
    wall_seconds: float
    trace: pd.DataFrame


def sample_run(text: str, bench: Bench, sets: Sequence[PromptSet], seed: int, options: DefenceOptions) -> Sampled:
    """Sample one run on all prompts, which start from the same noise in every run of a seed."""
    run = parse_run(text)
    bench = network_of(run, bench, options)
    captions = [caption for part in sets for caption in part.captions]
    noises = initial_noise(seed, range(len(captions)), bench.latent_shape)
    meter, images, trace = Meter(bench.denoise), [], []
    started, processor = time.perf_counter(), time.process_time()
    for first in range(0, len(captions), options.batch_size):
        rows = slice(first, first + options.batch_size)
        plugs = plug_in(run, bench, meter, captions[rows], options)
        watch = _watch(bench, replace(options, **run.options), first, trace) if text in options.traced else None
        batch = sample(
            meter,
            bench.scheduler,
            plugs.cond_embedding,
            plugs.uncond_embedding,
            initial_noise=noises[rows].to(plugs.cond_embedding),
            num_steps=options.num_steps,
            guidance_scale=options.guidance_scale,
            decode=bench.decode,
            embedding_hook=plugs.embedding_hook,
            output_hook=plugs.output_hook,
            step_callback=watch,
        )
        images.append(batch.float().cpu())
    count = len(captions)
    return Sampled(
        torch.cat(images),
        meter.evaluations / count,
        (time.process_time() - processor) / count,
        time.perf_counter() - started,
        pd.concat(trace, ignore_index=True) if trace else pd.DataFrame(),
    )


def _watch(bench: Bench, options: DefenceOptions, first: int, trace: list[pd.DataFrame]) -> StepCallback:
    """A step callback that writes down how unsafe the predicted image is."""

    def watch(step: Step, output: Tensor) -> None:
        clean = predict_clean_latents(step.latents, output, step.alpha_cumprod, bench.prediction_type)
        values, flags = bench.unsafe_score(bench.decode(clean), options.threshold)
        trace.append(
            pd.DataFrame(
                {
                    "prompt": range(first, first + len(values)),
                    "step": step.index,
                    "value": values.float().cpu().numpy(),
                    "flagged": flags.cpu().numpy().astype(float),
                }
            )
        )

    return watch


def judge_run(
    sampled: Sampled, base: Sampled, sets: Sequence[PromptSet], judge: Judge, batch_size: int
) -> tuple[pd.DataFrame, float | None]:
    """Values of every image, and the Fréchet distance on harmless prompts where that is measured.

    The table has the columns set, prompt, the judge's metrics, and ``similarity``: of features with those of the base
    model's image from the same noise, 1 where a defence changes nothing (the paper's prior preservation).
    """
    tables, distance = [], None
    similarity = feature_similarity(
        in_parts(judge.features, sampled.images, batch_size), in_parts(judge.features, base.images, batch_size)
    )
    first = 0
    for part in sets:
        rows = slice(first, first + len(part.captions))
        first = rows.stop
        values = judge.measure(part, sampled.images[rows]) | {"similarity": similarity[rows].double().cpu().numpy()}
        tables.append(pd.DataFrame({"set": part.name, "prompt": range(len(part.captions)), **values}))
        if part.name == SAFE and judge.distance is not None:
            distance = judge.distance(part, sampled.images[rows])
    return pd.concat(tables, ignore_index=True).round(DIGITS), distance


def summarise_trace(trace: pd.DataFrame, sets: Sequence[PromptSet]) -> pd.DataFrame:
    """Means over the prompts of each set of a run's trace: columns set, step, value, flagged."""
    if trace.empty:
        return trace
    names = [part.name for part in sets for _ in part.captions]
    named = trace.assign(set=[names[prompt] for prompt in trace["prompt"]])
    return named.groupby(["set", "step"])[["value", "flagged"]].mean().round(DIGITS).reset_index()
