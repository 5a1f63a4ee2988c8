"""Train: runs on the procedural corpora of one seed; see :mod:`papers.reic.runs` for the tables.

Runs are made one after another on the same texts and embeddings; each starts anew from the seed, so that none depends
on which others are made beside it.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from accelerate import Accelerator

from papers.reic.methods import parse_run
from papers.reic.options import CorpusOptions, TrainOptions
from papers.reic.runs import TABLES, make_runs, selected_options
from papers.reic.testbed import open_encoder, open_testbed
from shared.errors import InputError
from shared.stage import Input, Output, State, run
from shared.tables import read_table


def train(
    options: TrainOptions,
    corpus: CorpusOptions,
    *,
    seed: int,
    runs: tuple[str, ...],
    ranks: tuple[int, ...],
    encoder: Input,
    tuned: tuple[Input, ...],
    summary: Output,
    units: Output,
    history: Output,
    curve: Output,
    by_picks: Output,
    distances: Output,
    examples: Output,
    state: State,
) -> dict[str, dict[str, float]] | None:
    """Make the runs, which share a corpus."""
    paths = dict(zip(TABLES, (summary, units, history, curve, by_picks, distances, examples), strict=True))
    selected = selected_options(read_tuned(tuned))
    if len({parse_run(name).corpus for name in runs}) != 1:
        raise InputError(f"runs: must share a corpus, got {', '.join(runs)}")
    problem = open_testbed(corpus, options.inputs.block_length, open_encoder(encoder), seed)
    accelerator = Accelerator(mixed_precision=options.mixed_precision)
    return make_runs(runs, problem, options, selected, seed, accelerator, state, ranks, paths)


def read_tuned(tables: tuple[Path, ...]) -> dict[str, pd.DataFrame]:
    """What was tried, by the name of the file."""
    return {path.stem: read_table(path, ("run", "auc")) for path in tables}


if __name__ == "__main__":
    run(train)
