"""Tune for the control: train a base model on loose captions, and try every candidate strength on it."""

from __future__ import annotations

from papers.implicit_negatives.loose_base import loose_base
from papers.implicit_negatives.measurement import System
from papers.implicit_negatives.options import SOFT, GuidanceOptions, LooseOptions
from papers.implicit_negatives.testbed import concept_set, lone_prompt_sets, open_judge
from papers.implicit_negatives.tune import try_all
from shared.stage import Input, Output, State, run
from shared.t2i.pipeline import load_pipeline
from shared.t2i.testbed import bench_of


def tune_loose(
    captions: LooseOptions,
    options: GuidanceOptions,
    *,
    seed: int,
    count: int,
    runs: tuple[str, ...],
    training: str,
    pipeline: Input,
    evaluator: Input,
    grid: Output,
    selection: Output,
    state: State,
) -> None:
    """Write what was tried, ``grid``, and ``selection``, the strength of every method.

    ``training`` are the options of the base model's training as JSON, since others are of the same names.
    """
    base = loose_base(captions, training, seed=seed, pipeline=pipeline, state=state)
    system = System(bench_of(load_pipeline(base), None, {}), open_judge(evaluator))
    sets = [part for part in lone_prompt_sets(count, count, seed, "dev") if part.name != SOFT]
    try_all(runs, system, sets, concept_set(1), seed, options, grid, selection)


if __name__ == "__main__":
    run(tune_loose)
