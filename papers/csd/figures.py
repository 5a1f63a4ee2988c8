"""Figures: the paper's key figures, redrawn from this project's tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from shared.plotting import PALETTE, draw_figure, line_with_band, method_styles, new_figure, point_style, seed_dots
from shared.results import read_metrics
from shared.stage import Input, Output, run
from shared.tables import read_table

LABELS = {
    "csd-SS": "CSD (S,S)",
    "dld-S": "DLD (S)",
    "forward_kl": "KL",
    "reverse_kl": "RKL",
    "skew_reverse_kl": "SRKL",
    "csd-TS": "CSD (T,S)",
    "csd-US": "CSD (U,S)",
    "csd-TT": "CSD (T,T)",
    "csd-UU": "CSD (U,U)",
    "dld-T": "DLD (T)",
    "dld-U": "DLD (U)",
    "skew_forward_kl": "SKL",
    "total_variation": "TV",
    "jensen_shannon": "JS",
    "symmetric_kl": "symmetric KL",
    "jeffreys": "Jeffreys",
    "alpha_beta": "α–β",
    "sft": "SFT",
    "seqkd": "SeqKD",
    "initial": "initial student",
    "teacher": "teacher",
}
STYLES = method_styles(list(LABELS))
SETTINGS = {"imitkd": "ImitKD", "gkd": "GKD", "distillm": "DistiLLM"}
ROUGE, SELF_BLEU = "ROUGE-L (× 100)", "Self-BLEU (× 100), lower is more diverse"


@dataclass(frozen=True)
class Tables:
    """What figures are drawn from."""

    metrics: pd.DataFrame
    training: pd.DataFrame
    grid: pd.DataFrame
    gradients: pd.DataFrame
    shifts: pd.DataFrame
    probabilities: pd.DataFrame
    sampling: pd.DataFrame
    cost: pd.DataFrame


def fidelity_diversity(tables: Tables) -> Figure:
    """ROUGE-L against Self-BLEU, a point for each loss (the paper's figures 3a and 3b)."""
    figure, axes = new_figure(width=6.4, height=4.4)
    axis = axes[0, 0]
    rouge, bleu = (seed_table(tables, "off-policy", metric) for metric in ("rouge_l", "self_bleu"))
    for method in LABELS:
        if method in rouge and method != "teacher":
            look = point_style(STYLES[method])
            axis.plot(bleu[method], rouge[method], alpha=0.3, markersize=3, **look)
            axis.plot(bleu[method].mean(), rouge[method].mean(), label=LABELS[method], markersize=7, **look)
    path = temperature_path(rouge)
    means = [(bleu[method].mean(), rouge[method].mean()) for method in path.values()]
    axis.plot(*zip(*means, strict=True), color="0.4", linewidth=0.9, zorder=1)
    for temperature, point in zip(path, means, strict=True):
        if temperature != 1:
            axis.plot(*point, "x", color="0.4", markersize=5)
            axis.annotate(f"τ = {temperature:g}", point, xytext=(5, -9), textcoords="offset points", fontsize=7.5)
    axis.set(xlabel=SELF_BLEU, ylabel=ROUGE)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def losses(tables: Tables) -> Figure:
    """ROUGE-L of every off-policy loss."""
    rouge = seed_table(tables, "off-policy", "rouge_l")
    names = sorted((name for name in LABELS if name in rouge), key=lambda name: rouge[name].mean())
    figure, axes = new_figure(width=5.0, height=0.23 * len(names) + 0.7)
    seed_dots(axes[0, 0], rouge[names], STYLES, LABELS)
    axes[0, 0].set(xlabel=ROUGE)
    return figure


def shift_freedom(tables: Tables) -> Figure:
    """DLD against CSD at equal weights, the paper's ablation of the free constant."""
    rouge = {setting: seed_table(tables, setting, "rouge_l") for setting in ("off-policy", "imitkd")}
    groups = [("off-policy", letter) for letter in "STU"] + [("imitkd", "S")]
    groups = [
        (setting, letter)
        for setting, letter in groups
        if {f"dld-{letter}", f"csd-{letter}{letter}"} <= set(rouge[setting].columns)
    ]
    figure, axes = new_figure(width=4.6, height=2.9)
    for offset, (prefix, label, method) in enumerate((("dld-", "DLD (w)", "dld-S"), ("csd-", "CSD (w,w)", "csd-SS"))):
        for place, (setting, letter) in enumerate(groups):
            values = rouge[setting][prefix + letter * (offset + 1)].dropna()
            x = place + 0.36 * offset
            color = STYLES[method]["color"]
            axes[0, 0].bar(x, values.mean(), width=0.34, color=color, label=label if place == 0 else None)
            axes[0, 0].plot(np.full(len(values), x), values, "o", color="black", markersize=2.5)
    names = {"S": "student", "T": "teacher", "U": "uniform"}
    ticks = [names[letter] + ("\non-policy" if setting == "imitkd" else "") for setting, letter in groups]
    axes[0, 0].set_xticks(np.arange(len(groups)) + 0.18, ticks)
    axes[0, 0].set(xlabel="weight w", ylabel=ROUGE)
    axes[0, 0].grid(visible=False, axis="x")
    axes[0, 0].legend(loc="upper right", bbox_to_anchor=(1.0, 1.12), ncols=2)
    return figure


def on_policy(tables: Tables) -> Figure:
    """ROUGE-L with the student's own responses, the tokens that were sampled for them, and DistiLLM's share of them."""
    figure, axes = new_figure(columns=3, width=3.1, height=3.0)
    rouge = {setting: seed_table(tables, setting, "rouge_l") for setting in SETTINGS}
    tokens = {setting: seed_table(tables, setting, "rouge_l", "cost") for setting in SETTINGS}
    pairs = [(setting, method) for setting in SETTINGS for method in LABELS if method in rouge[setting]]
    names = [f"{SETTINGS[setting]}, {LABELS[method]}" for setting, method in pairs]
    for axis, values, label, scale in (
        (axes[0, 0], rouge, ROUGE, 1.0),
        (axes[0, 1], tokens, "tokens sampled in training (thousands)", 1e-3),
    ):
        for place, (setting, method) in enumerate(pairs):
            color = STYLES[method]["color"]
            seeds = scale * values[setting][method].dropna()
            axis.plot(seeds, np.full(len(seeds), place), "o", color=color, alpha=0.35, markersize=3.5)
            axis.plot(seeds.mean(), place, "D", color=color, markersize=5)
        axis.set(xlabel=label, ylim=(len(pairs) - 0.5, -0.5))
        axis.set_yticks(range(len(pairs)), names if axis is axes[0, 0] else [""] * len(pairs))
    curves = tables.training[tables.training["setting"] == "distillm"]
    for method in LABELS:
        wide = curves[curves["method"] == method].pivot(index="seed", columns="step", values="student_share")
        if wide.size:
            look = STYLES[method] | {"marker": ""}
            line_with_band(axes[0, 2], wide.columns, wide.to_numpy(), label=LABELS[method], **look)
    axes[0, 2].set(xlabel="step", ylabel="DistiLLM's share of own responses", ylim=(-0.05, 1.05))
    if axes[0, 2].lines:
        axes[0, 2].legend()
    return figure


def dose_response(tables: Tables) -> Figure:
    """ROUGE-L against the amplitude of a constant added to the teacher's logits."""
    settings = {0.0: "off-policy"}
    for setting in tables.metrics["setting"].unique():
        if setting.startswith("offset-") and " / " not in setting:
            settings[float(setting.removeprefix("offset-"))] = setting
    doses = sorted(settings)
    rouge = pd.concat({dose: seed_table(tables, settings[dose], "rouge_l") for dose in doses})
    figure, axes = new_figure(width=4.4, height=3.0)
    for method in ("forward_kl", "dld-S", "csd-SS"):
        if method in rouge:
            wide = rouge[method].unstack(level=0)[doses].dropna(axis=1)
            line_with_band(axes[0, 0], wide.columns, wide.to_numpy(), label=LABELS[method], **STYLES[method])
    axes[0, 0].set(xlabel="standard deviation of the teacher's offset (nats)", ylabel=ROUGE)
    axes[0, 0].set_xticks(doses)
    axes[0, 0].legend()
    return figure


def temperature(tables: Tables) -> Figure:
    """ROUGE-L and Self-BLEU against the temperature of the weights (the paper's figure 5a)."""
    figure, axes = new_figure(columns=2, width=3.2, height=2.7)
    for axis, metric, name in ((axes[0, 0], "rouge_l", ROUGE), (axes[0, 1], "self_bleu", "Self-BLEU (× 100)")):
        wide = seed_table(tables, "off-policy", metric)
        path = temperature_path(wide)
        line_with_band(axis, list(path), wide[list(path.values())].to_numpy(), **STYLES["csd-SS"])
        axis.set(xlabel="temperature τ of the weights", ylabel=name)
        axis.set_xticks(list(path))
    return figure


def suites(tables: Tables) -> Figure:
    """ROUGE-L on every suite (the paper's table 1)."""
    metrics = tables.metrics[tables.metrics["metric"] == "rouge_l"]
    settings = [name for name in metrics["setting"].unique() if name.startswith("off-policy / ")]
    means = metrics[metrics["setting"].isin(settings)].groupby(["method", "setting"])["value"].mean().unstack()
    names = [name for name in LABELS if name in means.index]
    grid = means.loc[names].to_numpy()
    figure, axes = new_figure(width=1.05 * len(settings) + 1.6, height=0.24 * len(names) + 0.9)
    axis = axes[0, 0]
    image = axis.imshow(grid, cmap="viridis", aspect="auto")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for (row, column), value in np.ndenumerate(grid):
        ink = "white" if value < middle else "black"
        axis.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7.5, color=ink)
    titles = [name.split(" / ")[1].replace("_", "\n") for name in means.columns]
    axis.set_xticks(range(len(titles)), titles)
    axis.set_yticks(range(len(names)), [LABELS[name] for name in names])
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis, label=ROUGE)
    return figure


