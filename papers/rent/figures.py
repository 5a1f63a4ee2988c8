"""Figures: the paper's key figures and its controls, redrawn from this project's tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from papers.rent.evaluate import concentrations
from shared.plotting import draw_figure, line_with_band, method_styles, new_figure
from shared.results import read_metrics
from shared.stage import Input, Output, run
from shared.statistics import hierarchical_bootstrap
from shared.tables import read_table

UTILIZATIONS = {
    "ce": "CE",
    "fl": "FL",
    "rw": "RW",
    "rent": "RENT",
    "b0": "uniform bootstrap",
    "rw_norm": "RW, normalised",
    "backward": "Backward",
}
ESTIMATORS = {
    "forward": "anchors",
    "true": "true T",
    "dual_t": "Dual-T",
    "volminnet": "VolMinNet",
    "tv": "TV",
    "cycle": "Cycle",
}
STYLES = method_styles(list(UTILIZATIONS))
KINDS = {"sym": "symmetric", "asym": "asymmetric", "idn": "instance-dep."}
ACCURACY = "test accuracy (%)"
SHOWN_IN_TIME = ("ce", "b0", "fl/forward", "rw/forward", "rent/forward")


@dataclass(frozen=True)
class Tables:
    """What figures are drawn from."""

    metrics: pd.DataFrame
    curves: pd.DataFrame
    """Of every epoch; see :mod:`papers.rent.train`."""
    weights: pd.DataFrame
    """Histograms of importance weights; likewise."""

    @property
    def settings(self) -> list[str]:
        """In the order of their kinds and rates."""
        found = self.curves["setting"].unique().tolist()
        return sorted(found, key=lambda name: ([name.startswith(kind) for kind in KINDS][::-1], name))

    def by_seed(self, setting: str, metric: str) -> pd.DataFrame:
        """Values of a metric in a setting: a row for each seed, a column for each method."""
        rows = self.metrics[(self.metrics["setting"] == setting) & (self.metrics["metric"] == metric)]
        return rows.pivot(index="seed", columns="method", values="value")

    def over_epochs(self, setting: str, method: str, metric: str) -> pd.DataFrame:
        """Values of a metric: a row for each seed, a column for each epoch."""
        rows = self.curves[(self.curves["setting"] == setting) & (self.curves["method"] == method)]
        return rows.pivot(index="seed", columns="epoch", values=metric)


def setting_title(name: str) -> str:
    """``sym50`` in words."""
    kind = name.rstrip("0123456789")
    return f"{KINDS[kind]}, {name.removeprefix(kind)} %" if kind in KINDS else name.replace("-", ", ")


def method_label(name: str) -> str:
    """``rent/forward`` in words."""
    used, _, estimator = name.partition("/")
    return f"{UTILIZATIONS[used]}, {ESTIMATORS[estimator]}" if estimator else UTILIZATIONS[used]


def style_of(name: str) -> dict[str, str]:
    """A utilization's colour and marker, whatever the estimator."""
    return STYLES[name.partition("/")[0]]


def accuracy(tables: Tables) -> Figure:
    """Last-epoch accuracy of the core methods in every setting, each with its interval over seeds."""
    rows = [name for name in map_core() if any(name in tables.by_seed(each, "accuracy") for each in tables.settings)]
    figure, axes = new_figure(columns=len(tables.settings), width=2.3, height=0.26 * len(rows) + 0.8, sharey=True)
    for panel, setting in zip(axes[0], tables.settings, strict=True):
        values = 100 * tables.by_seed(setting, "accuracy")
        for place, name in enumerate(rows):
            if name in values:
                interval_row(panel, place, values[name].to_numpy(), hollow=name.endswith("/true"), **style_of(name))
        panel.set(title=setting_title(setting), xlabel=ACCURACY)
        panel.set_yticks(range(len(rows)), [method_label(name) for name in rows])
        panel.grid(visible=False, axis="y")
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def map_core() -> list[str]:
    """Methods of the first figure: without T, with the estimated T, with the true one."""
    weighted = ("fl", "backward", "rw", "rw_norm", "rent")
    return ["ce", "b0", *[f"{name}/forward" for name in weighted], *[f"{name}/true" for name in ("fl", "rw", "rent")]]


