"""Figures: the paper's key figures, redrawn from this project's tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import entropy

from shared.plotting import PALETTE, draw_figure, line_with_band, method_styles, new_figure
from shared.results import read_metrics
from shared.stage import Input, Output, run
from shared.tables import read_table

# Bias of the annotators towards boilerplate in each setting: the dose.
BIAS = {"B": 0.0, "M": 0.25, "A": 0.5}
TITLES = {setting: f"{setting}: b = {bias:g}" for setting, bias in BIAS.items()}
LABELS = {
    "wpr": "WPR",
    "rkl": "reverse KL",
    "idkernel": "identity kernel",
    "permuted": "permuted cost",
    "none": "no penalty",
    "supervised": "supervised model",
    "rkl-at-equal-kl": "reverse KL at the KL of WPR",
    "fkl-gradient": "forward KL, gradient form",
    "js-gradient": "JS, gradient form",
    "alpha-gradient": "α = ½, gradient form",
    "tv-gradient": "TV, gradient form",
    "chi2-gradient": "χ², gradient form",
    "fkl-value": "forward KL, value form",
    "js-value": "JS, value form",
    "alpha-value": "α = ½, value form",
    "tv-value": "TV, value form",
    "chi2-value": "χ², value form",
    "wpr-3": "WPR, 3 iterations",
    "wpr-50": "WPR, 50 iterations",
    "best-value": "best f-divergence, value form",
    "best-gradient": "best f-divergence, gradient form",
}
STYLES = method_styles(list(LABELS))


@dataclass(frozen=True)
class Tables:
    """What figures are drawn from."""

    metrics: pd.DataFrame
    sweep: pd.DataFrame
    training: pd.DataFrame
    tokens: pd.DataFrame
    convergence: pd.DataFrame


def dose_response(tables: Tables) -> Figure:
    """Gain of each method over reverse KL against the annotators' bias."""
    figure, axes = new_figure(width=4.6, height=3.1)
    wide = seed_table(tables.metrics, "gold")
    settings = present_settings(tables)
    dose = [BIAS[setting] for setting in settings]
    for method in ("wpr", "idkernel", "permuted", "rkl-at-equal-kl"):
        if method in wide:
            gain = (wide[method] - wide["rkl"]).unstack("seed").loc[settings]
            line_with_band(axes[0, 0], dose, gain.to_numpy().T, label=LABELS[method], **STYLES[method])
    axes[0, 0].axhline(0, color="0.3", linewidth=0.8)
    axes[0, 0].set(xlabel="annotators' bias towards boilerplate, b", ylabel="gold reward above reverse KL")
    axes[0, 0].set_xticks(dose)
    axes[0, 0].legend()
    return figure


def frontier(tables: Tables) -> Figure:
    """Gold reward against KL over all penalty weights, one panel for each setting."""
    settings = present_settings(tables)
    figure, axes = new_figure(columns=len(settings), width=3.1, height=2.9, sharey=True)
    test = tables.sweep[tables.sweep["split"] == "test"]
    means = test.groupby(["setting", "method", "beta"])[["kl", "quality"]].mean().reset_index()
    for axis, setting in zip(axes[0], settings, strict=True):
        here = means[means["setting"] == setting]
        for method in ("rkl", "wpr", "idkernel", "permuted"):
            points = here[here["method"] == method].sort_values("kl")
            if len(points):
                axis.plot(points["kl"], points["quality"], label=LABELS[method], **STYLES[method])
        for method in ("supervised", "none"):
            points = here[here["method"] == method]
            look = STYLES[method] | {"linestyle": "none"}
            axis.plot(points["kl"], points["quality"], label=LABELS[method], markersize=7, **look)
        axis.set(xlabel="KL to the reference (nats per response)", title=TITLES.get(setting, setting))
    axes[0, 0].set_ylabel("gold reward on test prompts")
    axes[0, 0].legend(loc="lower left")
    return figure


