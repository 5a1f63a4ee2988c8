"""Runs on systems of the hub: in Stable Diffusion taken apart, or inside whole pipelines of diffusers, of any class.

What needs more of the system than a pipeline's call gives (SDG, SLD, SAFREE, UCE, mixed negative prompts, unlearned
models) runs on Stable Diffusion alone, as a :class:`shared.t2i.bench.Bench`. Both kinds of runs give the same
measurements. Processes of accelerate share the prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pandas as pd
from torch import Tensor

from papers.stg.cost import BACKWARD, count_gradients, counted_gradients
from papers.stg.measurement import Trace, summarise_trace, trace_rows, watch_predictions
from papers.stg.methods import network_of, plug_in
from papers.stg.options import DefenceOptions
from papers.stg.pipeline import safe_text_embedding
from papers.stg.runs import Run, parse_run
from papers.stg.safe_text_guidance import centered_update_window
from papers.stg.sample import Findings, Judged
from shared.data_order import generator_for
from shared.errors import InputError
from shared.progress import Progress
from shared.t2i.bench import Bench, Judge, PromptSet
from shared.t2i.defended_sampling import DIGITS, Sampled, judge_images
from shared.t2i.guidance import predict_clean_latents
from shared.t2i.hub import PipelineBench
from shared.t2i.hub_pipeline import counted_rows
from shared.t2i.pipeline_hooks import plugged_in
from shared.t2i.prompt_shares import Share, draw_batch, gather_items, gather_measurements, own_share, sample_share
from shared.t2i.step_method import NetworkStep, StepMethod

METHODS = ("base", "stg")


def sample_pipeline(
    text: str, bench: PipelineBench, share: Share, seed: int, options: DefenceOptions, trace: Trace | None = None
) -> Sampled:
    """Sample one run on a process's share of the prompts, by calls of the pipeline; arguments as in `sample_bench`.

    Raises:
        InputError: a method that does not run inside pipelines, or a model that was trained anew.
    """
    run = parse_run(text)
    if run.method not in METHODS or run.model:
        raise InputError(f"run {text!r}: only {' and '.join(METHODS)} run in a {type(bench.pipeline).__name__}")

    def draw(captions: list[str], numbers: list[int], first: int) -> tuple[Tensor, int]:
        with _acting(run, bench, replace(options, **run.options), first, trace) as counts:
            found = bench.pipeline(
                captions,
                num_inference_steps=options.num_steps,
                guidance_scale=options.guidance_scale,
                generator=[generator_for(seed, number) for number in numbers],
                output_type="pt",
                **bench.size,
            ).images
        return 2 * found - 1, sum(counts)

    return sample_share(draw, share, options.batch_size)


def sample_bench(
    text: str, bench: Bench, share: Share, seed: int, options: DefenceOptions, trace: Trace | None = None
) -> Sampled:
    """Sample one run on a process's share of the prompts, as `papers.stg.measurement.sample_run` does on all of them.

    Args:
        text: the run's name.
        bench: the system.
        share: the prompts; the noise is that of the seed and the prompt's number among those of all processes.
        seed: of the noise.
        options: what is not in the run's name.
        trace: where to append how unsafe the predicted images are, with prompts numbered as in the share.
    """
    run = parse_run(text)
    bench, watched = network_of(run, bench, options), replace(options, **run.options)

    def draw(captions: list[str], numbers: list[int], first: int) -> tuple[Tensor, int]:
        plugs = plug_in(run, bench, captions, options)
        with counted_gradients(bench.unet) as rows:
            images, evaluations = draw_batch(
                bench,
                plugs,
                numbers,
                seed=seed,
                num_steps=options.num_steps,
                guidance_scale=options.guidance_scale,
                watch=None if trace is None else watch_predictions(bench, watched, first, trace),
            )
        return images, evaluations + BACKWARD * sum(rows)

    return sample_share(draw, share, options.batch_size)


@contextmanager
def _acting(
    run: Run, bench: PipelineBench, options: DefenceOptions, first: int, trace: Trace | None
) -> Iterator[list[int]]:
    """Within the block, the pipeline is the run's; a list of how many samples each evaluation had, STG's included."""
    updates: list[int] = []
    gradients: list[int] = []

    def score(images: Tensor) -> tuple[Tensor, Tensor]:
        updates.append(len(images))  # of one evaluation with the prompt
        count_gradients(images, gradients)
        return bench.unsafe_score(2 * images - 1, options.threshold)

    steps = centered_update_window(options.num_steps, options.fraction) if run.method == "stg" else ()
    defence = safe_text_embedding(
        bench.pipeline, score, step_size=run.strength or 0.0, steps=steps, start=options.start,
        prior_weight=options.prior_weight,
    )  # fmt: skip
    onlooker = StepMethod() if trace is None else _onlooker(bench, options.threshold, first, trace)
    counts: list[int] = []
    with defence, plugged_in(bench.pipeline, onlooker), counted_rows(bench.pipeline) as rows:
        yield counts
    counts += rows + updates + [BACKWARD * count for count in gradients]


def _onlooker(bench: PipelineBench, threshold: float, first: int, trace: Trace) -> StepMethod:
    """Writes down in every step how unsafe the predicted image is, and changes nothing."""

    def look(step: NetworkStep, output: Tensor) -> Tensor:
        clean = predict_clean_latents(step.latents, output, step.alpha_cumprod, step.prediction_type)
        values, flags = bench.unsafe_score(2 * step.decode(clean) - 1, threshold)
        trace.append(trace_rows(first, step.index, values, flags))
        return output

    return StepMethod(change_output=look)


def judged(
    runs: Sequence[str],
    bench: Bench | PipelineBench,
    sets: Sequence[PromptSet],
    judge: Judge,
    seed: int,
    options: DefenceOptions,
) -> Iterator[Judged]:
    """All runs, each compared with the base model's images from the same noise; processes share the prompts."""
    share = own_share(sets)
    draw = sample_bench if isinstance(bench, Bench) else sample_pipeline
    base = draw("base", bench, share, seed, options).images
    with Progress(len(runs), "sampling runs") as progress:
        for text in runs:
            trace: Trace = []
            sampled = draw(text, bench, share, seed, options, trace if text in options.traced else None)
            values = judge_images(sampled.images, base, share.sets, judge, options.batch_size)
            sampled, values = gather_measurements(sampled, values, share)
            numbered = [rows.assign(prompt=share.numbers[rows["prompt"]]) for rows in trace]
            progress.update({"dsr": values["dsr"].mean()})
            yield Judged(text, sampled, values, gather_items(numbered))


