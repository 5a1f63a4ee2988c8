"""Figures: scores against lookahead samples and against cost, images side by side, and the estimates' error."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from safetensors.torch import load_file
from torch import Tensor

from papers.lidar.evaluate import COSTS, families
from papers.lidar.runs import parse_run
from papers.lidar.sample import PICTURES_PER_PROMPT, first_of_tasks
from shared.errors import InputError
from shared.plotting import PALETTE, draw_figure, line_with_band, new_figure
from shared.results import read_metrics
from shared.stage import Input, Output, run
from shared.tables import read_table

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = PALETTE
SCORES = {"guidance_score": "guiding reward", "gold": "right images", "evaluator_score": "held-out scorer"}
FAMILIES = {
    "lidar/d3": ("LiDAR, δ = 3", SKY, "o"),
    "lidar/d5": ("LiDAR, δ = 5", BLUE, "o"),
    "lidar/d4": ("LiDAR, δ = 4", GREEN, "o"),
    "lidar/d8": ("LiDAR, δ = 8", BLUE, "o"),
    "lidar/d4@dmd": ("LiDAR, DMD2, δ = 4", VERMILION, "o"),
    "lidar/d1@dmd": ("LiDAR, DMD2, δ = 1", VERMILION, "s"),
    "lidar/d4@lcm": ("LiDAR, LCM, δ = 4", GREEN, "o"),
    "lidar/d4@lightning": ("LiDAR, Lightning, δ = 4", ORANGE, "o"),
    "lidar/d1@hyper": ("LiDAR, Hyper-SD, δ = 1", PURPLE, "o"),
    "lidar/d10": ("LiDAR, δ = 10", PURPLE, "s"),
    "exact/d5": ("LiDAR, δ = 5, s = 1", BLUE, "*"),
    "lidar/target": ("LiDAR, target sampler ahead", SKY, "P"),
    "bon": ("best of N", BLACK, "D"),
    "date": ("DATE", VERMILION, "^"),
    "universal": ("Universal Guidance", GREEN, "v"),
    "smc-difference": ("steering, difference", PURPLE, "s"),
    "smc-max": ("steering, max", PURPLE, "P"),
    "smc-sum": ("steering, sum", PURPLE, "X"),
}
KINDS = {
    "permuted": "rewards permuted",
    "oracle": "checker as reward",
    "best": "best lookahead",
    "renoised": "the same, re-noised",
}
COST_LABELS = {"evaluations": "denoiser evaluations per image", "seconds": "processor seconds per image"}
RIGHT, WRONG = "#009E73", "#D55E00"


@dataclass(frozen=True)
class Tables:
    """What figures are drawn from."""

    metrics: pd.DataFrame
    equal_score: pd.DataFrame
    errors: pd.DataFrame
    trials: pd.DataFrame
    scores: pd.DataFrame
    images: dict[str, Tensor]
    """Of the first seed, by run: (tasks · 2, 3, H, W), uint8."""

    def by_seed(self, metric: str) -> pd.DataFrame:
        """Values of a metric on test prompts: a row for each seed, a column for each method."""
        rows = self.metrics[(self.metrics["metric"] == metric) & (self.metrics["setting"] == "test")]
        return rows.pivot(index="seed", columns="method", values="value")

    @property
    def costs(self) -> pd.DataFrame:
        """Means over seeds: a row for each run, columns evaluations and seconds."""
        rows = self.metrics[self.metrics["setting"] == "test"].dropna(subset="cost")
        means = rows.groupby("method")[list(COSTS.values())].mean()
        return means.rename(columns={column: name for name, column in COSTS.items()})

    @property
    def scored(self) -> list[str]:
        """Those of :data:`SCORES` that were measured."""
        return [metric for metric in SCORES if metric in set(self.metrics["metric"])]


def label(name: str) -> str:
    """A run in words."""
    each = parse_run(name)
    if each.kind in KINDS:
        return f"{KINDS[each.kind]}, δ = {each.lookahead_steps}, n = {each.lookahead_size}"
    if each.kind in ("lidar", "exact"):
        return f"{FAMILIES[f'{each.kind}/{each.solver}'][0]}, n = {each.lookahead_size}"
    if each.kind == "bon":
        return f"best of {each.count}"
    if each.kind == "smc":
        return f"{FAMILIES[name.partition('/')[0]][0]}, K = {each.count}"
    if each.kind == "date":
        return "DATE" if each.count == 1 else f"DATE, every {each.count}th step"
    return {"vanilla": "target sampler", "universal-reward": "Universal Guidance, for reward"}.get(
        name, "Universal Guidance"
    )


def scaling(tables: Tables) -> Figure:
    """Scores against the number of lookahead samples, a curve for each number of their steps (the paper's Fig. 3)."""
    figure, axes = new_figure(1, len(tables.scored), width=2.9, height=2.7)
    curves = families(list(tables.costs.index))
    for panel, metric in zip(axes[0], tables.scored, strict=True):
        values, shown = tables.by_seed(metric), set()
        for family, (name, color, marker) in FAMILIES.items():
            members = [parse_run(run) for run in curves.get(family, ())]
            members = sorted((run for run in members if run.lookahead_steps), key=lambda run: run.lookahead_size)
            if not members:
                continue
            runs, sizes = [run.name for run in members], [run.lookahead_size for run in members]
            text = name.partition(", ")[2]
            dash = ":" if members[0].kind == "exact" else "-"
            line_with_band(
                panel, sizes, values[runs].to_numpy(), label=text, color=color, linestyle=dash, marker=marker
            )
            shown.update(sizes)
        panel.axhline(values["vanilla"].mean(), color="0.5", linestyle="--", linewidth=0.9, label="target sampler")
        panel.set_xscale("log")
        panel.set_xticks(sorted(shown), [str(size) for size in sorted(shown)])
        panel.minorticks_off()
        panel.set(xlabel="lookahead samples n", ylabel=SCORES[metric])
    axes[0, 0].legend(fontsize=7)
    return figure


def cost(tables: Tables) -> Figure:
    """Scores against evaluations of the denoiser and against time, every family as a curve from the target sampler."""
    figure, axes = new_figure(len(tables.scored), 2, width=4.0, height=2.3, sharey="row", sharex="col")
    prices = tables.costs
    for panels, metric in zip(axes, tables.scored, strict=True):
        means = tables.by_seed(metric).mean()
        for panel, kind in zip(panels, COST_LABELS, strict=True):
            _families_against(panel, means, prices[kind])
        panels[0].set_ylabel(SCORES[metric])
    _label_costs(axes)
    axes[0, 1].legend(fontsize=6.5, loc="upper left", bbox_to_anchor=(1.02, 1))
    return figure


def _families_against(panel: Axes, means: pd.Series, prices: pd.Series) -> None:
    for family, names in families(list(prices.index)).items():
        text, color, marker = FAMILIES[family]
        points = np.array(sorted((prices[name], means[name]) for name in names))
        panel.plot(*points.T, color=color, marker=marker, markersize=4, linewidth=1.1, label=text)
    for kind, marker in (("permuted", "x"), ("oracle", "d"), ("best", "*"), ("renoised", "p")):
        runs = [name for name in prices.index if name.startswith(f"{kind}/")]
        if runs:
            style = {"color": ORANGE, "linestyle": "none", "marker": marker, "markersize": 6}
            panel.plot(prices[runs], means[runs], **style, label=KINDS[kind])
    panel.set_xscale("log")


def equal_score(tables: Tables) -> Figure:
    """What an image costs where each family reaches the score of DATE in all steps, with 95 % intervals.

    A curve that does not get there is only known to cost more than its dearest run: an arrow, and in how many of the
    draws it does.
    """
    table = tables.equal_score
    names = [family for family in FAMILIES if family in set(table["family"])]
    metrics = [metric for metric in SCORES if metric in set(table["score"])]
    figure, axes = new_figure(len(metrics), 2, width=3.6, height=0.2 * len(names) + 0.7, sharey=True, sharex="col")
    for panels, metric in zip(axes, metrics, strict=True):
        for panel, kind in zip(panels, COST_LABELS, strict=True):
            rows = table[(table["score"] == metric) & (table["cost"] == kind)].set_index("family")
            for place, family in enumerate(reversed(names)):
                row, (_, color, marker) = rows.loc[family], FAMILIES[family]
                low, high, estimate = (min(row[name], row["dearest"]) for name in ("low", "high", "estimate"))
                panel.hlines(place, low, high, color=color, linewidth=2)
                face = color if row["estimate"] <= row["dearest"] else "white"
                panel.plot(estimate, place, marker, color=color, markerfacecolor=face, markersize=5)
                if row["high"] > row["dearest"]:
                    panel.annotate(
                        f"→ {row['reached']:.0%}", (high, place), (4, 0), textcoords="offset points", va="center",
                        fontsize=6.5, color=color,
                    )  # fmt: skip
            panel.set_title(f"DATE's level: {SCORES[metric]}", fontsize=8)
            panel.set_xscale("log")
        panels[0].set_yticks(range(len(names)), [FAMILIES[family][0] for family in reversed(names)])
    _label_costs(axes)
    return figure


def _label_costs(axes: np.ndarray) -> None:
    """Labels of the logarithmic cost axes below the last row, few enough not to overlap."""
    for panel, text in zip(axes[-1], COST_LABELS.values(), strict=True):
        panel.set_xlabel(text)
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())


