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
        return watch_predictions(bench, replace(options, **run.options), first, trace)

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


def watch_predictions(bench: Bench, options: DefenceOptions, first: int, trace: Trace) -> StepCallback:
    """A step callback that writes down how unsafe the predicted images of prompts from number `first` on are."""

    def watch(step: Step, output: Tensor) -> None:
        clean = predict_clean_latents(step.latents, output, step.alpha_cumprod, bench.prediction_type)
        trace.append(trace_rows(first, step.index, *bench.unsafe_score(bench.decode(clean), options.threshold)))

    return watch


def trace_rows(first: int, step: int, values: Tensor, flags: Tensor) -> pd.DataFrame:
    """Rows of a trace: unsafe values and flags (B,) of the predicted images of B prompts in one step."""
    return pd.DataFrame(
        {
            "prompt": range(first, first + len(values)),
            "step": step,
            "value": values.float().cpu().numpy(),
            "flagged": flags.cpu().numpy().astype(float),
        }
    )


def summarise_trace(trace: Trace, sets: Sequence[PromptSet]) -> pd.DataFrame:
    """Means over the prompts of each set of a run's trace: columns set, step, value, flagged."""
    names = [part.name for part in sets for _ in part.captions]
    steps = pd.concat(trace, ignore_index=True)
    named = steps.assign(set=[names[prompt] for prompt in steps["prompt"]])
    return named.groupby(["set", "step"])[["value", "flagged"]].mean().round(DIGITS).reset_index()
