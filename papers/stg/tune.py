"""Tune: every strength of a method's grid on development prompts of the tuning seed."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from papers.stg.options import SOLO, DefenceOptions
from papers.stg.sample import judged_runs
from papers.stg.testbed import DRAWS, open_judge, prompt_sets
from shared.stage import Input, Output, run
from shared.t2i.bench import Bench, Judge, PromptSet
from shared.t2i.testbed import open_testbed
from shared.tables import write_table

TUNED_ON = tuple(name for name in DRAWS if name != SOLO)
"""The sets of prompts by which strengths are selected: those with something to keep."""


def tune(
    options: DefenceOptions,
    *,
    seed: int,
    count: int,
    runs: tuple[str, ...],
    pipeline: Input,
    detector: Input,
    evaluator: Input,
    judge_detector: Input,
    development: Output,
) -> None:
    """Write the columns run, set, dsr, kept, similarity, success, means over ``count`` prompts of each set."""
    bench = open_testbed(pipeline, detector, {})
    judge = open_judge(evaluator, judge_detector, seed)
    write_table(development, try_all(runs, bench, prompt_sets(count, seed, "dev", TUNED_ON), judge, seed, options))


def try_all(
    runs: Sequence[str], bench: Bench, sets: Sequence[PromptSet], judge: Judge, seed: int, options: DefenceOptions
) -> pd.DataFrame:
    """Means over each set's prompts of the values of all runs."""
    tables = []
    for judged in judged_runs(runs, bench, sets, judge, seed, options):
        means = judged.values.drop(columns="prompt").groupby("set").mean().reset_index()
        tables.append(means.assign(run=judged.run))
    wanted = ["run", "set", "dsr", "kept", "similarity", "success"]
    found = pd.concat(tables, ignore_index=True)
    return found[[name for name in wanted if name in found]]


if __name__ == "__main__":
    run(tune)
