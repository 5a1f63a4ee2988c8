"""Evaluate: collect what was measured of every method into the tables of results.

The setting is the data set. Errors are mean squared differences of pixels in [0, 1].

``mse``, ``log_mse``, ``ssim``
    DBAE: by the ODE from Dec(z); DiffAE and relatives: from z and a random x_T, mean over x_T; AE, β-VAE: Dec(z)
``mse_mean``, ``log_mse_mean``
    of the mean of K such reconstructions, times K/(K + 1): the error of the mean of infinitely many
``mse_inferred``, ``log_mse_inferred``
    from z and the x_T that DDIM infers from the image
``mse_sde``
    DBAE: by the SDE
``draw_variance``
    of a pixel over random x_T
``probe_r2``, ``probe_ap``, ``r2_<factor>``, ``ap_<label>``, ``accuracy_<label>``
    linear probes of z: mean R² over factors, mean average precision over labels, and each
``texture_r2``, ``texture_r2_with_endpoint``
    linear probes of the texture, in z and in z with x_T beside it
``tad``, ``captured``
    disentanglement, and how many attributes it is of
``frechet``
    distance of generated images from test images
``decoder_mse``
    of a small decoder trained on frozen z
``endpoint_evaluations``, ``endpoint_seconds``
    of the U-Net until x_T is there; for all test images that are reconstructed
``parameters``
    trained weights
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shared.artifacts import read_record
from shared.results import aggregate, metrics_table, write_metrics, write_units
from shared.run_by_run import run_seconds
from shared.stage import Input, Output, run
from shared.tables import read_table, write_table

_RUN = ["setting", "method", "seed"]


def evaluate(
    *,
    paper: str,
    scale: str,
    images: tuple[Input, ...],
    scores: tuple[Input, ...],
    curves: tuple[Input, ...],
    steps: tuple[Input, ...],
    records: tuple[Input, ...],
    metrics: Output,
    units: Output,
    learning: Output,
    evaluations: Output,
) -> None:
    """Write the metrics and units tables, the learning curves, and quality against evaluations of the U-Net."""
    write_table(learning, _table(curves))
    write_table(evaluations, _table(steps))
    label = {"paper": paper, "scale": scale}
    by_image = _table(images).rename(columns={"image": "unit"})
    unit_table = write_units(units, by_image.assign(unit=by_image["unit"].astype(str), **label))
    means = aggregate(unit_table).drop(columns=["wall_seconds", "cost"])
    others = pd.concat([_table(scores).dropna(), parameter_rows(records)], ignore_index=True)
    rows = pd.concat([means, others.assign(**label)], ignore_index=True)
    # A long training passes through the usual one, whose time is not known apart.
    times = run_seconds(records)
    write_metrics(metrics, metrics_table(rows.merge(times, on=_RUN, how="left")))


def parameter_rows(records: tuple[Path, ...]) -> pd.DataFrame:
    """Trained weights of every method, as rows of metrics."""
    rows = []
    for path in records:
        record = read_record(path)
        label = {name: record["options"][name] for name in ("setting", "seed")}
        counts = record["measurements"]["parameters"]
        rows += [{**label, "method": name, "metric": "parameters", "value": float(n)} for name, n in counts.items()]
    return pd.DataFrame(rows)


def _table(paths: tuple[Path, ...]) -> pd.DataFrame:
    parts = [part for part in map(read_table, paths) if len(part)]
    table = pd.concat(parts, ignore_index=True)
    return table.astype({name: "float64" for name in table.columns if table[name].dtype.kind == "f"})


if __name__ == "__main__":
    run(evaluate)
