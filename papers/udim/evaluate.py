"""Evaluate: collect what was measured of every run into the tables of results.

The setting is the suite; ``<suite> / <domain>`` and ``corruptions / level <n>`` hold its parts. Accuracies are in
percent.

``accuracy``
    mean over all unseen domains: corruptions and levels, targets left out, or pairs of source and target
``source_accuracy``
    on held-out images of the sources
``last_accuracy``
    as ``accuracy``, after the last step instead of the selected one
``unseen_loss``
    mean cross-entropy on unseen domains
``sharpness``, ``source_sharpness``
    rise of the loss at the largest radius in its steepest direction, mean over unseen domains; on the sources
``inconsistency``
    the worst difference of the loss between unseen domain and source around the weights, mean over unseen domains
``step``
    the selected one

Every target counts the same: in the units table an image's value is multiplied by (images of all targets) / (targets x
images of its target), which is 1 for targets of one size.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from papers.udim.options import SOURCE
from shared.results import aggregate, metrics_table, write_metrics, write_units
from shared.run_by_run import run_seconds
from shared.stage import Input, Output, run
from shared.tables import read_table, write_table

_RUN = ["setting", "method", "seed"]


def evaluate(
    *,
    paper: str,
    scale: str,
    runs: tuple[Input, ...],
    accuracies: tuple[Input, ...],
    per_image: tuple[Input, ...],
    landscape: tuple[Input, ...],
    curves: tuple[Input, ...],
    records: tuple[Input, ...],
    metrics: Output,
    units: Output,
    radii: Output,
    training: Output,
) -> None:
    """Write the metrics and units tables; sharpness by radius and domain; and the training curves."""
    measured, images, shape = (_table(paths) for paths in (accuracies, per_image, landscape))
    write_table(radii, shape)
    write_table(training, _table(curves))
    label = {"paper": paper, "scale": scale}
    unit_table = write_units(units, unit_rows(images).assign(**label))
    tested = aggregate(unit_table).drop(columns=["wall_seconds", "cost"])
    others = pd.concat([accuracy_rows(measured), run_rows(_table(runs)), landscape_rows(shape)], ignore_index=True)
    rows = pd.concat([tested, others.assign(**label)], ignore_index=True)
    write_metrics(metrics, metrics_table(rows.merge(run_seconds(records), on=_RUN, how="left")))


def unit_rows(images: pd.DataFrame) -> pd.DataFrame:
    """Accuracy in percent image by image, the mean over a setting's tasks, every target with the same weight.

    Args:
        images: columns setting, method, seed, task, domain, image, correct.
    """
    unseen = images[images["domain"] != SOURCE]
    values = unseen.groupby([*_RUN, "domain", "image"])["correct"].mean().mul(100).rename("value").reset_index()
    groups = values.groupby(_RUN)
    sizes = values.groupby([*_RUN, "domain"])["value"].transform("size")
    values["value"] *= groups["value"].transform("size") / (groups["domain"].transform("nunique") * sizes)
    values["unit"] = values["domain"] + "/" + values["image"].astype(str)
    return values.drop(columns=["domain", "image"]).assign(metric="accuracy")


def accuracy_rows(measured: pd.DataFrame) -> pd.DataFrame:
    """Accuracy on the sources, by domain and by level, and the loss on unseen domains.

    Args:
        measured: columns setting, method, seed, task, domain, level, accuracy, loss.
    """
    unseen = measured[measured["domain"] != SOURCE]
    unseen = unseen.assign(percent=100 * unseen["accuracy"])
    source = measured[measured["domain"] == SOURCE].groupby(_RUN)["accuracy"].mean().mul(100)
    by_domain = unseen.groupby([*_RUN, "domain"])["percent"].mean().reset_index()
    levels = unseen[unseen["level"] > 0].groupby([*_RUN, "level"])["percent"].mean().reset_index()
    parts = [
        source.rename("value").reset_index().assign(metric="source_accuracy"),
        unseen.groupby(_RUN)["loss"].mean().rename("value").reset_index().assign(metric="unseen_loss"),
    ]
    for rows, part in ((by_domain, by_domain["domain"]), (levels, "level " + levels["level"].astype(str))):
        rows = rows.assign(setting=rows["setting"] + " / " + part, metric="accuracy").rename(
            columns={"percent": "value"}
        )
        parts.append(rows[[*_RUN, "metric", "value"]])
    return pd.concat(parts, ignore_index=True)


def run_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Selected step and accuracy after the last one, means over a setting's tasks."""
    means = runs.assign(last_accuracy=100 * runs["last_accuracy"]).groupby(_RUN)[["last_accuracy", "step"]].mean()
    return means.reset_index().melt(_RUN, var_name="metric")


def landscape_rows(landscape: pd.DataFrame) -> pd.DataFrame:
    """Sharpness at the largest radius and inconsistency, means over domains and tasks.

    Args:
        landscape: columns setting, method, seed, task, domain, quantity, radius, value.
    """
    widest = landscape[landscape["radius"] == landscape["radius"].max()]
    on_source = np.where(widest["domain"] == SOURCE, "source_", "")
    named = widest.assign(metric=on_source + widest["quantity"])
    return named.groupby([*_RUN, "metric"])["value"].mean().reset_index()


def _table(paths: tuple[Input, ...]) -> pd.DataFrame:
    return pd.concat([read_table(path) for path in paths], ignore_index=True).rename(columns={"run": "method"})


if __name__ == "__main__":
    run(evaluate)
