"""Figures: what was selected and what it is worth, redrawn from this project's tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from papers.reic.example import readable
from papers.reic.labels import LABELS, SETTINGS
from shared.plotting import draw_figure, line_with_band, method_styles, new_figure, seed_dots
from shared.results import read_metrics
from shared.stage import Input, Output, run
from shared.tables import read_table

STYLES = method_styles(list(LABELS))
MAIN = "end_to_end/dense"
CONTROLS = ("reic", "reic_stateless", "reic_cold", "reic_shuffled", "reic_frozen", "random")
COMPARED = ("reic", "filter", "snippet", "random", "oracle")


@dataclass(frozen=True)
class Tables:
    """What figures are drawn from; see :mod:`papers.reic.runs`."""

    metrics: pd.DataFrame
    history: pd.DataFrame
    curve: pd.DataFrame
    by_picks: pd.DataFrame
    distances: pd.DataFrame
    examples: pd.DataFrame
    picks: int
    """K of the training."""
    uniform_steps: int
    """Steps of the warm-up on uniform picks."""

    def by_seed(self, setting: str, metric: str) -> pd.DataFrame:
        """Values of a metric in a setting: a row for each seed, a column for each method, worst method first."""
        rows = self.metrics[(self.metrics["setting"] == setting) & (self.metrics["metric"] == metric)]
        table = rows.pivot(index="seed", columns="method", values="value")
        return table[table.mean().sort_values().index]

    @property
    def main(self) -> str:
        """The setting that figures of one setting show."""
        found = self.metrics["setting"].unique().tolist()
        return MAIN if MAIN in found else found[0]

    def series(self, table: pd.DataFrame, method: str, x: str, y: str) -> pd.DataFrame:
        """Values of a run in the main setting: a row for each seed, a column for each x."""
        rows = table[(table["setting"] == self.main) & (table["method"] == method)]
        return rows.pivot(index="seed", columns=x, values=y)

    def methods(self, table: pd.DataFrame, wanted: tuple[str, ...]) -> list[str]:
        """Those of the wanted methods that a table has in the main setting."""
        found = set(table[table["setting"] == self.main]["method"])
        return [name for name in wanted if name in found]


def ranking(tables: Tables) -> Figure:
    """AUC of all methods, a panel for each setting."""
    found = tables.metrics["setting"].unique()
    settings = [name for name in SETTINGS if name in found] or sorted(found)
    figure, axes = new_figure(columns=len(settings), width=3.1, height=3.0)
    for panel, setting in zip(axes[0], settings, strict=True):
        seed_dots(panel, 100 * tables.by_seed(setting, "auc"), STYLES, LABELS)
        panel.set(title=SETTINGS.get(setting, setting), xlabel="AUC (%)")
        panel.grid(visible=False, axis="y")
    return figure


def controls(tables: Tables) -> Figure:
    """Evidence recall of the selector and its controls."""
    table = tables.by_seed(tables.main, "recall")
    table = table[[name for name in table if name in CONTROLS]]
    figure, axes = new_figure(width=4.6, height=2.2)
    panel = axes[0, 0]
    seed_dots(panel, 100 * table, STYLES, LABELS)
    if "random" in table:
        panel.axvline(100 * table["random"].mean(), color="0.3", linewidth=0.8, linestyle="--")
    panel.set(xlabel="gold evidence shown (%)", title=SETTINGS.get(tables.main, tables.main), xlim=(-4, 104))
    panel.grid(visible=False, axis="y")
    return figure


def training(tables: Tables) -> Figure:
    """Evidence recall and reward over the steps."""
    figure, axes = new_figure(columns=2, width=3.6, height=2.8)
    for panel, (metric, label) in zip(
        axes[0], {"recall": "gold evidence shown (%)", "reward": "mean reward"}.items(), strict=True
    ):
        factor = 100 if metric == "recall" else 1
        if tables.uniform_steps:
            panel.axvspan(0, tables.uniform_steps, color="0.93", linewidth=0)
        for name in tables.methods(tables.history, (*CONTROLS, "filter", "oracle")):
            values = tables.series(tables.history, name, "step", metric).dropna(axis=1)
            style = {key: value for key, value in STYLES[name].items() if key != "marker"}
            panel.plot(values.columns, factor * values.T, linewidth=0.6, alpha=0.5, **style)
            panel.plot(values.columns, factor * values.mean(), label=LABELS[name], **style)
        panel.set(xlabel="training step", ylabel=label)
    axes[0, 1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def curves(tables: Tables) -> Figure:
    """Precision over recall, averaged over seeds."""
    figure, axes = new_figure(width=4.6, height=3.0)
    panel, grid = axes[0, 0], np.linspace(0.02, 1, 50)
    for name in tables.methods(tables.curve, (*COMPARED, "similarity", "nearest")):
        rows = tables.curve[(tables.curve["setting"] == tables.main) & (tables.curve["method"] == name)]
        values = []
        for _, each in rows.groupby("seed"):
            inside = np.interp(grid, each["recall"], each["precision"])
            values.append(np.where(grid <= each["recall"].max(), inside, np.nan))
        style = {key: value for key, value in STYLES[name].items() if key != "marker"}
        panel.plot(100 * grid, 100 * np.mean(values, axis=0), label=LABELS[name], **style)
    panel.set(xlabel="recall (%)", ylabel="precision (%)", xlim=(0, 100), ylim=(0, 102))
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def picks(tables: Tables) -> Figure:
    """F1 and evidence recall against K."""
    figure, axes = new_figure(columns=2, width=3.6, height=2.8)
    for panel, (metric, label) in zip(
        axes[0], {"f1": "largest F1 (%)", "recall": "gold evidence shown (%)"}.items(), strict=True
    ):
        trained = tables.by_seed(tables.main, metric)
        for name in tables.methods(tables.by_picks, COMPARED):
            values = tables.series(tables.by_picks, name, "picks", metric)
            values = values.assign(**{str(tables.picks): trained[name]}).rename(columns=int).sort_index(axis=1)
            line_with_band(panel, values.columns, 100 * values.to_numpy(), label=LABELS[name], **STYLES[name])
        panel.axvline(tables.picks, color="0.3", linewidth=0.8, linestyle="--")
        panel.set(xlabel="K, picked blocks per document", ylabel=label)
    axes[0, 1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def distances(tables: Tables) -> Figure:
    """Histograms of the distance from the target block."""
    names = tables.methods(tables.distances, COMPARED)
    figure, axes = new_figure(columns=len(names), width=1.9, height=2.1, sharex=True, sharey=True)
    for panel, name in zip(axes[0], names, strict=True):
        rows = tables.distances[(tables.distances["setting"] == tables.main) & (tables.distances["method"] == name)]
        counts = rows.groupby("distance")["count"].sum()
        panel.bar(counts.index, 100 * counts / counts.sum(), width=0.9, color=STYLES[name]["color"])
        panel.set(title=LABELS[name], xlabel="distance (blocks)")
    axes[0, 0].set_ylabel("shown blocks (%)")
    return figure


def example(tables: Tables) -> Figure:
    """One path with what three methods show of it."""
    rows = tables.examples[(tables.examples["setting"] == tables.main) & (tables.examples["path"] == 0)]
    rows = rows[rows["seed"] == rows["seed"].min()]
    names = [name for name in ("reic", "filter", "snippet") if name in set(rows["method"])]
    figure, axes = new_figure(columns=2, width=5.2, height=3.4)
    for panel, side in zip(axes[0], rows["side"].unique(), strict=True):
        document = rows[rows["side"] == side]
        blocks = document[document["method"] == names[0]].sort_values("block")
        for _, block in blocks.iterrows():
            place = block["block"]
            weight = "bold" if block["evidence"] else "normal"
            panel.text(0.02, place, readable(block["text"]), va="center", fontsize=7.5, weight=weight)
            if block["role"] == "target":
                panel.add_patch(Rectangle((0, place - 0.45), 1.0, 0.9, fill=False, edgecolor="0.2", linewidth=1.2))
        for column, name in enumerate(names):
            shown = document[(document["method"] == name) & (document["pick"] > 0)]
            for _, block in shown.iterrows():
                corner = (1.04 + 0.12 * column, block["block"] - 0.45)
                panel.add_patch(Rectangle(corner, 0.1, 0.9, color=STYLES[name]["color"], alpha=0.75))
                panel.text(corner[0] + 0.05, block["block"], block["pick"], ha="center", va="center", fontsize=7.5)
            panel.text(1.09 + 0.12 * column, -0.9, LABELS[name], rotation=35, fontsize=7, ha="left", va="bottom")
        panel.set(xlim=(0, 1.42), ylim=(len(blocks) - 0.4, -0.6), xticks=[], yticks=[])
        panel.set_xlabel(f"{side}'s document", loc="left")
        panel.grid(visible=False)
        for spine in panel.spines.values():
            spine.set_visible(False)
    return figure


FIGURES = {function.__name__: function for function in (ranking, training, curves, picks, distances, controls, example)}


def draw(
    *,
    figure: str,
    picks: int,
    uniform_steps: int,
    metrics: Input,
    history: tuple[Input, ...],
    curve: tuple[Input, ...],
    by_picks: tuple[Input, ...],
    distances: tuple[Input, ...],
    examples: tuple[Input, ...],
    png: Output,
    pdf: Output,
) -> None:
    """Draw one figure."""
    series = [
        pd.concat([read_table(path) for path in paths], ignore_index=True)
        for paths in (history, curve, by_picks, distances, examples)
    ]
    draw_figure(FIGURES, figure, Tables(read_metrics(metrics), *series, picks, uniform_steps), png, pdf)


if __name__ == "__main__":
    run(draw)
