"""Sampling one run on sets of prompts, and what is measured of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from torch import Tensor

from papers.stg.cost import BACKWARD, counted_gradients
from papers.stg.methods import network_of, plug_in
from papers.stg.options import DefenceOptions
from papers.stg.runs import parse_run
from shared.t2i.bench import Bench, PromptSet
from shared.t2i.defended_sampling import DIGITS, Sampled, sample_sets
from shared.t2i.guidance import predict_clean_latents
from shared.t2i.sampling import Step, StepCallback

Trace = list[pd.DataFrame]
"""Tables with the columns prompt (int, over all sets), step, value, flagged."""


def sample_run(
    text: str, bench: Bench, sets: Sequence[PromptSet], seed: int, options: DefenceOptions, trace: Trace | None = None
) -> Sampled:
    """Sample one run on all prompts; backward passes count in its evaluations, as `papers.stg.cost` says.

    Args:
        text: the run's name.
        bench: the system.
        sets: of prompts.
        seed: of the noise.
        options: what is not in the run's name.
        trace: where to append how unsafe the predicted image is in every step; None: nowhere.
    """
    run = parse_run(text)
    bench = network_of(run, bench, options)

    def watch(first: int) -> StepCallback:
        return _watch(bench, replace(options, **run.options), first, trace)

    with counted_gradients(bench.unet) as rows:
        sampled = sample_sets(
            bench,
            sets,
            lambda captions: plug_in(run, bench, captions, options),
            seed=seed,
            num_steps=options.num_steps,
            guidance_scale=options.guidance_scale,
            batch_size=options.batch_size,
            watch=watch if trace is not None else None,
        )
    return sampled._replace(evaluations=sampled.evaluations + BACKWARD * sum(rows) / len(sampled.images))


def _watch(bench: Bench, options: DefenceOptions, first: int, trace: Trace) -> StepCallback:
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


def summarise_trace(trace: Trace, sets: Sequence[PromptSet]) -> pd.DataFrame:
    """Means over the prompts of each set of a run's trace: columns set, step, value, flagged."""
    names = [part.name for part in sets for _ in part.captions]
    steps = pd.concat(trace, ignore_index=True)
    named = steps.assign(set=[names[prompt] for prompt in steps["prompt"]])
    return named.groupby(["set", "step"])[["value", "flagged"]].mean().round(DIGITS).reset_index()
