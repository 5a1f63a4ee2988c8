"""Tune: every candidate strength of some methods on development prompts of the tuning seed."""

from __future__ import annotations

import pandas as pd

from papers.lidar.options import SamplerOptions, ScenePromptOptions, TuneOptions
from papers.lidar.runs import Run, parse_run
from papers.lidar.sample import score_rows
from papers.lidar.testbed import SceneBench, Strength, open_bench
from shared.progress import Progress
from shared.stage import Input, Output, run
from shared.tables import write_table

SCORES = ("gold", "gold_share", "guidance_score", "evaluator_score")


def candidates(tried: Run, options: TuneOptions) -> list[Strength]:
    """The strengths that are tried: as many for every method.

    Raises:
        ValueError: a run without a strength.
    """
    if tried.kind in ("lidar", "exact"):
        scale = options.scale if tried.kind == "lidar" else 1.0
        return [Strength(scale, weight) for weight in options.reward_weights]
    grids = {
        "universal": options.universal_scales,
        "date": options.step_sizes,
        "smc": options.steering_weights,
        "renoised": options.renoising_steps,
    }
    if tried.kind not in grids:
        raise ValueError(f"tuned: {tried.name} has no strength of its own")
    return [Strength(float(value)) for value in grids[tried.kind]]


def try_strengths(bench: SceneBench, runs: tuple[str, ...], options: TuneOptions) -> pd.DataFrame:
    """Columns tuned, run, value, reward_weight (NaN but for LiDAR), and the mean of every score."""
    trials = [(each, strength) for each in map(parse_run, runs) for strength in candidates(each, options)]
    rows = []
    with Progress(len(trials), "tuning") as progress:
        for each, strength in trials:
            means = score_rows(bench, bench.sample_run(each, strength))[list(SCORES)].mean()
            label = {"tuned": each.tuned, "run": each.name, "value": strength.value}
            rows.append({**label, "reward_weight": strength.reward_weight, **means})
            progress.update()
    return pd.DataFrame(rows).astype({"reward_weight": "float64"})


def tune(
    sampler: SamplerOptions,
    prompts: ScenePromptOptions,
    options: TuneOptions,
    *,
    seed: int,
    runs: tuple[str, ...],
    pipeline: Input,
    guidance: Input,
    evaluator: Input,
    trials: Output,
) -> None:
    """Write the table of :func:`try_strengths`."""
    bench = open_bench(
        sampler,
        prompts_per_task=prompts.dev_prompts_per_task,
        seed=seed,
        split="dev",
        pipeline=pipeline,
        guidance=guidance,
        evaluator=evaluator,
    )
    write_table(trials, try_strengths(bench, runs, options))


if __name__ == "__main__":
    run(tune)
