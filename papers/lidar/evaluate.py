"""Evaluate: from judged images to the paper's tables.

Of each prompt, as a mean over its images, which share a lookahead set:

``gold``
    share of images in which the checker finds what was asked for
``guidance_score``
    cosine by the scorer that methods follow: the paper's ImageReward
``evaluator_score``
    cosine by a scorer that no method follows: the paper's CLIP score
``crisp``
    share of images in the palette's colours

``<score>_per_log_n`` of a lookahead sampler ``lidar/d<δ>`` is the slope of the score against log n (units: prompts).
``bon-as-dear`` is best of N at the evaluations of one LiDAR run, interpolated between values of N.

Of a seed: ``evaluations``, ``reward_evaluations`` and ``seconds`` for an image; ``diversity`` (mean squared distance of
a prompt's images by the evaluator's features) of all and of right images; ``gold`` by task; and
``evaluations_to_<score>`` and ``seconds_to_<score>``, what an image costs where a family's curve reaches the score of
DATE in all steps (see ``cost_to_reach``; a curve that never does counts ten times its dearest run), and ``log2_`` of
both, in which that convention does not outweigh everything else. ``equal_score`` holds the cost over all seeds with a
95 % interval, prompts drawn with replacement in each seed: family, score, cost (which of the two), estimate, low, high,
``reached`` (share of these draws in which the curve reaches the score), and ``dearest``, the cost of its dearest run.

``cost`` is evaluations of the denoiser per image, a backward pass counted as two; ``wall_seconds`` is processor time of
an image. Settings are ``test``, ``validation`` (the gates), each task, and ``mixture``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from papers.lidar.cost import cost_to_reach
from papers.lidar.runs import parse_run
from shared.artifacts import read_record
from shared.results import aggregate, write_metrics, write_units
from shared.stage import Input, Output, run
from shared.statistics import frontier_weights
from shared.tables import read_table, write_table

TEST, VALIDATION, MIXTURE = "test", "validation", "mixture"
SCORES = ("gold", "guidance_score", "evaluator_score")
PER_PROMPT = (*SCORES, "crisp")
COSTS = {"evaluations": "cost", "seconds": "wall_seconds"}
REFERENCE = "date/1"
"""The run whose score the families' curves are to reach."""
REPLICATES = 10_000
EQUAL_SCORE = ("family", "score", "cost", "estimate", "low", "high", "reached", "dearest")


def evaluate(
    *,
    paper: str,
    scale: str,
    matched: str,
    scores: tuple[Input, ...],
    records: tuple[Input, ...],
    gates: tuple[Input, ...],
    errors: Input,
    metrics: Output,
    units: Output,
    equal_score: Output,
) -> None:
    """Write the metrics and units tables, and the table of costs at equal score.

    Args:
        matched: the LiDAR run with whose cost best of N is compared.
    """
    images = pd.concat([read_table(path) for path in scores], ignore_index=True)
    costs = pd.DataFrame([row for path in records for row in cost_rows(read_record(path))])
    measured = pd.concat([read_table(path) for path in gates], ignore_index=True) if gates else pd.DataFrame()
    label = {"paper": paper, "scale": scale}

    present = [metric for metric in PER_PROMPT if metric in images]
    prompts = images.groupby(["run", "seed", "unit"])[present].mean().reset_index()
    prompts = pd.concat([prompts, bon_as_dear(prompts, costs, matched)], ignore_index=True)
    per_prompt = prompts.melt(id_vars=["run", "seed", "unit"], var_name="metric").assign(setting=TEST)
    per_prompt = per_prompt.rename(columns={"run": "method"}).astype({"unit": str})
    of_units = [per_prompt, slope_rows(per_prompt)]
    if len(measured):
        of_units.append(measured[measured["unit"] != ""].assign(setting=VALIDATION))
    unit_table = write_units(units, pd.concat(of_units, ignore_index=True).assign(**label))

    spent = costs.melt(id_vars=["run", "seed"], var_name="metric").rename(columns={"run": "method"})
    of_seeds = [set_rows(images), task_rows(images), spent.assign(setting=TEST), error_rows(read_table(errors))]
    if len(measured):
        of_seeds.append(measured[measured["unit"] == ""].drop(columns="unit").assign(setting=VALIDATION))
    curves = families(costs["run"].unique())
    if REFERENCE in set(costs["run"]):
        of_seeds.append(reach_rows(prompts, costs, curves))
        write_table(equal_score, equal_score_table(prompts, costs, curves))
    else:
        write_table(equal_score, pd.DataFrame(columns=EQUAL_SCORE))
    per_seed = pd.concat([aggregate(unit_table), *(rows.assign(**label) for rows in of_seeds)], ignore_index=True)
    known = costs.rename(columns={"run": "method", **COSTS})[["method", "seed", *COSTS.values()]].assign(setting=TEST)
    kept = per_seed.drop(columns=list(COSTS.values()), errors="ignore")
    write_metrics(metrics, kept.merge(known, on=["method", "seed", "setting"], how="left"))