def penalty_weight(tables: Tables) -> Figure:
    """Gold reward against the penalty weight, one panel for each setting (the paper's figure 4)."""
    settings = present_settings(tables)
    figure, axes = new_figure(columns=len(settings), width=3.1, height=2.9, sharey=True)
    test = tables.sweep[tables.sweep["split"] == "test"]
    for axis, setting in zip(axes[0], settings, strict=True):
        here = test[test["setting"] == setting]
        for method in ("rkl", "wpr", "idkernel", "permuted"):
            wide = here[here["method"] == method].pivot(index="seed", columns="beta", values="quality")
            if wide.size:
                line_with_band(axis, wide.columns, wide.to_numpy(), label=LABELS[method], **STYLES[method])
        reference = here[here["method"] == "supervised"]["quality"].mean()
        axis.axhline(reference, color=STYLES["supervised"]["color"], linewidth=0.9, linestyle=":", label="supervised")
        axis.set(xlabel="penalty weight β", xscale="log", title=TITLES.get(setting, setting))
    axes[0, 0].set_ylabel("gold reward on test prompts")
    axes[0, -1].legend()
    return figure


def methods(tables: Tables) -> Figure:
    """Gold reward of every method at its selected weight, one panel for each setting."""
    settings = present_settings(tables)
    wide = seed_table(tables.metrics, "gold")
    names = [name for name in LABELS if name in wide and name not in ("best-value", "best-gradient")]
    names = [name for name in names if wide[name].notna().any()]
    figure, axes = new_figure(columns=len(settings), width=2.7, height=0.26 * len(names) + 0.8, sharey=True)
    places = np.arange(len(names))[::-1]
    for axis, setting in zip(axes[0], settings, strict=True):
        here = wide.loc[setting].reindex(columns=names)
        for place, name in zip(places, names, strict=True):
            values = here[name].dropna()
            if len(values):
                color = STYLES[name]["color"]
                axis.plot(values, np.full(len(values), place), "o", color=color, alpha=0.35, markersize=3.5)
                axis.plot(values.mean(), place, "D", color=color, markersize=5)
        axis.axvline(here["rkl"].mean(), color="0.5", linewidth=0.8, linestyle=":")
        axis.set(xlabel="gold reward", title=TITLES.get(setting, setting))
    axes[0, 0].set_yticks(places, [LABELS[name] for name in names])
    return figure


def overoptimization(tables: Tables) -> Figure:
    """The reward model's score and the gold reward of training responses over the updates, at selected weights."""
    settings = present_settings(tables)
    figure, axes = new_figure(rows=2, columns=len(settings), width=3.0, height=2.2, sharex=True, sharey="row")
    for column, setting in enumerate(settings):
        for method in ("none", "rkl", "wpr"):
            curves = selected_curves(tables, setting, method)
            for row, name in enumerate(("score", "gold")):
                wide = curves.pivot(index="seed", columns="step", values=name).dropna(axis=1)
                if wide.size:
                    look = STYLES[method] | {"marker": ""}
                    line_with_band(axes[row, column], wide.columns, wide.to_numpy(), label=LABELS[method], **look)
        axes[0, column].set_title(TITLES.get(setting, setting))
        axes[1, column].set_xlabel("update")
    axes[0, 0].set_ylabel("reward model's score")
    axes[1, 0].set_ylabel("gold reward")
    axes[0, 0].legend(loc="lower right")
    return figure


def penalties(tables: Tables) -> Figure:
    """The Wasserstein against the KL penalty of every sampled token (the paper's figure 5)."""
    settings = [setting for setting in present_settings(tables) if setting in set(tables.tokens["setting"])]
    figure, axes = new_figure(columns=len(settings), width=3.0, height=2.9, sharey=True)
    for axis, setting in zip(axes[0], settings, strict=True):
        here = tables.tokens[tables.tokens["setting"] == setting]
        unit = {}
        for name in ("kl_penalty", "wasserstein_penalty"):
            unit[name] = (here[name] - here[name].min()) / (here[name].max() - here[name].min())
        for policy in ("rkl", "wpr"):
            chosen = here["policy"] == policy
            x, y = (values[chosen] for values in unit.values())
            axis.plot(x, y, ".", color=STYLES[policy]["color"], alpha=0.15, markersize=3, rasterized=True,
                      label=f"responses of {LABELS[policy]}")  # fmt: skip
        slope, offset = np.polyfit(unit["kl_penalty"], unit["wasserstein_penalty"], 1)
        axis.plot([0, 1], [offset, offset + slope], color="black", label=f"slope {slope:.2f}")
        correlation = unit["kl_penalty"].corr(unit["wasserstein_penalty"])
        axis.set(xlabel="KL penalty, normalised", title=f"{setting}: r = {correlation:.2f}")
        axis.legend(loc="upper left")
    axes[0, 0].set_ylabel("Wasserstein penalty, normalised")
    return figure


