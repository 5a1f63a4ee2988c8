"""Figures: the paper's key figures, redrawn from this project's tables, and studies of what the effect depends on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor

from papers.tiw_dsm.data import biased_shares, densities_of
from papers.tiw_dsm.density_ratio import log_density_ratio, log_ratio_and_score
from papers.tiw_dsm.methods import Arm, parse_arm
from papers.tiw_dsm.options import DataOptions
from shared.plotting import draw_figure, line_with_band, method_styles, new_figure, seed_dots
from shared.results import read_metrics
from shared.stage import Input, Output, run
from shared.tables import read_table

LABELS = {
    "dsm_ref": "DSM (references)",
    "dsm_obs": "DSM (all)",
    "iw": "IW-DSM",
    "tiw": "TIW-DSM",
    "weight_only": "weight only",
    "correction_only": "correction only",
    "guidance": "guidance",
    "oracle": "oracle",
}
STYLES = method_styles(list(LABELS)) | {"oracle": {"color": "0.5", "marker": "P", "linestyle": ":"}}
NOISY, CLEAN = {"color": STYLES["tiw"]["color"]}, {"color": STYLES["iw"]["color"]}
TESTBEDS = {"mixture": "mixture", "exact": "exact ratio", "glyphs": "glyphs", "toy": "plane", "cifar10": "CIFAR-10"}
ENERGY = "energy distance (× 10⁻³)"
STUDIED = ("tiw", "iw", "correction_only")


@dataclass(frozen=True)
class Tables:
    """What figures are drawn from; see :mod:`papers.tiw_dsm.train`."""

    metrics: pd.DataFrame
    shares: pd.DataFrame
    lengths: pd.DataFrame
    errors: pd.DataFrame
    weights: pd.DataFrame
    drawn: dict[str, dict[str, Tensor]]
    """Samples of every arm, by setting: those of its first seed."""

    @property
    def settings(self) -> list[str]:
        """By testbed, then by the share of references."""
        names = self.metrics["setting"].unique().tolist()
        return sorted(names, key=lambda name: (list(TESTBEDS).index(testbed(name)), percent(name)))

    def by_seed(self, setting: str, metric: str) -> pd.DataFrame:
        """Values of a metric: a row for each seed, a column for each method."""
        rows = self.metrics[(self.metrics["setting"] == setting) & (self.metrics["metric"] == metric)]
        return rows.pivot(index="seed", columns="method", values="value")

    @property
    def main(self) -> list[str]:
        """Settings in which all methods are compared with an unbiased one."""
        return [name for name in self.settings if {"oracle", "iw"} <= set(self.by_seed(name, "energy_distance"))]


def testbed(setting: str) -> str:
    """``mixture`` of ``mixture-2.5``."""
    return setting.partition("-")[0]


def percent(setting: str) -> float:
    """2.5 of ``mixture-2.5``; the plane's is not in its name."""
    return float(setting.partition("-")[2] or 5)


def title_of(setting: str) -> str:
    """A setting in words."""
    return f"{TESTBEDS[testbed(setting)]}, {percent(setting):g} % references"


def label_of(arm: Arm) -> str:
    """An arm in words."""
    base = LABELS[re.match(r"\w+", arm.name)[0]]
    parts = [f"a = {arm.exponent:g}"] if arm.exponent != 1 else []
    if arm.ratio != "fixed":
        words = {"selected": "held-out length", "exact": "exact ratio"}
        parts.append(words.get(arm.ratio, f"{arm.ratio} steps"))
    return ", ".join([base, *parts])


def base_of(name: str) -> str:
    """The method of an arm's name."""
    return re.match(r"\w+", name)[0]


def ordered(names: Iterable[str]) -> list[str]:
    """Arms in the order of the methods' labels."""
    return sorted(names, key=lambda name: (list(LABELS).index(base_of(name)), name))


