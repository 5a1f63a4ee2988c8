"""Evaluate: from predictions and curves of every training to the paper's tables.

``accuracy``
    share of the test images, whose labels are clean, that are classified right after the last epoch; its units are
    the images, numbered in the order of the seed's test part
``best_accuracy``
    the largest one after any epoch: what early stopping with clean labels would give; no claim rests on it
``fit_mislabelled``, ``purity``, ``transition_error``
    in the last epoch; see :meth:`papers.rent.learning.Training.measure`
``fell_back``
    batches of the whole training in which all importance weights were zero
``concentration_rank``
    of method ``dws``: Spearman's correlation of alpha and accuracy over the grid, in [-1, 1]
"""

from __future__ import annotations

import math

import pandas as pd

from shared.results import aggregate, write_metrics, write_units
from shared.run_by_run import run_seconds
from shared.stage import Input, Output, run
from shared.tables import read_table

RUN = ["setting", "seed", "method"]
LAST = ("fit_mislabelled", "purity", "transition_error")


def evaluate(
    *,
    paper: str,
    scale: str,
    curves: tuple[Input, ...],
    predictions: tuple[Input, ...],
    records: tuple[Input, ...],
    metrics: Output,
    units: Output,
) -> None:
    """Write the metrics and units tables."""
    by_epoch = pd.concat([read_table(path) for path in curves], ignore_index=True)
    correct = pd.concat([read_table(path) for path in predictions], ignore_index=True)
    # The same numbers for every seed: they compress to a fifth of those of the images, of which each seed has others.
    places = correct.groupby(RUN)["image"].rank().astype(int).map("{:05d}".format)
    unit_rows = correct[RUN].assign(
        paper=paper, scale=scale, metric="accuracy", unit=places, value=correct["correct"].astype(float)
    )
    unit_table = write_units(units, unit_rows)
    accuracy = aggregate(unit_table)
    others = [curve_metrics(by_epoch), concentration_rank(accuracy)]
    per_seed = pd.concat([accuracy, *[rows.assign(paper=paper, scale=scale) for rows in others]])
    wall = run_seconds(records)
    write_metrics(metrics, per_seed.drop(columns="wall_seconds").merge(wall, on=RUN, how="left"))


def curve_metrics(curves: pd.DataFrame) -> pd.DataFrame:
    """Rows of every metric but the accuracy: setting, seed, method, metric, value."""
    runs = curves.sort_values("epoch").groupby(RUN)
    wide = runs[list(LAST)].nth(-1)
    wide.index = pd.MultiIndex.from_frame(curves.loc[wide.index, RUN])
    wide = wide.assign(best_accuracy=runs["accuracy"].max(), fell_back=runs["fell_back"].sum())
    long = wide.astype(float).rename_axis(columns="metric").stack().rename("value")
    return long.dropna().reset_index()


def concentration_rank(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``concentration_rank`` where a setting and seed have at least three concentrations."""
    rows = []
    for (setting, seed), runs in accuracy.groupby(["setting", "seed"]):
        grid = concentrations(list(runs["method"]))
        if len(grid) > 2:
            values = runs.set_index("method")["value"]
            found = pd.Series(grid).corr(values[list(grid)], method="spearman")
            rows.append({"setting": setting, "seed": seed, "value": found})
    table = pd.DataFrame(rows, columns=["setting", "seed", "value"]).dropna()
    return table.assign(method="dws", metric="concentration_rank")


def concentrations(methods: list[str]) -> dict[str, float]:
    """The members of DWS with the anchor estimate and a finite alpha > 0, with their alpha, in its order."""
    members = [name for name in methods if name.startswith("dws:") and name.endswith("/forward")]
    grid = {name: float(name.removeprefix("dws:").removesuffix("/forward")) for name in members}
    inner = {name: alpha for name, alpha in grid.items() if 0 < alpha < math.inf}
    return dict(sorted(inner.items(), key=lambda item: item[1]))


if __name__ == "__main__":
    run(evaluate)
