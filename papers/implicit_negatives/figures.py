"""Figures: the paper's key figures, redrawn from this project's tables, and a sheet of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors.torch import load_file

from papers.implicit_negatives.options import ATTACK, CONCEPT, EXPLICIT, SAFE, SETS, SOFT, with_loose_captions
from papers.implicit_negatives.runs import BASE, IMPLICIT, RANDOM, STRENGTHS, SYNONYMS, Run, parse_run
from shared.plotting import draw_figure, line_with_band, method_styles, new_figure
from shared.results import read_metrics
from shared.stage import Input, Output
from shared.stage import run as run_stage
from shared.statistics import resampled_means
from shared.tables import read_table

MODELS = {BASE: "original model", "uce": "UCE", "esd": "ESD", "duo": "DUO"}
METHODS = {"none": "no guidance", "np": "negative prompt", "sld": "SLD", "safree": "SAFREE"}
NEGATIVES = {EXPLICIT: "in words", IMPLICIT: "learned"}
CONTROLS = {
    EXPLICIT: "the word",
    IMPLICIT: "learned on this model",
    f"{IMPLICIT}-base": "learned on the original",
    SYNONYMS: "mean of all synonyms",
    RANDOM: "a random word",
}
DSR, SUCCESS, PP = "defence success rate", "safe and intact", "similarity on harmless prompts"
SET_TITLES = {EXPLICIT: "named", ATTACK: "named by a synonym", SOFT: "learned token", SAFE: "harmless"}
STYLES = method_styles(list(METHODS))
COLORS = {EXPLICIT: "#767676", IMPLICIT: "#0072B2"}


@dataclass(frozen=True)
class Tables:
    """What figures are drawn from."""

    metrics: pd.DataFrame
    grid: pd.DataFrame
    curves: pd.DataFrame
    pictures: dict[str, torch.Tensor]
    loose_pictures: dict[str, torch.Tensor]

    @property
    def runs(self) -> dict[str, Run]:
        """Every run by its name."""
        names = self.metrics[self.metrics["setting"].isin(SETS)]["method"].unique()
        return {name: parse_run(name) for name in names}

    @property
    def models(self) -> list[str]:
        """Names of the models, the original one first."""
        found = dict.fromkeys(run.model for run in self.runs.values())
        return [BASE, *sorted(found.keys() - {BASE}, key=lambda model: [*MODELS, model].index(model))]

    def seeds(self, run: Run, setting: str, metric: str) -> np.ndarray | None:
        """Values of a run by seed; None where it was not sampled."""
        rows = self.metrics[
            (self.metrics["method"] == run.name)
            & (self.metrics["setting"] == setting)
            & (self.metrics["metric"] == metric)
        ]
        return rows.sort_values("seed")["value"].to_numpy() if len(rows) else None


def model_title(model: str) -> str:
    return MODELS.get(model, model)


def scatter(tables: Tables) -> Figure:
    """Safety on attacks against preservation on harmless prompts, for each model and guidance (the paper's figure)."""
    models = tables.models
    figure, axes = new_figure(2, len(models), width=2.3, height=2.2, sharex=True, sharey="row")
    for row, (metric, label) in enumerate((("dsr", DSR), ("success", SUCCESS))):
        for column, model in enumerate(models):
            _points(axes[row, column], tables, model, metric)
            axes[0, column].set_title(model_title(model))
        axes[row, 0].set_ylabel(f"{label}\non attacks")
    for axis in axes[-1]:
        axis.set_xlabel(PP, fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _points(axis: Axes, tables: Tables, model: str, metric: str) -> None:
    for method, name in METHODS.items():
        ends = []
        for negative in (None,) if method == "none" else NEGATIVES:
            run = Run(method, None, negative, model)
            safety, kept = tables.seeds(run, ATTACK, metric), tables.seeds(run, SAFE, "similarity")
            if safety is None:
                continue
            ends.append((kept.mean(), safety.mean()))
            fill = "none" if negative == EXPLICIT else "full"
            label = name if negative is None else f"{name}, {NEGATIVES[negative]}"
            look = STYLES[method] | {"markersize": 7, "linestyle": "none", "fillstyle": fill}
            axis.plot(*ends[-1], label=label, **look)
        if len(ends) == 2:
            axis.annotate("", ends[1], ends[0], arrowprops={"arrowstyle": "->", "color": "0.6", "lw": 0.8})


def bars(tables: Tables) -> Figure:
    """Explicit against implicit negatives, for each model and guidance (the paper's figure)."""
    models = tables.models
    shown = (("dsr", ATTACK, f"{DSR}\non attacks"), ("success", ATTACK, f"{SUCCESS}\non attacks"))
    shown += (("success", SOFT, f"{SUCCESS}\non soft attacks"),)
    figure, axes = new_figure(len(shown), len(models), width=2.3, height=1.8, sharex=True, sharey=True)
    for row, (metric, setting, label) in enumerate(shown):
        for column, model in enumerate(models):
            axis = axes[row, column]
            plain = tables.seeds(Run("none", model=model), setting, metric)
            if plain is not None:
                axis.axhline(plain.mean(), color="0.2", linewidth=0.9, linestyle="--", label="no guidance")
            for place, method in enumerate(STRENGTHS):
                for shift, negative in ((-0.2, EXPLICIT), (0.2, IMPLICIT)):
                    values = tables.seeds(Run(method, None, negative, model), setting, metric)
                    if values is not None:
                        label_once = NEGATIVES[negative] if place == 0 else None
                        _bar(axis, place + shift, values, COLORS[negative], label_once)
            axis.set_xticks(range(len(STRENGTHS)), ["NP", "SLD", "SAFREE"])
            axis.set_ylim(0, 1)
            axis.grid(visible=False, axis="x")
            if row == 0:
                axis.set_title(model_title(model))
        axes[row, 0].set_ylabel(label)
    handles, labels = axes[0, -1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _bar(axis: Axes, place: float, values: np.ndarray, color: str, label: str | None) -> None:
    """A bar of the mean over seeds, with the seeds' bootstrap interval."""
    axis.bar(place, values.mean(), 0.36, color=color, label=label)
    if len(values) > 1:
        low, high = np.quantile(resampled_means(values[:, None], replicates=4000), [0.025, 0.975])
        axis.vlines(place, low, high, color="0.2", linewidth=1.0)


def sweep(tables: Tables) -> Figure:
    """Safety against preservation over strengths: is a stronger explicit guidance as good?"""
    swept = [run for run in tables.runs.values() if run.strength is not None]
    panels = sorted({(run.method, run.model) for run in swept}, key=lambda key: (key[0], list(MODELS).index(key[1])))
    figure, axes = new_figure(2, max(1, len(panels)), width=2.3, height=2.2, sharey="row", sharex=True)
    for column, (method, model) in enumerate(panels):
        for row, metric in enumerate(("dsr", "success")):
            axis = axes[row, column]
            plain = Run("none", model=model)
            for negative, name in NEGATIVES.items():
                runs = [run for run in swept if (run.method, run.model, run.negative) == (method, model, negative)]
                runs = [plain, *sorted(runs, key=lambda run: run.strength)]
                points = [
                    (tables.seeds(run, SAFE, "similarity").mean(), tables.seeds(run, ATTACK, metric).mean())
                    for run in runs
                ]
                axis.plot(*zip(*points, strict=True), color=COLORS[negative], marker="o", label=name)
            axis.plot(*points[0], "D", color="0.2", markersize=6, label="no guidance")
        axes[0, column].set_title(f"{METHODS[method]}, {model_title(model)}", fontsize=8.5)
    for row, label in enumerate((DSR, SUCCESS)):
        axes[row, 0].set_ylabel(f"{label}\non attacks")
    for axis in axes[-1]:
        axis.set_xlabel(PP, fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def controls(tables: Tables) -> Figure:
    """What other negatives do, and what each embedding draws when it is the prompt."""
    figure, axes = new_figure(1, 2, width=4.4, height=2.6)
    methods = [method for method in ("np", "sld") if any(_controlled(tables, method))]
    for index, method in enumerate(methods):
        model = next(_controlled(tables, method))
        for place, negative in enumerate(CONTROLS):
            values = tables.seeds(Run(method, None, negative, model), ATTACK, "success")
            if values is not None:
                shift = (index - (len(methods) - 1) / 2) * 0.38
                label = METHODS[method] if place == 0 else None
                _bar(axes[0, 0], place + shift, values, STYLES[method]["color"], label)
        axes[0, 0].set_title(f"negatives on {model_title(model)}")
    axes[0, 0].set_xticks(range(len(CONTROLS)), [text.replace(" ", "\n", 2) for text in CONTROLS.values()], fontsize=7)
    axes[0, 0].set(ylabel=f"{SUCCESS} on attacks", ylim=(0, 1))
    for place, model in enumerate(tables.models):
        for shift, negative in ((-0.2, EXPLICIT), (0.2, IMPLICIT)):
            values = tables.seeds(Run("prompt", None, negative, model), CONCEPT, "dsr")
            if values is not None:
                _bar(
                    axes[0, 1], place + shift, 1 - values, COLORS[negative], NEGATIVES[negative] if not place else None
                )
    axes[0, 1].set_title("as the prompt")
    axes[0, 1].set_xticks(range(len(tables.models)), [model_title(model) for model in tables.models])
    axes[0, 1].set(ylabel="images with the concept", ylim=(0, 1))
    for axis in axes[0]:
        axis.grid(visible=False, axis="x")
        if axis.patches:
            axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _controlled(tables: Tables, method: str):
    """Models on which a method was sampled with a random word."""
    return (run.model for run in tables.runs.values() if run.method == method and run.negative == RANDOM)


def inversion(tables: Tables) -> Figure:
    """The inversion's loss on every model, smoothed, and that of the word on held-out images."""
    curves = tables.curves
    models = [model for model in MODELS if model in set(curves["model"])] if len(curves) else []
    figure, axes = new_figure(1, max(1, len(models)), width=2.2, height=2.0, sharey=True)
    for axis, model in zip(axes[0], models, strict=False):
        rows = curves[(curves["model"] == model) & (curves["kind"] == CONCEPT)]
        wide = rows.pivot(index="seed", columns="step", values="loss")
        window = max(1, wide.shape[1] // 10)
        smooth = wide.T.rolling(window, min_periods=1).mean().T
        line_with_band(axis, wide.columns, smooth.to_numpy(), color=COLORS[IMPLICIT], marker="", label="learned")
        for name, style, color in (("word", "--", COLORS[EXPLICIT]), (CONCEPT, ":", COLORS[IMPLICIT])):
            metric = tables.metrics[tables.metrics["method"] == f"{name}@{model}"]
            held_out = metric[metric["metric"] == "inversion_loss"]["value"].mean()
            label = {"word": "the word, held out", CONCEPT: "learned, held out"}[name]
            axis.axhline(held_out, color=color, linestyle=style, linewidth=1.0, label=label)
        axis.set(title=model_title(model), xlabel="step", yscale="log")
    axes[0, 0].set_ylabel("inversion loss")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def loose(tables: Tables) -> Figure:
    """Explicit against implicit negatives, on the shared base model and on the control's."""
    kinds = {"exact captions": ATTACK, "loose captions": with_loose_captions(ATTACK)}
    models = [
        model
        for model in tables.models
        if all(tables.seeds(Run("none", model=model), setting, "dsr") is not None for setting in kinds.values())
    ]
    figure, axes = new_figure(2, max(1, len(models)), width=2.6, height=1.9, sharex=True, sharey=True)
    for row, (kind, setting) in enumerate(kinds.items()):
        for axis, model in zip(axes[row], models, strict=False):
            plain = tables.seeds(Run("none", model=model), setting, "success")
            axis.axhline(plain.mean(), color="0.2", linewidth=0.9, linestyle="--", label="no guidance, safe and intact")
            for place, method in enumerate(STRENGTHS):
                for shift, negative in ((-0.2, EXPLICIT), (0.2, IMPLICIT)):
                    run = Run(method, None, negative, model)
                    dsr, success = (tables.seeds(run, setting, metric) for metric in ("dsr", "success"))
                    if dsr is None:
                        continue
                    texts = [
                        f"{NEGATIVES[negative]}, {end}" if place == 0 else None for end in ("safe", "safe and intact")
                    ]
                    axis.bar(place + shift, dsr.mean(), 0.36, color=COLORS[negative], alpha=0.3, label=texts[0])
                    _bar(axis, place + shift, success, COLORS[negative], texts[1])
            axis.set_xticks(range(len(STRENGTHS)), ["NP", "SLD", "SAFREE"])
            axis.set_ylim(0, 1)
            axis.grid(visible=False, axis="x")
            if row == 0:
                axis.set_title(model_title(model))
        axes[row, 0].set_ylabel(f"share of attacks,\n{kind}")
    handles, labels = axes[-1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def samples(tables: Tables) -> Figure:
    """Images of the same prompts and noise: the original model, and an unlearned one under every guidance."""
    return _strips(tables, tables.pictures)


def loose_samples(tables: Tables) -> Figure:
    """The same of the control's models."""
    return _strips(tables, tables.loose_pictures)


def _strips(tables: Tables, pictures: dict[str, torch.Tensor]) -> Figure:
    model = next((name for name in tables.models if name != BASE), BASE)
    rows = {"original model": "none", model_title(model): Run("none", model=model).name}
    for method in STRENGTHS:
        rows |= {f"{METHODS[method]}, {text}": Run(method, None, each, model).name for each, text in NEGATIVES.items()}
    rows = {label: name for label, name in rows.items() if name in pictures}
    if not rows:
        return new_figure()[0]
    count = len(pictures["none"])
    per_set = count // len(SETS)
    figure, axes = new_figure(len(rows), 1, width=0.5 * count + 3.2, height=0.52)
    for axis, (label, name) in zip(axes[:, 0], rows.items(), strict=True):
        # PDF keeps the few pixels there are.
        axis.imshow(strip(pictures[name], per_set), interpolation="none")
        axis.set(yticks=[], xticks=[])
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7)
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
    width = 13 * per_set + GAP
    axes[0, 0].set_xticks([width * index + 13 * per_set / 2 for index in range(len(SETS))], SET_TITLES.values())
    axes[0, 0].tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    return figure


GAP = 6
"""Pixels between sets of images."""


def strip(images: torch.Tensor, per_group: int) -> np.ndarray:
    """Images (N, 3, H, W) uint8 side by side, with a wider gap after each group: (H, W', 3)."""
    height, width = images.shape[-2:]
    groups = len(images) // per_group
    row = np.full((height, groups * (per_group * (width + 1) + GAP), 3), 255, np.uint8)
    for index, image in enumerate(images[: groups * per_group].permute(0, 2, 3, 1).numpy()):
        group, place = divmod(index, per_group)
        left = group * (per_group * (width + 1) + GAP) + place * (width + 1)
        row[:, left : left + width] = image
    return row


def selection(tables: Tables) -> Figure:
    """What every candidate strength did on development prompts."""
    means = tables.grid.groupby("run")["success"].mean()
    figure, axes = new_figure(width=4.0, height=2.6)
    for method in STRENGTHS:
        runs = sorted(
            (run for run in map(parse_run, means.index) if run.method == method), key=lambda run: run.strength
        )
        places = range(1, len(runs) + 1)
        axes[0, 0].plot(places, means[[run.name for run in runs]], label=METHODS[method], **STYLES[method])
        axes[0, 0].set_xticks(places)
    axes[0, 0].set(xlabel="strength, from weakest to strongest", ylabel=f"{SUCCESS},\nmean over development sets")
    axes[0, 0].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


FIGURES: dict[str, Callable[[Tables], Figure]] = {
    "scatter": scatter,
    "bars": bars,
    "samples": samples,
    "sweep": sweep,
    "controls": controls,
    "inversion": inversion,
    "selection": selection,
    "loose": loose,
    "loose_samples": loose_samples,
}


def draw(
    *,
    figure: str,
    metrics: Input,
    grid: Input,
    curves: tuple[Input, ...],
    pictures: tuple[Input, ...],
    loose_pictures: tuple[Input, ...],
    png: Output,
    pdf: Output,
) -> None:
    """Draw one figure; ``curves`` are those of all seeds, ``pictures`` those of the first, by group."""
    steps = [read_table(path).assign(seed=index) for index, path in enumerate(curves)]
    tables = Tables(
        metrics=read_metrics(metrics),
        grid=read_table(grid),
        curves=pd.concat(steps, ignore_index=True) if steps else pd.DataFrame(),
        pictures=_loaded(pictures),
        loose_pictures=_loaded(loose_pictures),
    )
    draw_figure(FIGURES, figure, tables, png, pdf)


def _loaded(paths: tuple[Input, ...]) -> dict[str, torch.Tensor]:
    return {name: images for path in paths for name, images in load_file(path).items()}


if __name__ == "__main__":
    run_stage(draw)