def training(tables: Tables) -> Figure:
    """Divergences between student and teacher on training batches over the steps."""
    figure, axes = new_figure(columns=2, width=3.4, height=2.8)
    curves = tables.training[tables.training["setting"] == "off-policy"]
    for axis, name, title in (
        (axes[0, 0], "kl_forward", "KL(teacher ‖ student)"),
        (axes[0, 1], "kl_reverse", "KL(student ‖ teacher)"),
    ):
        for method in ("csd-SS", "dld-S", "forward_kl", "csd-US", "csd-TS"):
            wide = curves[curves["method"] == method].pivot(index="seed", columns="step", values=name)
            if wide.size:
                smooth = wide.T.rolling(5, min_periods=1).mean().T
                look = STYLES[method] | {"marker": ""}
                line_with_band(axis, smooth.columns, smooth.to_numpy(), label=LABELS[method], **look)
        axis.set(title=title, xlabel="step", yscale="log")
    axes[0, 0].set_ylabel("nats per token")
    axes[0, 1].legend()
    return figure


def learning_rates(tables: Tables) -> Figure:
    """Validation ROUGE-L against the learning rate, of everything that was tuned."""
    grid = tables.grid.assign(
        setting=tables.grid["run"].str.partition("/")[0], method=tables.grid["run"].str.partition("/")[2]
    )
    groups = {
        "divergences": (["off-policy"], [name for name in LABELS if "-" not in name]),
        "logits": (["off-policy"], [name for name in LABELS if "-" in name]),
        **{title: ([setting], list(LABELS)) for setting, title in SETTINGS.items()},
    }
    figure, axes = new_figure(columns=len(groups), width=2.4, height=3.3, sharey=True)
    for axis, (title, (settings, names)) in zip(axes[0], groups.items(), strict=True):
        here = grid[grid["setting"].isin(settings)]
        for method in names:
            rows = here[here["method"] == method].sort_values("learning_rate")
            if len(rows):
                axis.plot(rows["learning_rate"], rows["rouge_l"], label=LABELS[method], **STYLES[method])
        rates = sorted(grid["learning_rate"].unique())
        axis.set(title=title, xlabel="learning rate", xscale="log")
        axis.set_xticks(rates, [f"{rate:g}" for rate in rates], fontsize=7)
        axis.minorticks_off()
        if axis.lines:
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7.5, handlelength=3.2)
    axes[0, 0].set_ylabel("validation " + ROUGE)
    return figure


