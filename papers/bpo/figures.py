"""Figures: the paper's key figures, redrawn from this project's tables, and what decides claim C1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from papers.bpo.evaluate import lambdas
from shared.plotting import PALETTE, draw_figure, line_with_band, new_figure
from shared.results import read_metrics
from shared.stage import Input, Output, run
from shared.tables import read_table

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = PALETTE
TITLES = {"clean": "clean labels (κ = 4)", "noisy": "noisy labels (κ = 1)", "hh": "HH dialogues"}
# Families of the scatter plot with their colour and marker, and short names of members that need one.
FAMILIES = {
    "DPO": (BLACK, "X"),
    "f-DPO": (SKY, "s"),
    "f-PO": (GREEN, "^"),
    "BPO": (ORANGE, "D"),
    "SBA": (VERMILION, "o"),
}
SHORT = {"fkl": "FKL", "rkl": "RKL", "js": "JS", "alpha": "α", "chi2": "χ²", "jeffreys": "Jeffreys"}
SEQUENTIAL = "viridis"
# Families of the tabular study: label and colour.
TABULAR_FAMILIES = {"bpo": ("BPO", VERMILION), "f_dpo": ("f-DPO", SKY), "f_po": ("f-PO", GREEN)}
LOSS_WORDS = {
    "scaled_basu": "SBA",
    "basu": "BA",
    "kliep": "KLIEP",
    "lsif": "LSIF",
    "forward_kl": "forward KL",
    "reverse_kl": "reverse KL",
    "jensen_shannon": "JS",
    "jeffreys": "Jeffreys",
    "chi_squared": "χ²",
    "alpha": "α",
    "logistic": "logistic (DPO)",
    "_clipped": " clipped",
    "_": " ",
}
ROUNDING = 1e-17  # a distance below it, or negative, is rounding


@dataclass(frozen=True)
class Tables:
    """What figures are drawn from."""

    metrics: pd.DataFrame
    temperatures: pd.DataFrame
    training: pd.DataFrame
    held_out: pd.DataFrame
    gaps: pd.DataFrame
    generators: pd.DataFrame

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
        members = [(name, *family_of(name)) for name in wins.columns if family_of(name)]
        for family, (colour, marker) in FAMILIES.items():
            names = [name for name, its_family, _ in members if its_family == family]
            if family == "SBA":
                names.sort(key=lambdas(names).get)
            x, y = entropies[names], wins[names]
            line = "-" if family == "SBA" else "none"  # in the order of lambda
            style = {"color": colour, "marker": marker, "linestyle": line, "linewidth": 0.8, "markersize": 6}
            panel.plot(x.mean(), y.mean(), label=family, zorder=3, **style)
            panel.hlines(y.mean(), x.min(), x.max(), color=colour, linewidth=0.8, alpha=0.4)
            panel.vlines(x.mean(), y.min(), y.max(), color=colour, linewidth=0.8, alpha=0.4)
        limits = panel.get_xlim(), panel.get_ylim()
        curve = temperature_curve(tables, setting, "dpo")
        panel.plot(*curve[["entropy", "win_vs_sft"]].to_numpy().T, "--", color="0.55", linewidth=1, label="DPO over T")
        panel.set(xlim=limits[0], ylim=limits[1])
        panel.set(title=TITLES.get(setting, setting), xlabel="token entropy (nats)")
        points = {name: (entropies[name].mean(), wins[name].mean()) for name, _, _ in members}
        for name, family, label in members:
            if stands_alone(name, points, limits):
                place = {"xytext": (5, 4), "textcoords": "offset points", "fontsize": 7}
                panel.annotate(label, points[name], color=FAMILIES[family][0], **place)
    axes[0, 0].set_ylabel("win rate over the supervised model")
    axes[0, -1].legend()
    return figure


def stands_alone(name: str, points: dict[str, tuple[float, float]], limits: tuple[tuple[float, float], ...]) -> bool:
    """Whether no other point is so close that labels would cover each other; closeness in parts of the panel."""
    extent = np.array([high - low for low, high in limits])
    offsets = (np.array([point for other, point in points.items() if other != name]) - points[name]) / extent
    return not (np.abs(offsets) < (0.08, 0.05)).all(axis=1).any()


def generators(tables: Tables) -> Figure:
    """Pointwise divergences and gradient weights of the generators (the paper's figures 2 and 3)."""
    figure, axes = new_figure(columns=3, width=3.1, height=2.9)
    curves = {key: rows.set_index("ratio") for key, rows in tables.generators.groupby(["generator", "lam"])}
    shown = {
        "logistic": (("logistic", 0.0), BLACK, "--"),
        "KLIEP": (("kliep", 0.0), BLUE, "-"),
        "LSIF": (("lsif", 0.0), ORANGE, "-"),
        "SBA, λ = ½": (("scaled_basu", 0.5), VERMILION, "-"),
    }
    for label, (key, colour, line) in shown.items():
        axes[0, 0].plot(curves[key]["divergence"], color=colour, linestyle=line, label=label)
    axes[0, 0].axvline(0.5, color="0.5", linewidth=0.8, linestyle=":")
    axes[0, 0].set(ylabel=r"$B_h(\frac{1}{2} \,\|\, R)$", ylim=(1e-4, 100), title="pointwise divergence")
    axes[0, 0].legend(loc="lower right")
    for panel, (name, generator) in zip(axes[0, 1:], {"BA": "basu", "SBA": "scaled_basu"}.items(), strict=True):
        members = sorted(lam for member, lam in curves if member == generator)
        for lam, colour in zip(members, power_colours(len(members)), strict=True):
            panel.plot(curves[generator, lam]["gradient"], color=colour, label=f"λ = {spelled(lam)}")
        panel.plot(curves["logistic", 0.0]["gradient"], color=BLACK, linestyle="--", label="logistic")
        panel.set(ylabel=r"$G_h(R)$", ylim=(0.03, 3e4), title=f"gradient weight, {name}")
    axes[0, 2].legend(ncols=2, loc="upper center")
    for panel in axes[0]:
        panel.set(xscale="log", yscale="log", xlabel="R")
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
    figure, axes = new_figure(len(tables.settings), 2, width=4.0, height=2.9)
    for panels, setting in zip(axes, tables.settings, strict=True):
        for name, (label, style) in power_styles(curve_names(tables)).items():
            curve = temperature_curve(tables, setting, name)
            panels[0].plot(curve.index, curve["win_vs_sft"], label=label, **style)
            panels[1].plot(curve["entropy"], curve["win_vs_sft"], **style)
        panels[0].set(ylabel="win rate over the supervised model", title=TITLES.get(setting, setting))
        panels[0].set_xlabel("sampling temperature")
        panels[1].set_xlabel("token entropy (nats)")
    axes[0, 0].legend()
    return figure


def gradient_norm(tables: Tables) -> Figure:
    """Norm of the gradient before clipping in every step (the paper's figure 10)."""
    figure, axes = new_figure(columns=len(tables.settings), width=4.0, height=2.9, sharey=True)
    methods = tables.training["method"].unique().tolist()
    styles = power_styles(list(lambdas(methods)))
    if "ba:2" in methods:
        styles["ba:2"] = ("BA, λ = 2", {"color": PURPLE, "linestyle": "-."})
    for panel, setting in zip(axes[0], tables.settings, strict=True):
        rows = tables.training[tables.training["setting"] == setting]
        for name, (label, style) in styles.items():
            norms = rows[rows["method"] == name].pivot(index="seed", columns="step", values="grad_norm")
            panel.plot(norms.columns, norms.mean(), label=label, **style | {"marker": "", "linewidth": 1.2})
        panel.axhline(10, color="0.5", linewidth=0.8, linestyle=":")
        panel.set(title=TITLES.get(setting, setting), xlabel="step", yscale="log")
    axes[0, 0].set_ylabel("gradient norm")
    axes[0, -1].legend(ncols=2)
    return figure


def tabular(tables: Tables) -> Figure:
    """Distance of every loss's minimiser from DPO's optimum, on problems solved exactly (the paper's table 1)."""
    gaps = tables.gaps.pivot(index=["seed", "problem"], columns="loss", values="gap").clip(lower=ROUNDING)
    figure, axes = new_figure(width=6.2, height=5.2)
    panel = axes[0, 0]
    names = [(family, name) for family in TABULAR_FAMILIES for name in gaps if name.startswith(f"{family}/")]
    for row, (family, name) in enumerate(names):
        colour = TABULAR_FAMILIES[family][1]
        panel.plot(gaps[name], [row] * len(gaps), "|", color=colour, alpha=0.4, markersize=6)
        panel.plot(gaps[name].mean(), row, "o", color=colour, markersize=5)
    for bound in (1e-8, 1e-3):
        panel.axvline(bound, color="0.4", linewidth=0.8, linestyle="--")
    labels = [f"{TABULAR_FAMILIES[family][0]} {loss_label(name)}" for family, name in names]
    panel.set_yticks(range(len(names)), labels)
    panel.set(xscale="log", xlabel=r"KL($\pi^*$ || minimiser), nats", ylim=(len(names) - 0.5, -0.5))
    panel.grid(visible=False, axis="y")
    return figure


FIGURES: dict[str, Callable[[Tables], Figure]] = {
    each.__name__: each for each in (tradeoff, generators, powers, temperature, gradient_norm, tabular)
}


def family_of(method: str) -> tuple[str, str] | None:
    """Family of a method and its short name in the scatter plot; None for what is not shown there."""
    loss, _, number = method.partition(":")
    if "@" in method or method.startswith(("best-", "inner-")):
        return None
    if method == "dpo":
        return "DPO", ""
    if loss == "sba":
        return "SBA", spelled(float(number))
    if loss in ("ba", "kliep", "lsif"):
        return "BPO", f"{loss.upper()} {spelled(float(number))}" if number else loss.upper()
    for prefix, family in (("fdpo-", "f-DPO"), ("fpo-", "f-PO")):
        if loss.startswith(prefix):
            return family, SHORT[loss.removeprefix(prefix)]
    return None


def power_colours(count: int) -> list[tuple[float, float, float, float]]:
    """A dark-to-bright colour for each lambda in increasing order."""
    return [matplotlib.colormaps[SEQUENTIAL](0.9 * index / max(count - 1, 1)) for index in range(count)]


def power_styles(names: list[str]) -> dict[str, tuple[str, dict[str, object]]]:
    """Label and line style of DPO and of SBA's members."""
    styles = {"dpo": ("DPO", {"color": BLACK, "marker": "X", "linestyle": "--", "zorder": 3})}
    for name, colour in zip(names, power_colours(len(names)), strict=True):
        label = f"SBA, λ = {spelled(float(name.removeprefix('sba:')))}"
        styles[name] = (label, {"color": colour, "marker": "o", "linestyle": "-"})
    return styles


def temperature_curve(tables: Tables, setting: str, method: str) -> pd.DataFrame:
    """Means over seeds for each temperature: win_vs_sft, entropy."""
    rows = tables.temperatures
    rows = rows[(rows["setting"] == setting) & (rows["method"] == method)]
    return rows.groupby("temperature")[["win_vs_sft", "entropy"]].mean()


def curve_names(tables: Tables) -> list[str]:
    """SBA's members that were sampled at several temperatures, in the order of lambda."""
    counts = tables.temperatures.groupby("method")["temperature"].nunique()
    return [name for name in lambdas(list(counts.index)) if counts[name] > 1]


def loss_label(name: str) -> str:
    """A loss of the tabular study in words."""
    label = name.partition("/")[2]
    for code, word in LOSS_WORDS.items():
        label = label.replace(code, word)
    return label.replace("-", "−")


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
    gaps: Input,
    generators: Input,
    png: Output,
    pdf: Output,
) -> None:
    """Draw one figure, by the name of its function."""
    tables = Tables(
        metrics=read_metrics(metrics),
        temperatures=read_table(temperatures),
        training=read_table(training),
        held_out=read_table(held_out),
        gaps=read_table(gaps),
        generators=read_table(generators),
    )
    draw_figure(FIGURES, figure, tables, png, pdf)


if __name__ == "__main__":
    run(draw)
