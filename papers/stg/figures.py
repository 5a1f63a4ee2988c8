"""Figures: the paper's key figures, redrawn from this project's tables, and sheets of images."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from safetensors.torch import load_file

from papers.stg.evaluate import COST, UNSAFE
from papers.stg.options import SAFE, SETS
from papers.stg.runs import STRENGTHS, Run, parse_run
from papers.stg.toy_mixture import MODES, NEAR, STD, UNSAFE_MODE, UNSAFE_VALUES
from shared.plotting import draw_figure, line_with_band, method_styles, new_figure
from shared.results import read_metrics
from shared.stage import Input, Output, run
from shared.tables import read_table

LABELS = {
    "stg": "STG",
    "sdg": "SDG",
    "negative": "negative prompt",
    "sld": "SLD",
    "safree": "SAFREE",
    "uce": "UCE",
    "base": "base model",
    "base@duo": "DUO",
    "base@esd": "ESD",
}
# Models that were trained differ from sampling methods by hollow markers.
STYLES = {
    name: style | ({"fillstyle": "none"} if "@" in name else {}) for name, style in method_styles(list(LABELS)).items()
}
DSR, PP, KEPT = "defence success rate", "similarity to base image", "harmless content kept"
UNLEARNED = ("base@duo", "base@esd")
SET_STYLES = method_styles(list(SETS))
SET_TITLES = {
    "explicit": "named",
    "synonym": "named by a synonym",
    "solo": "synonym alone",
    "implicit": "implied",
    "safe": "harmless prompts",
}


@dataclass(frozen=True)
class Tables:
    """What figures are drawn from."""

    metrics: pd.DataFrame
    grid: pd.DataFrame
    trace: pd.DataFrame
    points: pd.DataFrame
    pictures: dict[str, torch.Tensor]
    selected: dict[str, str]
    defaults: dict[str, float]
    """Options of runs that do not change them."""


def trade_off(tables: Tables) -> Figure:
    """Safety against fidelity: a curve for each method over its strengths, on every set with something to keep."""
    names = [name for name in ("explicit", "synonym", "implicit") if name in set(tables.metrics["setting"])]
    names = names or [UNSAFE]
    figure, axes = new_figure(2, len(names), width=3.0, height=2.6, sharex="col")
    for column, name in enumerate(names):
        for row, metric in enumerate(("similarity", "kept")):
            _front(axes[row, column], tables, name, metric)
        axes[0, column].set_title(SET_TITLES.get(name, name))
        axes[-1, column].set_xlabel(DSR)
    axes[0, 0].set_ylabel(PP)
    axes[1, 0].set_ylabel(KEPT)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def _front(axis: Axes, tables: Tables, setting: str, metric: str) -> None:
    dsr, other = (seed_table(tables, setting, name) for name in ("dsr", metric))
    if other.empty:
        return
    for method in STRENGTHS:
        runs = sweep(dsr, method)
        look = STYLES[method] | {"markersize": 4}
        axis.plot([dsr[text].mean() for text in runs], [other[text].mean() for text in runs], **look)
        if method in dsr:  # the selected strength
            point = dsr[method].mean(), other[method].mean()
            axis.plot(*point, label=LABELS[method], **look | {"markersize": 9, "markeredgecolor": "black"})
    for text in ("base", *UNLEARNED):
        if text in dsr:
            axis.plot(dsr[text].mean(), other[text].mean(), label=LABELS[text], **STYLES[text] | {"markersize": 7})


def strength(tables: Tables) -> Figure:
    """DSR and similarity against ρ, γ and τ (the paper's ablations)."""
    figure, axes = new_figure(2, 3, width=2.9, height=2.3, sharey="row")
    for row, (metric, label) in enumerate((("dsr", DSR), ("similarity", PP))):
        for column, (option, name) in enumerate(
            (
                ("strength", "ρ, length of a step"),
                ("fraction", "γ, share of steps"),
                ("threshold", "τ, least confidence"),
            )
        ):
            axis, doses = axes[row, column], {}
            for setting in [name for name in SETS if name != SAFE]:
                wide = seed_table(tables, setting, metric)
                doses = controls(wide, option, tables.defaults)
                if doses:
                    line_with_band(
                        axis,
                        list(doses),
                        wide[list(doses.values())].to_numpy(),
                        label=SET_TITLES[setting],
                        **SET_STYLES[setting],
                    )
            if option == "strength" and doses:
                axis.set_xscale("log")
                axis.set_xticks(list(doses), [f"{dose:g}" for dose in doses])
                axis.minorticks_off()
            if row == 1:
                axis.set_xlabel(name)
        axes[row, 0].set_ylabel(label, fontsize=8)
    if axes[0, 0].lines:
        axes[0, 0].legend(fontsize=7)
    return figure


def controls(wide: pd.DataFrame, option: str, defaults: dict[str, float]) -> dict[float, str]:
    """Runs of STG among the columns that differ in one thing: from its value to the run, in ascending order.

    Runs that change an option are compared with the plain run of their strength, which has the default.
    """
    parsed = {text: parse_run(text) for text in wide.columns if text.startswith("stg:") and "@" not in text}
    if option == "strength":
        return dict(sorted((run.strength, text) for text, run in parsed.items() if not run.options))
    changed = {text: run for text, run in parsed.items() if set(run.options) == {option}}
    doses = {run.options[option]: text for text, run in changed.items()}
    plain = {f"stg:{run.strength:g}" for run in changed.values()} & set(parsed)
    if len(plain) == 1:
        doses[defaults[option]] = plain.pop()
    return dict(sorted(doses.items()))


def samples(tables: Tables) -> Figure:
    """Images of the same prompts and noise, a row for each method."""
    rows = {LABELS["base"]: "base"}
    rows |= {LABELS[method]: tables.selected[method] for method in STRENGTHS if method in tables.selected}
    rows |= {LABELS[text]: text for text in UNLEARNED if text in tables.pictures}
    rows = {label: text for label, text in rows.items() if text in tables.pictures}
    if not rows:
        return new_figure()[0]
    first = next(iter(rows.values()))
    count = len(tables.pictures[first])
    figure, axes = new_figure(len(rows), 1, width=0.5 * count + 1.2, height=0.58)
    for axis, (label, text) in zip(axes[:, 0], rows.items(), strict=True):
        # PDF keeps the few pixels there are.
        axis.imshow(strip(tables.pictures[text], count // len(SETS)), interpolation="none")
        axis.set(yticks=[], xticks=[])
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
    per_set = count // len(SETS)
    middles = [(13 * per_set + 6) * index + 13 * per_set / 2 for index in range(len(SETS))]
    axes[0, 0].set_xticks(middles, [SET_TITLES[name].replace(" ", "\n", 1) for name in SETS])
    axes[0, 0].tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    return figure


def strip(images: torch.Tensor, per_group: int, gap: int = 1, between: int = 6) -> np.ndarray:
    """Images (N, 3, H, W) uint8 side by side, with a wider gap after each group: (H, W', 3)."""
    height, width = images.shape[-2:]
    groups = len(images) // per_group
    row = np.full((height, groups * (per_group * (width + gap) + between), 3), 255, np.uint8)
    for index, image in enumerate(images[: groups * per_group].permute(0, 2, 3, 1).numpy()):
        group, place = divmod(index, per_group)
        left = group * (per_group * (width + gap) + between) + place * (width + gap)
        row[:, left : left + width] = image
    return row


def safe_prompts(tables: Tables) -> Figure:
    """What the selected defences do to prompts that need none."""
    panels = {"kept": KEPT, "similarity": PP, "frechet": "Fréchet distance to right images"}
    wides = {name: seed_table(tables, SAFE, name) for name in panels}
    panels = {name: label for name, label in panels.items() if not wides[name].empty}
    figure, axes = new_figure(1, max(1, len(panels)), width=2.6, height=2.5, sharey=True)
    names = [name for name in ("base", *STRENGTHS, *UNLEARNED) if name in wides["similarity"]]
    for axis, (name, label) in zip(axes[0], panels.items(), strict=True):
        for place, method in enumerate(names):
            seeds, color = wides[name][method], STYLES[method]["color"]
            axis.plot(seeds, np.full(len(seeds), place), "o", color=color, alpha=0.35, markersize=3.5)
            axis.plot(seeds.mean(), place, "D", color=color, markersize=5)
        axis.axvline(wides[name]["base"].mean(), color="0.6", linewidth=0.8, zorder=0)
        axis.set(xlabel=label)
    axes[0, 0].set_yticks(range(len(names)), [LABELS[name] for name in names])
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def cost(tables: Tables) -> Figure:
    """Success against what it costs."""
    figure, axes = new_figure(1, 2, width=3.2, height=2.9, sharey=True)
    success = seed_table(tables, UNSAFE, "success")
    for axis, metric, label in (
        (axes[0, 0], "evaluations", "evaluations of the denoiser per image\n(a backward pass counts as two)"),
        (axes[0, 1], "seconds", "processor seconds per image"),
    ):
        spent = seed_table(tables, COST, metric)
        for method in LABELS:
            if method in success and method in spent:
                look = STYLES[method] | {"markersize": 7, "linestyle": "none"}
                axis.plot(spent[method].mean(), success[method].mean(), label=LABELS[method], **look)
        axis.set(xlabel=label)
        axis.set_xlim(left=0)
    axes[0, 0].set_ylabel("safe, and harmless content kept")
    axes[0, 1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def detection(tables: Tables) -> Figure:
    """When the guidance detector flags the predicted image, with STG and without."""
    runs = sorted(tables.trace["run"].unique())
    figure, axes = new_figure(1, max(1, len(runs)), width=3.2, height=2.5, sharey=True)
    for axis, text in zip(axes[0], runs, strict=False):
        rows = tables.trace[tables.trace["run"] == text]
        for name in SETS:
            wide = rows[rows["set"] == name].pivot(index="seed", columns="step", values="flagged")
            if wide.size:
                look = SET_STYLES[name] | {"marker": ""}
                line_with_band(axis, wide.columns, wide.to_numpy(), label=SET_TITLES[name], **look)
        axis.set(title=_run_title(text), xlabel="sampler step")
    axes[0, 0].set_ylabel("share of predictions flagged")
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _run_title(text: str) -> str:
    parsed: Run = parse_run(text)
    return LABELS[parsed.method] + ("" if parsed.strength is None else f", ρ = {parsed.strength:g}")


def selection(tables: Tables) -> Figure:
    """What every strength of the grids did on development prompts."""
    means = tables.grid.groupby("run")["success"].mean()
    figure, axes = new_figure(width=4.0, height=2.8)
    for method in STRENGTHS:
        runs = sweep(means.to_frame().T, method)
        if runs:
            axes[0, 0].plot(range(1, len(runs) + 1), means[runs], label=LABELS[method], **STYLES[method])
            axes[0, 0].set_xticks(range(1, len(runs) + 1))
    axes[0, 0].set(xlabel="strength, from weakest to strongest", ylabel="success on development prompts")
    axes[0, 0].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def toy(tables: Tables) -> Figure:
    """Points of the mixture under base model, SDG and STG, for three ways to say what is unsafe."""
    runs = sorted(tables.points["run"].unique(), key=lambda text: list(LABELS)[::-1].index(text.partition(":")[0]))
    figure, axes = new_figure(len(UNSAFE_VALUES), len(runs), width=1.8, height=1.8, sharex=True, sharey=True)
    for row, value in enumerate(UNSAFE_VALUES):
        for column, text in enumerate(runs):
            axis = axes[row, column]
            rows = tables.points[(tables.points["value"] == value) & (tables.points["run"] == text)]
            for index, center in enumerate(MODES.tolist()):
                color = "#D55E00" if index == UNSAFE_MODE else "0.6"
                axis.add_patch(Circle(center, NEAR * STD, fill=False, color=color, linewidth=0.9))
            axis.plot(rows["x"], rows["y"], ".", color=STYLES[text.partition(":")[0]]["color"], markersize=1.5)
            axis.set(xlim=(-5.2, 3.6), ylim=(-4.4, 4.4), aspect="equal")
            if row == 0:
                method, _, scale = text.partition(":")
                axis.set_title(LABELS[method] + (f", ρ = {scale}" if scale else ""))
        axes[row, 0].set_ylabel(f"{value} value")
    return figure


def seed_table(tables: Tables, setting: str, metric: str) -> pd.DataFrame:
    """Values of one metric in one setting: a row for each seed, a column for each method."""
    rows = tables.metrics[(tables.metrics["setting"] == setting) & (tables.metrics["metric"] == metric)]
    return rows.pivot(index="seed", columns="method", values="value")


def sweep(wide: pd.DataFrame, method: str) -> list[str]:
    """The plain runs of a method among the columns, from weak to strong."""
    runs = [text for text in wide.columns if text.startswith(f"{method}:")]
    plain = [text for text in runs if "," not in text and "@" not in text]
    # SAFREE takes more tokens for triggers the lower its strength is.
    return sorted(plain, key=lambda text: parse_run(text).strength * (-1 if method == "safree" else 1))


FIGURES: dict[str, Callable[[Tables], Figure]] = {
    "trade_off": trade_off,
    "samples": samples,
    "strength": strength,
    "safe_prompts": safe_prompts,
    "cost": cost,
    "detection": detection,
    "selection": selection,
    "toy": toy,
}


def draw(
    *,
    figure: str,
    fraction: float,
    threshold: float,
    metrics: Input,
    grid: Input,
    trace: Input,
    points: Input,
    selection: Input,
    pictures: tuple[Input, ...],
    png: Output,
    pdf: Output,
) -> None:
    """Draw one figure; ``pictures`` are those of the first seed, by group, the options those of plain runs."""
    tables = Tables(
        metrics=read_metrics(metrics),
        grid=read_table(grid),
        trace=read_table(trace),
        points=read_table(points),
        pictures={name: images for path in pictures for name, images in load_file(path).items()},
        selected=json.loads(selection.read_text(encoding="utf-8")),
        defaults={"fraction": fraction, "threshold": threshold},
    )
    draw_figure(FIGURES, figure, tables, png, pdf)


if __name__ == "__main__":
    run(draw)
