"""Figures: samples side by side, what DATE gains at what cost, and how embeddings move."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from safetensors.torch import load_file
from torch import Tensor

from papers.date.options import SamplerOptions
from papers.date.variants import parse_schedules
from shared.errors import InputError
from shared.plotting import PALETTE, draw_figure, line_with_band, new_figure
from shared.results import read_metrics
from shared.stage import Input, Output, run
from shared.tables import read_table

BLUE, VERMILION, GREEN, PURPLE, _, SKY, BLACK = PALETTE
LABELS = {
    "fixed": "fixed",
    "fixed-x1.4": "fixed, 1.4 × steps",
    "fixed-x2": "fixed, 2 × steps",
    "fixed-x2.5": "fixed, 2.5 × steps",
    "universal": "Universal Guidance",
    "ebca": "EBCA",
    "date": "DATE",
    "random": "random",
    "date-raw": "not normalised",
    "date-anchor": "from anchor",
    "date-noisy": "on noisy latents",
    "date-preference": "preference reward",
    "date-plain": "plain reward",
    "date-sum": "sum of rewards",
}
SCHEDULES = {
    "first": "1st quarter",
    "second": "2nd quarter",
    "third": "3rd quarter",
    "fourth": "4th quarter",
    "every2": "every 2nd",
    "every5": "every 5th",
    "every10": "every 10th",
    "late": "a fifth, late",
}
# Methods of the image grid, and of the figures by task and along sampling, in their order.
SHOWN = ("fixed", "fixed-x2.5", "random", "universal", "ebca", "date-raw", "date", "date-preference")
SCORES = {"gold": "right images (checker)", "evaluator_score": "held-out scorer"}
GREY = "#8c8c8c"
COLOURS = {"fixed": BLACK, "universal": GREEN, "ebca": PURPLE, "random": GREY, "date": VERMILION}
PATHS = {"date/all": VERMILION, "date/late": BLUE, "date/every5": SKY, "random/all": GREY, "date-raw/all": GREEN}
WINDOWS = tuple(f"date/{name}" for name in ("first", "second", "third", "fourth"))
POINTS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")
"""Markers of variants that have one colour."""
RIGHT, WRONG = "#009E73", "#D55E00"


@dataclass(frozen=True)
class Tables:
    """What figures are drawn from."""

    metrics: pd.DataFrame
    traces: pd.DataFrame
    trials: pd.DataFrame
    strengths: pd.DataFrame
    scores: pd.DataFrame
    directions: pd.DataFrame
    paths: pd.DataFrame
    images: dict[str, Tensor]
    """Of the first seed, by variant: (shown, 3, H, W), uint8."""
    schedules: dict[str, tuple[int, ...]]
    """Steps of each schedule."""

    @property
    def methods(self) -> list[str]:
        """All that was sampled, by name."""
        return sorted(self.metrics["method"].unique())

    @property
    def scored(self) -> list[str]:
        """Those of :data:`SCORES` that were measured."""
        return [metric for metric in SCORES if metric in set(self.metrics["metric"])]

    def by_seed(self, metric: str, setting: str = "all") -> pd.DataFrame:
        """Values of a metric: a row for each seed, a column for each method."""
        rows = self.metrics[(self.metrics["metric"] == metric) & (self.metrics["setting"] == setting)]
        return rows.pivot(index="seed", columns="method", values="value")

    def first(self, kind: str) -> str | None:
        """The first variant of a kind (the name before the slash), those in all steps before others."""
        names = [name for name in self.methods if name.partition("/")[0] == kind]
        return min(names, key=lambda name: (not name.endswith("/all"), name), default=None)


def label(method: str) -> str:
    """A variant in words."""
    kind, _, schedule = method.partition("/")
    name = LABELS.get(kind, kind)
    return name if schedule in ("", "all") else f"{name}, {SCHEDULES.get(schedule, schedule)}"


def colour(method: str) -> str:
    """Colour of a variant: that of what it is a variant of."""
    kind = method.partition("/")[0]
    return COLOURS.get(kind) or (BLACK if kind.startswith("fixed") else SKY)


def samples(tables: Tables) -> Figure:
    """Images of fixed prompts, one row for each, under every method; frames tell what the checker says."""
    columns = [name for name in map(tables.first, SHOWN) if name in tables.images]
    shown = tables.scores[tables.scores["shown"] & (tables.scores["seed"] == tables.scores["seed"].min())]
    prompts = shown.drop_duplicates("unit").sort_values("unit", key=lambda unit: unit.astype(int))
    gold = shown.pivot(index="unit", columns="variant", values="gold") if "gold" in shown else None
    figure, axes = new_figure(len(prompts), len(columns), width=0.82, height=0.72)
    for row, (unit, text) in enumerate(zip(prompts["unit"], prompts["prompt"], strict=True)):
        for column, name in enumerate(columns):
            panel = axes[row, column]
            panel.imshow(tables.images[name][row].permute(1, 2, 0).numpy(), interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            frame = "0.7" if gold is None else RIGHT if gold.loc[unit, name] else WRONG
            for spine in panel.spines.values():
                spine.set(visible=True, color=frame, linewidth=2)
            if row == 0:
                panel.set_title(textwrap.fill(label(name), 11), fontsize=7, loc="center", fontweight="normal")
        side = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 7}
        axes[row, 0].set_ylabel(textwrap.fill(text, 20), **side)
    return figure


def alignment(tables: Tables) -> Figure:
    """Scores of every variant: seeds as dots, their means as diamonds, the fixed embedding as a line."""
    titles = {**SCORES, "frechet_distance": "Fréchet distance"}
    metrics = [metric for metric in titles if metric in set(tables.metrics["metric"])]
    first = tables.by_seed(metrics[0])
    names = list(first.mean().sort_values().index)
    figure, axes = new_figure(columns=len(metrics), width=2.9, height=0.2 * len(names) + 0.9, sharey=True)
    for panel, metric in zip(axes[0], metrics, strict=True):
        values = tables.by_seed(metric)[names]
        for row, name in enumerate(names):
            panel.plot(values[name], [row] * len(values), ".", color=colour(name), alpha=0.5)
            panel.plot(values[name].mean(), row, "D", color=colour(name), markersize=5)
        if "fixed" in names:
            panel.axvline(values["fixed"].mean(), color="0.5", linewidth=0.8, linestyle="--")
        panel.set_xlabel(titles[metric])
    axes[0, 0].set_yticks(range(len(names)), [label(name) for name in names])
    return figure


def cost(tables: Tables) -> Figure:
    """Score against evaluations of the network and against time."""
    figure, axes = new_figure(len(tables.scored), 2, width=3.6, height=2.7, sharey="row")
    costs = tables.metrics.groupby("method")[["cost", "wall_seconds"]].mean()
    costs["wall_seconds"] /= costs["wall_seconds"].get("fixed", 1.0)
    markers = point_markers(tables.methods)
    for panels, metric in zip(axes, tables.scored, strict=True):
        means = tables.by_seed(metric).mean()
        for panel, axis in zip(panels, costs, strict=True):
            points = {name: (costs.loc[name, axis], means[name]) for name in markers}
            line = sorted(point for name, point in points.items() if name.startswith("fixed"))
            panel.plot(*np.array(line).T, color=BLACK, linewidth=0.8, linestyle="--")
            for name, point in points.items():
                style = {"color": colour(name), "markersize": 6, "alpha": 0.8, "label": label(name)}
                panel.plot(*point, markers[name], **style)
        panels[0].set_ylabel(SCORES[metric])
    axes[-1, 0].set_xlabel("evaluations per image")
    axes[-1, 1].set_xlabel("time, in parts of the fixed embedding's")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    return figure


def point_markers(names: list[str]) -> dict[str, str]:
    """A marker for each variant, none twice in one colour; those of one colour follow each other."""
    order, schedules = [BLACK, VERMILION, SKY, GREY, GREEN, PURPLE], ["", "all", *SCHEDULES]
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (order.index(colour(name)), schedules.index(name.partition("/")[2]))):
        found[name] = POINTS[sum(colour(other) == colour(name) for other in found)]
    return found


def _whole_numbers(*scales: Axis) -> None:
    for scale in scales:
        scale.set_major_locator(MaxNLocator(integer=True))


def strengths(tables: Tables) -> Figure:
    """Scores on development prompts over the strength of guidance; the selected one is ringed."""
    names = [name for name in tables.trials["variant"].unique() if "raw" not in name]
    chosen = tables.strengths.set_index("variant")["strength"]
    titles = {"gold_share": "conditions that hold", "evaluator_score": SCORES["evaluator_score"]}
    metrics = [name for name in titles if name in tables.trials]
    groups = {
        "ρ, by how many steps update": [name for name in names if name.startswith("date/") and name not in WINDOWS],
        "ρ, by which quarter updates": [name for name in WINDOWS if name in names],
        "ρ, other rewards and starts": [name for name in names if name.startswith("date-")],
        "scale of Universal Guidance": [name for name in names if name == "universal"],
        "rate of EBCA": [name for name in names if name == "ebca"],
    }
    groups = {axis: members for axis, members in groups.items() if members}
    figure, axes = new_figure(len(metrics), len(groups), width=2.3, height=2.1, sharey="row")
    for panels, metric in zip(axes, metrics, strict=True):
        for panel, (axis, members) in zip(panels, groups.items(), strict=True):
            for position, name in enumerate(members):
                shade = (VERMILION, SKY, BLUE, PURPLE, BLACK)[position % 5] if "/" in name else colour(name)
                rows = tables.trials[tables.trials["variant"] == name].set_index("strength")[metric].sort_index()
                panel.plot(rows, color=shade, marker="o", label=label(name) + ", all" * name.endswith("/all"))
                if name in chosen:
                    ring = {"color": shade, "markersize": 10, "fillstyle": "none"}
                    panel.plot(chosen[name], rows[chosen[name]], "o", **ring)
            panel.set_xscale("log")
            if metric == metrics[-1]:
                panel.set_xlabel(axis)
        panels[0].set_ylabel(titles[metric])
        best = tables.trials[metric].max()
        panels[0].set_ylim(best - 0.2, best + 0.03)
    for panel in axes[-1]:  # where curves leave room: this score falls last
        panel.legend(fontsize=6, loc="lower left", frameon=True, framealpha=0.9, edgecolor="none")
    return figure


def schedules(tables: Tables) -> Figure:
    """Gain over the fixed embedding by how many steps update, and by when they do."""
    figure, axes = new_figure(len(tables.scored), 2, width=3.6, height=2.4, sharey="row")
    present = [name for name in tables.methods if name.startswith("date/")]
    windows = [name for name in WINDOWS if name in present]
    updates = {name: len(tables.schedules[name.partition("/")[2]]) for name in present}
    spaced = sorted((name for name in present if name not in windows), key=updates.get)
    texts = [f"{SCHEDULES.get(name.partition('/')[2], 'all')}\n{updates[name]}" for name in spaced]
    for panels, metric in zip(axes, tables.scored, strict=True):
        values = tables.by_seed(metric)
        gain = values[present].sub(values["fixed"], axis=0)
        for place, name in enumerate(spaced):
            style = {"color": BLUE if name.endswith("late") else VERMILION}
            panels[0].plot([place] * len(gain), gain[name], ".", alpha=0.5, **style)
            panels[0].plot(place, gain[name].mean(), "D", **style)
        line_with_band(panels[1], range(len(windows)), gain[windows].to_numpy(), color=VERMILION, marker="o")
        for panel in panels:
            panel.axhline(0, color="0.5", linewidth=0.8, linestyle="--")
        panels[0].set_ylabel(f"gain, {SCORES[metric]}")
        panels[1].set_xticks(range(len(windows)), [name.partition("/")[2] for name in windows])
        panels[0].set_xticks(range(len(spaced)), texts)
        for panel in panels:
            panel.margins(x=0.15)
    axes[-1, 0].set_xlabel("which steps update the embedding, and how many")
    axes[-1, 1].set_xlabel("quarter of the steps in which it updates")
    return figure


def along_sampling(tables: Tables) -> Figure:
    """Reward of the clean prediction in every step, and how far the embedding has gone."""
    figure, axes = new_figure(columns=2, width=3.9, height=2.9)
    present = [name for kind in ("fixed", "random", "universal") if (name := tables.first(kind))]
    present += [name for name in ("date/late", "date/every5", "date/all", "date/every10") if name in tables.methods]
    styles = dict(zip(present, (BLACK, GREY, GREEN, BLUE, SKY, VERMILION, PURPLE), strict=False))
    for name, shade in styles.items():
        rows = tables.traces[tables.traces["variant"] == name]
        for panel, column in zip(axes[0], ("reward", "distance"), strict=True):
            wide = rows.pivot(index="seed", columns="step", values=column)
            line_with_band(panel, wide.columns, wide.to_numpy(), label=label(name), color=shade, marker="")
    _whole_numbers(*(panel.xaxis for panel in axes[0]))
    axes[0, 0].set(xlabel="step", ylabel="reward of the clean prediction")
    axes[0, 1].set(xlabel="step", ylabel="distance from own embedding")
    axes[0, 0].legend(fontsize=7)
    return figure


def directions(tables: Tables) -> Figure:
    """Cosine between updates of the embedding in two steps."""
    present = set(tables.directions["variant"])
    names = [name for name in ("date/all", "date-raw/all", "random/all") if name in present]
    figure, axes = new_figure(columns=len(names), width=3.1, height=2.8)
    for panel, name in zip(axes[0], names, strict=True):
        rows = tables.directions[tables.directions["variant"] == name]
        grid = rows.pivot_table(index="step", columns="other", values="cosine")
        extent = (-0.5, len(grid) - 0.5, len(grid) - 0.5, -0.5)
        image = panel.imshow(grid, cmap="RdBu_r", vmin=-1, vmax=1, extent=extent)
        below = (grid.to_numpy()[np.triu_indices(len(grid), 1)] < 0.1).mean()
        panel.set_title(f"{label(name)}: below 0.1 in {below:.0%}", fontsize=8)
        panel.set(xlabel="step", ylabel="step")
        _whole_numbers(panel.xaxis, panel.yaxis)
        panel.grid(visible=False)
    figure.colorbar(image, ax=axes[0].tolist(), shrink=0.8, label="cosine")
    return figure


def embedding_paths(tables: Tables) -> Figure:
    """Paths of the embeddings of some prompts, in the plane in which each extends most."""
    seed = tables.paths["seed"].min()
    rows = tables.paths[(tables.paths["seed"] == seed) & tables.paths["variant"].isin(PATHS)]
    shown = tables.scores[tables.scores["shown"] & (tables.scores["seed"] == seed)].drop_duplicates("unit")
    texts = shown.sort_values("unit", key=lambda unit: unit.astype(int))["prompt"].tolist()
    prompts = sorted(rows["prompt"].unique())[::2] if len(texts) > 6 else sorted(rows["prompt"].unique())
    figure, axes = new_figure(2, -(-len(prompts) // 2), width=2.3, height=2.2)
    for panel, prompt in zip(axes.flat, prompts, strict=False):
        for name, path in rows[rows["prompt"] == prompt].groupby("variant"):
            points = np.vstack([[0.0, 0.0], path.sort_values("step")[["first", "second"]]])
            panel.plot(*points.T, marker=".", markersize=3, linewidth=1, color=PATHS[name], label=label(name))
        panel.plot(0, 0, "o", color=BLACK, markersize=4)
        panel.set_title(textwrap.fill(texts[prompt], 26), fontsize=7)
        panel.set_aspect("equal", adjustable="datalim")
    for panel in axes[-1]:
        panel.set_xlabel("first direction", fontsize=7)
    for panel in axes[:, 0]:
        panel.set_ylabel("second direction", fontsize=7)
    axes[0, 0].legend(fontsize=6)
    return figure


def tasks(tables: Tables) -> Figure:
    """Scores by the kind of prompt."""
    names = [name for name in map(tables.first, ("fixed", "universal", "ebca", "date", "date-preference")) if name]
    kinds = [kind for kind in dict.fromkeys(tables.scores["task"])]
    figure, axes = new_figure(1, len(tables.scored), width=4.4, height=2.8)
    for panel, metric in zip(axes[0], tables.scored, strict=True):
        for index, name in enumerate(names):
            values = np.stack([tables.by_seed(metric, kind)[name] for kind in kinds])
            place = np.arange(len(kinds)) + (index - (len(names) - 1) / 2) * 0.8 / len(names)
            shade = colour(name)
            panel.bar(place, values.mean(axis=1), 0.8 / len(names), color=shade, alpha=0.75, label=label(name))
            panel.plot(place, values, ".", color="0.2", markersize=3)
        panel.set_xticks(range(len(kinds)), [kind.replace("_", "\n") for kind in kinds])
        panel.set_xlabel("kind of prompt")
        panel.set_ylabel(SCORES[metric])
    axes[0, -1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


FIGURES: dict[str, Callable[[Tables], Figure]] = {
    each.__name__: each
    for each in (
        samples,
        alignment,
        cost,
        strengths,
        schedules,
        along_sampling,
        directions,
        embedding_paths,
        tasks,
    )
}


def draw(
    sampler: SamplerOptions,
    *,
    figure: str,
    metrics: Input,
    traces: Input,
    trials: tuple[Input, ...],
    strengths: Input,
    scores: tuple[Input, ...],
    directions: tuple[Input, ...],
    paths: tuple[Input, ...],
    images: tuple[Input, ...],
    png: Output,
    pdf: Output,
) -> None:
    """Draw one figure, by the name of its function."""
    judged = [read_table(path) for path in scores]
    tables = Tables(
        metrics=read_metrics(metrics),
        traces=read_table(traces),
        trials=pd.concat([read_table(path) for path in trials], ignore_index=True),
        strengths=read_table(strengths),
        scores=pd.concat(judged, ignore_index=True),
        directions=pd.concat([read_table(path) for path in directions], ignore_index=True),
        paths=pd.concat([read_table(path) for path in paths], ignore_index=True),
        images=read_images(images, judged),
        schedules=parse_schedules(sampler.schedules, sampler.num_steps),
    )
    draw_figure(FIGURES, figure, tables, png, pdf)


def read_images(images: tuple[Path, ...], judged: list[pd.DataFrame]) -> dict[str, Tensor]:
    """Images of the least seed by variant; files and score tables are in the same order.

    Raises:
        InputError: a file that is not of safetensors.
    """
    seeds = [int(table["seed"].iloc[0]) for table in judged]
    found: dict[str, torch.Tensor] = {}
    for path, seed in zip(images, seeds, strict=True):
        if seed == min(seeds):
            try:
                found |= load_file(path)
            except Exception as error:  # safetensors raises errors of its own
                raise InputError(f"{path}: no images: {error}") from error
    return found


if __name__ == "__main__":
    run(draw)