def interval_row(axes: Axes, place: float, values: np.ndarray, *, hollow: bool = False, **style: str) -> None:
    """One horizontal interval over seeds with its mean, and the seeds as ticks."""
    look = {"color": style["color"], "markerfacecolor": "white" if hollow else style["color"]}
    axes.plot(values, np.full(len(values), place), "|", color=style["color"], alpha=0.5, markersize=6)
    found = hierarchical_bootstrap([[value] for value in values], replicates=4000)
    if found.low is not None:
        axes.hlines(place, found.low, found.high, color=style["color"], linewidth=2)
    axes.plot(found.estimate, place, style["marker"], markersize=6, **look)


def controls(tables: Tables) -> Figure:
    """What RENT's gain is due to: differences that isolate the resampling noise and the transition matrix."""
    differences = {
        "RENT − RW, anchors": ("rent/forward", "rw/forward"),
        "RENT − RW, true T": ("rent/true", "rw/true"),
        "bootstrap − CE": ("b0", "ce"),
        "RENT − bootstrap, anchors": ("rent/forward", "b0"),
        "RENT − bootstrap, true T": ("rent/true", "b0"),
        "RENT − FL, anchors": ("rent/forward", "fl/forward"),
        "RENT − FL, true T": ("rent/true", "fl/true"),
    }
    figure, axes = new_figure(columns=len(tables.settings), width=2.3, height=2.7, sharey=True)
    for panel, setting in zip(axes[0], tables.settings, strict=True):
        values = 100 * tables.by_seed(setting, "accuracy")
        for place, (method, baseline) in enumerate(differences.values()):
            if {method, baseline} <= set(values.columns):
                paired = (values[method] - values[baseline]).to_numpy()
                interval_row(panel, place, paired, hollow=method.endswith("/true"), **style_of(baseline))
        panel.axvline(0, color="0.3", linewidth=0.8, linestyle="--")
        panel.set(title=setting_title(setting), xlabel="points of accuracy")
        panel.set_yticks(range(len(differences)), list(differences))
        panel.grid(visible=False, axis="y")
    axes[0, 0].set_ylim(len(differences) - 0.5, -0.5)
    return figure


def concentration(tables: Tables) -> Figure:
    """Accuracy against alpha, between resampling (alpha = 0) and normalised reweighting (alpha = inf)."""
    measured = {setting: 100 * tables.by_seed(setting, "accuracy") for setting in tables.settings}
    swept = {setting: values for setting, values in measured.items() if len(concentrations(list(values))) > 1}
    figure, axes = new_figure(columns=max(len(swept), 1), width=3.4, height=2.9)
    for panel, (setting, values) in zip(axes[0], swept.items(), strict=False):
        grid = concentrations(list(values))
        line_with_band(panel, list(grid.values()), values[list(grid)], label="DWS", color="0.25", marker="o")
        limits = {"rent/forward": "RENT (α = 0)", "rw_norm/forward": "RW, normalised (α = ∞)", "rw/forward": "RW",
                  "b0": "uniform bootstrap", "ce": "CE"}  # fmt: skip
        for name, label in limits.items():
            panel.axhline(values[name].mean(), color=style_of(name)["color"], linewidth=1.2, label=label,
                          linestyle="--" if name in ("b0", "ce") else "-")  # fmt: skip
        panel.set(xscale="log", title=setting_title(setting), xlabel="concentration α")
    axes[0, 0].set_ylabel(ACCURACY)
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def epochs(tables: Tables) -> Figure:
    """Test accuracy after every epoch, and how many of the wrong labels are fitted."""
    return over_epochs(tables, {"accuracy": ACCURACY, "fit_mislabelled": "wrong labels fitted (%)"}, SHOWN_IN_TIME)


def purity(tables: Tables) -> Figure:
    """Share of the batches' weight, or of the draws, that is on samples with the right label."""
    return over_epochs(tables, {"purity": "weight on right labels (%)"}, ("ce", "b0", "rw/forward", "rent/forward"))


