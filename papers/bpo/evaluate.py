"""Evaluate: from judged responses, margins and training curves to the paper's tables.

Of each response at the sampling temperature, to test prompts:

``win_vs_sft``, ``win_vs_preferred``
    share of the supervised model's (the data's preferred) responses to the same prompt that the response beats by the
    judge's score, ties counting one half
``score``, ``tokens``, ``distinct_1``
    the judge's score, the length with EOS, and unique over all words
``entropy``
    entropy of the next-token distribution in nats, a mean over all tokens of a method's responses; see
    :func:`entropy_by_response`
``self_bleu``
    overlap among the samples of a prompt, in groups of a few; lower is more diverse

Of each training:

``gradient_ratio``
    norm of the first gradient over that of DPO's, before clipping
``margin``, ``margin_sd``, ``margin_accuracy``
    mean, standard deviation and share above 0 of the margin -log R over held-out pairs
``margin_sd_final``, ``clipped_final``
    standard deviation of the margin, and share of pairs without gradient, over the last steps of the training
``margin_sd_slope``
    of method ``sba``: least-squares slope of ``margin_sd`` over lambda
``optimality_gap``
    in setting ``tabular``, of the losses of :mod:`papers.bpo.tabular`; its units are random problems

Further methods are made of those trained:

``best-sba``, ``best-dpo``, ``best-fdpo``, ``best-fpo``, ``inner-sba``
    per seed, the member with the highest win rate over the supervised model on validation samples: of SBA's lambdas,
    DPO's betas, f-DPO's and f-PO's divergences, and SBA's lambdas without the least and the greatest
``dpo-matching-sba:0.5``, ...
    DPO at the temperature at which its entropy is that of the SBA policy: per response the linear interpolation
    between the two neighbouring temperatures
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from papers.bpo.options import PREFERRED, SFT, EvaluationOptions
from shared.lm.diversity import distinct_n, self_bleu
from shared.results import aggregate, write_metrics, write_units
from shared.run_by_run import run_seconds
from shared.stage import Input, Output, run
from shared.statistics import frontier_weights
from shared.tables import read_table, with_short_numbers, write_table

WINS = {"win_vs_sft": SFT, "win_vs_preferred": PREFERRED}
# What claims compare, response by response, and what is only reported.
COMPARED, REPORTED = [*WINS, "entropy"], ["score", "tokens", "distinct_1"]
TABULAR = "tabular"


def evaluate(
    options: EvaluationOptions,
    *,
    paper: str,
    scale: str,
    samples: tuple[Input, ...],
    curves: tuple[Input, ...],
    margins: tuple[Input, ...],
    records: tuple[Input, ...],
    gaps: Input,
    metrics: Output,
    units: Output,
    temperatures: Output,
    training: Output,
    held_out: Output,
) -> None:
    """Write the metrics and units tables, the win rates and entropies over temperatures, and all curves and margins."""
    responses = pd.concat([read_table(path) for path in samples], ignore_index=True)
    # A sampling temperature of None is the one that all methods share.
    base = responses.loc[responses["split"] == "validation", "temperature"].iloc[0]
    runs = [measured(group, base) for _, group in responses.groupby(["setting", "seed"], sort=True)]
    by_response = pd.concat(runs, ignore_index=True)
    test = by_response[by_response["split"] == "test"]
    means = test.groupby(["setting", "method", "temperature", "seed"])[[*WINS, "score", "entropy"]].mean()
    write_table(temperatures, means.reset_index())

    tables = [with_derived_methods(group, base, options) for _, group in by_response.groupby(["setting", "seed"])]
    unit_rows, described = (pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True))
    unit_table = write_units(units, pd.concat([unit_rows, tabular(gaps)]).assign(paper=paper, scale=scale))

    steps = pd.concat([read_table(path) for path in curves], ignore_index=True)
    spread = pd.concat([read_table(path) for path in margins], ignore_index=True)
    # Curves are only drawn: one part in 500 is finer than a line.
    write_table(training, with_short_numbers(steps, bits=9))
    write_table(held_out, with_short_numbers(spread, bits=9))
    others = [described, training_metrics(steps, options.final_steps), margin_metrics(spread)]
    per_seed = pd.concat([aggregate(unit_table), pd.concat(others).assign(paper=paper, scale=scale)])
    wall = run_seconds(records)
    per_seed = per_seed.drop(columns="wall_seconds").merge(wall, on=["setting", "seed", "method"], how="left")
    write_metrics(metrics, per_seed)


def measured(responses: pd.DataFrame, base: float) -> pd.DataFrame:
    """The responses of one setting and seed with all of ``COMPARED``.

    The opponents are sampled at the temperature ``base``, whatever that of the responses is.
    """
    parts = []
    for split, rows in responses.groupby("split", sort=True):
        rows = rows.reset_index(drop=True)
        for metric, opponent in WINS.items():
            theirs = rows[(rows["method"] == opponent) & (rows["temperature"] == base)]
            rows[metric] = win_shares(rows, theirs) if len(theirs) else np.nan
        parts.append(rows.assign(split=split))
    table = pd.concat(parts, ignore_index=True)
    for metric, opponent in WINS.items():
        table.loc[table["method"] == opponent, metric] = np.nan  # a method against itself
    table["entropy"] = table["entropy"].astype(float)
    run = ["method", "split", "temperature"]
    totals = table.groupby(run)[["entropy", "tokens"]].transform("sum")
    sizes = table.groupby(run)["tokens"].transform("size")
    table["entropy"] = entropy_by_response(
        table["entropy"], table["tokens"], totals["entropy"], totals["tokens"], sizes
    )
    return table


def win_shares(rows: pd.DataFrame, opponents: pd.DataFrame) -> np.ndarray:
    """For each response, the share of the opponents' responses to its prompt with a lower score, ties counting ½."""
    shares = np.full(len(rows), np.nan)
    theirs = {prompt: np.sort(scores.to_numpy()) for prompt, scores in opponents.groupby("prompt_id")["score"]}
    for prompt, index in rows.groupby("prompt_id").indices.items():
        scores, ordered = rows["score"].to_numpy()[index], theirs[prompt]
        below, not_above = np.searchsorted(ordered, scores, "left"), np.searchsorted(ordered, scores, "right")
        shares[index] = (below + not_above) / (2 * len(ordered))
    return shares


