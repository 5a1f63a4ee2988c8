"""Sample: one group of runs on the test prompts of one seed, and the measurements of every image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from papers.implicit_negatives.measurement import System, sample_all
from papers.implicit_negatives.options import UCE, GuidanceOptions, UceOptions
from papers.implicit_negatives.runs import BASE
from papers.implicit_negatives.testbed import SYNONYM_PHRASES, concept_set, open_judge, prompt_sets
from shared.errors import InputError
from shared.stage import Input, Output, run
from shared.t2i.bench import Bench
from shared.t2i.pipeline import load_pipeline
from shared.t2i.testbed import bench_of, load_unlearned

LEARNED, SOFT_ATTACK = "concept", "attack"
"""Kinds of what is inverted on each model: the negative, and the word of the soft attack."""


def sample(
    options: GuidanceOptions,
    uce: UceOptions,
    *,
    seed: int,
    count: int,
    attacks: int,
    runs: tuple[str, ...],
    pipeline: Input,
    evaluator: Input,
    unlearned: tuple[Input, ...],
    models: tuple[str, ...],
    inverted: Input,
    selection: Input,
    values: Output,
    totals: Output,
    pictures: Output,
) -> None:
    """Sample ``runs`` on ``attacks`` prompts of the attack and ``count`` of every other set.

    ``unlearned`` are adapters of those of ``models`` that were trained, in their order; ``inverted`` holds what concept
    inversion learned on each model, ``selection`` the strengths.
    """
    system = open_system(pipeline, evaluator, models, unlearned, uce, inverted)
    strengths = json.loads(selection.read_text(encoding="utf-8"))
    sets, concept = prompt_sets(count, attacks, seed, "test"), concept_set(options.concept_prompts)
    sample_all(runs, strengths, system, sets, concept, seed, options).write(values, totals, pictures)


def open_system(
    pipeline: Path, evaluator: Path, models: Sequence[str], unlearned: Sequence[Path], uce: UceOptions, inverted: Path
) -> System:
    """The testbed with its unlearned models, its judge, and what was inverted on every model.

    Raises:
        InputError: as `open_models`.
    """
    words = load_file(inverted)
    return System(
        open_models(pipeline, models, unlearned, uce),
        open_judge(evaluator),
        of_kind(words, LEARNED),
        of_kind(words, SOFT_ATTACK),
        SYNONYM_PHRASES,
    )


def open_models(pipeline: Path, models: Sequence[str], unlearned: Sequence[Path], uce: UceOptions) -> Bench:
    """The testbed with its unlearned models.

    Raises:
        InputError: not one adapter for each model that was trained.
    """
    bench = bench_of(load_pipeline(pipeline), None, {})
    trained = [model for model in models if model not in (BASE, UCE)]
    if len(trained) != len(unlearned):
        raise InputError(f"unlearned: need one adapter for each of {', '.join(trained)}, got {len(unlearned)}")
    found = {name: load_unlearned(pipeline, path) for name, path in zip(trained, unlearned, strict=True)}
    if UCE in models:
        found[UCE] = bench.edited(uce.erase_weight, uce.preserve_weight).unet
    return replace(bench, models=found)


def of_kind(words: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """What was learned, by model, of the entries ``<kind>.<model>``."""
    return {name.partition(".")[2]: value for name, value in words.items() if name.startswith(f"{kind}.")}


if __name__ == "__main__":
    run(sample)