def quality(tables: Tables) -> Figure:
    """Energy distance of every arm in the main settings: seeds and means."""
    shown = [name for name in tables.settings if name in tables.main or testbed(name) == "exact"]
    found = {}
    for setting in shown:
        values = 1e3 * tables.by_seed(setting, "energy_distance")
        whole = [name for name in ordered(values) if parse_arm(name).exponent == 1]
        found[setting] = values[[name for name in whole if not parse_arm(name).ratio.isdigit()][::-1]]
    rows = max(values.shape[1] for values in found.values())
    lines = -(-len(found) // 2)
    figure, axes = new_figure(lines, min(len(found), 2), width=4.3, height=0.24 * rows + 0.7)
    for panel in axes.flat[len(found) :]:
        panel.axis("off")
    for panel, (setting, values) in zip(axes.flat, found.items(), strict=False):
        styles = {name: STYLES[base_of(name)] for name in values}
        seed_dots(panel, values, styles, {name: label_of(parse_arm(name)) for name in values})
        panel.set(title=title_of(setting), xlabel=ENERGY, xlim=(min(0, values.min(axis=None)) - 1, None))
    return figure


def sizes(tables: Tables) -> Figure:
    """Energy distance against the share of references, and the paired difference of the two weighted methods."""
    beds = {testbed(name) for name in tables.main}
    bed = next(name for name in TESTBEDS if name in beds)
    shown = [name for name in tables.settings if testbed(name) == bed]
    fractions = [percent(name) for name in shown]
    values = [1e3 * tables.by_seed(name, "energy_distance") for name in shown]
    common = sorted(set.intersection(*(set(each.index) for each in values)))
    figure, axes = new_figure(columns=2, width=3.7, height=2.9)
    for name in ("dsm_obs", "iw", "tiw"):
        table = np.stack([each.loc[common, name] for each in values], axis=1)
        line_with_band(axes[0, 0], fractions, table, label=LABELS[name], **STYLES[name])
    for name, base in (("iw", "dsm_obs"), ("tiw", "dsm_obs"), ("tiw", "iw")):
        table = np.stack([(each[name] - each[base]).loc[common] for each in values], axis=1)
        style = STYLES[name] if base == "dsm_obs" else {"color": "0.3", "marker": "D"}
        line_with_band(axes[0, 1], fractions, table, label=f"{LABELS[name]} − {LABELS[base]}", **style)
    axes[0, 1].axhline(0, color="0.3", linewidth=0.8, linestyle="--")
    for panel, label in zip(axes[0], (ENERGY, "paired difference (× 10⁻³)"), strict=True):
        panel.set(xscale="log", xlabel="references (% of the biased data)", ylabel=label)
        panel.set_xticks(fractions, [f"{each:g}" for each in fractions])
        panel.minorticks_off()
        panel.legend()
    axes[0, 0].set(title=TESTBEDS[bed], ylim=(0, None))
    return figure


def groups(tables: Tables) -> Figure:
    """Shares of the groups among samples, and in the biased data."""
    shown = tables.main
    figure, axes = new_figure(columns=len(shown), width=4.2, height=2.6)
    for panel, setting in zip(axes[0], shown, strict=True):
        rows = tables.shares[tables.shares["setting"] == setting]
        means = rows.groupby(["method", "group"])["share"].mean().unstack()
        methods = [name for name in ("dsm_ref", "dsm_obs", "iw", "tiw", "oracle") if name in means.index]
        width = 0.8 / (len(methods) + 1)
        places = np.arange(means.shape[1])
        imbalance = {"toy": 4, "cifar10": 100}.get(testbed(setting), 27)
        panel.bar(places - 0.4, biased_shares(len(places), imbalance), width, color="0.75", label="biased data")
        for index, name in enumerate(methods, 1):
            look = {"color": STYLES[name]["color"], "label": LABELS[name]}
            panel.bar(places - 0.4 + index * width, means.loc[name], width, **look)
        panel.axhline(1 / len(places), color="0.2", linewidth=0.8, linestyle="--")
        panel.set(title=title_of(setting), xlabel="group, from frequent to rare")
        panel.set_xticks(places, [str(place + 1) for place in places])
        panel.grid(visible=False, axis="x")
    axes[0, 0].set_ylabel("share")
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def ratio(tables: Tables) -> Figure:
    """Error of the ratio over the noise level, against that of the clean one."""
    shown = [name for name in tables.settings if name in set(tables.errors["setting"]) and name in tables.main]
    figure, axes = new_figure(columns=len(shown), width=3.9, height=2.8)
    for panel, setting in zip(axes[0], shown, strict=True):
        rows = tables.errors[tables.errors["setting"] == setting].drop_duplicates(["method", "seed", "sigma"])
        clean = tables.by_seed(setting, "ratio_error")
        for suffix, line, words in (("", "-", ""), ("@selected", "--", ", held-out length")):
            if f"clean{suffix}" not in clean:
                continue
            table = rows[rows["method"] == f"noisy{suffix}"].pivot(index="seed", columns="sigma", values="error")
            label = f"time-dependent{words}"
            line_with_band(panel, table.columns, table, label=label, linestyle=line, **NOISY)
            constant = clean[[f"clean{suffix}"] * 2].dropna().to_numpy()
            ends = table.columns[[0, -1]]
            line_with_band(panel, ends, constant, label=f"time-independent{words}", linestyle=line, **CLEAN)
        panel.set(xscale="log", yscale="log", title=title_of(setting), xlabel="noise level σ")
    axes[0, 0].set_ylabel("mean squared error of the ratio w̃")
    axes[0, 0].legend()
    return figure


def chasm(tables: Tables) -> Figure:
    """Weights of the biased samples: those of the clean discriminator, and of the noisy one at several noise levels."""
    shown = [name for name in tables.main if name != "toy"]
    rows = tables.weights[tables.weights["method"].isin(["clean", "noisy"])]
    levels = sorted(rows["sigma"].unique())
    figure, axes = new_figure(len(shown), len(levels), width=1.9, height=1.7, sharex=True, sharey=True)
    for line, setting in zip(axes, shown, strict=True):
        of_setting = rows[rows["setting"] == setting].drop_duplicates(["method", "seed", "sigma", "log10_weight"])
        for panel, sigma in zip(line, levels, strict=True):
            counts = of_setting[of_setting["sigma"] == sigma].groupby("log10_weight")["count"].sum()
            edges = np.append(counts.index, 2 * counts.index[-1] - counts.index[-2])
            style = CLEAN if sigma == 0 else NOISY
            panel.stairs(100 * counts / counts.sum(), edges, fill=True, alpha=0.6, **style)
            panel.axvline(-2, color="0.3", linewidth=0.8, linestyle="--")
            small = 100 * counts[counts.index < -2].sum() / counts.sum()
            panel.text(0.04, 0.92, f"{small:.0f} %", transform=panel.transAxes, va="top", fontsize=8)
        line[0].set_ylabel(f"{TESTBEDS[testbed(setting)]}\n% of biased data")
    for panel, sigma in zip(axes[0], levels, strict=True):
        panel.set_title("clean" if sigma == 0 else f"σ = {sigma:g}")
    for panel in axes[-1]:
        panel.set_xlabel("log₁₀ w")
    return figure


def exponents(tables: Tables) -> Figure:
    """The exponent of the ratio trades the groups' bias for distance: 0 is plain DSM, 1 the full ratio."""
    setting = tables.main[0]
    energy, bias = (tables.by_seed(setting, metric) for metric in ("energy_distance", "group_tv"))
    figure, axes = new_figure(columns=2, width=3.7, height=2.9)
    for name in ("tiw", "iw"):
        arms = {parse_arm(each).exponent: each for each in energy
                if base_of(each) == name and parse_arm(each).ratio == "fixed"}  # fmt: skip
        order = dict(sorted({0.0: "dsm_obs", **arms}.items()))
        values, biases = (table[list(order.values())].dropna() for table in (1e3 * energy, bias))
        line_with_band(axes[0, 0], list(order), values, label=LABELS[name], **STYLES[name])
        axes[0, 1].plot(biases.mean(), values.mean(), label=LABELS[name], **STYLES[name])
        for exponent, x, y in zip(order, biases.mean(), values.mean(), strict=True):
            axes[0, 1].annotate(f"{exponent:g}", (x, y), (3, 3), textcoords="offset points", fontsize=7)
    axes[0, 0].set(title=title_of(setting), xlabel="exponent a", ylabel=ENERGY)
    axes[0, 1].set(title="numbers: the exponent", xlabel="groups, total variation", ylabel=ENERGY)
    axes[0, 0].legend()
    return figure


def lengths(tables: Tables) -> Figure:
    """What the length of the discriminators' training does: to samples, to weights, and to held-out references."""
    setting = tables.main[0]
    energy, weights = 1e3 * tables.by_seed(setting, "energy_distance"), tables.by_seed(setting, "small_weights")
    fixed = tables.by_seed(setting, "steps")["noisy"].iloc[0]
    figure, axes = new_figure(columns=3, width=3.1, height=2.8)
    for name in STUDIED:
        arms = steps_of([each for each in energy if base_of(each) == name], fixed)
        line_with_band(axes[0, 0], list(arms), energy[list(arms.values())].dropna(), label=LABELS[name], **STYLES[name])
    axes[0, 0].axhline(energy["dsm_obs"].mean(), label=LABELS["dsm_obs"], **STYLES["dsm_obs"] | {"marker": "none"})
    for name, style, label in (("clean", CLEAN, "clean"), ("noisy", NOISY, "noisy, worst level")):
        arms = steps_of([each for each in weights if base_of(each) == name], fixed)
        values = 100 * weights[list(arms.values())].dropna()
        line_with_band(axes[0, 1], list(arms), values, label=label, marker="o", **style)
        rows = tables.lengths[(tables.lengths["setting"] == setting) & (tables.lengths["discriminator"] == name)]
        table = rows.drop_duplicates(["seed", "steps"]).pivot(index="seed", columns="steps", values="held_out_loss")
        line_with_band(axes[0, 2], table.columns, table, label=name, marker="o", **style)
    axes[0, 2].axhline(np.log(2), color="0.3", linewidth=0.8, linestyle="--", label="a guess")
    labels = (ENERGY, "biased data with w < 0.01 (%)", "held-out cross-entropy")
    for panel, label in zip(axes[0], labels, strict=True):
        panel.set(xscale="log", xlabel="steps of the discriminators", ylabel=label)
        panel.set_xticks((25, 50, 100, 200, 400, 800), ("25", "50", "100", "200", "400", "800"))
        panel.minorticks_off()
        panel.legend()
    axes[0, 2].set_yscale("log")
    axes[0, 0].set_title(title_of(setting))
    return figure


def steps_of(names: Sequence[str], fixed: float) -> dict[float, str]:
    """Names by the number of their discriminators' steps, `name` being for the fixed one and `name@50` for 50."""
    found = {}
    for name in names:
        base, _, length = name.partition("@")
        if base == base_of(name) and (not length or length.isdigit()):
            found[float(length or fixed)] = name
    return dict(sorted(found.items()))


def samples(tables: Tables) -> Figure:
    """Samples of the first seed: images, or vectors by their coordinates along two of the modes."""
    methods = ("dsm_ref", "dsm_obs", "iw", "tiw", "oracle")
    shown = [name for name in tables.main if set(methods) <= set(tables.drawn[name])]
    figure, axes = new_figure(len(shown), len(methods), width=1.7, height=1.8)
    for line, setting in zip(axes, shown, strict=True):
        bed = TESTBEDS[testbed(setting)]
        for panel, name in zip(line, methods, strict=True):
            drawn = tables.drawn[setting][name]
            if drawn.dtype == torch.uint8:
                show_images(panel, drawn)
            else:
                panel.plot(*drawn.float().T, ".", markersize=2, color=STYLES[name]["color"])
                panel.set(xlim=(-1, 2), ylim=(-1, 2), aspect="equal", xlabel="most frequent mode")
                bed = f"{TESTBEDS[testbed(setting)]}: rarest mode"
            panel.set_title(LABELS[name])
        line[0].set_ylabel(bed)
    return figure


def show_images(axes: Axes, images: Tensor, columns: int = 4) -> None:
    """A sheet of images (N, channels, size, size)."""
    rows = len(images) // columns
    sheet = torch.cat([torch.cat(list(images[row * columns : (row + 1) * columns]), 2) for row in range(rows)], 1)
    axes.imshow(sheet.permute(1, 2, 0).squeeze(-1), cmap="gray", vmin=0, vmax=255)
    axes.grid(visible=False)
    axes.set(xticks=[], yticks=[])


def fields(tables: Tables) -> Figure:
    """Scores of the plane's densities and of their ratio, in closed form."""
    densities = densities_of(DataOptions("toy", 0.05, imbalance=4, std=1.0))
    fine, coarse = (torch.linspace(-4, 4, count, dtype=torch.float64) for count in (81, 15))
    figure, axes = new_figure(columns=4, width=2.3, height=2.4, sharex=True, sharey=True)
    arrows = torch.cartesian_prod(coarse, coarse)
    sigma = torch.full((len(arrows),), 0.5, dtype=torch.float64)
    scores = {
        "∇ log p_b (biased)": densities.biased.score(arrows, sigma),
        "∇ log p_d (unbiased)": densities.unbiased.score(arrows, sigma),
        "∇ log w̃ (π = ½)": log_ratio_and_score(densities.log_ratio, arrows, sigma)[1],
    }
    for panel, (title, score) in zip(axes[0], scores.items(), strict=False):
        panel.quiver(*arrows.T, *score.T, color="0.25", scale_units="width", scale=25 if "w̃" not in title else 6)
        panel.set_title(title)
    points = torch.cartesian_prod(fine, fine)
    weight = log_density_ratio(densities.log_ratio(points, torch.full((len(points),), 0.5)), 0.0).exp()
    drawn = axes[0, 3].pcolormesh(fine, fine, weight.view(len(fine), -1).T, cmap="viridis", rasterized=True)
    figure.colorbar(drawn, ax=axes[0, 3])
    axes[0, 3].set_title("w = p_d/p_b")
    for panel in axes[0]:
        panel.set(xlabel="x₁", aspect="equal")
        panel.grid(visible=False)
    axes[0, 0].set_ylabel("x₂")
    return figure


FIGURES = {
    figure.__name__: figure
    for figure in (quality, sizes, groups, ratio, chasm, exponents, lengths, samples, fields)
}  # fmt: skip


def read_drawn(paths: Sequence[Path]) -> dict[str, dict[str, Tensor]]:
    """Samples of every arm, by setting, of the first seed that has them; files are named setting-family-seedN."""
    found: dict[str, dict[str, Tensor]] = {}
    for path in sorted(paths, key=lambda path: int(path.stem.rpartition("seed")[2])):
        setting = re.fullmatch(r"(.+)-\w+-seed\d+", path.stem)[1]
        found[setting] = load_file(path) | found.get(setting, {})
    return found


def draw(
    *,
    figure: str,
    metrics: Input,
    shares: tuple[Input, ...],
    lengths: tuple[Input, ...],
    errors: tuple[Input, ...],
    weights: tuple[Input, ...],
    drawn: tuple[Input, ...],
    png: Output,
    pdf: Output,
) -> None:
    """Draw one of the figures."""
    joined = (
        pd.concat([read_table(path) for path in paths], ignore_index=True)
        for paths in (shares, lengths, errors, weights)
    )
    draw_figure(FIGURES, figure, Tables(read_metrics(metrics), *joined, read_drawn(drawn)), png, pdf)


if __name__ == "__main__":
    run(draw)
