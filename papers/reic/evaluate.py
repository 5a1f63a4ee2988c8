"""Evaluate: the tables of all runs become the paper's two.

``f1``, ``auc``, ``mean_precision``, ``p@<k>``
    of the ranking of all (pair, relation) of the dev split, :mod:`papers.reic.evaluation`; one number per seed
``accuracy``
    share of bags whose largest logit is one of their relations, or n/a where they have none; units are bags
``recall``
    share of gold evidence blocks that are shown, means over a path's documents; units are paths with evidence
``evidence_precision``, ``both_found``
    share of the shown blocks that are evidence; share of paths with all evidence of both documents shown
``reward``
    mean reward in the last tenth of training
"""

from __future__ import annotations

import pandas as pd

from shared.artifacts import read_record
from shared.results import aggregate, write_metrics, write_units
from shared.stage import Input, Output, run
from shared.tables import read_table

RUN = ["method", "setting", "seed"]


def evaluate(
    *,
    paper: str,
    scale: str,
    summary: tuple[Input, ...],
    measured: tuple[Input, ...],
    history: tuple[Input, ...],
    records: tuple[Input, ...],
    metrics: Output,
    units: Output,
) -> None:
    """Write the metrics and units tables; ``measured`` are the runs' tables of units."""
    names = {"paper": paper, "scale": scale}
    rows = pd.concat([read_table(path) for path in measured], ignore_index=True).assign(**names)
    rows["unit"] = rows["unit"].map("{:05d}".format)
    rows = rows.astype({"value": float, "seed": "int64"})
    averages = aggregate(write_units(units, rows))
    single = pd.concat([read_table(path) for path in summary], ignore_index=True).assign(**names)
    single = single[~single["metric"].isin(averages["metric"].unique())]
    table = pd.concat([single, averages, last_rewards(history).assign(**names)], ignore_index=True)
    table = table.drop(columns=["wall_seconds", "cost"], errors="ignore")
    write_metrics(metrics, table.astype({"seed": "int64", "value": float}).merge(seconds(records), on=RUN, how="left"))


def last_rewards(history: tuple[Input, ...]) -> pd.DataFrame:
    """Rows of the metric ``reward``."""
    table = pd.concat([read_table(path) for path in history], ignore_index=True)
    last = table[table["step"] > 0.9 * table.groupby(RUN)["step"].transform("max")]
    return last.groupby(RUN)["reward"].mean().rename("value").reset_index().assign(metric="reward")


def seconds(records: tuple[Input, ...]) -> pd.DataFrame:
    """Time of every run."""
    rows = []
    for path in records:
        record = read_record(path)
        for name, value in record["measurements"]["seconds"].items():
            method, _, setting = name.partition("@")
            rows.append(
                {"method": method, "setting": setting, "seed": record["options"]["seed"], "wall_seconds": value}
            )
    return pd.DataFrame(rows, columns=[*RUN, "wall_seconds"])


if __name__ == "__main__":
    run(evaluate)
