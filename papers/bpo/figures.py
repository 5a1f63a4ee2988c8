"""Figures: the paper's key figures, redrawn from this project's tables, and what decides claim C1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from papers.bpo.bregman_losses import bregman_divergence, bregman_gradient_magnitude
from papers.bpo.evaluate import TABULAR, lambdas
from shared.errors import InputError
from shared.plotting import PALETTE, house_style, line_with_band, new_figure, save_figure
from shared.results import read_metrics
from shared.stage import Input, Output, run
from shared.tables import read_table

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = PALETTE
TITLES = {"clean": "clean labels (κ = 4)", "noisy": "noisy labels (κ = 1)"}
# Families of the scatter plot: label, colour, marker, and the short names of their members.
FAMILIES: dict[str, tuple[str, str, dict[str, str]]] = {
    "DPO": (BLACK, "X", {"dpo": "DPO"}),
    "f-DPO": (
        SKY,
        "s",
        {"fdpo-fkl": "FKL", "fdpo-js": "JS", "fdpo-alpha:0.1": "α", "fdpo-chi2": "χ²"},
    ),
    "f-PO": (
        GREEN,
        "^",
        {"fpo-rkl": "RKL", "fpo-js": "JS", "fpo-jeffreys": "Jeffreys", "fpo-alpha:0.1": "α"},
    ),
    "BPO": (ORANGE, "D", {"kliep": "KLIEP", "lsif": "LSIF", "ba:2": "BA 2"}),
    "SBA": (
        VERMILION,
        "o",
        {"sba:-0.5": "−½", "sba:0": "0", "sba:0.5": "½", "sba:1": "1", "sba:2": "2"},
    ),
}
POWERS = (-0.5, 0.0, 0.5, 1.0, 2.0)
SEQUENTIAL = "viridis"


@dataclass(frozen=True)
class Tables:
    """What figures are drawn from."""

    metrics: pd.DataFrame
    temperatures: pd.DataFrame
    training: pd.DataFrame
    held_out: pd.DataFrame

    @property
    def settings(self) -> list[str]:
        return list(dict.fromkeys(self.training["setting"]))

    def by_seed(self, setting: str, metric: str) -> pd.DataFrame:
        """Values of a metric in a setting: a row for each seed, a column for each method."""
        rows = self.metrics[(self.metrics["setting"] == setting) & (self.metrics["metric"] == metric)]
        return rows.pivot(index="seed", columns="method", values="value")


def tradeoff(tables: Tables) -> Figure:
    """Win rate against entropy of every loss, and DPO along the sampling temperature (the paper's figure 1)."""
    figure, axes = new_figure(columns=len(tables.settings), width=4.3, height=3.9)
    for panel, setting in zip(axes[0], tables.settings, strict=True):
        wins, entropies = tables.by_seed(setting, "win_vs_sft"), tables.by_seed(setting, "entropy")
        for family, (colour, marker, members) in FAMILIES.items():
            names = [name for name in members if name in wins]
            for position, name in enumerate(names):
                x, y = entropies[name], wins[name]
                panel.plot(
                    x.mean(),
                    y.mean(),
                    marker=marker,
                    color=colour,
                    linestyle="none",
                    markersize=6,
                    label=None if position else family,
                    zorder=3,
                )
                panel.plot([x.min(), x.max()], [y.mean()] * 2, color=colour, linewidth=0.8, alpha=0.6)
                panel.plot([x.mean()] * 2, [y.min(), y.max()], color=colour, linewidth=0.8, alpha=0.6)
                if family != "DPO":
                    panel.annotate(
                        members[name],
                        (x.mean(), y.mean()),
                        textcoords="offset points",
                        xytext=(5, 4),
                        fontsize=7,
                        color=colour,
                    )
        limits = panel.get_xlim(), panel.get_ylim()
        curve = temperature_curve(tables, setting, "dpo")
        panel.plot(
            curve["entropy"], curve["win_vs_sft"], color="0.55", linestyle="--", linewidth=1, label="DPO, temperature"
        )
        panel.set_xlim(*limits[0])
        panel.set_ylim(*limits[1])
        panel.set(title=TITLES.get(setting, setting), xlabel="token entropy (nats)")
    axes[0, 0].set_ylabel("win rate over the supervised model")
    axes[0, -1].legend(loc="lower left")
    return figure


def generators(tables: Tables) -> Figure:
    """Pointwise divergences and gradient weights of the generators (the paper's figures 2 and 3); no data."""
    figure, axes = new_figure(columns=3, width=3.1, height=2.7)
    log_ratio = torch.linspace(np.log(0.05), np.log(20), 400, dtype=torch.float64)
    ratio = log_ratio.exp().numpy()
    divergence, *panels = axes[0]
    for (label, options), colour in zip(
        {
            "logistic": {"generator": "logistic"},
            "KLIEP": {"generator": "kliep"},
            "LSIF": {"generator": "lsif"},
            "SBA, λ = ½": {"generator": "scaled_basu", "lam": 0.5},
        }.items(),
        (BLACK, BLUE, ORANGE, VERMILION),
        strict=True,
    ):
        values = bregman_divergence(torch.full_like(log_ratio, np.log(0.5)), log_ratio, **options)
        divergence.plot(ratio, values, color=colour, label=label)
    divergence.axvline(0.5, color="0.5", linewidth=0.8, linestyle="--")
    divergence.set(title="pointwise divergence", ylabel=r"$B_h(R_{data} = ½ \| R)$", ylim=(1e-4, 30), yscale="log")
    divergence.legend(loc="lower right")
    for panel, (name, generator) in zip(panels, {"BA": "basu", "SBA": "scaled_basu"}.items(), strict=True):
        for power, colour in zip(POWERS, power_colours(), strict=True):
            weights = bregman_gradient_magnitude(log_ratio, generator=generator, lam=power)
            panel.plot(ratio, weights, color=colour, label=f"λ = {spelled(power)}")
        logistic = bregman_gradient_magnitude(log_ratio, generator="logistic")
        panel.plot(ratio, logistic, color=BLACK, linestyle="--", label="logistic")
        panel.set(title=f"gradient weight, {name}", ylabel=r"$G_h(R)$", yscale="log", ylim=(0.02, 300))
    panels[0].legend(ncols=2, loc="upper center")
    for panel in axes[0]:
        panel.set(xscale="log", xlabel="R")
    return figure


def powers(tables: Tables) -> Figure:
    """Win rate and entropy over lambda, and how the margins spread (the paper's figure 5)."""
    figure, axes = new_figure(columns=3, width=3.1, height=2.8)
    names = lambdas(tables.training["method"].unique().tolist())
    for setting, colour, marker in zip(tables.settings, (BLUE, VERMILION), "os", strict=False):
        for panel, metric in zip(axes[0], ("win_vs_sft", "entropy"), strict=False):
            values = tables.by_seed(setting, metric)
            style = {"color": colour, "marker": marker}
            label = TITLES.get(setting, setting)
            line_with_band(panel, list(names.values()), values[list(names)].to_numpy(), label=label, **style)
            panel.axhline(values["dpo"].mean(), color=colour, linewidth=1, linestyle="--")
    axes[0, 0].set(xlabel="λ", ylabel="win rate over the supervised model", title="win rate")
    axes[0, 1].set(xlabel="λ", ylabel="token entropy (nats)", title="entropy")
    axes[0, 0].plot([], [], color="0.4", linewidth=1, linestyle="--", label="DPO")
    axes[0, 0].legend()
    setting = tables.settings[0]
    rows = tables.held_out[tables.held_out["setting"] == setting]
    edges = np.linspace(-4, 6, 51)
    for name, colour in zip(names, power_colours(len(names)), strict=True):
        margins = rows.loc[rows["method"] == name, "margin"].clip(edges[0], edges[-1])
        density, _ = np.histogram(margins, edges, density=True)
        axes[0, 2].stairs(density, edges, color=colour, label=f"λ = {spelled(names[name])}", linewidth=1.2)
    axes[0, 2].set(
        xlabel="margin of held-out pairs", ylabel="density", title=f"margins, {TITLES.get(setting, setting)}"
    )
    axes[0, 2].legend()
    return figure


def temperature(tables: Tables) -> Figure:
    """Win rate against temperature, and against the entropy that it gives (the paper's figures 6 and 9)."""
    figure, axes = new_figure(len(tables.settings), 2, width=4.0, height=2.8)
    for panels, setting in zip(axes, tables.settings, strict=True):
        for name, colour in (("dpo", BLACK), *zip(curve_names(tables), power_colours(), strict=False)):
            curve = temperature_curve(tables, setting, name)
            style = {
                "color": colour,
                "marker": "X" if name == "dpo" else "o",
                "linestyle": "--" if name == "dpo" else "-",
            }
            label = "DPO" if name == "dpo" else f"SBA, λ = {spelled(float(name.removeprefix('sba:')))}"
            panels[0].plot(curve.index, curve["win_vs_sft"], label=label, **style)
            panels[1].plot(curve["entropy"], curve["win_vs_sft"], **style)
        panels[0].set(ylabel="win rate over the supervised model", title=TITLES.get(setting, setting))
        panels[0].set_xlabel("sampling temperature")
        panels[1].set_xlabel("token entropy (nats)")
    axes[0, 0].legend()
    return figure


def gradient_norm(tables: Tables) -> Figure:
    """Norm of the gradient before clipping in every step (the paper's figure 10)."""
    figure, axes = new_figure(columns=len(tables.settings), width=4.0, height=2.8, sharey=True)
    shown = {"dpo": ("DPO", BLACK), "ba:2": ("BA, λ = 2", PURPLE)}
    shown |= {
        name: (f"SBA, λ = {spelled(power)}", colour)
        for (name, power), colour in zip(
            lambdas(list(tables.training["method"].unique())).items(), power_colours(), strict=False
        )
    }
    for panel, setting in zip(axes[0], tables.settings, strict=True):
        rows = tables.training[tables.training["setting"] == setting]
        for name, (label, colour) in shown.items():
            norms = rows[rows["method"] == name].pivot(index="seed", columns="step", values="grad_norm")
            if len(norms):
                panel.plot(norms.columns, norms.mean(), color=colour, linewidth=1.2, label=label)
        panel.axhline(10, color="0.5", linewidth=0.8, linestyle="--")
        panel.set(title=TITLES.get(setting, setting), xlabel="step", yscale="log")
    axes[0, 0].set_ylabel("gradient norm")
    axes[0, -1].legend(ncols=2)
    return figure


def tabular(tables: Tables) -> Figure:
    """Distance of every loss's minimiser from DPO's optimum, on problems solved exactly (the paper's table 1)."""
    gaps = tables.by_seed(TABULAR, "optimality_gap")
    names = sorted(gaps.columns, key=lambda name: (["bpo", "f_dpo", "f_po"].index(name.split("/")[0]), name))
    figure, axes = new_figure(width=6.2, height=0.21 * len(names) + 0.9)
    colours = {"bpo": VERMILION, "f_dpo": SKY, "f_po": GREEN}
    labels = {"bpo": "BPO", "f_dpo": "f-DPO", "f_po": "f-PO"}
    panel = axes[0, 0]
    for row, name in enumerate(names):
        family = name.split("/")[0]
        values = gaps[name].clip(lower=1e-18)
        panel.plot(values, [row] * len(values), "|", color=colours[family], alpha=0.5, markersize=6)
        panel.plot(max(gaps[name].mean(), 1e-18), row, "o", color=colours[family], markersize=5)
    for bound in (1e-8, 1e-3):
        panel.axvline(bound, color="0.4", linewidth=0.8, linestyle="--")
    panel.set_yticks(
        range(len(names)), [f"{labels[n.split('/')[0]]} {n.split('/')[1].replace('_', ' ')}" for n in names]
    )
    panel.set(xscale="log", xlabel=r"KL($\pi^*$ || minimiser), nats", ylim=(len(names) - 0.5, -0.5))
    return figure


FIGURES: dict[str, Callable[[Tables], Figure]] = {
    each.__name__: each for each in (tradeoff, generators, powers, temperature, gradient_norm, tabular)
}


def power_colours(count: int = len(POWERS)) -> list[tuple[float, float, float, float]]:
    """A dark-to-bright colour for each lambda in increasing order."""
    return [matplotlib.colormaps[SEQUENTIAL](0.9 * index / max(count - 1, 1)) for index in range(count)]


def temperature_curve(tables: Tables, setting: str, method: str) -> pd.DataFrame:
    """Means over seeds for each temperature: win_vs_sft, entropy."""
    rows = tables.temperatures
    rows = rows[(rows["setting"] == setting) & (rows["method"] == method)]
    return rows.groupby("temperature")[["win_vs_sft", "entropy"]].mean()


def curve_names(tables: Tables) -> list[str]:
    """SBA's members that were sampled at several temperatures, in the order of lambda."""
    counts = tables.temperatures.groupby("method")["temperature"].nunique()
    return [name for name in lambdas(list(counts.index)) if counts[name] > 1]


def spelled(power: float) -> str:
    """A number with a minus sign as typeset."""
    return f"{power:g}".replace("-", "−")


def draw(
    *,
    figure: str,
    metrics: Input,
    temperatures: Input,
    training: Input,
    held_out: Input,
    png: Output,
    pdf: Output,
) -> None:
    """Draw one figure, by the name of its function."""
    if figure not in FIGURES:
        raise InputError(f"figure {figure!r}: there is none; there are: {', '.join(FIGURES)}")
    tables = Tables(
        metrics=read_metrics(metrics),
        temperatures=read_table(temperatures),
        training=read_table(training),
        held_out=read_table(held_out),
    )
    with house_style():
        save_figure(FIGURES[figure](tables), png, pdf)


if __name__ == "__main__":
    run(draw)
