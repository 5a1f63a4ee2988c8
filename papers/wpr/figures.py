"""Figures: the paper's key figures, redrawn from this project's tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from shared.errors import InputError
from shared.plotting import house_style, line_with_band, method_styles, new_figure, save_figure
from shared.results import read_metrics, read_units
from shared.stage import Input, Output, run
from shared.tables import read_table

# Bias of the annotators towards boilerplate in each setting: the dose.
BIAS = {"B": 0.0, "M": 0.25, "A": 0.5}
LABELS = {
    "supervised": "supervised",
    "none": "PPO, no penalty",
    "rkl": "reverse KL",
    "wpr": "Wasserstein",
    "idkernel": "identity kernel",
    "permuted": "permuted cost",
    "best-value": "best f-divergence, value form",
    "best-gradient": "best f-divergence, gradient form",
}
STYLES = method_styles(list(LABELS))


@dataclass(frozen=True)
class Tables:
    """What figures are drawn from."""

    metrics: pd.DataFrame
    units: pd.DataFrame
    sweep: pd.DataFrame
    training: pd.DataFrame
    tokens: pd.DataFrame
    convergence: pd.DataFrame


def dose_response(tables: Tables) -> Figure:
    """Gain of each method over reverse KL against the annotators' bias."""
    figure, axes = new_figure(width=4.4, height=3.0)
    gold = tables.metrics[tables.metrics["metric"] == "gold"]
    wide = gold.pivot_table(index=["setting", "seed"], columns="method", values="value")
    settings = [setting for setting in BIAS if setting in wide.index.get_level_values("setting")]
    dose = [BIAS[setting] for setting in settings]
    for method in ("wpr", "idkernel", "permuted", "best-value", "best-gradient"):
        if method in wide:
            gain = (wide[method] - wide["rkl"]).unstack("seed").loc[settings]
            line_with_band(axes[0, 0], dose, gain.to_numpy().T, label=LABELS[method], **STYLES[method])
    axes[0, 0].axhline(0, color="0.3", linewidth=0.8)
    axes[0, 0].set(xlabel="annotators' bias towards boilerplate, b", ylabel="gold reward above reverse KL")
    axes[0, 0].set_xticks(dose)
    axes[0, 0].legend()
    return figure


FIGURES: dict[str, Callable[[Tables], Figure]] = {"dose_response": dose_response}


def draw(
    *,
    figure: str,
    metrics: Input,
    units: Input,
    sweep: Input,
    training: Input,
    tokens: tuple[Input, ...],
    convergence: tuple[Input, ...],
    png: Output,
    pdf: Output,
) -> None:
    """Draw one figure, by the name of its function."""
    if figure not in FIGURES:
        raise InputError(f"figure {figure!r}: there is none; there are: {', '.join(FIGURES)}")
    tables = Tables(
        metrics=read_metrics(metrics),
        units=read_units(units),
        sweep=read_table(sweep),
        training=read_table(training),
        tokens=pd.concat([read_table(path) for path in tokens], ignore_index=True),
        convergence=pd.concat([read_table(path) for path in convergence], ignore_index=True),
    )
    with house_style():
        save_figure(FIGURES[figure](tables), png, pdf)


if __name__ == "__main__":
    run(draw)
