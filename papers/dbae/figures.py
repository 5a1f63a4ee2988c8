"""Figures: the paper's key figures, redrawn from this project's tables and pictures, with the controls in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors.numpy import load_file

from shared.errors import InputError
from shared.plotting import draw_figure, line_with_band, method_styles, new_figure, seed_dots
from shared.results import read_metrics
from shared.stage import Input, Output, run
from shared.tables import read_table

LABELS = {
    "dbae_d": "DBAE-d",
    "dbae": "DBAE",
    "diffae": "DiffAE",
    "diffae_v": "DiffAE-v",
    "pdae": "PDAE",
    "ae": "AE",
    "beta_vae": "β-VAE",
    "diffae_long": "DiffAE, more steps",
    "infodiffusion": "InfoDiffusion",
    "ddpm": "DDPM",
}
STYLES = method_styles(list(LABELS))
STYLES["diffae_long"] = {**STYLES["diffae"], "linestyle": "--"}
SHORT = {**LABELS, "diffae_long": "DiffAE"}
"""Beside pictures, which of DiffAE are those of the long training."""
SAMPLERS = {"ode": "ODE, Euler", "heun": "ODE, Heun", "sde": "SDE, churn 0.33", "ddim": "DDIM, random x_T"}
CELL = 0.62
"""Inches of a picture."""


@dataclass(frozen=True)
class Tables:
    """What figures are drawn from."""

    metrics: pd.DataFrame
    learning: pd.DataFrame
    evaluations: pd.DataFrame
    pictures: dict[str, NDArray[np.generic]]
    """Of the first seed and data set, by `<method>/<name>`."""


def reconstructions(tables: Tables) -> Figure:
    """Test images, and what each method makes of their codes: DiffAE under several x_T beside DBAE."""
    pictures = tables.pictures
    rows = [("test image", pictures["dbae_d/original"])]
    for method in ("dbae_d", "diffae_long", "diffae_v", "pdae"):
        if f"{method}/draws" not in pictures:
            continue
        draws = pictures[f"{method}/draws"]
        if method == "dbae_d":
            rows.append(("DBAE-d, z alone", draws[0]))
            continue
        rows += [(f"{SHORT[method]}, x_T no. {number}", draw) for number, draw in enumerate(draws[:2], 1)]
        rows.append((f"{SHORT[method]}, mean of {len(draws)}", pictures[f"{method}/mean"]))
        rows.append((f"{SHORT[method]}, inferred x_T", pictures[f"{method}/inferred"]))
    if "ae/draws" in pictures:
        rows.append(("AE", pictures["ae/draws"][0]))
    return picture_rows(rows)


def endpoints(tables: Tables) -> Figure:
    """The endpoints behind reconstructions: DiffAE's noise, and DBAE's decoded ones."""
    pictures = tables.pictures
    rows = [("test image", pictures["dbae_d/original"])]
    for method in ("dbae_d", "dbae", "diffae_long", "pdae", "ddpm"):
        if f"{method}/endpoint" in pictures:
            kind = "x_T = Dec(z)" if method.startswith("dbae") else "inferred x_T"
            rows.append((f"{SHORT[method]}, {kind}", stretched(pictures[f"{method}/endpoint"])))
    return picture_rows(rows)


def methods(tables: Tables) -> Figure:
    """Error from z alone, of the posterior mean and with inferred x_T, and the probes, of every method."""
    setting = first_setting(tables)
    probe = "probe_r2" if setting in set(tables.metrics[tables.metrics["metric"] == "probe_r2"]["setting"]) else (
        "probe_ap")  # fmt: skip
    error, mean, inferred, probes = (
        seed_table(tables, setting, name) for name in ("mse", "mse_mean", "mse_inferred", probe)
    )
    names = [name for name in reversed(LABELS) if name in error or name in probes]
    figure, axes = new_figure(columns=2, width=3.7, height=0.3 * len(names) + 1.2, sharey=True)
    for place, name in enumerate(names):
        for table, marker, filled in ((error, "D", True), (mean, "o", False), (inferred, "x", True)):
            if name not in table or (table is mean and name not in inferred):
                continue
            values, color = table[name], STYLES[name]["color"]
            axes[0, 0].plot(values, [place] * len(values), ".", color=color, alpha=0.35, markersize=4)
            face = color if filled else "white"
            axes[0, 0].plot(values.mean(), place, marker, color=color, markerfacecolor=face, markersize=6)
    for marker, face, label in (("D", "grey", "z alone, random x_T"), ("o", "white", "posterior mean"),
                                ("x", "grey", "inferred x_T")):  # fmt: skip
        axes[0, 0].plot([], [], marker, color="grey", markerfacecolor=face, label=label)
    axes[0, 0].set(xscale="log", xlabel="squared error of a pixel in [0, 1]", title="Reconstruction")
    axes[0, 0].legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=3, fontsize=7, columnspacing=0.9)
    seed_dots(axes[0, 1], probes.reindex(columns=names), STYLES, LABELS)
    title = "mean R² over factors" if probe == "probe_r2" else "mean average precision over labels"
    axes[0, 1].set(xlabel=title, title="Linear probes of z")
    return figure


def information(tables: Tables) -> Figure:
    """What z knows: the error of one small decoder of frozen codes; and the texture found in z and in x_T."""
    setting = first_setting(tables)
    decoder = seed_table(tables, setting, "decoder_mse")
    texture = {name: seed_table(tables, setting, name) for name in ("texture_r2", "texture_r2_with_endpoint")}
    figure, axes = new_figure(columns=2, width=3.7, height=0.3 * decoder.shape[1] + 1.2)
    names = [name for name in reversed(LABELS) if name in decoder]
    seed_dots(axes[0, 0], decoder[names], STYLES, LABELS)
    axes[0, 0].set(xlabel="squared error of a pixel in [0, 1]", title="The same small decoder of every z")
    names = [name for name in names if name in texture["texture_r2"]]
    for place, name in enumerate(names):
        alone, beside = (table[name] for table in texture.values())
        color = STYLES[name]["color"]
        axes[0, 1].plot([alone.mean(), beside.mean()], [place, place], color=color, linewidth=1)
        axes[0, 1].plot(beside, [place] * len(beside), "o", color=color, alpha=0.35, markersize=3.5)
        axes[0, 1].plot(alone.mean(), place, "o", color=color, markerfacecolor="white", markersize=6)
        axes[0, 1].plot(beside.mean(), place, "D", color=color, markersize=5)
    axes[0, 1].plot([], [], "o", color="grey", markerfacecolor="white", label="z")
    axes[0, 1].plot([], [], "D", color="grey", label="z and x_T")
    axes[0, 1].set_yticks(range(len(names)), [LABELS[name] for name in names])
    axes[0, 1].set(xlabel="R² of the texture's pixels", title="Where detail is", ylim=(-0.6, len(names) - 0.4))
    axes[0, 1].legend(loc="upper right")
    return figure


def factors(tables: Tables) -> Figure:
    """Linear probes of each factor."""
    setting = first_setting(tables)
    rows = tables.metrics[(tables.metrics["setting"] == setting) & tables.metrics["metric"].str.match("r2_|ap_")]
    means = rows.groupby(["method", "metric"])["value"].mean().unstack()
    names = [name for name in LABELS if name in means.index]
    shown = means.loc[names]
    figure, axes = new_figure(width=0.8 * shown.shape[1] + 2.2, height=0.27 * len(names) + 0.9)
    axis = axes[0, 0]
    axis.imshow(shown, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    for (row, column), value in np.ndenumerate(shown.to_numpy()):
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8,
                  color="white" if value > 0.75 else "black")  # fmt: skip
    titles = [name.replace("r2_", "").replace("ap_", "AP, ").replace("_", "\n") for name in shown]
    axis.set_xticks(range(shown.shape[1]), titles)
    axis.set_yticks(range(len(names)), [LABELS[name] for name in names])
    axis.grid(visible=False)
    return figure


def evaluations(tables: Tables) -> Figure:
    """Quality against evaluations of the network."""
    rows = tables.evaluations[tables.evaluations["setting"] == first_setting(tables)]
    figure, axes = new_figure(columns=2, width=3.7, height=3.1)
    shown = (
        ("dbae_d", "ode", "-", "DBAE-d, ODE (Euler)"),
        ("dbae_d", "heun", "--", "DBAE-d, ODE (Heun)"),
        ("dbae_d", "sde", ":", "DBAE-d, SDE"),
        ("diffae_long", "ddim", "--", "DiffAE, more steps, DDIM"),
        ("diffae_v", "ddim", "-", "DiffAE-v, DDIM"),
    )
    for axis, metric in zip(axes[0], ("mse", "ssim"), strict=True):
        for method, sampler, line, label in shown:
            part = rows[(rows["method"] == method) & (rows["sampler"] == sampler)]
            if len(part):
                wide = part.pivot_table(index="seed", columns="evaluations", values=metric)
                style = {**STYLES[method], "linestyle": line}
                line_with_band(axis, wide.columns, wide, label=label, **style)
        axis.set(xscale="log", xlabel="evaluations of the network per image")
        ticks = sorted({int(count) for count in rows[rows["sampler"] != "heun"]["evaluations"]})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
    axes[0, 0].set(yscale="log", ylabel="squared error of a pixel in [0, 1]")
    axes[0, 1].set(ylabel="structural similarity")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", fontsize=8)
    return figure


def learning(tables: Tables) -> Figure:
    """Error from z alone and probes over training."""
    rows = tables.learning[tables.learning["setting"] == first_setting(tables)].dropna()
    figure, axes = new_figure(columns=2, width=3.7, height=3.1)
    for method in (name for name in LABELS if name in set(rows["method"])):
        part = rows[rows["method"] == method]
        for axis, metric in zip(axes[0], ("mse", "probe"), strict=True):
            wide = part.pivot_table(index="seed", columns="step", values=metric)
            line_with_band(axis, wide.columns, wide, label=LABELS[method], **STYLES[method])
    for axis in axes[0]:
        axis.set(xscale="log", xlabel="optimizer steps")
        ticks = sorted({int(step) for step in rows["step"]})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
    axes[0, 0].set(yscale="log", ylabel="squared error from z alone, one x_T")
    axes[0, 1].set(ylabel="linear probes of z, mean")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", fontsize=8)
    return figure


def interpolation(tables: Tables) -> Figure:
    """Between two test images: endpoints and reconstructions of DBAE."""
    rows = []
    for method in ("dbae_d", "dbae"):
        if f"{method}/interpolation" in tables.pictures:
            rows.append((f"{LABELS[method]}, x_T", stretched(tables.pictures[f"{method}/interpolated_endpoint"])))
            rows.append((f"{LABELS[method]}, image", tables.pictures[f"{method}/interpolation"]))
    return picture_rows(rows)


def manipulation(tables: Tables) -> Figure:
    """One image moved along the probes' directions: with its own endpoint, and with that of the moved code."""
    prefixes = ("dbae_d/manipulation-", "dbae_d/moved-")
    names = [name.removeprefix(prefixes[0]) for name in tables.pictures if name.startswith(prefixes[0])]
    count, _, _, size = tables.pictures[prefixes[0] + names[0]].shape
    figure, axes = new_figure(rows=len(names), columns=2, width=CELL * count + 1.1, height=CELL + 0.04)
    for line, name in zip(axes, names, strict=True):
        for axis, prefix in zip(line, prefixes, strict=True):
            show_strip(axis, tables.pictures[prefix + name])
        line[0].set_ylabel(name.replace("_", " "), rotation=0, ha="right", va="center", fontsize=8)
    for axis, title in zip(axes[0], ("x_T kept, z moved", "z and x_T = Dec(z) moved"), strict=True):
        axis.set_title(title, fontsize=9)
    for axis in axes[-1]:
        axis.set_xticks([(size - 1) / 2, (count - 0.5) * (size + 1) - 1], ["−", "+"])
    return figure


