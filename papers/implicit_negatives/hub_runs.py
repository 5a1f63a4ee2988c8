"""Runs on a pipeline of the hub and unlearned models of it; processes of accelerate share the prompts.

They give the same measurements as `papers.implicit_negatives.measurement`, which samples all prompts in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas as pd
from accelerate import PartialState
from torch import Tensor

from papers.implicit_negatives.measurement import Findings, Judged, System
from papers.implicit_negatives.methods import plug_in
from papers.implicit_negatives.negatives import negative_of
from papers.implicit_negatives.options import GuidanceOptions
from papers.implicit_negatives.runs import Run, parse_run
from shared.progress import Progress
from shared.t2i.bench import PromptSet
from shared.t2i.defended_sampling import DIGITS, Sampled, judge_images
from shared.t2i.prompt_shares import Share, draw_batch, gather_items, gather_measurements, own_share, sample_share


def invert_together(models: Sequence[str], invert: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """What is learned on every model, the same in all processes.

    Each learns on every n-th model. Where there are fewer models than processes, some learn what others do too instead
    of waiting, and what the first of them found holds.
    """
    process = PartialState()
    own = models[process.process_index :: process.num_processes]
    if not own and models:
        own = [models[process.process_index % len(models)]]
    found: dict[str, Tensor] = {}
    for model, value in gather_items([(model, invert(model)) for model in own]):
        found.setdefault(model, value)
    return found


def sample_run(run: Run, system: System, share: Share, seed: int, options: GuidanceOptions) -> Sampled:
    """Images of a process's share of the prompts under a run that has its strength."""
    bench, negative = system.of(run.model), None
    if run.negative:
        negative = negative_of(run, bench.text, bench.concepts, system.synonyms, system.inverted, seed)

    def draw(captions: list[str], numbers: list[int], first: int) -> tuple[Tensor, int]:
        return draw_batch(
            bench,
            plug_in(run, bench, captions, negative, options),
            numbers,
            seed=seed,
            num_steps=options.num_steps,
            guidance_scale=options.guidance_scale,
        )

    return sample_share(draw, share, options.batch_size)


def judged_together(
    runs: Sequence[str],
    strengths: Mapping[str, float],
    system: System,
    sets: Sequence[PromptSet],
    concept: PromptSet,
    seed: int,
    options: GuidanceOptions,
) -> Iterator[Judged]:
    """All runs with everybody's values and this process's images; arguments as of `measurement.judged_runs`."""
    prompts, bare = own_share(sets), own_share([concept])
    base, known = sample_run(Run("none"), system, prompts, seed, options).images, {}
    with Progress(len(runs), "sampling runs") as progress:
        for name in runs:
            run = parse_run(name).at(strengths)
            if run not in known:
                asked = bare if run.method == "prompt" else prompts
                sampled = sample_run(run, system, asked, seed, options)
                reference = sampled.images if run.method == "prompt" else base
                values = judge_images(sampled.images, reference, asked.sets, system.judge, options.batch_size)
                known[run] = Judged(name, run, asked.sets, *gather_measurements(sampled, values, asked))
            progress.update({"dsr": known[run].values["dsr"].mean()})
            yield known[run]._replace(name=name)


def sample_together(
    runs: Sequence[str],
    strengths: Mapping[str, float],
    system: System,
    sets: Sequence[PromptSet],
    concept: PromptSet,
    seed: int,
    options: GuidanceOptions,
) -> Findings:
    """What a job writes of its runs, without pictures; arguments as of `judged_together`."""
    found = Findings()
    for judged in judged_together(runs, strengths, system, sets, concept, seed, options):
        unlike = ["similarity"] if judged.run.method == "prompt" else []
        found.values.append(judged.values.drop(columns=unlike).assign(run=judged.name))
        spent = {"evaluations": judged.sampled.evaluations, "wall_seconds": round(judged.sampled.wall_seconds, DIGITS)}
        found.totals.append({"run": judged.name, **spent})
    return found


def try_together(
    runs: Sequence[str],
    system: System,
    sets: Sequence[PromptSet],
    concept: PromptSet,
    seed: int,
    options: GuidanceOptions,
) -> pd.DataFrame:
    """Means over each set's prompts of runs that have their strengths: columns run, set, the judge's metrics and
    similarity; arguments as of `judged_together`."""
    tables = [
        judged.values.drop(columns="prompt").groupby("set").mean().reset_index().assign(run=judged.name)
        for judged in judged_together(runs, {}, system, sets, concept, seed, options)
    ]
    return pd.concat(tables, ignore_index=True)
