"""Evaluate: collect the measurements of every run into the tables of results.

Methods are runs by name (see ``papers.implicit_negatives.runs``), settings the sets of prompts; on the control's base
models a setting is ``<set>, loose captions``, and of the gates it has ``, development prompts`` at its end.
``wall_seconds`` is the time of a run on all prompts of a seed, ``cost`` the evaluations of the denoiser per image.

``dsr``
    defence success rate, the share of images without the unsafe concept
``crisp``
    share of images that show something, and nothing of an unknown shape
``intact``
    share of crisp images that show all the harmless things that were asked for
``success``
    share of images that are both (where nobody can tell what was kept: alignment of safe images)
``similarity``
    prior preservation: cosine of an image's features with those of the original model's from the same noise
``front``, ``safe_front``
    of a method with one negative at all its strengths on one model, under ``<method>/<negative>@<model>``: area under
    its front of dsr (or success) on attacks and similarity on harmless prompts, the unguided model included
``inversion_loss``
    on held-out images of the concept, of ``concept@<model>`` and of the word, ``word@<model>``
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from papers.implicit_negatives.options import ATTACK, CONCEPT, SAFE, on_development, with_loose_captions
from papers.implicit_negatives.runs import BASE, parse_run
from shared.results import metrics_table, write_metrics, write_units
from shared.stage import Input, Output, run
from shared.statistics import hypervolume
from shared.tables import read_table

TRADE_OFF = "trade-off"
FRONTS = {"front": "dsr", "safe_front": "success"}
TESTED = ("dsr", "crisp", "intact", "success")
"""Claims are tested on these, prompt by prompt; and on the similarity of harmless images."""


def evaluate(
    *,
    paper: str,
    scale: str,
    values: tuple[Input, ...],
    totals: tuple[Input, ...],
    seeds: tuple[int, ...],
    losses: tuple[Input, ...],
    loss_seeds: tuple[int, ...],
    loose_values: tuple[Input, ...],
    loose_totals: tuple[Input, ...],
    loose_gate_values: tuple[Input, ...],
    loose_gate_totals: tuple[Input, ...],
    loose_seeds: tuple[int, ...],
    gate_values: tuple[Input, ...],
    gate_totals: tuple[Input, ...],
    metrics: Output,
    units: Output,
) -> None:
    """Write the metrics and units tables.

    ``seeds`` are those of the tables in ``values`` and ``totals``, ``loss_seeds`` those of ``losses``, in their order;
    ``loose_values``, ``loose_totals`` and ``loose_seeds`` are the control's, ``gate_values`` and ``gate_totals`` the
    gates', of ``loss_seeds``, and ``loose_gate_values`` and ``loose_gate_totals`` those of the control.
    """
    long, means = measured(values, totals, seeds)
    units_rows, rows = [long], [means, fronts(means)]
    if losses:
        rows.append(of_inversion(_of_seeds(losses, loss_seeds)))
    others = (
        (loose_values, loose_totals, loose_seeds, with_loose_captions),
        (gate_values, gate_totals, loss_seeds, on_development),
        (
            loose_gate_values,
            loose_gate_totals,
            loose_seeds,
            lambda setting: on_development(with_loose_captions(setting)),
        ),
    )
    for other_values, other_totals, other_seeds, renamed in others:
        if other_values:
            for table, found in zip((units_rows, rows), measured(other_values, other_totals, other_seeds), strict=True):
                table.append(found.assign(setting=found["setting"].map(renamed)))
    label = {"paper": paper, "scale": scale}
    write_metrics(metrics, metrics_table(pd.concat(rows, ignore_index=True).assign(**label)))
    tested = pd.concat(units_rows, ignore_index=True)
    harmless = (tested["metric"] == "similarity") & (tested["setting"] == SAFE)
    write_units(units, tested[tested["metric"].isin(TESTED) | harmless].assign(**label))


def measured(
    values: Sequence[Input], totals: Sequence[Input], seeds: Sequence[int]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows for each image, and their means for each run and seed with what the run cost."""
    images, runs = (_of_seeds(paths, seeds) for paths in (values, totals))
    long = in_settings(images)
    means = long.groupby(["method", "setting", "seed", "metric"])["value"].mean().reset_index()
    costs = runs.rename(columns={"run": "method", "evaluations": "cost"})
    return long, means.merge(costs, on=["method", "seed"], how="left", validate="many_to_one")


def _of_seeds(paths: Sequence[Input], seeds: Sequence[int]) -> pd.DataFrame:
    return pd.concat(
        [read_table(path).assign(seed=seed) for path, seed in zip(paths, seeds, strict=True)], ignore_index=True
    )


def in_settings(images: pd.DataFrame) -> pd.DataFrame:
    """Rows method, setting, seed, unit, metric, value of a table with a row for each image."""
    metrics = [name for name in images if name not in ("run", "seed", "set", "prompt")]
    unit = images["set"] + "/" + images["prompt"].astype(str)
    rows = images.assign(unit=unit).melt(["run", "seed", "set", "unit"], metrics, var_name="metric").dropna()
    rows["value"] = rows["value"].astype(float)
    return rows.rename(columns={"run": "method", "set": "setting"})


def fronts(means: pd.DataFrame) -> pd.DataFrame:
    """Areas under the fronts of every method with every negative on every model, where it was sampled at strengths."""
    parsed = {name: parse_run(name) for name in means["method"].unique()}
    swept = {name: each for name, each in parsed.items() if each.strength is not None}
    series = {}
    for name, each in swept.items():
        series.setdefault((each.method, each.negative, each.model), []).append(name)
    found = []
    for metric, safety in FRONTS.items():
        dsr, similarity = (
            means[(means["setting"] == setting) & (means["metric"] == name)].pivot(
                index="seed", columns="method", values="value"
            )
            for setting, name in ((ATTACK, safety), (SAFE, "similarity"))
        )
        for (method, negative, model), names in series.items():
            plain = "none" if model == BASE else f"none@{model}"
            points = [plain, *names]
            for seed in dsr.index:
                area = hypervolume(list(zip(dsr.loc[seed, points], similarity.loc[seed, points], strict=True)))
                of = f"{method}/{negative}" + ("" if model == BASE else f"@{model}")
                found.append({"method": of, "seed": seed, "metric": metric, "value": area})
    return pd.DataFrame(found, columns=["method", "seed", "metric", "value"]).assign(setting=TRADE_OFF)


def of_inversion(losses: pd.DataFrame) -> pd.DataFrame:
    """Rows of a metrics table from those of losses: the model is part of the method's name."""
    method = losses["embedding"] + "@" + losses["model"]
    return losses.assign(method=method, metric="inversion_loss", setting=CONCEPT).rename(columns={"loss": "value"})[
        ["method", "setting", "seed", "metric", "value"]
    ]


if __name__ == "__main__":
    run(evaluate)
