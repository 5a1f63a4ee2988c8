"""Figures: the paper's key figures, redrawn from this project's tables, with the baselines in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator, StrMethodFormatter, SymmetricalLogLocator
from safetensors.torch import load_file

from papers.diffrs.methods import PUBLISHED, parse_run
from papers.diffrs.options import PRIMARY
from shared.plotting import draw_figure, line_with_band, method_styles, new_figure, point_style, seed_dots
from shared.results import read_metrics
from shared.stage import Input, Output, run
from shared.tables import read_table

LABELS = {
    "base": "base sampler",
    "diffrs": "DiffRS",
    "dg": "discriminator guidance",
    "final": "rejection at the end",
    "restart": "Restart",
    "churn": "stochastic sampler",
    "best": "best of several",
    "longer": "more steps",
}
STYLES = method_styles(list(LABELS))
TITLES = {
    "ring": "Ring",
    "ring-8": "Ring, 8 steps",
    "ring-ddim": "Ring, 10 steps of DDIM",
    "ring-weak": "Ring, weak ratio",
    "glyphs": "Glyphs",
    "exact-1d": "Exact ratio, 1-D",
    "exact-2d": "Exact ratio, 2-D",
    "cifar10": "CIFAR-10",
    "cifar10-8": "CIFAR-10, 8 steps",
}
METRICS = {
    "sliced_w2": "sliced W₂ to the data",
    "frechet": "Fréchet distance",
    "w1": "W₁ to the data",
    "outliers": "outliers (%)",
    "coverage": "coverage",
}
NFE = "evaluations per sample"
MAIN = ("ring", "glyphs", "cifar10")
"""Settings in which all methods are run."""


@dataclass(frozen=True)
class Tables:
    """What figures are drawn from."""

    metrics: pd.DataFrame
    levels: pd.DataFrame
    costs: pd.DataFrame
    paths: pd.DataFrame
    ratios: pd.DataFrame
    training: pd.DataFrame
    grid: pd.DataFrame
    pictures: dict[str, dict[str, torch.Tensor]]
    """Samples by setting and run."""

    def settings(self, names: Sequence[str]) -> list[str]:
        """Those of the settings that there are."""
        there = set(self.metrics["setting"])
        return [name for name in names if name in there]

    def primary(self, setting: str) -> str:
        """The primary metric of a setting."""
        found = set(self.metrics[self.metrics["setting"] == setting]["metric"])
        return next(name for name in (*dict.fromkeys(PRIMARY.values()), "w1") if name in found)

    def by_seed(self, setting: str, metric: str) -> pd.DataFrame:
        """One metric in one setting, a row for each seed, a column for each method."""
        rows = self.metrics[(self.metrics["setting"] == setting) & (self.metrics["metric"] == metric)]
        return rows.pivot(index="seed", columns="method", values="value")


def quality(tables: Tables) -> Figure:
    """Quality against evaluations: curves over K and γ, and what else was selected."""
    panels = [(name, tables.primary(name)) for name in tables.settings(MAIN)]
    panels += [(name, metric) for name in tables.settings(MAIN) for metric in ("outliers", "coverage")][:2]
    figure, axes = new_figure(1, len(panels), width=2.75, height=2.9)
    for axis, (setting, metric) in zip(axes[0], panels, strict=True):
        _curves(axis, tables, setting, metric)
        axis.set(xlabel=NFE, ylabel=METRICS[metric], title=TITLES[setting])
        if metric == "outliers":
            axis.set_yscale("log")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7)
    return figure


def _curves(axis: Axes, tables: Tables, setting: str, metric: str) -> None:
    """Mean over seeds of a metric against evaluations, with each seed as a dot."""
    values, nfe = tables.by_seed(setting, metric), tables.by_seed(setting, "nfe")
    named = {
        "base": ["base", *(name for name in values if name.startswith("longer@"))],
        "diffrs": [name for name in values if name.startswith("diffrs@")],
        "final": [name for name in values if name.startswith("final@")],
        **{name: [name] for name in ("dg", "restart", "churn", "best") if name in values},
    }
    for method, names in named.items():
        ordered = sorted(names, key=lambda name: nfe[name].mean())
        if not ordered:
            continue
        style = STYLES[method] if len(ordered) > 1 else point_style(STYLES[method])
        for name in ordered:
            axis.plot(nfe[name], values[name], ".", color=style["color"], alpha=0.25, markersize=4)
        axis.plot(nfe[ordered].mean(), values[ordered].mean(), label=LABELS[method], **style)


def methods(tables: Tables) -> Figure:
    """Every method with its selected hyperparameters, each seed."""
    settings = tables.settings((*MAIN, "ring-weak"))
    figure, axes = new_figure(1, len(settings), width=3.1, height=2.9)
    for axis, setting in zip(axes[0], settings, strict=True):
        metric = tables.primary(setting)
        table = tables.by_seed(setting, metric)
        table = table[[name for name in table if name in LABELS]]
        table = table[table.mean().sort_values(ascending=False).index]
        seed_dots(axis, table, STYLES, LABELS)
        axis.set(title=TITLES[setting], xlabel=METRICS[metric])
    return figure


def few_steps(tables: Tables) -> Figure:
    """Base sampler with more steps and DiffRS, for several base samplers of the ring."""
    settings = tables.settings(("ring", "ring-8", "ring-ddim", "cifar10", "cifar10-8"))
    figure, axes = new_figure(1, len(settings), width=2.9, height=2.6, sharey=True)
    for axis, setting in zip(axes[0], settings, strict=True):
        metric = tables.primary(setting)
        values, nfe = tables.by_seed(setting, metric), tables.by_seed(setting, "nfe")
        longer = sorted((name for name in values if name.startswith("longer@")), key=lambda name: nfe[name].mean())
        gammas = list(over_gamma(values, "diffrs").values())
        for method, names in (("base", ["base", *longer]), ("diffrs", gammas)):
            line_with_band(axis, nfe[names].mean(), values[names].to_numpy(), label=LABELS[method], **STYLES[method])
        axis.set(title=TITLES[setting], xlabel=NFE)
    axes[0, 0].set(ylabel=METRICS[tables.primary(settings[0])], ylim=(0, None))
    axes[0, 0].legend()
    return figure


def percentile(tables: Tables) -> Figure:
    """Quality and evaluations against γ, with exact ratios and learned ones."""
    settings = tables.settings(("exact-1d", "exact-2d", *MAIN))
    figure, axes = new_figure(2, len(settings), width=2.3, height=2.0, sharex=True)
    for column, setting in enumerate(settings):
        metric = tables.primary(setting)
        for row, shown in enumerate((metric, "nfe")):
            values = tables.by_seed(setting, shown)
            for method in ("diffrs", "final"):
                runs = over_gamma(values, method)
                if runs:
                    series = values[list(runs.values())].to_numpy()
                    line_with_band(axes[row, column], list(runs), series, label=LABELS[method], **STYLES[method])
            base = values["base"].mean()
            axes[row, column].axhline(base, color=STYLES["base"]["color"], linestyle=":", label=LABELS["base"])
        axes[0, column].set(title=TITLES[setting], ylabel=METRICS[metric])
        axes[1, column].set(xlabel="γ", ylabel=NFE)
    handles, labels = axes[0, -1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def over_gamma(values: pd.DataFrame, method: str) -> dict[float, str]:
    """The runs of a method that name γ, by γ in ascending order."""
    runs = {parse_run(name).overrides["percentile"]: name for name in values if name.startswith(f"{method}@")}
    return dict(sorted(runs.items()))


def levels(tables: Tables) -> Figure:
    """Acceptance rate of what is proposed for each noise level, by γ."""
    settings = tables.settings(MAIN)
    figure, axes = new_figure(1, len(settings), width=3.4, height=2.6, sharey=True)
    for axis, setting in zip(axes[0], settings, strict=True):
        names = ("diffrs@percentile=0.5", PUBLISHED, "diffrs@percentile=0.9")
        for name, style in method_styles(names).items():
            rates = acceptance(tables.levels[(tables.levels["setting"] == setting) & (tables.levels["run"] == name)])
            if len(rates):
                gamma = f"γ = {parse_run(name).overrides['percentile']:g}"
                line_with_band(axis, rates.columns, 100 * rates.to_numpy(), label=gamma, **style)
        axis.set(title=TITLES[setting], xlabel="noise level k (0: prior, last: data)")
    axes[0, 0].set(ylabel="proposals accepted (%)")
    axes[0, 0].legend()
    return figure


def acceptance(counts: pd.DataFrame) -> pd.DataFrame:
    """Share of accepted proposals, a row for each seed, a column for each level.

    Args:
        counts: columns seed, origin, target, count; target -1 are proposals, others push-backs.
    """
    proposed = counts[counts["target"] == -1].pivot(index="seed", columns="origin", values="count")
    pushed = counts[counts["target"] >= 0].groupby(["seed", "origin"])["count"].sum().unstack(fill_value=0)
    return 1 - pushed.reindex_like(proposed).fillna(0) / proposed


def ratios(tables: Tables) -> Figure:
    """The discriminator's log ratio of data and of samples with noise of every level."""
    settings = tables.settings(MAIN)
    figure, axes = new_figure(1, len(settings), width=3.4, height=2.8)
    colors = {"data": "#000000", "base": STYLES["base"]["color"], PUBLISHED: STYLES["diffrs"]["color"]}
    for axis, setting in zip(axes[0], settings, strict=True):
        of_setting = tables.ratios[tables.ratios["setting"] == setting]
        for source, color in colors.items():
            rows = of_setting[of_setting["source"] == source]
            means = rows.groupby(["quantile", "level"])["log_ratio"].mean().unstack()
            low, middle, high = (means.loc[quantile] for quantile in (0.05, 0.5, 0.95))
            label = "data, held out" if source == "data" else LABELS[parse_run(source).method]
            axis.plot(middle, color=color, label=label)
            for bound in (low, high):
                axis.plot(bound, color=color, linestyle="--", linewidth=0.9)
        axis.axhline(0, color="#767676", linestyle=":", linewidth=0.8)
        axis.set(title=TITLES[setting], xlabel="noise level k (0: prior, last: data)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axis.get_ylim()[0] < -3:
            axis.set_yscale("symlog", linthresh=1)
            axis.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1, subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes[0, 0].set(ylabel="log ratio of data to samples")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def pushbacks(tables: Tables) -> Figure:
    """From which level to which rejected proposals are pushed back, per request."""
    settings = tables.settings(MAIN)
    figure, axes = new_figure(1, len(settings), width=3.4, height=2.9)
    for axis, setting in zip(axes[0], settings, strict=True):
        of_run = tables.levels[(tables.levels["setting"] == setting) & (tables.levels["run"] == PUBLISHED)]
        of_costs = tables.costs[(tables.costs["setting"] == setting) & (tables.costs["run"] == PUBLISHED)]
        requests = of_costs["count"].sum()
        size = int(of_run["origin"].max()) + 1
        share = np.full((size, size), np.nan)
        pushed = of_run[of_run["target"] >= 0].groupby(["origin", "target"])["count"].sum()
        for (origin, target), count in pushed.items():
            share[origin, target] = 100 * count / requests
        image = axis.imshow(share.T, origin="lower", cmap="viridis", norm="log")
        axis.grid(visible=False)
        axis.set(title=TITLES[setting], xlabel="rejected at level", ylabel="accepted again at level")
        figure.colorbar(image, ax=axis, label="per 100 samples", shrink=0.8)
    return figure


def requests(tables: Tables) -> Figure:
    """Histogram of the evaluations that single samples took."""
    settings = tables.settings(MAIN)
    figure, axes = new_figure(1, len(settings), width=3.4, height=2.5)
    for axis, setting in zip(axes[0], settings, strict=True):
        names = ("diffrs@percentile=0.5", PUBLISHED, "diffrs@percentile=0.9")
        for name, style in method_styles(names).items():
            rows = tables.costs[(tables.costs["setting"] == setting) & (tables.costs["run"] == name)]
            counts = rows.groupby("nfe")["count"].sum()
            if len(counts):
                edges = np.arange(counts.index.min(), counts.index.max() + 8, 4)
                share, _ = np.histogram(counts.index, edges, weights=counts / counts.sum())
                gamma = f"γ = {parse_run(name).overrides['percentile']:g}"
                axis.stairs(100 * share, edges, label=gamma, color=style["color"])
        axis.set(title=TITLES[setting], xlabel="evaluations since the last restart", yscale="log")
    axes[0, 0].set(ylabel="samples (%)")
    axes[0, 0].legend()
    return figure


def scatter(tables: Tables) -> Figure:
    """Samples of the ring."""
    pictures = tables.pictures["ring"]
    shown = [name for name in ("data", "base", "restart", "dg", "final", PUBLISHED) if name in pictures]
    figure, axes = new_figure(1, len(shown), width=1.75, height=2.0, sharex=True, sharey=True)
    for axis, name in zip(axes[0], shown, strict=True):
        points = pictures[name].float().numpy()
        axis.plot(points[:, 0], points[:, 1], ".", color="#1f3b57", markersize=1.2, alpha=0.6, rasterized=True)
        label = "data" if name == "data" else LABELS[parse_run(name).method]
        axis.set_title(label, fontsize=8)
        axis.set(aspect="equal", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    return figure


def images(tables: Tables) -> Figure:
    """Samples of images, a row for each method; a column starts from the same noise."""
    setting = tables.settings(("glyphs", "cifar10"))[0]
    pictures = tables.pictures[setting]
    shown = [name for name in ("data", "base", "restart", "dg", "final", "best", PUBLISHED) if name in pictures]
    figure, axes = new_figure(len(shown), 1, width=6.6, height=0.5)
    for axis, name in zip(axes[:, 0], shown, strict=True):
        tiles = pictures[name][:16].permute(2, 0, 3, 1).numpy()
        strip = np.pad(tiles, ((1, 1), (0, 0), (0, 1), (0, 0)), constant_values=128)
        strip = strip.reshape(strip.shape[0], -1, strip.shape[-1]).squeeze()
        axis.imshow(strip, cmap="gray", vmin=0, vmax=255, aspect="equal")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.grid(visible=False)
        label = "data" if name == "data" else LABELS[parse_run(name).method]
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    return figure


def paths(tables: Tables) -> Figure:
    """Requests with many rejections, and what the first rejected states would have become."""
    rows = tables.paths
    rejected = rows[(rows["kind"] == "rejected") & (rows["level"] > 0)]
    chosen = rejected.groupby("request").size().sort_values(ascending=False, kind="stable").index[:4]
    figure, axes = new_figure(1, len(chosen), width=2.2, height=2.5, sharex=True, sharey=True)
    angles = np.arange(8) * np.pi / 4
    for axis, request in zip(axes[0], chosen, strict=True):
        mine = rows[rows["request"] == request]
        tested, without = mine[mine["kind"] != "without"], mine[mine["kind"] == "without"]
        near = tested[np.hypot(tested["x"], tested["y"]) < 3]
        for angle in angles:
            axis.add_patch(Circle((np.cos(angle), np.sin(angle)), 0.14, color="#dddddd", linewidth=0))
        axis.plot(near["x"], near["y"], "-", color="#767676", linewidth=0.8)
        for kind, color, marker in (("accepted", "#0072B2", "o"), ("rejected", "#D55E00", "x")):
            points = near[near["kind"] == kind]
            axis.plot(points["x"], points["y"], marker, color=color, markersize=3.5, label=kind)
        axis.plot(without["x"], without["y"], "s", color="#E69F00", markersize=4, label="end without rejection")
        last = tested.iloc[-1]
        axis.plot(last["x"], last["y"], "*", color="#000000", markersize=9, label="returned sample")
        axis.set(aspect="equal", xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def tuning(tables: Tables) -> Figure:
    """Every candidate on the tuning seed: its evaluations and the metric by which one is selected."""
    settings = [name for name in TITLES if name in set(tables.grid["setting"])]
    figure, axes = new_figure(1, len(settings), width=2.9, height=2.7)
    for axis, setting in zip(axes[0], settings, strict=True):
        of_setting = tables.grid[tables.grid["setting"] == setting]
        for method in (name for name in LABELS if name in set(of_setting["method"])):
            rows, look = of_setting[of_setting["method"] == method], point_style(STYLES[method])
            axis.plot(rows["nfe"], rows["value"], label=LABELS[method], markersize=5, alpha=0.7, **look)
            chosen = rows[rows["selected"]]
            axis.plot(chosen["nfe"], chosen["value"], "o", color=look["color"], markersize=11, fillstyle="none")
        axis.set(title=TITLES[setting], xlabel=NFE, xscale="log", ylabel=METRICS[tables.primary(setting)])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


FIGURES: dict[str, Callable[[Tables], Figure]] = {
    function.__name__: function
    for function in (
        quality, methods, few_steps, percentile, levels, ratios, pushbacks, requests, scatter, images, paths, tuning,
    )
}  # fmt: skip


def draw(
    *,
    figure: str,
    metrics: Input,
    levels: Input,
    costs: Input,
    paths: Input,
    ratios: Input,
    training: Input,
    grid: Input,
    settings: tuple[str, ...],
    pictures: tuple[Input, ...],
    png: Output,
    pdf: Output,
) -> None:
    """Draw one figure, by the name of its function; ``pictures`` are those of the ``settings``, in their order."""
    tables = Tables(
        metrics=read_metrics(metrics),
        levels=read_table(levels),
        costs=read_table(costs),
        paths=read_table(paths),
        ratios=read_table(ratios),
        training=read_table(training),
        grid=read_table(grid),
        pictures={setting: load_file(path) for setting, path in zip(settings, pictures, strict=True)},
    )
    draw_figure(FIGURES, figure, tables, png, pdf)


if __name__ == "__main__":
    run(draw)
