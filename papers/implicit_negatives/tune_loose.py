"""Tune for the control: train a base model on loose captions, and try every candidate strength on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

from papers.implicit_negatives.loose_base import CHECK, PIPELINE, SHEET, loose_base
from papers.implicit_negatives.options import GuidanceOptions, LooseOptions
from papers.implicit_negatives.tune import tune
from shared.stage import Input, Output, State, run
from shared.t2i.options import DrawOptions


def tune_loose(
    captions: LooseOptions,
    draw: DrawOptions,
    options: GuidanceOptions,
    *,
    seed: int,
    count: int,
    runs: tuple[str, ...],
    diffusion: str,
    conditioner: Input,
    evaluator: Input,
    grid: Output,
    selection: Output,
    sheet: Output,
    state: State,
) -> Mapping[str, Any]:
    """Write what was tried, ``grid``, the strength of every method, ``selection``, and ``sheet``, what the model draws.

    ``diffusion`` are the options of its training as JSON, since others are of the same names.
    """
    base = loose_base(captions, draw, diffusion, seed=seed, conditioner=conditioner, state=state)
    tune(
        options,
        seed=seed,
        count=count,
        runs=runs,
        pipeline=base / PIPELINE,
        evaluator=evaluator,
        grid=grid,
        selection=selection,
    )
    shutil.copyfile(base / SHEET, sheet)
    return json.loads((base / CHECK).read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(tune_loose)
