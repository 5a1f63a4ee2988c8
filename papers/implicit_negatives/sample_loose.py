"""Sample for the control: one seed's base model trained on loose captions, unlearned, inverted and attacked.

All of it is one job, since the models are many and none of them is needed afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from papers.implicit_negatives.gates import look_at
from papers.implicit_negatives.invert import KINDS, invert_on
from papers.implicit_negatives.loose_base import from_json, loose_base
from papers.implicit_negatives.measurement import sample_all
from papers.implicit_negatives.options import (
    SOFT,
    UCE,
    GuidanceOptions,
    InversionOptions,
    LooseOptions,
    UceOptions,
)
from papers.implicit_negatives.runs import BASE
from papers.implicit_negatives.sample import LEARNED, open_models, open_system
from papers.implicit_negatives.testbed import concept_latents, concept_set, lone_prompt_sets
from shared.options import from_mapping
from shared.stage import Input, Output, State, make_deterministic, run
from shared.t2i.bench import Bench
from shared.t2i.options import UnlearnOptions
from shared.t2i.stages.unlearn import unlearn as train_unlearned


def sample_loose(
    captions: LooseOptions,
    options: GuidanceOptions,
    inversion: InversionOptions,
    uce: UceOptions,
    *,
    seed: int,
    count: int,
    attacks: int,
    gate_count: int,
    runs: tuple[str, ...],
    training: str,
    unlearn: str,
    pipeline: Input,
    evaluator: Input,
    selection: Input,
    values: Output,
    totals: Output,
    pictures: Output,
    gate_values: Output,
    gate_totals: Output,
    state: State,
) -> None:
    """Sample ``runs`` like the stage `sample`, from a base model of their own and unlearned models of it.

    All models are looked at like in the stage `gates`, on ``gate_count`` development prompts of a kind.
    ``training`` are the options of the base model's training as JSON, and ``unlearn`` those of the models unlearned
    by training, by their names, since others are of the same names.
    """
    base = loose_base(captions, training, seed=seed, pipeline=pipeline, state=state)
    adapters = unlearned_models(base, unlearn, seed=seed, state=state)
    models, unlearned = (BASE, UCE, *adapters), tuple(adapters.values())
    words = state / "words.safetensors"
    save_file(inverted_words(open_models(base, models, unlearned, uce), models, inversion, seed), words)
    system = open_system(base, evaluator, models, unlearned, uce, words)
    strengths = json.loads(selection.read_text(encoding="utf-8"))
    sets, concept = lone_prompt_sets(count, attacks, seed, "test"), concept_set(options.concept_prompts)
    sample_all(runs, strengths, system, sets, concept, seed, options).write(values, totals, pictures)
    looked = [part for part in lone_prompt_sets(gate_count, gate_count, seed, "dev") if part.name != SOFT]
    options, concept = replace(options, pictures_per_set=0), concept_set(gate_count)
    look_at(models, strengths, system, looked, concept, seed, options, gate_values, gate_totals)


def inverted_words(bench: Bench, models: Sequence[str], options: InversionOptions, seed: int) -> dict[str, Tensor]:
    """What is learned on every model, ``concept.<model>``, and the soft attack, ``attack.<model>``, from others."""
    found = {}
    for index, model in enumerate(models):
        for number, kind in enumerate(KINDS):
            draw = (seed, index, number)
            latents = concept_latents(options.inversion_images, draw)
            target = options.inversion_target if kind == LEARNED else "token"
            value, _ = invert_on(bench.on(None if model == BASE else model), latents, options, target, draw)
            found[f"{kind}.{model}"] = value.contiguous()
    return found


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
