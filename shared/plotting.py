"""House style of figures: one look, one colour per method, the same bytes twice.

Figures are :class:`matplotlib.figure.Figure` objects; pyplot and its global state are not used::

    with house_style():
        figure, axes = new_figure(columns=2)
        styles = method_styles(["wpr", "rkl", "none"])
        line_with_band(axes[0, 0], steps, values, label="WPR", **styles["wpr"])
        save_figure(figure, png, pdf)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from shared.claims import ClaimResult, TestResult
from shared.errors import InputError
from shared.files import atomic_output
from shared.statistics import resampled_means

Tables = TypeVar("Tables")

# Okabe and Ito's palette, told apart under every common colour blindness; its yellow is too pale for lines.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINESTYLES = ("-", "--", "-.", ":")

VERDICT_COLOURS = {
    "supported": "#009E73",
    "conditional": "#E69F00",
    "contradicted": "#D55E00",
    "inconclusive": "#767676",
}

_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#4d4d4d",
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same letters on every machine
    "font.size": 9,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
    "savefig.dpi": 120,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
_PNG_METADATA = {"Software": None}
_PDF_METADATA = {"CreationDate": None, "Creator": None, "Producer": None}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw and save in the house style inside this block; matplotlib's own settings are as before after it."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # nothing from the user's matplotlibrc may reach a figure
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(rows: int = 1, columns: int = 1, *, width: float = 3.4, height: float = 2.6, **options: Any):
    """A figure with a grid of axes, without pyplot.

    Args:
        rows, columns: of the grid.
        width, height: of one cell, in inches.
        options: for :meth:`matplotlib.figure.Figure.subplots`, such as ``sharey=True``.

    Returns:
        The figure and its axes, an array (rows, columns).
    """
    figure = Figure(figsize=(width * columns, height * rows))
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def method_styles(methods: Sequence[str]) -> dict[str, dict[str, str]]:
    """Colour, marker and line style of each method: keyword arguments for ``plot`` and :func:`line_with_band`.

    The style follows from the position in the list alone, so one list per paper gives a method the same look in all its
    figures. Seven colours and markers; each further seven methods repeat them with another line style.

    Raises:
        ValueError: a method occurs twice, or there are more than 28.
    """
    if len(set(methods)) < len(methods):
        raise ValueError(f"methods must be distinct, got {list(methods)}")
    if len(methods) > len(PALETTE) * len(LINESTYLES):
        raise ValueError(f"methods must be at most {len(PALETTE) * len(LINESTYLES)}, got {len(methods)}")
    styles = {}
    for position, method in enumerate(methods):
        round_, slot = divmod(position, len(PALETTE))
        styles[method] = {"color": PALETTE[slot], "marker": MARKERS[slot], "linestyle": LINESTYLES[round_]}
    return styles


def point_style(style: Mapping[str, str]) -> dict[str, str]:
    """A style of :func:`method_styles` for single points: no line, and what its line style told, its filling tells."""
    filling = dict(zip(LINESTYLES, ("full", "none", "left", "right"), strict=True))
    return {**style, "linestyle": "none", "fillstyle": filling[style["linestyle"]]}


def save_figure(figure: Figure, *paths: Path) -> None:
    """Save a figure to every path, in the format of its suffix (.png or .pdf), atomically and free of time stamps.

    Raises:
        ValueError: another suffix.
    """
    metadata = {".png": _PNG_METADATA, ".pdf": _PDF_METADATA}
    for path in paths:
        if path.suffix not in metadata:
            raise ValueError(f"paths must end in .png or .pdf, got {path.name!r}")
    for path in paths:
        with atomic_output(path) as partial:
            figure.savefig(partial, format=path.suffix[1:], metadata=metadata[path.suffix])
            if path.suffix == ".png":
                _with_palette(partial)


def _with_palette(png: Path) -> None:
    """Rewrite a png with at most 256 colours, a third of its size: figures and reports travel with the repository."""
    with Image.open(png) as image:
        reduced = image.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    reduced.save(png, format="png", optimize=True)


def draw_figure(figures: Mapping[str, Callable[[Tables], Figure]], name: str, tables: Tables, *paths: Path) -> None:
    """Draw one of a paper's figures in the house style and save it.

    Args:
        figures: what draws each figure, by its name.
        name: of the figure asked for.
        tables: what the figures are drawn from.
        paths: where to; see :func:`save_figure`.

    Raises:
        InputError: no figure has this name.
    """
    if name not in figures:
        raise InputError(f"figure {name!r}: there is none; there are: {', '.join(figures)}")
    with house_style():
        save_figure(figures[name](tables), *paths)


def line_with_band(
    axes: Axes, x: ArrayLike, values: ArrayLike, *, label: str | None = None, level: float = 0.95, **style: Any
) -> None:
    """Draw the mean over seeds as a line, and its bootstrap interval over seeds, point by point, as a band.

    With three seeds the band is their range (see :func:`shared.statistics.hierarchical_bootstrap`); with one there is
    none.

    Args:
        axes: where to draw.
        x: (points,).
        values: (seeds, points), finite.
        label: for the legend.
        level: of the interval.
        style: for ``Axes.plot``; the band takes its colour.

    Raises:
        ValueError: shapes that do not fit together.
    """
    positions, table = np.asarray(x, dtype=float), np.asarray(values, dtype=float)
    if table.ndim != 2 or positions.shape != table.shape[1:]:
        raise ValueError(f"values must be (seeds, {len(positions)}), got {table.shape}")
    (line,) = axes.plot(positions, table.mean(axis=0), label=label, **style)
    if len(table) > 1:
        means = resampled_means(table[:, None, :], replicates=4000)
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
        axes.fill_between(positions, low, high, color=line.get_color(), alpha=0.18, linewidth=0)


def seed_dots(
    axes: Axes, table: pd.DataFrame, styles: Mapping[str, Mapping[str, str]], labels: Mapping[str, str]
) -> None:
    """A row for each method: its seeds as dots, their mean as a diamond.

    Args:
        axes: where to draw.
        table: a row for each seed, a column for each method, in the order of the rows from below; NaN where a seed
            lacks a method.
        styles: of :func:`method_styles`; only their colours are used.
        labels: what the methods are called on the axis.
    """
    for place, (name, column) in enumerate(table.items()):
        values = column.dropna()
        color = styles[name]["color"]
        axes.plot(values, np.full(len(values), place), "o", color=color, alpha=0.35, markersize=3.5)
        axes.plot(values.mean(), place, "D", color=color, markersize=5)
    axes.set_yticks(range(table.shape[1]), [labels[name] for name in table])


def plot_claims(claims: Sequence[ClaimResult]) -> Figure:
    """All tests of all claims: estimate, interval and seeds, in a panel for each claim and metric, on its own scale.

    A dashed line marks the bound that the interval must clear, a shaded zone equivalence. Call inside
    :func:`house_style`.

    Raises:
        ValueError: no claim has a test.
    """
    groups: dict[tuple[str, str, str], list[TestResult]] = {}
    for claim in claims:
        for result in claim.tests:
            groups.setdefault((claim.id, result.test.metric, result.test.effect), []).append(result)
    if not groups:
        raise ValueError("claims must hold at least one test, got none")
    sizes = [len(results) + 2.0 for results in groups.values()]
    figure = Figure(figsize=(6.8, 0.3 * sum(sizes) + 0.2))
    panels = figure.subplots(len(groups), 1, squeeze=False, gridspec_kw={"height_ratios": sizes})[:, 0]
    verdicts = {claim.id: claim.verdict for claim in claims}
    for axes, ((claim_id, metric, _), results) in zip(panels, groups.items(), strict=True):
        if claim_id in verdicts:  # only the first panel of a claim
            axes.set_title(f"{claim_id}: {verdicts.pop(claim_id)}")
        axes.set_xlabel(metric, loc="right", fontsize=8)
        for row, result in enumerate(results):
            _draw_test(axes, row, result)
        axes.set_yticks(range(len(results)), [result.test.name for result in results])
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.08)
    return figure


def _draw_test(axes: Axes, row: int, result: TestResult) -> None:
    colour, top, bottom = VERDICT_COLOURS[result.verdict], row - 0.4, row + 0.4
    bounds = result.test.bounds
    if len(bounds) == 2:
        axes.fill_betweenx([top, bottom], *bounds, color="#d9d9d9", linewidth=0)
    axes.vlines(bounds, top, bottom, color="#4d4d4d", linewidth=0.8, linestyles="--")
    axes.plot(result.per_seed, [row] * len(result.per_seed), "|", color=colour, markersize=7, alpha=0.6)
    if result.low is not None:
        axes.hlines(row, result.low, result.high, color=colour, linewidth=2)
    marker = {"supported": "o", "contradicted": "X", "inconclusive": "D"}[result.verdict]
    axes.plot(result.estimate, row, marker, color=colour, markersize=6)