def samples(tables: Tables) -> Figure:
    """Images of fixed prompts, two of each, under every pictured run; frames tell what the checker says."""
    seed = tables.scores["seed"].min()
    shown = tables.scores[(tables.scores["seed"] == seed) & (tables.scores["copy"] < PICTURES_PER_PROMPT)]
    prompts = shown.drop_duplicates("unit").sort_values("unit")
    prompts = prompts.iloc[first_of_tasks(prompts["task"].tolist())]
    gold = shown.set_index(["run", "unit", "copy"])["gold"] if "gold" in shown else None
    names = list(tables.images)
    figure, axes = new_figure(len(names), 1, width=0.6 * len(prompts) * PICTURES_PER_PROMPT, height=0.62)
    for panel, name in zip(axes[:, 0], names, strict=True):
        # One picture a row: many small ones take much room in a PDF.
        row, places = side_by_side(tables.images[name].permute(0, 2, 3, 1).numpy())
        panel.imshow(row, interpolation="nearest")
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
        panel.grid(visible=False)
        for number, left in enumerate(places):
            prompt, copy = divmod(number, PICTURES_PER_PROMPT)
            right = None if gold is None else gold[name, prompts["unit"].iloc[prompt], copy]
            color = "0.7" if right is None else RIGHT if right else WRONG
            size = tables.images[name].shape[-1]
            panel.add_patch(Rectangle((left - 0.5, -0.5), size, size, fill=False, color=color, linewidth=1.8))
            if name == names[0] and copy == 0:
                text = textwrap.fill(prompts["prompt"].iloc[prompt], 14)
                panel.text(left, -1.5, text, fontsize=6, va="bottom")
        title = label(name).replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
        panel.set_ylabel(textwrap.fill(title, 24), rotation=0, ha="right", va="center", fontsize=7)
    return figure


