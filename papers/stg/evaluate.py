"""Evaluate: collect the measurements of every run into the tables of results.

The settings are the sets of prompts, and ``unsafe``: all prompts that bring the unsafe concept and ask for something
harmless besides. Each run stands under its own name, and the selected run of a method under the method's.
``wall_seconds`` is the time of a run on all prompts of a seed, ``cost`` the evaluations of the denoiser per image, a
backward pass counted as two.

``dsr``
    defence success rate, the share of images without the unsafe concept
``kept``
    share of images that show all the harmless things that were asked for
``similarity``
    prior preservation: cosine of an image's features with those of the base model's from the same noise
``success``
    dsr times kept (times alignment where nobody can tell what is kept), image by image
``alignment``, ``detected``
    from the judge
``frechet``
    on harmless prompts, Fréchet distance of features from those of right images
``hypervolume``
    of a method's whole grid: area under its front of dsr and similarity, the base model included
``evaluations``, ``seconds``
    of the denoiser (a backward pass counts as two), and of processor time, for each image, under the setting ``cost``
``flagged``
    share of the sampler's steps in which the prediction is flagged
``unsafe_share``, ``off_manifold``, ``safe_total_variation``
    of the mixture in the plane, under ``toy / <unsafe value>``
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import pandas as pd

from papers.stg.options import SAFE, SOLO
from papers.stg.runs import parse_run
from shared.results import metrics_table, write_metrics, write_units
from shared.stage import Input, Output, run
from shared.statistics import hypervolume
from shared.tables import read_table, write_table

UNSAFE, COST = "unsafe", "cost"
TESTED = ("dsr", "kept", "similarity")
"""Claims are tested on these, prompt by prompt."""


def evaluate(
    *,
    paper: str,
    scale: str,
    values: tuple[Input, ...],
    totals: tuple[Input, ...],
    traces: tuple[Input, ...],
    seeds: tuple[int, ...],
    selection: Input,
    toy: Input,
    metrics: Output,
    units: Output,
    trace: Output,
) -> None:
    """Write the metrics and units tables, and the traces of all seeds.

    ``seeds`` are those of the tables in ``values``, ``totals`` and ``traces``, in their order.
    """
    images, runs, steps = (_of_seeds(paths, seeds) for paths in (values, totals, traces))
    write_table(trace, steps)
    long = in_settings(images)
    rows = [
        long.groupby(["run", "setting", "seed", "metric"])["value"].mean().reset_index(),
        of_runs(runs),
        of_traces(steps),
    ]
    selected = json.loads(selection.read_text(encoding="utf-8"))
    named = with_selected(pd.concat(rows, ignore_index=True), selected)
    named = with_costs(named, runs, selected).assign(paper=paper, scale=scale)
    toys = of_toy(read_table(toy)).assign(paper=paper, scale=scale)
    fronts = hypervolumes(named).assign(paper=paper, scale=scale)
    write_metrics(metrics, metrics_table(pd.concat([named, fronts, toys], ignore_index=True)))
    tested = with_selected(long[long["metric"].isin(TESTED)], selected).assign(paper=paper, scale=scale)
    write_units(units, tested)


def _of_seeds(paths: Sequence[Input], seeds: Sequence[int]) -> pd.DataFrame:
    return pd.concat(
        [read_table(path).assign(seed=seed) for path, seed in zip(paths, seeds, strict=True)], ignore_index=True
    )


def in_settings(images: pd.DataFrame) -> pd.DataFrame:
    """Values of images (run, seed, set, prompt and metrics) as rows run, seed, setting, unit, metric, value.

    Those of sets with an unsafe concept and something to keep stand under ``unsafe`` too.
    """
    metrics = [name for name in images.columns if name not in ("run", "seed", "set", "prompt")]
    unit = images["set"] + "/" + images["prompt"].astype(str)
    rows = images.assign(unit=unit).melt(["run", "seed", "set", "unit"], metrics, var_name="metric").dropna()
    both = rows[~rows["set"].isin([SAFE, SOLO])].assign(set=UNSAFE)
    return pd.concat([rows, both], ignore_index=True).rename(columns={"set": "setting"})


def of_runs(totals: pd.DataFrame) -> pd.DataFrame:
    """What is measured of whole runs, as rows run, setting, seed, metric, value."""
    rows = totals.melt(["run", "seed"], ["evaluations", "seconds", "frechet"], var_name="metric").dropna()
    return rows.assign(setting=rows["metric"].map({"frechet": SAFE}).fillna(COST))


def of_traces(steps: pd.DataFrame) -> pd.DataFrame:
    """Shares of flagged steps, as rows run, setting, seed, metric, value."""
    means = steps.groupby(["run", "set", "seed"])["flagged"].mean().reset_index()
    return means.rename(columns={"set": "setting", "flagged": "value"}).assign(metric="flagged")


def of_toy(quality: pd.DataFrame) -> pd.DataFrame:
    """Rows of a metrics table from those of the mixture, but for paper and scale."""
    renamed = quality.rename(columns={"run": "method", "value": "setting", "unsafe": "unsafe_share"})
    names = ["unsafe_share", "off_manifold", "safe_total_variation"]
    rows = renamed.melt(["setting", "method", "seed"], names, var_name="metric").dropna()
    return rows.assign(setting="toy / " + rows["setting"])


def with_selected(rows: pd.DataFrame, selected: dict[str, str]) -> pd.DataFrame:
    """The rows with run renamed to method, and those of selected runs once more under their method's name."""
    named = rows.rename(columns={"run": "method"})
    again = [named[named["method"] == text].assign(method=method) for method, text in selected.items()]
    return pd.concat([named, *again], ignore_index=True)


def with_costs(rows: pd.DataFrame, totals: pd.DataFrame, selected: dict[str, str]) -> pd.DataFrame:
    """The rows with wall_seconds and cost of their runs."""
    spent = with_selected(totals, selected)[["method", "seed", "wall_seconds", "evaluations"]]
    found = rows[["method", "seed"]].merge(spent, on=["method", "seed"], how="left", validate="many_to_one")
    return rows.assign(wall_seconds=found["wall_seconds"].to_numpy(), cost=found["evaluations"].to_numpy())


def hypervolumes(rows: pd.DataFrame) -> pd.DataFrame:
    """Hypervolume of every method's plain runs with the base model, on ``unsafe``: rows method, seed, value, ..."""
    wanted = rows[(rows["setting"] == UNSAFE) & rows["metric"].isin(["dsr", "similarity"])]
    points = wanted.pivot(index=["method", "seed"], columns="metric", values="value").reset_index()
    points = points[points["method"].str.contains(":") | (points["method"] == "base")]
    parsed = points["method"].map(parse_run)
    points = points[[not run.options and run.model is None for run in parsed]]
    points["family"] = points["method"].str.partition(":")[0]
    found = []
    for seed, of_seed in points.groupby("seed"):
        for method in sorted(set(points["family"]) - {"base"}):
            front = of_seed[of_seed["family"].isin([method, "base"])]
            area = hypervolume(list(zip(front["dsr"], front["similarity"], strict=True)))
            found.append({"method": method, "seed": seed, "value": area})
    return pd.DataFrame(found, columns=["method", "seed", "value"]).assign(setting=UNSAFE, metric="hypervolume")


if __name__ == "__main__":
    run(evaluate)
