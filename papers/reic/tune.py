"""Tune: candidates of one kind on the corpus of the tuning seed, which no result rests on."""

from __future__ import annotations

import pandas as pd
from accelerate import Accelerator

from papers.reic.methods import parse_run
from papers.reic.options import CorpusOptions, TrainOptions
from papers.reic.runs import make_run, selected_options
from papers.reic.testbed import open_encoder, open_testbed
from papers.reic.train import read_tuned
from shared.run_by_run import RunFolders
from shared.stage import Input, Output, State, run
from shared.tables import write_table


def tune(
    options: TrainOptions,
    corpus: CorpusOptions,
    *,
    seed: int,
    runs: tuple[str, ...],
    encoder: Input,
    tried: Output,
    state: State,
    tuned: tuple[Input, ...] = (),
) -> None:
    """Write a row for each run: run, f1, auc, recall.

    Args:
        options: of the training.
        corpus: of the seed.
        seed: of everything.
        runs: the candidates.
        encoder: the frozen one.
        tried: the table.
        state: of the runs.
        tuned: tables of what was tuned before; the best of each holds for these candidates.
    """
    folders = RunFolders(state, runs)
    problem = open_testbed(corpus, options.inputs.block_length, open_encoder(encoder), seed)
    accelerator = Accelerator(mixed_precision=options.mixed_precision)
    selected = selected_options(read_tuned(tuned))
    for name, folder in folders.unfinished():
        make_run(parse_run(name), problem, options, selected, seed, accelerator, folder, ())
    found = folders.gather("summary").pivot(index="run", columns="metric", values="value").loc[list(runs)]
    write_table(tried, pd.DataFrame(found[["f1", "auc", "recall"]].reset_index()))


if __name__ == "__main__":
    run(tune)