def heat_map(tables: Tables) -> Figure:
    """Token by token, what each penalty says of a few responses of the WPR policy (the paper's figure 6)."""
    tokens = tables.tokens
    setting = present_settings(tables)[-1]
    chosen = tokens[
        (tokens["setting"] == setting) & (tokens["policy"] == "wpr") & (tokens["seed"] == tokens["seed"].min())
    ]
    shown = list(chosen.groupby("prompt_id", sort=True))[:8]
    figure, axes = new_figure(columns=2, width=3.6, height=3.0, sharey=True)
    for axis, name, title in (
        (axes[0, 0], "kl_penalty", "KL penalty, log π/π_ref"),
        (axes[0, 1], "wasserstein_penalty", "Wasserstein penalty φ"),
    ):
        width = max(len(rows) for _, rows in shown)
        grid = np.full((len(shown), width), np.nan)
        for row, (_, rows) in enumerate(shown):
            grid[row, : len(rows)] = rows[name]
        limit = np.nanmax(np.abs(chosen[name]))
        image = axis.imshow(grid, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        for row, (_, rows) in enumerate(shown):
            for column, (token, value) in enumerate(zip(rows["token"], rows[name], strict=True)):
                ink = "white" if abs(value) > 0.6 * limit else "black"
                axis.text(column, row, token, ha="center", va="center", fontsize=6.5, color=ink)
        axis.set(title=title, xlabel="position", xticks=range(width), yticks=[])
        axis.grid(visible=False)
        figure.colorbar(image, ax=axis, shrink=0.85)
    axes[0, 0].set_ylabel("responses")
    return figure


def convergence(tables: Tables) -> Figure:
    """The solver's error over its iterations (the paper's figure 7)."""
    figure, axes = new_figure(width=4.2, height=2.9)
    for policy in ("rkl", "wpr"):
        here = tables.convergence[tables.convergence["policy"] == policy]
        wide = here.pivot_table(index=["setting", "seed"], columns="iteration", values="error")
        look = STYLES[policy] | {"marker": ""}
        line_with_band(axes[0, 0], wide.columns, wide.to_numpy(), label=f"{LABELS[policy]} policies", **look)
    axes[0, 0].axvline(10, color="0.5", linewidth=0.8, linestyle=":")
    axes[0, 0].set(xlabel="Sinkhorn iteration", ylabel="Σ |P1 − p|", yscale="log")
    axes[0, 0].legend()
    return figure


def solver(tables: Tables) -> Figure:
    """Diagnostics of the transport over training: how much mass moves between tokens, and how exact the solve is."""
    panels = {
        "off_diagonal_mass": "mass moved between tokens",
        "row_marginal_error": "row-marginal error",
        "kernel_exponent": "median λ · nearest cost",
        "floor_share": "tokens at the floor",
    }
    figure, axes = new_figure(columns=len(panels), width=2.5, height=2.4)
    setting = present_settings(tables)[-1]
    for method in ("wpr", "permuted", "idkernel"):
        curves = selected_curves(tables, setting, method)
        for axis, (name, title) in zip(axes[0], panels.items(), strict=True):
            axis.set(title=title, xlabel="update")
            wide = curves.pivot(index="seed", columns="step", values=name).replace(np.inf, np.nan).dropna(axis=1)
            if wide.size:
                look = STYLES[method] | {"marker": ""}
                line_with_band(axis, wide.columns, wide.to_numpy(), label=LABELS[method], **look)
    axes[0, 0].legend()
    return figure


def shifts(tables: Tables) -> Figure:
    """Two shifts of a next-token distribution that KL and JS cannot tell apart (the paper's figure 1).

    Computed here from the method itself: mass moves from "cat" to its synonym or to another meaning.
    """
    words = ("cat", "kitty", "dog", "road")
    points = np.array([[0.0, 0.0], [0.3, 0.0], [1.0, 0.6], [3.0, 1.5]])
    reference = np.array([0.70, 0.10, 0.10, 0.10])
    shifted = {
        "to a synonym": np.array([0.40, 0.40, 0.10, 0.10]),
        "to another meaning": np.array([0.40, 0.10, 0.10, 0.40]),
    }
    figure, axes = new_figure(columns=2, width=3.2, height=2.6)
    places = np.arange(len(words))
    axes[0, 0].bar(places, reference, width=0.25, color="0.6", label="reference")
    for offset, (name, policy) in enumerate(shifted.items()):
        distances = distances_between(policy, reference, points)
        color = PALETTE[offset]
        axes[0, 0].bar(places + 0.27 * (offset + 1), policy, width=0.25, color=color, label=name)
        axes[0, 1].bar(np.arange(3) + 0.3 * offset, distances.values(), width=0.28, color=color, label=name)
    axes[0, 0].set(title="next-token probabilities")
    axes[0, 0].set_xticks(places + 0.27, words)
    axes[0, 0].legend()
    axes[0, 1].set(title="distance to the reference")
    axes[0, 1].set_xticks(np.arange(3) + 0.15, list(distances))
    return figure


def distances_between(policy: np.ndarray, reference: np.ndarray, points: np.ndarray) -> dict[str, float]:
    """KL, JS and the dual value of the Wasserstein distance between distributions over points (n, d)."""
    import torch  # for this figure alone; the others are drawn without it

    from papers.wpr.wasserstein import sinkhorn_potentials

    p, q = torch.from_numpy(policy), torch.from_numpy(reference)
    cost = torch.cdist(torch.from_numpy(points), torch.from_numpy(points))
    phi, psi = sinkhorn_potentials(p, q, cost, reg=0.05, num_iters=2000)
    mixture = (policy + reference) / 2
    return {
        "KL": entropy(policy, reference),
        "JS": (entropy(policy, mixture) + entropy(reference, mixture)) / 2,
        "Wasserstein": (p @ phi + q @ psi).item(),
    }


def present_settings(tables: Tables) -> list[str]:
    """Settings that were run, in the order of the bias; others after them."""
    found = set(tables.metrics["setting"])
    return [*(setting for setting in BIAS if setting in found), *sorted(found - BIAS.keys())]


def seed_table(metrics: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One metric, a row for each setting and seed, a column for each method."""
    rows = metrics[metrics["metric"] == metric]
    return rows.pivot(index=["setting", "seed"], columns="method", values="value")


def selected_curves(tables: Tables, setting: str, method: str) -> pd.DataFrame:
    """Training curves of a method at the weight with the highest mean quality on validation prompts over the seeds."""
    curves = tables.training[(tables.training["setting"] == setting) & (tables.training["method"] == method)]
    sweep = tables.sweep[
        (tables.sweep["setting"] == setting)
        & (tables.sweep["method"] == method)
        & (tables.sweep["split"] == "validation")
    ]
    if sweep.empty:
        return curves
    return curves[curves["beta"] == sweep.groupby("beta")["quality"].mean().idxmax()]


FIGURES: dict[str, Callable[[Tables], Figure]] = {
    function.__name__: function
    for function in (
        dose_response,
        frontier,
        penalty_weight,
        methods,
        overoptimization,
        penalties,
        heat_map,
        convergence,
        solver,
        shifts,
    )
}


def draw(
    *,
    figure: str,
    metrics: Input,
    sweep: Input,
    curves: tuple[Input, ...],
    tokens: tuple[Input, ...],
    convergence: tuple[Input, ...],
    png: Output,
    pdf: Output,
) -> None:
    """Draw one figure, by the name of its function."""
    tables = Tables(
        metrics=read_metrics(metrics),
        sweep=read_table(sweep),
        training=pd.concat(map(read_table, curves), ignore_index=True),
        tokens=pd.concat([pd.DataFrame(), *map(read_table, tokens)], ignore_index=True),
        convergence=pd.concat([pd.DataFrame(), *map(read_table, convergence)], ignore_index=True),
    )
    draw_figure(FIGURES, figure, tables, png, pdf)


if __name__ == "__main__":
    run(draw)
