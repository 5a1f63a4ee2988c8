"""STG and the base model inside whole pipelines of diffusers, of any class, where defences cannot reach the network.

What needs more of the system than a pipeline's call gives (SDG, SLD, SAFREE, UCE, mixed negative prompts) runs on
Stable Diffusion alone, as a :class:`shared.t2i.bench.Bench`. Both kinds of runs give the same measurements.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from papers.stg.measurement import Trace, sample_run, summarise_trace
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
from shared.t2i.step_method import NetworkStep, StepMethod

METHODS = ("base", "stg")


def sample_pipeline(
    text: str,
    bench: PipelineBench,
    sets: Sequence[PromptSet],
    seed: int,
    options: DefenceOptions,
    trace: Trace | None = None,
) -> Sampled:
    """As `papers.stg.measurement.sample_run`; the noise is that of the seed and the prompt's number here, too.

    Raises:
        InputError: a method that does not run inside pipelines, or a model that was trained anew.
    """
    run = parse_run(text)
    if run.method not in METHODS or run.model:
        raise InputError(f"run {text!r}: only {' and '.join(METHODS)} run in a {type(bench.pipeline).__name__}")
    captions = [caption for part in sets for caption in part.captions]
    images, evaluations = [], 0
    started, processor = time.perf_counter(), time.process_time()
    for first in range(0, len(captions), options.batch_size):
        batch = captions[first : first + options.batch_size]
        with _acting(run, bench, replace(options, **run.options), first, trace) as counts:
            found = bench.pipeline(
                batch,
                num_inference_steps=options.num_steps,
                guidance_scale=options.guidance_scale,
                generator=[generator_for(seed, first + number) for number in range(len(batch))],
                output_type="pt",
                **bench.size,
            ).images
        evaluations += sum(counts)
        images.append(2 * found.float().cpu() - 1)
    count = len(captions)
    return Sampled(
        torch.cat(images),
        evaluations / count,
        (time.process_time() - processor) / count,
        time.perf_counter() - started,
    )


@contextmanager
def _acting(
    run: Run, bench: PipelineBench, options: DefenceOptions, first: int, trace: Trace | None
) -> Iterator[list[int]]:
    """Within the block, the pipeline is the run's; a list of how many samples each evaluation had, STG's included."""
    updates: list[int] = []

    def score(images: Tensor) -> tuple[Tensor, Tensor]:
        updates.append(len(images))  # of one evaluation with the prompt
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
    counts += rows + updates


def _onlooker(bench: PipelineBench, threshold: float, first: int, trace: Trace) -> StepMethod:
    """Writes down in every step how unsafe the predicted image is, and changes nothing."""

    def look(step: NetworkStep, output: Tensor) -> Tensor:
        clean = predict_clean_latents(step.latents, output, step.alpha_cumprod, step.prediction_type)
        values, flags = bench.unsafe_score(2 * step.decode(clean) - 1, threshold)
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
        return output

    return StepMethod(change_output=look)


Draw = Callable[[str, Trace | None], Sampled]
"""From a run's name, and where to append its trace, to what it samples on fixed prompts and noise."""


def drawing(bench: Bench | PipelineBench, sets: Sequence[PromptSet], seed: int, options: DefenceOptions) -> Draw:
    """How runs are sampled on a system of either kind."""
    sample = sample_run if isinstance(bench, Bench) else sample_pipeline
    return lambda text, trace: sample(text, bench, sets, seed, options, trace)


def judged(
    runs: Sequence[str], draw: Draw, sets: Sequence[PromptSet], judge: Judge, options: DefenceOptions
) -> Iterator[Judged]:
    """All runs, each compared with the base model's images from the same noise."""
    base = draw("base", None).images
    with Progress(len(runs), "sampling runs") as progress:
        for text in runs:
            trace: Trace = []
            sampled = draw(text, trace if text in options.traced else None)
            values = judge_images(sampled.images, base, sets, judge, options.batch_size)
            progress.update({"dsr": values["dsr"].mean()})
            yield Judged(text, sampled, values, trace)


def sample_runs(
    runs: Sequence[str], draw: Draw, sets: Sequence[PromptSet], judge: Judge, options: DefenceOptions
) -> Findings:
    """What a job writes of its runs; no pictures, and no distance from right images, which nobody knows."""
    found = Findings()
    for text, sampled, values, trace in judged(runs, draw, sets, judge, options):
        spent = {name: round(getattr(sampled, name), DIGITS) for name in ("seconds", "wall_seconds")}
        found.values.append(values.assign(run=text))
        found.totals.append({"run": text, "evaluations": sampled.evaluations, **spent, "frechet": float("nan")})
        if trace:
            found.traces.append(summarise_trace(trace, sets).assign(run=text))
    return found


def try_runs(
    runs: Sequence[str], draw: Draw, sets: Sequence[PromptSet], judge: Judge, options: DefenceOptions
) -> pd.DataFrame:
    """Columns run, set and the judge's metrics and similarity, means over each set's prompts."""
    tables = [
        each.values.drop(columns="prompt").groupby("set").mean().reset_index().assign(run=each.run)
        for each in judged(runs, draw, sets, judge, options)
    ]
    return pd.concat(tables, ignore_index=True)
