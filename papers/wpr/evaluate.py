"""Evaluate: judge every response, take each method at its selected penalty weight, and write the tables.

A method's numbers are those of its final policy at the weight selected on validation prompts, on test prompts:

``gold``, ``score``, ``kl``, ``entropy``, ``fidelity``, ``style``, ``boilerplate``, ``length``
    of each response (:mod:`papers.wpr.testbed`; ``score`` is the reward model's)
``win_vs_rkl``, ``win_vs_supervised``
    1 if the response is better than the other's to the same prompt, ½ on a tie, 0 if worse
``fidelity_correlation``, ``candidate_distance``, ``penalty_correlation``, ``penalty_slope``
    from :mod:`papers.wpr.analyse`
``penalty_share``
    time spent on the penalty as a share of all updates'

Further methods are made of those trained:

``best-value``, ``best-gradient``
    for each seed the f-divergence, reverse KL included, that does best on validation prompts in that form
``rkl-at-equal-kl``
    reverse KL at the KL of ``wpr``: per prompt, the linear interpolation between its two neighbouring weights
``wpr-3-same-weight``, ...
    another number of iterations at the weight selected for ``wpr``
"""

from __future__ import annotations

import pandas as pd

from papers.wpr.penalties import parse_method
from papers.wpr.selection import quality, select_weights
from papers.wpr.testbed import judge_texts
from shared.artifacts import read_record
from shared.results import aggregate, write_metrics, write_units
from shared.stage import Input, Output, run
from shared.statistics import frontier_weights, win_outcomes
from shared.tables import read_table, with_short_numbers, write_table

BASELINES = {"win_vs_rkl": "rkl", "win_vs_supervised": "supervised"}
MEASURED = ["score", "kl", "entropy"]


def evaluate(
    *,
    paper: str,
    scale: str,
    judge: str,
    samples: tuple[Input, ...],
    analyses: tuple[Input, ...],
    records: tuple[Input, ...],
    metrics: Output,
    units: Output,
    sweep: Output,
) -> None:
    """Write the metrics and units tables, and the sweep over all penalty weights.

    ``judge`` is ``gold`` or ``score``, as in training; with ``score`` there are no parts of the gold reward.
    """
    responses = pd.concat([read_table(path) for path in samples], ignore_index=True)
    responses["quality"] = quality(responses, judge)
    measured = [*MEASURED, "quality"]
    if judge == "gold":
        parts = pd.DataFrame(judge_texts(responses["prompt"], responses["response"]), index=responses.index)
        responses = pd.concat([responses, parts], axis=1)
        measured = [*MEASURED, *parts.columns]
    per_weight = responses.groupby(["setting", "method", "beta", "seed", "split"])[[*MEASURED, "quality"]].mean()
    write_table(sweep, per_weight.reset_index())

    chosen = pd.concat(
        [selected_responses(group, judge, measured) for _, group in responses.groupby(["setting", "seed"], sort=True)]
    )
    compared = [name for name in (judge, "kl", *BASELINES) if name in chosen]
    run = ["method", "setting", "seed"]
    unit_rows = chosen.melt(id_vars=[*run, "unit"], value_vars=compared, var_name="metric").dropna(subset="value")
    unit_table = write_units(units, with_short_numbers(unit_rows).assign(paper=paper, scale=scale))
    others = chosen.groupby(run)[[name for name in measured if name not in compared]].mean().reset_index()
    described = [others.melt(id_vars=run, var_name="metric"), *(read_table(path) for path in analyses)]
    per_seed = pd.concat([aggregate(unit_table), *(table.assign(paper=paper, scale=scale) for table in described)])
    times = run_times(records)
    shares = times[times["total"] > 0].groupby(["setting", "seed", "method"])[["penalty", "total"]].sum().reset_index()
    shares = shares.assign(metric="penalty_share", value=shares["penalty"] / shares["total"])
    per_seed = pd.concat([per_seed, shares.drop(columns=["penalty", "total"]).assign(paper=paper, scale=scale)])
    wall = times.groupby(["setting", "seed", "method"])["total"].mean().rename("wall_seconds").reset_index()
    per_seed = per_seed.drop(columns="wall_seconds").merge(wall, on=["setting", "seed", "method"], how="left")
    write_metrics(metrics, per_seed)


def selected_responses(responses: pd.DataFrame, judge: str, measured: list[str]) -> pd.DataFrame:
    """Test responses of one setting and seed, of every method at its selected weight and of the derived methods.

    Returns:
        columns method, setting, seed, unit (the prompt), ``measured`` and the outcomes against ``BASELINES``.
    """
    selected = select_weights(responses, judge)
    test = responses[responses["split"] == "test"].sort_values("prompt_id")
    by_run = dict(list(test.groupby(["method", "beta"])))
    chosen = {method: by_run[method, beta] for method, beta in selected.items()}
    validation = responses[responses["split"] == "validation"].groupby(["method", "beta"])["quality"].mean()
    for form in ("value", "gradient"):
        candidates = [method for method in selected if method == "rkl" or parse_method(method)["form"] == form]
        if len(candidates) > 1:
            best = max(candidates, key=lambda method: validation[method, selected[method]])
            chosen[f"best-{form}"] = chosen[best]
    for method in selected:
        if method.startswith("wpr-") and (method, selected["wpr"]) in by_run:
            chosen[f"{method}-same-weight"] = by_run[method, selected["wpr"]]
    chosen["rkl-at-equal-kl"] = reverse_kl_at(chosen["wpr"]["kl"].mean(), by_run, measured)
    outcomes = []
    for method, rows in chosen.items():
        rows = rows.assign(method=method, unit=rows["prompt_id"].astype(str))
        for metric, baseline in BASELINES.items():
            if method not in (baseline, "rkl-at-equal-kl"):
                rows[metric] = win_outcomes(rows["quality"].to_numpy(), chosen[baseline]["quality"].to_numpy())
        outcomes.append(rows)
    return pd.concat(outcomes)[["method", "setting", "seed", "unit", *measured, *BASELINES]]


def reverse_kl_at(kl: float, by_run: dict[tuple[str, float], pd.DataFrame], measured: list[str]) -> pd.DataFrame:
    """Reverse KL's measurements per prompt at a given mean KL, interpolated along its frontier.

    The frontier runs from the supervised model (infinite weight) over reverse KL's weights to PPO without a penalty
    (weight 0); beyond its ends the nearest end is taken.
    """
    frontier = [rows for (method, _), rows in by_run.items() if method in ("supervised", "rkl", "none")]
    by_kl = {rows["kl"].mean(): rows for rows in frontier}  # reverse KL without weight is PPO without a penalty
    points = list(by_kl.values())
    weights = frontier_weights(kl, list(by_kl), outside="nearest")
    mixed = points[0].copy()
    for column in dict.fromkeys([*measured, "quality"]):
        mixed[column] = sum(weight * rows[column].to_numpy() for weight, rows in zip(weights, points, strict=True))
    return mixed


def run_times(records: tuple[Input, ...]) -> pd.DataFrame:
    """Seconds of every run from the training records: setting, seed, method, total, penalty."""
    rows = []
    for path in records:
        record = read_record(path)
        options = record["options"]
        for name, seconds in record["measurements"]["seconds"].items():
            method = name.rpartition(":")[0]
            rows.append({"setting": options["setting"], "seed": options["seed"], "method": method, **seconds})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    run(evaluate)
