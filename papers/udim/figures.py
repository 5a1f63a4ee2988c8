"""Figures: the paper's key figures, redrawn from this project's tables, with the controls in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from papers.udim.options import SOURCE, UNSEEN
from shared.plotting import draw_figure, line_with_band, method_styles, new_figure, point_style, seed_dots
from shared.results import read_metrics
from shared.stage import Input, Output, run
from shared.tables import read_table

LABELS = {
    "erm": "ERM",
    "sam": "SAM",
    "sam+udim": "SAM + UDIM",
    "sam+cross_entropy": "SAM + cross-entropy of x̃",
    "sam+random": "random direction",
    "sam+zero": "radius 0",
    "erm+fishr@weight=1000": "Fishr",
    "asam": "ASAM",
    "sagm": "SAGM",
    "sagm+udim": "SAGM + UDIM",
    "gam": "GAM",
    "gam+udim": "GAM + UDIM",
    "sam+variance": "variance gap only",
    "sam+gradient": "gradient size only",
    "sam+norm@weight=0.1": "norm form",
    "sam+coordinate@data_radius=10": "per coordinate",
}
STYLES = method_styles(list(LABELS))
MAIN = ("erm", "sam", "sam+udim", "sam+cross_entropy")
CORRUPTIONS, LEAVE_ONE_OUT, SINGLE_SOURCE = "corruptions", "leave-one-out", "single-source"
SETTING_TITLES = {
    CORRUPTIONS: "Corruptions",
    LEAVE_ONE_OUT: "All domains but the target",
    SINGLE_SOURCE: "A single source",
}
ACCURACY = "accuracy on unseen domains (%)"


@dataclass(frozen=True)
class Tables:
    """What figures are drawn from."""

    metrics: pd.DataFrame
    radii: pd.DataFrame
    training: pd.DataFrame
    grid: pd.DataFrame
    lines: pd.DataFrame
    plane: pd.DataFrame


def levels(tables: Tables) -> Figure:
    """Accuracy against the level of the corruption, and the difference to SAM."""
    parts = parts_of(tables, CORRUPTIONS)
    numbers = sorted(int(name.removeprefix("level ")) for name in parts if name.startswith("level "))
    per_level = {number: seed_table(tables, parts[f"level {number}"], "accuracy") for number in numbers}
    figure, axes = new_figure(columns=2, width=3.6, height=3.3)
    for method in (*MAIN, "sam+random", "sam+zero"):
        values, of_sam = (np.stack([per_level[n][name] for n in numbers], axis=1) for name in (method, "sam"))
        axes[0, 0].plot(numbers, values.mean(axis=0), label=LABELS[method], **STYLES[method])
        line_with_band(axes[0, 1], numbers, values - of_sam, **STYLES[method])
    for axis in axes[0]:
        axis.set_xlabel("level of the corruption")
        axis.set_xticks(numbers)
    axes[0, 0].set_ylabel("accuracy (%)")
    axes[0, 1].set_ylabel("difference to SAM (points)")
    axes[0, 0].legend(fontsize=7.5)
    return figure


def controls(tables: Tables) -> Figure:
    """Accuracy on unseen and on source domains of every method: what the gain is due to."""
    unseen = seed_table(tables, CORRUPTIONS, "accuracy")
    source = seed_table(tables, CORRUPTIONS, "source_accuracy")
    names = sorted((name for name in LABELS if name in unseen), key=lambda name: unseen[name].mean())
    figure, axes = new_figure(columns=2, width=3.6, height=0.26 * len(names) + 0.8, sharey=True)
    seed_dots(axes[0, 0], unseen[names], STYLES, LABELS)
    seed_dots(axes[0, 1], source[names], STYLES, LABELS)
    axes[0, 0].set(title="Corruptions, never seen", xlabel="accuracy (%)")
    axes[0, 1].set(title="Clean test images", xlabel="accuracy (%)")
    return figure


def domains(tables: Tables) -> Figure:
    """Accuracy of every method under every corruption."""
    parts = {name: setting for name, setting in parts_of(tables, CORRUPTIONS).items() if not name.startswith("level ")}
    means = pd.DataFrame({name: seed_table(tables, setting, "accuracy").mean() for name, setting in parts.items()})
    names = [name for name in LABELS if name in means.index]
    gains = means.loc[names] - means.loc["sam"]
    figure, axes = new_figure(width=0.85 * len(parts) + 2.6, height=0.25 * len(names) + 1.0)
    axis = axes[0, 0]
    bound = np.abs(gains.to_numpy()).max()
    image = axis.imshow(gains, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto")
    for (row, column), value in np.ndenumerate(means.loc[names].to_numpy()):
        ink = "white" if abs(gains.iloc[row, column]) > 0.65 * bound else "black"
        axis.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7.5, color=ink)
    axis.set_xticks(range(len(parts)), [name.replace("_", "\n") for name in means.columns])
    axis.set_yticks(range(len(names)), [LABELS[name] for name in names])
    axis.grid(visible=False)
    figure.colorbar(image, ax=axis, label="difference to SAM (points)")
    return figure


def styles(tables: Tables) -> Figure:
    """Accuracy on every target domain, trained on all other domains or on one."""
    figure, axes = new_figure(columns=2, width=4.0, height=3.1, sharey=True)
    for axis, setting in zip(axes[0], (LEAVE_ONE_OUT, SINGLE_SOURCE), strict=True):
        parts = parts_of(tables, setting)
        targets = [*parts, "mean"]
        per_target = [seed_table(tables, parts.get(name, setting), "accuracy") for name in targets]
        present = [name for name in LABELS if name in per_target[-1]]
        for offset, method in enumerate(present):
            x = np.arange(len(targets)) + (offset - (len(present) - 1) / 2) * 0.8 / len(present)
            for place, table in zip(x, per_target, strict=True):
                axis.plot(
                    [place] * len(table), table[method], "o", color=STYLES[method]["color"], alpha=0.3, markersize=3
                )
            means = [table[method].mean() for table in per_target]
            look = point_style(STYLES[method])
            axis.plot(x, means, label=LABELS[method], markersize=6, **look)
        axis.set_xticks(range(len(targets)), [name.replace("_", "\n") for name in targets])
        axis.set(title=SETTING_TITLES[setting], xlabel="target domain")
        axis.grid(visible=False, axis="x")
    axes[0, 0].set_ylabel("accuracy (%)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    axes[0, 1].legend(handles, names)
    return figure


def sharpness(tables: Tables) -> Figure:
    """Rise of the loss against the radius in weight space, on the source and on unseen domains."""
    rows = tables.radii[(tables.radii["setting"] == CORRUPTIONS) & (tables.radii["quantity"] == "sharpness")]
    unseen = rows[rows["domain"] != SOURCE]
    worst = unseen.groupby("domain")["value"].mean().idxmax()
    panels = {
        "Source, held out": rows[rows["domain"] == SOURCE],
        "Mean over unseen domains": unseen,
        f"Sharpest: {worst.replace('_', ' ')}": rows[rows["domain"] == worst],
    }
    figure, axes = new_figure(columns=len(panels), width=2.9, height=2.9)
    for axis, (title, panel) in zip(axes[0], panels.items(), strict=True):
        for method in MAIN:
            wide = panel[panel["method"] == method].pivot_table(index="seed", columns="radius", values="value")
            line_with_band(axis, wide.columns, wide.to_numpy(), label=LABELS[method], **STYLES[method])
        axis.set(title=title, xlabel="radius ρ of the perturbation", yscale="log")
    axes[0, 0].set_ylabel("L(θ + ρ g/|g|) − L(θ)")
    axes[0, 0].legend(fontsize=7.5)
    return figure


def inconsistency(tables: Tables) -> Figure:
    """Domain inconsistency, unseen loss and accuracy over training."""
    curves = tables.training[tables.training["setting"] == CORRUPTIONS]
    panels = {
        "inconsistency": "Domain inconsistency",
        "unseen_loss": "Loss on unseen domains",
        "unseen_accuracy": "Accuracy on unseen domains",
    }
    figure, axes = new_figure(columns=len(panels), width=2.9, height=2.9)
    for axis, (quantity, title) in zip(axes[0], panels.items(), strict=True):
        for method in MAIN:
            wide = curves[curves["method"] == method].pivot(index="seed", columns="step", values=quantity)
            wide = 100 * wide if quantity == "unseen_accuracy" else wide
            line_with_band(axis, wide.columns, wide.to_numpy(), label=LABELS[method], **STYLES[method])
        axis.set(title=title, xlabel="step")
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylabel("max |L_e(θ') − L_s(θ')|")
    axes[0, 1].set_ylabel("nats")
    axes[0, 2].set_ylabel("percent")
    axes[0, 2].legend(fontsize=7.5)
    return figure


def lines(tables: Tables) -> Figure:
    """Loss along random directions."""
    figure, axes = new_figure(columns=2, width=3.4, height=2.9, sharey=True)
    for axis, (domain, title) in zip(axes[0], {SOURCE: "Source", UNSEEN: "Unseen domains"}.items(), strict=True):
        for method in MAIN:
            rows = tables.lines[(tables.lines["run"] == method) & (tables.lines["domain"] == domain)]
            if len(rows):
                wide = rows.pivot_table(index="seed", columns="x", values="loss")
                look = STYLES[method] | {"marker": ""}
                line_with_band(axis, wide.columns, wide.to_numpy(), label=LABELS[method], **look)
        axis.set(title=title, xlabel="distance along filter-normalised directions", yscale="log")
        axis.locator_params(axis="x", nbins=5)
    axes[0, 0].set_ylabel("loss (nats)")
    axes[0, 1].legend()
    return figure


def plane(tables: Tables) -> Figure:
    """Loss on a plane through the trained weights, on the source and on unseen domains."""
    first = tables.plane[tables.plane["seed"] == tables.plane["seed"].min()]
    methods = [name for name in MAIN if name in set(first["run"])]
    figure, axes = new_figure(2, len(methods), width=2.1, height=2.1, sharex=True, sharey=True)
    contours = np.geomspace(0.03, 10, 16)
    for row, domain in enumerate((SOURCE, UNSEEN)):
        for axis, method in zip(axes[row], methods, strict=True):
            rows = first[(first["run"] == method) & (first["domain"] == domain)]
            grid = rows.pivot(index="y", columns="x", values="loss")
            values = np.clip(grid.to_numpy(), contours[0], contours[-1])
            image = axis.contourf(grid.columns, grid.index, values, levels=contours, norm="log", cmap="viridis")
            axis.plot(0, 0, "x", color="white", markersize=5)
            axis.grid(visible=False)
            if row == 0:
                axis.set_title(LABELS[method], fontsize=8)
        axes[row, 0].set_ylabel(domain)
    figure.colorbar(image, ax=axes, label="loss (nats)", ticks=[0.03, 0.1, 0.3, 1, 3, 10], format="%g")
    return figure


def tuning(tables: Tables) -> Figure:
    """Every candidate: accuracy on held-out source images, by which one is selected, and on unseen domains."""
    figure, axes = new_figure(width=5.2, height=3.6)
    for method in (name for name in LABELS if name in set(tables.grid["method"])):
        rows = tables.grid[tables.grid["method"] == method]
        look = point_style(STYLES[method])
        x, y = 100 * rows["source_accuracy"], 100 * rows["unseen_accuracy"]
        axes[0, 0].plot(x, y, label=LABELS[method], markersize=5, alpha=0.6, **look)
        chosen = rows["selected"].to_numpy(dtype=bool)
        axes[0, 0].plot(x[chosen], y[chosen], "o", color=look["color"], markersize=12, fillstyle="none")
    axes[0, 0].set(xlabel="accuracy on held-out source images (%)", ylabel=ACCURACY)
    axes[0, 0].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def ablation(tables: Tables) -> Figure:
    """The parts and forms of the penalty, and sensitivity to its hyperparameters on the tuning seed."""
    figure, axes = new_figure(columns=3, width=2.9, height=2.8)
    table = seed_table(tables, CORRUPTIONS, "accuracy")
    forms = ("sam+coordinate@data_radius=10", "sam+norm@weight=0.1", "sam+variance", "sam+gradient", "sam+udim", "sam")
    seed_dots(axes[0, 0], table[[name for name in forms if name in table]], STYLES, LABELS)
    axes[0, 0].set(title="Parts of the penalty", xlabel=ACCURACY)
    for axis, name, title in (
        (axes[0, 1], "data_radius", "radius ρ_x of the inputs"),
        (axes[0, 2], "weight", "weight λ of the term"),
    ):
        for method in ("sam+udim", "sam+cross_entropy", "sam+random"):
            rows = varied(tables.grid[tables.grid["method"] == method], name)
            if len(rows):
                axis.plot(rows[name], 100 * rows["unseen_accuracy"], label=LABELS[method], **STYLES[method])
        axis.set(xlabel=title, xscale="log", title="Tuning seed")
        ticks = sorted(set(tables.grid[tables.grid["method"] == "sam+udim"][name]))
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    axes[0, 1].set_ylabel(ACCURACY)
    axes[0, 1].legend(fontsize=7.5, loc="lower left")
    return figure


def cost(tables: Tables) -> Figure:
    """Accuracy against the time of training."""
    rows = tables.metrics[(tables.metrics["setting"] == CORRUPTIONS) & (tables.metrics["metric"] == "accuracy")]
    means = rows.groupby("method")[["value", "wall_seconds"]].mean()
    figure, axes = new_figure(width=5.0, height=3.4)
    for method in (name for name in LABELS if name in means.index):
        relative = means.loc[method, "wall_seconds"] / means.loc["erm", "wall_seconds"]
        axes[0, 0].plot(
            relative, means.loc[method, "value"], label=LABELS[method], markersize=6, **point_style(STYLES[method])
        )
    axes[0, 0].set(xlabel="time of training, in that of ERM", ylabel=ACCURACY)
    axes[0, 0].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def varied(candidates: pd.DataFrame, name: str) -> pd.DataFrame:
    """The candidates that differ in one hyperparameter alone from the most common values of the others."""
    others = [other for other in ("rho", "data_radius", "weight") if other != name]
    same = np.logical_and.reduce([candidates[other] == candidates[other].mode().max() for other in others])
    return candidates[same].sort_values(name)


def seed_table(tables: Tables, setting: str, metric: str) -> pd.DataFrame:
    """One metric in one setting, a row for each seed, a column for each method."""
    rows = tables.metrics[(tables.metrics["setting"] == setting) & (tables.metrics["metric"] == metric)]
    return rows.pivot(index="seed", columns="method", values="value")


def parts_of(tables: Tables, setting: str) -> dict[str, str]:
    """The settings that are parts of one, by the name of the part."""
    prefix = f"{setting} / "
    found = sorted(name for name in tables.metrics["setting"].unique() if name.startswith(prefix))
    return {name.removeprefix(prefix): name for name in found}


FIGURES: dict[str, Callable[[Tables], Figure]] = {
    function.__name__: function
    for function in (levels, controls, domains, styles, sharpness, inconsistency, lines, plane, tuning, ablation, cost)
}


def draw(
    *,
    figure: str,
    metrics: Input,
    radii: Input,
    training: Input,
    grid: Input,
    lines: Input,
    plane: Input,
    png: Output,
    pdf: Output,
) -> None:
    """Draw one figure, by the name of its function."""
    tables = Tables(
        metrics=read_metrics(metrics),
        radii=read_table(radii),
        training=read_table(training),
        grid=read_table(grid),
        lines=read_table(lines),
        plane=read_table(plane),
    )
    draw_figure(FIGURES, figure, tables, png, pdf)


if __name__ == "__main__":
    run(draw)
