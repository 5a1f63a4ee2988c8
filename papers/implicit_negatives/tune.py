"""Tune: every candidate strength, with the concept's words on the original model, on prompts of the tuning seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from papers.implicit_negatives.measurement import System, judged_runs
from papers.implicit_negatives.options import SOFT, GuidanceOptions
from papers.implicit_negatives.runs import parse_run
from papers.implicit_negatives.testbed import concept_set, open_judge, prompt_sets
from shared.errors import InputError
from shared.files import write_json
from shared.stage import Input, Output, run
from shared.t2i.bench import PromptSet
from shared.t2i.pipeline import load_pipeline
from shared.t2i.testbed import bench_of
from shared.tables import write_table


def tune(
    options: GuidanceOptions,
    *,
    seed: int,
    count: int,
    runs: tuple[str, ...],
    pipeline: Input,
    evaluator: Input,
    grid: Output,
    selection: Output,
) -> None:
    """Write what was tried, ``grid``, and ``selection``, the strength of every method."""
    system = System(bench_of(load_pipeline(pipeline), None, {}), open_judge(evaluator))
    sets = [part for part in prompt_sets(count, count, seed, "dev") if part.name != SOFT]
    try_all(runs, system, sets, concept_set(1), seed, options, grid, selection)


def try_all(
    runs: Sequence[str],
    system: System,
    sets: Sequence[PromptSet],
    concept: PromptSet,
    seed: int,
    options: GuidanceOptions,
    grid: Output,
    selection: Output,
) -> None:
    """Try runs on sets of prompts, and write the means over each, and the strengths selected by them."""
    tables = []
    for judged in judged_runs(runs, {}, system, sets, concept, seed, options):
        means = judged.values.drop(columns="prompt").groupby("set").mean().reset_index()
        tables.append(means.assign(run=judged.name))
    tried = pd.concat(tables, ignore_index=True)
    write_table(grid, tried)
    write_json(selection, select_strengths(runs, tried))


def select_strengths(runs: Sequence[str], tried: pd.DataFrame) -> Mapping[str, float]:
    """The strength of each method with the highest success, averaged over sets; of equal ones the first, the weakest.

    Args:
        runs: each method's, from weak to strong.
        tried: columns run, set, success.

    Raises:
        InputError: a run was not tried.
    """
    means, best = tried.groupby("run")["success"].mean(), {}
    for name in runs:
        if name not in means:
            raise InputError(f"run {name!r}: was not tried")
        method = parse_run(name).method
        if method not in best or means[name] > means[best[method]]:
            best[method] = name
    return {method: parse_run(name).strength for method, name in best.items()}


if __name__ == "__main__":
    run(tune)
