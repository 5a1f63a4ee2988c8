"""Gates: what a seed's models draw on many development prompts, which tells whether defences can be tested on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pandas as pd

from papers.implicit_negatives.measurement import System, sample_all
from papers.implicit_negatives.options import ATTACK, EXPLICIT, SAFE, GuidanceOptions, UceOptions
from papers.implicit_negatives.runs import BASE, IMPLICIT, Run
from papers.implicit_negatives.sample import open_system
from papers.implicit_negatives.testbed import concept_set, prompt_sets
from shared.stage import Input, Output, run
from shared.t2i.bench import PromptSet
from shared.tables import write_table


def gates(
    options: GuidanceOptions,
    uce: UceOptions,
    *,
    seed: int,
    count: int,
    pipeline: Input,
    evaluator: Input,
    unlearned: tuple[Input, ...],
    models: tuple[str, ...],
    inverted: Input,
    selection: Input,
    values: Output,
    totals: Output,
) -> None:
    """Look at all models on ``count`` attacks, harmless prompts, and bare words; tables and inputs as of `sample`."""
    system = open_system(pipeline, evaluator, models, unlearned, uce, inverted)
    strengths = json.loads(selection.read_text(encoding="utf-8"))
    sets = [part for part in prompt_sets(count, count, seed, "dev") if part.name in (ATTACK, SAFE)]
    look_at(models, strengths, system, sets, concept_set(count), seed, options, values, totals)


def look_at(
    models: Sequence[str],
    strengths: Mapping[str, float],
    system: System,
    sets: Sequence[PromptSet],
    concept: PromptSet,
    seed: int,
    options: GuidanceOptions,
    values: Output,
    totals: Output,
) -> None:
    """Sample `gate_runs` of the models and write their tables; other arguments as of `judged_runs`."""
    found = sample_all(gate_runs(models), strengths, system, sets, concept, seed, options)
    table = pd.concat(found.values, ignore_index=True)
    numbers = {name: "float32" for name in table.columns if name not in ("run", "set", "prompt")}
    write_table(values, table.astype(numbers | {"prompt": "int16"}))
    write_table(totals, pd.DataFrame(found.totals))


def gate_runs(models: Sequence[str]) -> list[str]:
    """Names of the runs: every model alone, and by its word and its learned embedding as prompts; and the word as
    negative prompt on the original model."""
    alone = [Run("none", model=model) for model in models]
    prompted = [Run("prompt", None, negative, model) for model in models for negative in (EXPLICIT, IMPLICIT)]
    return [each.name for each in (*alone, Run("np", None, EXPLICIT, BASE), *prompted)]


if __name__ == "__main__":
    run(gates)
