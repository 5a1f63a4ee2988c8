"""Sample for the control: one seed's base model trained on loose captions, unlearned, inverted and attacked.

All of it is one job, since the models are many and none of them is needed afterwards.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from papers.implicit_negatives.invert import invert
from papers.implicit_negatives.loose_base import CHECK, PIPELINE, SHEET, from_json, loose_base
from papers.implicit_negatives.options import UCE, GuidanceOptions, InversionOptions, LooseOptions, UceOptions
from papers.implicit_negatives.runs import BASE
from papers.implicit_negatives.sample import sample
from shared.options import from_mapping
from shared.stage import Input, Output, State, make_deterministic, run
from shared.t2i.options import DrawOptions, UnlearnOptions
from shared.t2i.stages.unlearn import unlearn as train_unlearned


def sample_loose(
    captions: LooseOptions,
    draw: DrawOptions,
    options: GuidanceOptions,
    inversion: InversionOptions,
    uce: UceOptions,
    *,
    seed: int,
    count: int,
    attacks: int,
    runs: tuple[str, ...],
    diffusion: str,
    unlearn: str,
    conditioner: Input,
    evaluator: Input,
    selection: Input,
    values: Output,
    totals: Output,
    pictures: Output,
    sheet: Output,
    state: State,
) -> Mapping[str, Any]:
    """Sample ``runs`` like the stage `sample`, from a base model of their own and unlearned models of it.

    ``diffusion`` are the options of the base model's training as JSON, and ``unlearn`` those of the models unlearned
    by training, by their names, since others are of the same names.
    """
    base = loose_base(captions, draw, diffusion, seed=seed, conditioner=conditioner, state=state)
    adapters = unlearned_models(base / PIPELINE, unlearn, seed=seed, state=state)
    system = {
        "pipeline": base / PIPELINE,
        "unlearned": tuple(adapters.values()),
        "models": (BASE, UCE, *adapters),
    }
    invert(
        inversion,
        uce,
        seed=seed,
        **system,
        words=state / "words.safetensors",
        curves=state / "curves.parquet",
        losses=state / "losses.parquet",
    )
    sample(
        options,
        uce,
        seed=seed,
        count=count,
        attacks=attacks,
        runs=runs,
        **system,
        evaluator=evaluator,
        inverted=state / "words.safetensors",
        selection=selection,
        values=values,
        totals=totals,
        pictures=pictures,
    )
    shutil.copyfile(base / SHEET, sheet)
    return json.loads((base / CHECK).read_text(encoding="utf-8"))


def unlearned_models(pipeline: Path, unlearn: str, *, seed: int, state: Path) -> dict[str, Path]:
    """Adapters of the models unlearned by training, by their names.

    Raises:
        InputError: options that are none.
    """
    found = {}
    for name, values in from_json(unlearn, dict[str, dict[str, Any]], "unlearn").items():
        options = from_mapping(values, UnlearnOptions, where=f"unlearn.{name}")
        found[name] = state / f"{name}.safetensors"
        make_deterministic(seed)  # whatever was drawn before
        train_unlearned(
            options,
            seed=seed,
            pipeline=pipeline,
            adapter=found[name],
            curve=state / f"{name}-curve.parquet",
            state=state / f"training-{name}",
        )
    return found


if __name__ == "__main__":
    run(sample_loose)
