"""Evaluate: collect what was measured of every run into the tables of results.

A method is a run as the configuration names it; ``diffrs`` alone is the one with the selected percentile. The metrics
are those of :mod:`papers.diffrs.judges` and

``nfe``
    evaluations of the denoiser per sample, restarts and discarded work included; the cost of every row
``warm_up_nfe``
    those of the warm-up, per sample
``request_nfe``
    evaluations of DiffRS since a request's last restart, which the published code counts
``restarts``
    how often the budget made a request start anew
``nfe_to_match``
    of ``final``: evaluations at which rejection at the end alone is as good as DiffRS with γ = 0.75 (outliers of a
    ring, Fréchet distance of images), by interpolation between its percentiles and the base sampler; where it never is
    as good, those of its closest percentile
``spearman_nfe``, ``spearman_primary``
    of ``diffrs``: rank correlation over percentiles of γ with evaluations, and with the primary metric

Outliers are told in blocks of consecutive samples, the units.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from scipy import stats

from papers.diffrs.methods import PUBLISHED, parse_run
from shared.results import aggregate, metrics_table, write_metrics, write_units
from shared.stage import Input, Output, run
from shared.statistics import frontier_weights
from shared.tables import read_table, write_table

_RUN = ["setting", "method", "seed"]
_LABELS = ["setting", "seed", "run", "hyperparameters", "seconds"]
PRIMARY = ("frechet", "sliced_w2", "w1")
"""The primary metric is the first of these that a setting has."""


def evaluate(
    *,
    paper: str,
    scale: str,
    runs: tuple[Input, ...],
    level_counts: tuple[Input, ...],
    cost_counts: tuple[Input, ...],
    blocks: tuple[Input, ...],
    followed: tuple[Input, ...],
    log_ratios: tuple[Input, ...],
    curves: tuple[Input, ...],
    exact: Input,
    denoisers: tuple[Input, ...] = (),
    metrics: Output,
    units: Output,
    levels: Output,
    costs: Output,
    paths: Output,
    ratios: Output,
    training: Output,
) -> None:
    """Write tables of metrics, units, counts by level and cost, followed requests, log ratios, and training curves."""
    label = {"paper": paper, "scale": scale}
    measured = pd.concat([_table(runs), read_table(exact)], ignore_index=True)
    outliers = _table(blocks)
    unit_table = write_units(units, unit_rows(outliers).assign(**label))
    rows = metric_rows(measured, set(outliers["setting"]))
    derived = pd.concat([matching_rows(measured), spearman_rows(measured)], ignore_index=True)
    spent = measured.rename(columns={"run": "method", "seconds": "wall_seconds", "nfe": "cost"})
    of_units = aggregate(unit_table).drop(columns=["wall_seconds", "cost", "paper", "scale"])
    values = pd.concat([rows, of_units], ignore_index=True).merge(spent[[*_RUN, "wall_seconds", "cost"]], on=_RUN)
    write_metrics(metrics, metrics_table(pd.concat([values, derived], ignore_index=True).assign(**label)))
    of_jobs = ((level_counts, levels), (cost_counts, costs), (followed, paths), (log_ratios, ratios))
    for parts, output in of_jobs:
        write_table(output, _table(parts))
    networks = [_table(curves).assign(network="discriminator")]
    if denoisers:
        networks.append(_table(denoisers).rename(columns={"model": "setting"}).assign(network="denoiser"))
    columns = ["network", "setting", "seed", "step", "loss"]
    write_table(training, pd.concat(networks, ignore_index=True)[columns])


def unit_rows(blocks: pd.DataFrame) -> pd.DataFrame:
    """Shares of outliers in percent by block.

    Args:
        blocks: columns setting, seed, run, block, outliers.
    """
    return pd.DataFrame(
        {
            "setting": blocks["setting"].astype(str),
            "seed": blocks["seed"].astype("int64"),
            "method": blocks["run"].astype(str),
            "unit": "block " + blocks["block"].astype(str),
            "metric": "outliers",
            "value": 100 * blocks["outliers"].astype("float64"),
        }
    )


def metric_rows(measured: pd.DataFrame, in_blocks: set[str]) -> pd.DataFrame:
    """All measurements, a row for each; outliers in percent, but for settings that tell them in blocks.

    Args:
        measured: columns setting, seed, run, nfe, and metrics, NaN where a setting has none.
        in_blocks: settings.
    """
    names = [name for name in measured.columns if name not in _LABELS]
    rows = measured.rename(columns={"run": "method"}).melt(_RUN, names, var_name="metric").dropna()
    is_outliers = rows["metric"] == "outliers"
    rows.loc[is_outliers, "value"] *= 100
    return rows[~(is_outliers & rows["setting"].isin(in_blocks))]


def matching_rows(measured: pd.DataFrame) -> pd.DataFrame:
    """Evaluations at which rejection at the end is as good as DiffRS with its default, ``nfe_to_match``."""
    rows = []
    for (setting, seed), group in measured.groupby(["setting", "seed"]):
        metric = "outliers" if group.get("outliers", pd.Series(dtype=float)).notna().all() else "frechet"
        curve = group[group["run"].str.startswith("final@") | (group["run"] == "base")].drop_duplicates(metric)
        here = group[group["run"] == PUBLISHED]
        if len(curve) < 2 or here.empty:
            continue
        weights = frontier_weights(float(here[metric].iloc[0]), curve[metric], outside="nearest")
        value = float(weights @ curve["nfe"].to_numpy())
        rows.append((setting, "final", seed, "nfe_to_match", value))
    return pd.DataFrame(rows, columns=[*_RUN, "metric", "value"])


def spearman_rows(measured: pd.DataFrame) -> pd.DataFrame:
    """Rank correlations of γ with evaluations and with the primary metric, over DiffRS' runs that name γ."""
    named = measured[measured["run"].str.startswith("diffrs@percentile=")]
    rows = []
    for (setting, seed), group in named.groupby(["setting", "seed"]):
        primary = next(name for name in PRIMARY if name in group and group[name].notna().all())
        gamma = [parse_run(name).overrides["percentile"] for name in group["run"]]
        if len(gamma) > 2:
            for metric, column in (("spearman_nfe", "nfe"), ("spearman_primary", primary)):
                rows.append((setting, "diffrs", seed, metric, rank_correlation(gamma, group[column])))
    return pd.DataFrame(rows, columns=[*_RUN, "metric", "value"])


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 where one of the two does not change at all."""
    if len(set(first)) == 1 or len(set(second)) == 1:
        return 0.0
    return float(stats.spearmanr(first, second).statistic)


def _table(paths: tuple[Input, ...]) -> pd.DataFrame:
    """Tables of several jobs below each other; empty ones have no types of their own."""
    tables = [read_table(path) for path in paths]
    filled = [table for table in tables if len(table)]
    return pd.concat(filled or tables[:1], ignore_index=True)


if __name__ == "__main__":
    run(evaluate)
