"""Tune: every candidate strength of some variants on the testbed's development prompts."""

from __future__ import annotations

import pandas as pd

from papers.date.drawn import Bench
from papers.date.options import SamplerOptions, ScenePromptOptions, TuneOptions
from papers.date.testbed import open_testbed
from papers.date.variants import Variant, parse_variant
from shared.stage import Input, Output, run
from shared.tables import write_table


def candidates(variant: Variant, options: TuneOptions) -> tuple[float, ...]:
    """The strengths that are tried: as many for every method.

    The gradient that is not normalised is not tuned. One trial, with the factor 1, tells how long its steps are, and
    the factor is chosen so that they are as long as DATE's.
    """
    if not variant.normalize:
        return (1.0,)
    grids = {"universal": options.universal_scales, "ebca": options.energy_rates}
    return grids.get(variant.kind, options.step_sizes)


def try_strengths(bench: Bench, variants: tuple[str, ...], options: TuneOptions) -> pd.DataFrame:
    """Columns variant, strength, step_length (mean over updates), and the mean of every score and measure of sets."""
    rows = []
    for variant in map(parse_variant, variants):
        for strength in candidates(variant, options):
            drawn = bench.draw(variant, strength)
            lengths = drawn.steps["length"]
            means = {metric: float(values.mean()) for metric, values in drawn.scores.items()}
            moved = float(lengths[lengths > 0].mean()) if (lengths > 0).any() else 0.0
            rows.append({"variant": variant.name, "strength": strength, "step_length": moved, **means, **drawn.sets})
    return pd.DataFrame(rows)


def tune(
    sampler: SamplerOptions,
    prompts: ScenePromptOptions,
    options: TuneOptions,
    *,
    seed: int,
    variants: tuple[str, ...],
    pipeline: Input,
    guidance: Input,
    preference: Input,
    plain: Input,
    evaluator: Input,
    trials: Output,
) -> None:
    """Write the table of :func:`try_strengths`."""
    bench = open_testbed(
        sampler,
        prompts,
        seed=seed,
        split="dev",
        pipeline=pipeline,
        guidance=guidance,
        preference=preference,
        plain=plain,
        evaluator=evaluator,
    )
    write_table(trials, try_strengths(bench, variants, options))


if __name__ == "__main__":
    run(tune)