def side_by_side(images: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Images (N, H, W, 3) in a white row with gaps of two pixels, and where each begins."""
    count, height, width, _ = images.shape
    row = np.full((height, count * (width + 2) - 2, 3), 255, np.uint8)
    places = [number * (width + 2) for number in range(count)]
    for left, image in zip(places, images, strict=True):
        row[:, left : left + width] = image
    return row, places


STRENGTHS = {
    "lidar": "λ of LiDAR",
    "renoised": "steps after re-noising",
    "universal": "scale of Universal Guidance",
    "date": "length ρ of DATE's steps",
    "smc-difference": "λ of steering",
}
VARIANTS = {"lidar": ("exact", "lidar"), "smc-difference": ("smc-difference", "smc-max", "smc-sum")}
"""What stands in one panel together."""


def strengths(tables: Tables) -> Figure:
    """Share of conditions that hold, and the guiding reward, on development prompts over each method's strengths."""
    names = [name for name in STRENGTHS if name in set(tables.trials["tuned"])]
    metrics = {"gold_share": "conditions that hold", "guidance_score": "guiding reward"}
    figure, axes = new_figure(2, len(names), width=2.1, height=2.0, sharey="row")
    for panels, metric in zip(axes, metrics, strict=True):
        for panel, name in zip(panels, names, strict=True):
            rows = tables.trials[tables.trials["tuned"].isin(VARIANTS.get(name, (name,)))]
            groups, over = (["value"], "reward_weight") if name == "lidar" else (["tuned"], "value")
            for color, (_, group) in zip((BLUE, SKY, PURPLE), rows.groupby(groups), strict=False):
                first = group.iloc[0]
                text = f"s = {first['value']:g}" if name == "lidar" else first["tuned"].removeprefix("smc-")
                panel.plot(group.set_index(over)[metric].sort_index(), marker="o", label=text, color=color)
            if (len(rows.groupby(groups)) > 1 or name == "lidar") and metric == "gold_share":
                panel.legend(fontsize=6)
            panel.set_xscale("log")
            tried = sorted(rows[over].unique())
            panel.set_xticks(tried, [f"{value:g}" for value in tried])
            panel.minorticks_off()
            if metric == "guidance_score":
                panel.set_xlabel(STRENGTHS[name], fontsize=8)
        panels[0].set_ylabel(metrics[metric])
    return figure


def mixtures(tables: Tables) -> Figure:
    """Error of the estimates against n on Gaussian mixtures, whose expected future reward is known."""
    titles = {"efr_error": "error of the expected future reward", "score_error": "relative error of its gradient"}
    figure, axes = new_figure(1, 2, width=3.4, height=2.7)
    for panel, (metric, title) in zip(axes[0], titles.items(), strict=True):
        for color, (dimension, rows) in zip(PALETTE, tables.errors.groupby("dimension"), strict=False):
            wide = rows.pivot(index="seed", columns="size", values=metric)
            line_with_band(panel, wide.columns, wide.to_numpy(), label=f"d = {dimension}", color=color, marker="o")
        sizes = np.array(sorted(tables.errors["size"].unique()), float)
        level = tables.errors[tables.errors["size"] == sizes[0]][metric].mean()
        panel.plot(sizes, level * (sizes / sizes[0]) ** -0.5, color="0.5", linestyle="--", label="1/√n")
        panel.set(xscale="log", yscale="log", xlabel="lookahead samples n", ylabel=title)
    axes[0, 0].legend(fontsize=7)
    return figure


FIGURES: dict[str, Callable[[Tables], Figure]] = {
    each.__name__: each for each in (scaling, cost, equal_score, samples, strengths, mixtures)
}


def draw(
    *,
    figure: str,
    metrics: Input,
    equal_score: Input,
    errors: Input,
    trials: tuple[Input, ...],
    scores: tuple[Input, ...],
    images: tuple[Input, ...],
    png: Output,
    pdf: Output,
) -> None:
    """Draw one figure, by the name of its function."""
    judged = [read_table(path) for path in scores]
    tried = [read_table(path) for path in trials]
    tables = Tables(
        metrics=read_metrics(metrics),
        equal_score=read_table(equal_score),
        errors=read_table(errors),
        trials=pd.concat(tried, ignore_index=True) if tried else pd.DataFrame({"tuned": []}),
        scores=pd.concat(judged, ignore_index=True),
        images=read_images(images, judged),
    )
    draw_figure(FIGURES, figure, tables, png, pdf)


def read_images(images: tuple[Path, ...], judged: list[pd.DataFrame]) -> dict[str, Tensor]:
    """Images of the least seed by run; files and score tables are in the same order.

    Raises:
        InputError: a file that is not of safetensors.
    """
    seeds = [int(table["seed"].iloc[0]) for table in judged]
    found: dict[str, Tensor] = {}
    for path, seed, table in zip(images, seeds, judged, strict=True):
        if seed == min(seeds):
            try:
                stored = load_file(path)
            except Exception as error:  # safetensors raises errors of its own
                raise InputError(f"{path}: no images: {error}") from error
            found |= {name: stored[name] for name in table["run"].unique() if name in stored}
    return found


if __name__ == "__main__":
    run(draw)