def cost_rows(record: dict) -> list[dict[str, object]]:
    """Of every run of a job: run, seed, evaluations, reward_evaluations, seconds."""
    seed = record["options"]["seed"]
    return [{"run": name, "seed": seed, **values} for name, values in record["measurements"]["runs"].items()]


def families(runs: list[str]) -> dict[str, list[str]]:
    """Runs of each curve of score against cost, which all begin with the target sampler alone."""
    curves: dict[str, list[str]] = {}
    for name in runs:
        each = parse_run(name)
        if each.kind in ("lidar", "exact"):
            family = f"{each.kind}/{each.solver}"
        elif each.kind in ("bon", "date", "universal"):
            family = each.kind
        elif each.kind == "smc":
            family = name.partition("/")[0]
        else:
            continue
        curves.setdefault(family, ["vanilla"]).append(name)
    return curves


def bon_as_dear(prompts: pd.DataFrame, costs: pd.DataFrame, matched: str) -> pd.DataFrame:
    """Best of N at the evaluations of another run, for each prompt: linear between the values of N around it.

    Its name is ``bon-as-dear``. A run dearer than the largest N is compared with that.
    """
    runs = costs.groupby("run")["evaluations"].mean()
    bon = runs[[name for name in runs.index if name == "vanilla" or name.startswith("bon/")]]
    if matched not in runs or len(bon) < 2:
        return prompts.iloc[:0]
    weights = frontier_weights(runs[matched], bon.to_numpy(), outside="nearest")
    wide = prompts.set_index(["seed", "unit", "run"]).unstack("run")
    found = {
        metric: (wide[metric][bon.index] * weights).sum(axis=1)
        for metric in prompts.columns.difference(["seed", "unit", "run"])
    }
    return pd.DataFrame(found).reset_index().assign(run="bon-as-dear")


def slope_rows(per_prompt: pd.DataFrame) -> pd.DataFrame:
    """Slope of each score against log n, for each prompt and lookahead sampler that has several n."""
    ahead = per_prompt[per_prompt["method"].str.match(r"(lidar|exact)/d\d+-n") & per_prompt["metric"].isin(SCORES)]
    tables = []
    for sampler, rows in ahead.groupby(ahead["method"].str.replace(r"-n\d+", "", regex=True)):
        sizes = rows["method"].map(lambda name: parse_run(name).lookahead_size)
        if sizes.nunique() < 2:
            continue
        logs = np.log(sizes)
        centred = logs - np.log(sizes.unique()).mean()
        weight = (np.log(sizes.unique()) - np.log(sizes.unique()).mean()) ** 2
        parts = rows.assign(value=rows["value"] * centred / weight.sum())
        slopes = parts.groupby(["seed", "unit", "metric", "setting"])["value"].sum().reset_index()
        tables.append(slopes.assign(method=sampler, metric=slopes["metric"] + "_per_log_n"))
    return pd.concat(tables, ignore_index=True) if tables else per_prompt.iloc[:0]