def gradients(tables: Tables) -> Figure:
    """Gradient in the logits by the teacher's rank of the token, at the initial student."""
    figure, axes = new_figure(width=5.0, height=3.3)
    table = tables.gradients
    for method in table["method"].unique():
        if method == "reverse_kl":
            continue  # the same as CSD (S,S), which is drawn
        wide = table[table["method"] == method].pivot(index="seed", columns="rank", values="gradient")
        look = STYLES[method] | {"marker": ""}
        label = LABELS[method] + (" = RKL" if method == "csd-SS" else "")
        line_with_band(axes[0, 0], wide.columns, wide.to_numpy(), label=label, **look)
    axes[0, 0].set(xlabel="rank of the token under the teacher", ylabel="mean |∂L/∂f|", xscale="log", yscale="log")
    axes[0, 0].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def shifts(tables: Tables) -> Figure:
    """Loss where a constant is added to the student's logits (the paper's figure 1c)."""
    figure, axes = new_figure(width=4.6, height=3.0)
    for method in tables.shifts["method"].unique():
        wide = tables.shifts[tables.shifts["method"] == method].pivot(index="seed", columns="shift", values="loss")
        look = STYLES[method] | {"marker": ""}
        line_with_band(axes[0, 0], wide.columns, wide.to_numpy(), label=LABELS[method], **look)
    axes[0, 0].set(xlabel="constant C added to the student's logits (nats)", ylabel="loss")
    axes[0, 0].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def probabilities(tables: Tables) -> Figure:
    """Share of next-token probabilities above a threshold (the paper's figure 1a)."""
    figure, axes = new_figure(width=4.4, height=3.0)
    for color, (model, rows) in zip(PALETTE, tables.probabilities.groupby("model", sort=False), strict=False):
        wide = rows.pivot(index="seed", columns="threshold", values="share")
        line_with_band(axes[0, 0], wide.columns, wide.to_numpy(), label=model, color=color)
    axes[0, 0].axvline(0.01, color="0.5", linewidth=0.8, linestyle=":")
    axes[0, 0].set(xlabel="threshold", ylabel="share of probabilities above it", xscale="log", ylim=(0, None))
    axes[0, 0].legend()
    return figure


