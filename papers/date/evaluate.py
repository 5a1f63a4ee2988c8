"""Evaluate: from judged images to the paper's tables.

Of each image:

``gold``
    1 where the checker finds all that the prompt asks for (testbed only)
``evaluator_score``
    cosine of image and prompt by a scorer that no method follows: the paper's CLIP score
``preference_score``
    cosine by the preference scorer: the paper's ImageReward
``guidance_score``, ``plain_score``
    cosine by the other scorers that methods follow; high values with a low ``gold`` are over-optimisation
``gold_share``
    share of the prompt's conditions that hold (testbed only)

Of the images of a seed: ``frechet_distance`` between the evaluator's features and those of true scenes (testbed only),
and ``step_length`` and ``distance``, of updates of the embedding and of its last value from the prompt's own.

``cost`` is evaluations of the network per image as they happen, a backward pass counted as two; ``wall_seconds`` are
seconds per image: of processor time on the testbed, since other jobs run beside, and as they pass for one device with a
model of the hub. Settings are ``all`` prompts, and those of each task.
"""

from __future__ import annotations

import pandas as pd

from shared.artifacts import read_record
from shared.results import aggregate, write_metrics, write_units
from shared.stage import Input, Output, run
from shared.tables import read_table, write_table

COMPARED = ("gold", "evaluator_score", "preference_score")
"""What claims compare, image by image; the rest is reported as means."""
BY_TASK = ("gold", "evaluator_score")
COSTS = ("wall_seconds", "cost")
ALL = "all"
LABELS = ("variant", "seed", "unit", "task", "prompt", "shown")


def evaluate(
    *,
    paper: str,
    scale: str,
    scores: tuple[Input, ...],
    steps: tuple[Input, ...],
    records: tuple[Input, ...],
    metrics: Output,
    units: Output,
    traces: Output,
) -> None:
    """Write the metrics and units tables, and the steps of all jobs in one table."""
    judged = pd.concat([read_table(path, LABELS) for path in scores], ignore_index=True)
    followed = pd.concat([read_table(path) for path in steps], ignore_index=True)
    write_table(traces, followed)
    label = {"paper": paper, "scale": scale}
    unit_table = write_units(units, unit_rows(judged).assign(**label))
    measured = pd.DataFrame([row for path in records for row in record_rows(read_record(path))])
    others = [mean_rows(judged), step_rows(followed), measured[measured["metric"].notna()].drop(columns=list(COSTS))]
    per_seed = pd.concat([aggregate(unit_table), *(rows.assign(**label) for rows in others)], ignore_index=True)
    costs = measured.drop_duplicates(["method", "seed"])[["method", "seed", *COSTS]]
    kept = per_seed.drop(columns=list(COSTS), errors="ignore")
    write_metrics(metrics, kept.merge(costs, on=["method", "seed"], how="left"))


def unit_rows(judged: pd.DataFrame) -> pd.DataFrame:
    """Rows of :data:`COMPARED`: method, setting, seed, unit, metric, value."""
    present = [metric for metric in COMPARED if metric in judged]
    long = judged.melt(id_vars=["variant", "seed", "unit"], value_vars=present, var_name="metric")
    return long.rename(columns={"variant": "method"}).assign(setting=ALL)


def mean_rows(judged: pd.DataFrame) -> pd.DataFrame:
    """Means over the prompts of each task, and over all prompts of what is not among the units."""
    reported = [column for column in judged if column not in (*LABELS, *COMPARED)]
    over_all = judged.groupby(["variant", "seed"])[reported].mean().reset_index().assign(setting=ALL)
    by_task = judged.groupby(["variant", "seed", "task"])[[metric for metric in BY_TASK if metric in judged]].mean()
    tables = (over_all, by_task.reset_index().rename(columns={"task": "setting"}))
    long = [table.melt(id_vars=["variant", "seed", "setting"], var_name="metric") for table in tables]
    return pd.concat(long, ignore_index=True).rename(columns={"variant": "method"})


def step_rows(followed: pd.DataFrame) -> pd.DataFrame:
    """Mean length of updates, and distance of the last embedding from the prompt's own."""
    updates = followed[followed["length"] > 0].groupby(["variant", "seed"])["length"].mean()
    last = followed.sort_values("step").groupby(["variant", "seed"])["distance"].last()
    wide = pd.DataFrame({"step_length": updates, "distance": last}).fillna({"step_length": 0.0}).reset_index()
    long = wide.melt(id_vars=["variant", "seed"], var_name="metric")
    return long.rename(columns={"variant": "method"}).assign(setting=ALL)


def record_rows(record: dict) -> list[dict[str, object]]:
    """Costs of each variant of a job with each of its measures of sets; one row without measure where it has none."""
    measured, seed = record["measurements"], record["options"]["seed"]
    rows = []
    for variant, seconds in measured["seconds"].items():
        costs = {"wall_seconds": seconds, "cost": measured["evaluations"][variant]}
        label = {"method": variant, "seed": seed, "setting": ALL}
        sets = measured["sets"][variant] or {None: None}
        rows += [{**label, **costs, "metric": metric, "value": value} for metric, value in sets.items()]
    return rows


if __name__ == "__main__":
    run(evaluate)
