"""Evaluate: from the tables of every training to the paper's metrics and units tables.

The metrics of arms are those of :meth:`papers.tiw_dsm.measurements.SampleMeter.measure`, and ``denoiser_error``. Those
of discriminators (methods ``noisy`` and ``clean``) are ``steps``; ``small_weights``, the share of biased samples with a
weight below 0.01, for ``noisy`` at its worst noise level; and ``ratio_error``, the mean squared error of the ratio, for
``noisy`` its mean over noise levels. The units are the shares of the groups among an arm's samples: ``group_share``.
"""

from __future__ import annotations

import pandas as pd

from shared.results import write_metrics, write_units
from shared.run_by_run import run_seconds
from shared.stage import Input, Output, run
from shared.tables import read_table

RUN = ["setting", "seed", "method"]


def evaluate(
    *,
    paper: str,
    scale: str,
    measured: tuple[Input, ...],
    shares: tuple[Input, ...],
    records: tuple[Input, ...],
    metrics: Output,
    units: Output,
) -> None:
    """Write the metrics and units tables."""
    # Families of one setting and seed train the same discriminators.
    values, counted = (
        pd.concat([read_table(path) for path in paths], ignore_index=True).assign(paper=paper, scale=scale)
        for paths in (measured, shares)
    )
    values = values.drop_duplicates([*RUN, "metric"])
    wall = run_seconds(records).drop_duplicates(RUN)
    write_metrics(metrics, values.merge(wall, on=RUN, how="left"))
    rows = counted.drop_duplicates([*RUN, "group"])
    rows = rows.assign(metric="group_share", unit=rows["group"].astype(str), value=rows["share"].astype(float))
    write_units(units, rows.drop(columns=["group", "share"]))


if __name__ == "__main__":
    run(evaluate)