def picture_rows(rows: list[tuple[str, NDArray[np.generic]]]) -> Figure:
    """Labelled rows of images (N, C, H, W), uint8."""
    columns = max(len(images) for _, images in rows)
    width = CELL * columns + 1.9
    figure, axes = new_figure(rows=len(rows), width=width, height=CELL + 0.04)
    for axis, (label, images) in zip(axes[:, 0], rows, strict=True):
        show_strip(axis, images)
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    return figure


def show_strip(axis: Axes, images: NDArray[np.generic]) -> None:
    """Images beside each other, a white pixel between them."""
    padded = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=255)
    strip = np.concatenate(list(padded), axis=2).transpose(1, 2, 0)
    axis.imshow(strip.repeat(3, axis=2) if strip.shape[2] == 1 else strip, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(visible=False)
    for side in axis.spines.values():
        side.set_visible(False)


def stretched(images: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Unbounded images as uint8: the middle 98 % of all their values span the range."""
    low, high = np.quantile(images.astype(float), (0.01, 0.99))
    return (255 * ((images.astype(float) - low) / (high - low)).clip(0, 1)).round().astype(np.uint8)


def seed_table(tables: Tables, setting: str, metric: str) -> pd.DataFrame:
    """One metric in one setting, a row for each seed, a column for each method."""
    rows = tables.metrics[(tables.metrics["setting"] == setting) & (tables.metrics["metric"] == metric)]
    return rows.pivot(index="seed", columns="method", values="value")


def first_setting(tables: Tables) -> str:
    """Sprites where they are, else the first setting by name."""
    names = sorted(tables.metrics["setting"].unique())
    return "sprites" if "sprites" in names else names[0]


FIGURES: dict[str, Callable[[Tables], Figure]] = {
    function.__name__: function
    for function in (
        reconstructions, endpoints, methods, information, factors, evaluations, learning, interpolation, manipulation,
    )
}  # fmt: skip


def draw(
    *,
    figure: str,
    metrics: Input,
    learning: Input,
    evaluations: Input,
    pictures: tuple[Input, ...],
    png: Output,
    pdf: Output,
) -> None:
    """Draw one figure, by the name of its function; ``pictures`` are of one data set and seed."""
    found: dict[str, NDArray[np.generic]] = {}
    for path in pictures:
        found |= load_file(path)
    if not found:
        raise InputError("pictures: need at least one file with some, got none")
    tables = Tables(read_metrics(metrics), read_table(learning), read_table(evaluations), found)
    draw_figure(FIGURES, figure, tables, png, pdf)


if __name__ == "__main__":
    run(draw)