def sampled_pairs(tables: Tables) -> Figure:
    """Error of the gradient where pairs of tokens are sampled instead of summed over (beside the paper's figure 5c)."""
    figure, axes = new_figure(width=4.6, height=3.0)
    for method in tables.sampling["method"].unique():
        wide = tables.sampling[tables.sampling["method"] == method].pivot(index="seed", columns="pairs", values="error")
        line_with_band(axes[0, 0], wide.columns, wide.to_numpy(), label=LABELS[method], **STYLES[method])
    pairs = sorted(tables.sampling["pairs"].unique())
    axes[0, 0].set(xlabel="sampled pairs per position", ylabel="error of the gradient (relative)")
    axes[0, 0].set(xscale="log", yscale="log")
    axes[0, 0].set_xticks(pairs, [f"{count}" for count in pairs])
    marks = [0.1, 0.2, 0.5, 1, 2, 5, 10]
    axes[0, 0].set_yticks(marks, [f"{mark:g}" for mark in marks])
    axes[0, 0].minorticks_off()
    axes[0, 0].legend()
    return figure


def vocabulary_cost(tables: Tables) -> Figure:
    """Time and peak memory of losses over the vocabulary, beside those of a plain KL loss."""
    figure, axes = new_figure(columns=2, width=3.2, height=3.0)
    logits = tables.cost["tokens"] * tables.cost["vocabulary"]
    for axis, per_logit, title, unit in (
        (axes[0, 0], 1e6 * tables.cost["milliseconds"] / logits, "processor time", "nanoseconds per logit"),
        (axes[0, 1], 1e6 * tables.cost["megabytes"] / logits, "peak memory", "bytes per logit"),
    ):
        wide = tables.cost.assign(value=per_logit).pivot(index="vocabulary", columns="loss", values="value")
        for method in LABELS:
            if method in wide:
                axis.plot(wide.index, wide[method], label=LABELS[method], **STYLES[method])
        axis.plot(wide.index, wide["plain_kl"], color="0.3", linestyle=":", label="plain KL")
        axis.set(title=title, xlabel="vocabulary", ylabel=unit, xscale="log", ylim=(0, None))
        axis.set_xticks(wide.index, [f"{size:,}" for size in wide.index])
        axis.minorticks_off()
    axes[0, 1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def seed_table(tables: Tables, setting: str, metric: str, column: str = "value") -> pd.DataFrame:
    """One metric in one setting, or the cost of its runs, a row for each seed, a column for each method."""
    rows = tables.metrics[(tables.metrics["setting"] == setting) & (tables.metrics["metric"] == metric)]
    return rows.pivot(index="seed", columns="method", values=column)


def temperature_path(table: pd.DataFrame) -> dict[float, str]:
    """Methods that are CSD (S,S) at some temperature, by the temperature."""
    named = {1.0: "csd-SS"}
    named |= {float(name.partition(":")[2]): name for name in table.columns if name.startswith("csd-SS:")}
    return dict(sorted(named.items()))


FIGURES: dict[str, Callable[[Tables], Figure]] = {
    function.__name__: function
    for function in (
        fidelity_diversity,
        losses,
        shift_freedom,
        on_policy,
        dose_response,
        temperature,
        suites,
        training,
        learning_rates,
        gradients,
        shifts,
        probabilities,
        sampled_pairs,
        vocabulary_cost,
    )
}


def draw(
    *,
    figure: str,
    metrics: Input,
    training: Input,
    grid: Input,
    cost: Input,
    gradients: tuple[Input, ...],
    shifts: tuple[Input, ...],
    probabilities: tuple[Input, ...],
    sampling: tuple[Input, ...],
    png: Output,
    pdf: Output,
) -> None:
    """Draw one figure, by the name of its function."""
    tables = Tables(
        metrics=read_metrics(metrics),
        training=read_table(training),
        grid=read_table(grid),
        gradients=pd.concat(map(read_table, gradients), ignore_index=True),
        shifts=pd.concat(map(read_table, shifts), ignore_index=True),
        probabilities=pd.concat(map(read_table, probabilities), ignore_index=True),
        sampling=pd.concat(map(read_table, sampling), ignore_index=True),
        cost=read_table(cost),
    )
    draw_figure(FIGURES, figure, tables, png, pdf)


if __name__ == "__main__":
    run(draw)
