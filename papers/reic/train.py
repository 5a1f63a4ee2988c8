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
from papers.reic.runs import SMALL_TYPES, TABLES, make_run, selected_options
from papers.reic.testbed import open_encoder, open_testbed
from shared.errors import InputError
from shared.run_by_run import RunFolders
from shared.stage import Input, Output, State, run
from shared.tables import read_table, write_table


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
    parsed = {name: parse_run(name) for name in runs}
    if len({each.corpus for each in parsed.values()}) != 1:
        raise InputError(f"runs: must share a corpus, got {', '.join(runs)}")
    folders = RunFolders(state, runs)
    problem = open_testbed(corpus, options.inputs.block_length, open_encoder(encoder), seed)
    accelerator = Accelerator(mixed_precision=options.mixed_precision)
    for name, folder in folders.unfinished():
        make_run(parsed[name], problem, options, selected, seed, accelerator, folder, ranks)
    return gather_runs(folders, seed, paths, accelerator)


def read_tuned(tables: tuple[Path, ...]) -> dict[str, pd.DataFrame]:
    """What was tried, by the name of the file."""
    return {path.stem: read_table(path, ("run", "auc")) for path in tables}


def gather_runs(
    folders: RunFolders, seed: int, paths: dict[str, Path], accelerator: Accelerator
) -> dict[str, dict[str, float]] | None:
    """Write the tables of all runs below each other; returns their times."""
    if not accelerator.is_main_process:
        return None

    def columns(name: str) -> dict[str, object]:
        parsed = parse_run(name)
        return {"method": parsed.label, "setting": parsed.setting, "seed": seed}

    for table, path in paths.items():
        frame = folders.gather(table, columns)
        write_table(path, frame.astype({name: kind for name, kind in SMALL_TYPES.items() if name in frame}))
    return {"seconds": {name: record["seconds"] for name, record in folders.records().items()}}


if __name__ == "__main__":
    run(train)