def over_epochs(tables: Tables, metrics: dict[str, str], methods: tuple[str, ...]) -> Figure:
    """A row of panels for each metric, a column for each setting."""
    figure, axes = new_figure(len(metrics), len(tables.settings), width=2.4, height=2.3, sharex=True)
    for row, (metric, label) in zip(axes, metrics.items(), strict=True):
        for panel, setting in zip(row, tables.settings, strict=True):
            for name in methods:
                values = 100 * tables.over_epochs(setting, name, metric)
                style = style_of(name) | {"marker": "none"}
                line_with_band(panel, values.columns, values, label=UTILIZATIONS[name.partition("/")[0]], **style)
        row[0].set_ylabel(label)
    for panel, setting in zip(axes[0], tables.settings, strict=True):
        panel.set_title(setting_title(setting))
    for panel in axes[-1]:
        panel.set_xlabel("epoch")
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def weights(tables: Tables) -> Figure:
    """Importance weights of samples with right and with wrong labels, before and after memorisation."""
    setting = "sym50" if "sym50" in tables.settings else tables.settings[0]
    shown = tables.weights[tables.weights["setting"] == setting]
    methods = ("rw/forward", "rent/forward")
    figure, axes = new_figure(2, len(methods), width=3.4, height=2.0, sharex=True, sharey=True)
    for column, name in enumerate(methods):
        rows = shown[shown["method"] == name]
        for panel, epoch in zip(axes[:, column], (rows["epoch"].min(), rows["epoch"].max()), strict=True):
            histogram(panel, rows[rows["epoch"] == epoch])
            panel.set_title(f"{UTILIZATIONS[name.partition('/')[0]]}, epoch {epoch}")
        axes[-1, column].set_xlabel("importance weight w")
    used = shown.loc[shown["method"].isin(methods) & (shown["count"] > 0), "weight"]
    axes[0, 0].set_xlim(0, used.max() + 0.4)
    for panel in axes[:, 0]:
        panel.set_ylabel("share of samples")
    axes[0, -1].legend()
    return figure


def histogram(axes: Axes, rows: pd.DataFrame) -> None:
    """Shares of the samples by weight, seeds together; right and wrong labels each sum to one."""
    for clean, label, method in ((True, "right labels", "rent"), (False, "wrong labels", "fl")):
        counts = rows[rows["clean"] == clean].groupby("weight")["count"].sum()
        edges = np.append(counts.index, 2 * counts.index[-1] - counts.index[-2])
        axes.stairs(counts / counts.sum(), edges, fill=True, alpha=0.45, color=STYLES[method]["color"], label=label)


def transitions(tables: Tables) -> Figure:
    """Accuracy against the error of the transition matrix in the last epoch: markers by use, colours by estimator."""
    found = {each: tables.by_seed(each, "transition_error") for each in tables.settings}
    compared = {
        setting: errors for setting, errors in found.items() if len({name.split("/")[1] for name in errors}) > 2
    }
    compared = compared or found  # where no setting compares many estimators
    figure, axes = new_figure(columns=len(compared), width=3.5, height=3.1)
    colours = method_styles(list(ESTIMATORS))
    for panel, (setting, errors) in zip(axes[0], compared.items(), strict=True):
        values = 100 * tables.by_seed(setting, "accuracy")
        for name in errors:
            used, estimator = name.split("/")
            if used in ("fl", "rw", "rent"):
                look = {"color": colours[estimator]["color"], "marker": STYLES[used]["marker"], "linestyle": "none"}
                panel.plot(errors[name], values[name], alpha=0.25, markersize=3, **look)
                panel.plot(errors[name].mean(), values[name].mean(), markersize=7, **look)
        panel.set(title=setting_title(setting), xlabel="error of T (total variation)")
    axes[0, 0].set_ylabel(ACCURACY)
    for estimator, label in ESTIMATORS.items():
        axes[0, -1].plot([], [], "s", color=colours[estimator]["color"], label=label)
    for used in ("fl", "rw", "rent"):
        axes[0, -1].plot([], [], STYLES[used]["marker"], color="0.4", label=UTILIZATIONS[used])
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


FIGURES = {
    figure.__name__: figure
    for figure in (accuracy, controls, concentration, epochs, weights, purity, transitions)
}  # fmt: skip


def draw(
    *, figure: str, metrics: Input, curves: tuple[Input, ...], weights: tuple[Input, ...], png: Output, pdf: Output
) -> None:
    """Draw one of the figures."""
    joined = (pd.concat([read_table(path) for path in paths], ignore_index=True) for paths in (curves, weights))
    draw_figure(FIGURES, figure, Tables(read_metrics(metrics), *joined), png, pdf)


if __name__ == "__main__":
    run(draw)