def entropy_by_response(
    entropy: pd.Series, tokens: pd.Series, total_entropy: pd.Series, total_tokens: pd.Series, responses: pd.Series
) -> pd.Series:
    """What each response adds to the mean entropy over tokens, so that the mean over responses is that mean.

    The mean over tokens is a ratio of sums, H = sum S_i / sum L_i. Its linearisation H + (S_i - H L_i) / mean(L) has
    the mean H exactly, and its spread over responses is that of H, to first order, which the bootstrap needs.

    Args:
        entropy, tokens: S_i and L_i, of each response.
        total_entropy, total_tokens, responses: sums of S and L, and number of responses, of the method.
    """
    mean = total_entropy / total_tokens
    return mean + (entropy - mean * tokens) * responses / total_tokens


def with_derived_methods(
    responses: pd.DataFrame, base: float, options: EvaluationOptions
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of one setting and seed: units of ``COMPARED`` (method, unit, metric, value), and means of what is reported.

    Both have columns setting and seed, too.
    """
    validation = responses[responses["split"] == "validation"].groupby("method")["win_vs_sft"].mean()
    test = responses[responses["split"] == "test"]
    at_base = test[test["temperature"] == base]
    units, described = [response_units(at_base)], [descriptions(at_base, options)]
    for name, members in selections(list(validation.index)).items():
        if members:
            best = max(members, key=lambda member: validation[member])
            for parts in (units, described):
                parts.append(parts[0][parts[0]["method"] == best].assign(method=name))
    dpo = test[test["method"] == "dpo"]
    if dpo["temperature"].nunique() > 1:
        for method in lambdas(list(validation.index)):
            entropy = at_base.loc[at_base["method"] == method, "entropy"].mean()
            units.append(response_units(interpolated(dpo, entropy).assign(method=f"dpo-matching-{method}")))
    label = {"setting": responses["setting"].iloc[0], "seed": responses["seed"].iloc[0]}
    return tuple(
        pd.concat(parts, ignore_index=True).dropna(subset="value").assign(**label) for parts in (units, described)
    )


def response_units(responses: pd.DataFrame) -> pd.DataFrame:
    """Long rows of ``COMPARED``; a unit is a prompt with the number of the sample.

    Values have half precision: finer digits would take room, and are lost in any mean over responses.
    """
    named = responses.assign(unit=responses["prompt_id"].astype(str) + "-" + responses["sample"].astype(str))
    long = named.melt(id_vars=["method", "unit"], value_vars=COMPARED, var_name="metric")
    return long.assign(value=long["value"].astype("float16").astype(float))


def descriptions(responses: pd.DataFrame, options: EvaluationOptions) -> pd.DataFrame:
    """Means of ``REPORTED`` and self-BLEU of each method: method, metric, value.

    Self-BLEU is taken within groups of a prompt's samples; samples that fill no group are left out.
    """
    words = responses.assign(distinct_1=[distinct_n([text]) for text in responses["response"]])
    means = words.groupby("method")[REPORTED].mean()
    grouped = responses.assign(group=responses["sample"] // options.group)
    texts = grouped.groupby(["method", "prompt_id", "group"])["response"].apply(list)
    full = texts[texts.map(len) == options.group].groupby("method")
    overlap = full.apply(lambda groups: self_bleu(groups.tolist(), max_ngram_order=options.ngram))
    return means.assign(self_bleu=overlap).reset_index().melt(id_vars="method", var_name="metric")


def lambdas(methods: list[str]) -> dict[str, float]:
    """SBA on DPO's ratio among the methods, with its lambda, in the order of lambda."""
    powers = {name: float(name.removeprefix("sba:")) for name in methods if name.startswith("sba:") and "@" not in name}
    return dict(sorted(powers.items(), key=lambda item: item[1]))


def selections(methods: list[str]) -> dict[str, list[str]]:
    """The candidates of each selected method."""
    powers = list(lambdas(methods))
    return {
        "best-sba": powers,
        "inner-sba": powers[1:-1],
        "best-dpo": [name for name in methods if name == "dpo" or name.startswith("dpo:")],
        "best-fdpo": [name for name in methods if name.startswith("fdpo-")],
        "best-fpo": [name for name in methods if name.startswith("fpo-")],
    }


def interpolated(dpo: pd.DataFrame, entropy: float) -> pd.DataFrame:
    """DPO's responses at the temperature of a given mean entropy; beyond the curve's ends, the nearest end."""
    points = [rows.sort_values(["prompt_id", "sample"]) for _, rows in dpo.groupby("temperature", sort=True)]
    weights = frontier_weights(entropy, [rows["entropy"].mean() for rows in points], outside="nearest")
    mixed = points[0][["prompt_id", "sample"]].copy()
    for column in COMPARED:
        mixed[column] = sum(weight * rows[column].to_numpy() for weight, rows in zip(weights, points, strict=True))
    return mixed


def training_metrics(steps: pd.DataFrame, final_steps: int) -> pd.DataFrame:
    """``gradient_ratio``, ``margin_sd_final`` and ``clipped_final`` of every training."""
    key = ["setting", "seed", "method"]
    ordered = steps.sort_values("step")
    first = ordered.groupby(key)["grad_norm"].first()
    parts = []
    if "dpo" in steps["method"].to_numpy():
        ratio = first / first.xs("dpo", level="method").reindex(first.index.droplevel("method")).to_numpy()
        parts.append(ratio.rename("gradient_ratio"))
    final = ordered.groupby(key).tail(final_steps).groupby(key)[["margin", "margin_square", "clipped"]].mean()
    variance = final["margin_square"] - final["margin"] ** 2
    parts += [np.sqrt(variance.clip(lower=0)).rename("margin_sd_final"), final["clipped"].rename("clipped_final")]
    wide = pd.concat(parts, axis=1).rename_axis(columns="metric")
    return wide.stack().rename("value").reset_index()


def margin_metrics(margins: pd.DataFrame) -> pd.DataFrame:
    """``margin``, ``margin_sd``, ``margin_accuracy`` of every training, and ``margin_sd_slope`` of ``sba``."""
    by_run = margins.groupby(["setting", "seed", "method"])["margin"]
    wide = pd.DataFrame(
        {
            "margin": by_run.mean(),
            "margin_sd": by_run.std(ddof=0),
            "margin_accuracy": by_run.apply(lambda values: (values > 0).mean()),
        }
    ).rename_axis(columns="metric")
    rows = [wide.stack().rename("value").reset_index()]
    powers = lambdas(margins["method"].unique().tolist())
    if len(powers) > 1:
        spread = wide["margin_sd"].unstack("method")[list(powers)]
        slopes = np.polyfit(list(powers.values()), spread.to_numpy().T, 1)[0]
        rows.append(spread.index.to_frame(index=False).assign(method="sba", metric="margin_sd_slope", value=slopes))
    return pd.concat(rows, ignore_index=True)


def tabular(gaps: Input) -> pd.DataFrame:
    """``optimality_gap`` of every loss on every problem, as rows of units."""
    table = read_table(gaps, ("seed", "problem", "loss", "gap"))
    renamed = table.rename(columns={"problem": "unit", "loss": "method", "gap": "value"})
    return renamed.assign(unit=renamed["unit"].astype(str), setting=TABULAR, metric="optimality_gap")


if __name__ == "__main__":
    run(evaluate)