def set_rows(images: pd.DataFrame) -> pd.DataFrame:
    """Mean diversity of a prompt's images; that of right ones over prompts with at least two."""
    measures = [name for name in ("diversity", "diversity_right") if name in images]
    means = images.groupby(["run", "seed"])[measures].mean().reset_index()
    long = means.melt(id_vars=["run", "seed"], var_name="metric").dropna(subset="value")
    return long.rename(columns={"run": "method"}).assign(setting=TEST)


def task_rows(images: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by task, or the evaluator's score where there is no checker."""
    metric = "gold" if "gold" in images else "evaluator_score"
    means = images.groupby(["run", "seed", "task"])[metric].mean().reset_index(name="value")
    return means.rename(columns={"run": "method", "task": "setting"}).assign(metric=metric)


def error_rows(errors: pd.DataFrame) -> pd.DataFrame:
    """Slope of log error against log n on mixtures, over the dimensions: -1/2 is the theorem's."""
    rows = []
    for seed, of_seed in errors.groupby("seed"):
        for metric in ("efr_error", "score_error"):
            slopes = [
                np.polyfit(np.log(table["size"]), np.log(table[metric]), 1)[0]
                for _, table in of_seed.groupby("dimension")
            ]
            label = {"method": "estimate", "setting": MIXTURE, "metric": f"{metric}_slope"}
            rows.append({**label, "seed": int(seed), "value": float(np.mean(slopes))})
    return pd.DataFrame(rows)


def reach_rows(prompts: pd.DataFrame, costs: pd.DataFrame, curves: dict[str, list[str]]) -> pd.DataFrame:
    """For each seed and family the cost at which its curve reaches the reference's score."""
    rows = []
    for seed, of_seed in prompts.groupby("seed"):
        means = of_seed.groupby("run")[list(SCORES)].mean()
        prices = costs[costs["seed"] == seed].set_index("run")
        for family, names in curves.items():
            for score in SCORES:
                for kind in COSTS:
                    value = float(
                        cost_to_reach(means.loc[REFERENCE, score], prices.loc[names, kind], means.loc[names, score])
                    )
                    label = {"method": family, "seed": int(seed), "setting": TEST}
                    rows.append({**label, "metric": f"{kind}_to_{score}", "value": value})
                    rows.append({**label, "metric": f"log2_{kind}_to_{score}", "value": np.log2(value)})
    return pd.DataFrame(rows)


def equal_score_table(prompts: pd.DataFrame, costs: pd.DataFrame, curves: dict[str, list[str]]) -> pd.DataFrame:
    """The table of the module's docstring.

    The bootstrap draws the prompts of each seed, for all runs the same, and the reference's score with them.
    """
    rng = np.random.default_rng(0)
    prices = costs.groupby("run")[list(COSTS)].mean()
    rows = []
    for score in SCORES:
        wide = prompts.pivot(index=["seed", "unit"], columns="run", values=score)
        groups = [table for _, table in wide.groupby("seed")]
        draws = [rng.integers(len(table), size=(REPLICATES, len(table))) for table in groups]
        resampled = np.mean(
            [table.to_numpy()[rows_drawn].mean(axis=1) for table, rows_drawn in zip(groups, draws, strict=True)], axis=0
        )
        place = {name: number for number, name in enumerate(wide.columns)}
        means = np.mean([table.mean().to_numpy() for table in groups], axis=0)
        for family, names in curves.items():
            columns = [place[name] for name in names]
            reached = (resampled[:, columns].max(axis=1) >= resampled[:, place[REFERENCE]]).mean()
            for kind in COSTS:
                curve = prices.loc[names, kind]
                estimate = cost_to_reach(means[place[REFERENCE]], curve, means[columns])
                values = cost_to_reach(resampled[:, place[REFERENCE]], curve, resampled[:, columns])
                low, high = np.quantile(values, [0.025, 0.975])
                label = {"family": family, "score": score, "cost": kind, "reached": reached, "dearest": curve.max()}
                rows.append({**label, "estimate": float(estimate), "low": low, "high": high})
    return pd.DataFrame(rows, columns=EQUAL_SCORE)


if __name__ == "__main__":
    run(evaluate)
