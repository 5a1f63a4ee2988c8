"""Evaluate: collect the scores of every run into the tables of results.

``wall_seconds`` of a row is the time of its run's training, ``cost`` the tokens that the student sampled in it: what
learning on own responses costs beyond learning on the data set's, and 0 off-policy.

A metric's mean over suites stands under the run's setting, ``off-policy``; its mean over the prompts of one suite under
``off-policy / held_out``. All suites count the same: in the units table the value of a prompt is multiplied by
(prompts of all suites) / (suites x prompts of its suite), which is 1 for suites of one size.

``rouge_l``, ``self_bleu``
    x 100; lower Self-BLEU is more diverse
``parse``
    share of samples that the grammar can produce for their prompt
``teacher_nll``
    of the samples under the teacher, nats per token
``kl_forward``, ``kl_reverse``, ``reference_nll``
    along reference responses to the test prompts, nats per token; the method ``language`` has the exact entropy floor
``tokens``
    of a sample, end of sequence included
``gradient_gap``, ``share_above_1_percent``, ``offset_spread``
    from :mod:`papers.csd.examine`
"""

from __future__ import annotations

import pandas as pd

from papers.csd.options import VALIDATION
from papers.csd.runs import PROMPT_KEY, RUN_KEY
from papers.csd.testbed import floor_per_token
from shared.results import METRIC_KEY, aggregate, metrics_table, write_metrics, write_units
from shared.stage import Input, Output, run
from shared.tables import read_table, with_short_numbers, write_table

# Claims are tested on these, prompt by prompt; of the others only the means are kept.
TESTED = ("rouge_l", "self_bleu")


def evaluate(
    *,
    paper: str,
    scale: str,
    judge: str,
    scores: tuple[Input, ...],
    fidelity: tuple[Input, ...],
    curves: tuple[Input, ...],
    costs: tuple[Input, ...],
    quantities: tuple[Input, ...],
    prompts: Input,
    metrics: Output,
    units: Output,
    training: Output,
) -> None:
    """Write the metrics and units tables and the training curves; ``judge`` is ``gold`` or ``none``, as in scoring."""
    write_table(training, with_short_numbers(pd.concat(map(read_table, curves), ignore_index=True)))
    values = pd.concat(map(read_table, scores), ignore_index=True)
    divergences = pd.concat(map(read_table, fidelity), ignore_index=True)
    values = values.merge(divergences, on=PROMPT_KEY, validate="one_to_one")
    measured = [name for name in values.columns if name not in PROMPT_KEY]
    long = values.astype(dict.fromkeys(measured, float)).melt(PROMPT_KEY, measured, var_name="metric")
    long = long.assign(paper=paper, scale=scale)
    key = list(METRIC_KEY)
    per_suite = long.groupby([*key, "suite"])["value"].mean().reset_index()
    over_suites = per_suite.groupby(key)["value"].mean().reset_index()
    tested = long[long["metric"].isin(TESTED)].pipe(weigh_suites_equally)
    unit_table = write_units(units, with_short_numbers(tested.drop(columns=["suite", "prompt_id"])))
    parts = [
        aggregate(unit_table)[[*key, "value"]],
        over_suites[~over_suites["metric"].isin(TESTED)],
        per_suite.assign(setting=per_suite["setting"] + " / " + per_suite["suite"]).drop(columns="suite"),
        pd.concat(map(read_table, quantities)).assign(paper=paper, scale=scale),
    ]
    if judge == "gold":
        floor = per_suite_floor(read_table(prompts, ("suite", "prompt")))
        seeds = sorted(values["seed"].unique())
        parts.append(
            pd.DataFrame({"seed": seeds, "value": floor}).assign(
                paper=paper, scale=scale, setting="off-policy", method="language", metric="reference_nll"
            )
        )
    spent = pd.concat(map(read_table, costs), ignore_index=True)
    write_metrics(metrics, metrics_table(with_costs(pd.concat(parts, ignore_index=True), spent)))


def with_costs(rows: pd.DataFrame, spent: pd.DataFrame) -> pd.DataFrame:
    """Rows of a metrics table with wall_seconds and cost of their runs; of a suite those of the whole run.

    Args:
        rows: columns setting, method, seed and any others.
        spent: columns setting, method, seed, wall_seconds, tokens_written; one row a run.
    """
    whole = rows.assign(setting=rows["setting"].str.partition(" / ")[0])[RUN_KEY]
    found = whole.merge(spent, on=RUN_KEY, how="left", validate="many_to_one")
    return rows.assign(wall_seconds=found["wall_seconds"].to_numpy(), cost=found["tokens_written"].to_numpy())


def weigh_suites_equally(values: pd.DataFrame) -> pd.DataFrame:
    """Values whose plain mean over all prompts of a run is the mean of the suites' means; names each unit.

    Args:
        values: columns setting, method, seed, metric, suite, prompt_id, value and any others; one row a prompt.
    """
    runs = values.groupby([*RUN_KEY, "metric"])
    sizes = values.groupby([*RUN_KEY, "metric", "suite"])["value"].transform("size")
    weights = runs["value"].transform("size") / (runs["suite"].transform("nunique") * sizes)
    unit = values["suite"] + "/" + values["prompt_id"].astype(str)
    return values.assign(value=values["value"] * weights, unit=unit)


def per_suite_floor(prompts: pd.DataFrame) -> float:
    """Mean over the test suites of the language's entropy floor, nats per token."""
    tested = prompts[prompts["suite"] != VALIDATION]
    return float(tested.groupby("suite")["prompt"].agg(lambda texts: floor_per_token(texts.tolist())).mean())


if __name__ == "__main__":
    run(evaluate)