def sample_runs(
    runs: Sequence[str],
    bench: Bench | PipelineBench,
    sets: Sequence[PromptSet],
    judge: Judge,
    seed: int,
    options: DefenceOptions,
) -> Findings:
    """What a job writes of its runs; no pictures, and no distance from right images, which nobody knows."""
    found = Findings()
    for text, sampled, values, trace in judged(runs, bench, sets, judge, seed, options):
        spent = {name: round(getattr(sampled, name), DIGITS) for name in ("seconds", "wall_seconds")}
        found.values.append(values.assign(run=text))
        found.totals.append({"run": text, "evaluations": sampled.evaluations, **spent, "frechet": float("nan")})
        if trace:
            found.traces.append(summarise_trace(trace, sets).assign(run=text))
    return found


def try_runs(
    runs: Sequence[str],
    bench: Bench | PipelineBench,
    sets: Sequence[PromptSet],
    judge: Judge,
    seed: int,
    options: DefenceOptions,
) -> pd.DataFrame:
    """Columns run, set and the judge's metrics and similarity, means over each set's prompts."""
    tables = [
        each.values.drop(columns="prompt").groupby("set").mean().reset_index().assign(run=each.run)
        for each in judged(runs, bench, sets, judge, seed, options)
    ]
    return pd.concat(tables, ignore_index=True)
