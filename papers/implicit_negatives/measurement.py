"""Sampling runs on sets of prompts, and what is measured of them, on whichever text-to-image system."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd
from safetensors.torch import save_file
from torch import Tensor

from papers.implicit_negatives.methods import plug_in
from papers.implicit_negatives.negatives import negative_of
from papers.implicit_negatives.options import CONCEPT, GuidanceOptions
from papers.implicit_negatives.runs import BASE, Run, parse_run
from shared.progress import Progress
from shared.stage import Output
from shared.t2i.bench import Bench, Judge, PromptSet
from shared.t2i.defended_sampling import DIGITS, Sampled, first_images, judge_images, sample_sets
from shared.tables import write_table


@dataclass(frozen=True)
class System:
    """What runs sample from.

    Attributes:
        bench: the original model, and unlearned ones by name.
        judge: of images.
        inverted: what concept inversion learned on each model.
        attacks: token embeddings of the soft attack on each model.
        synonyms: phrases for the control that is the mean of them.
    """

    bench: Bench
    judge: Judge
    inverted: Mapping[str, Tensor] = field(default_factory=dict)
    attacks: Mapping[str, Tensor] = field(default_factory=dict)
    synonyms: tuple[str, ...] = ()

    def of(self, model: str) -> Bench:
        """The system with a model's U-Net."""
        return self.bench.on(None if model == BASE else model)


def sample_run(run: Run, system: System, sets: Sequence[PromptSet], seed: int, options: GuidanceOptions) -> Sampled:
    """Images of all prompts under a run that has its strength."""
    bench = system.of(run.model)
    negative = None
    if run.negative:
        negative = negative_of(run, bench.text, bench.concepts, system.synonyms, system.inverted, seed)
    word = system.attacks.get(run.model)
    return sample_sets(
        bench,
        sets,
        lambda captions: plug_in(run, bench, captions, negative, options, word),
        seed=seed,
        num_steps=options.num_steps,
        guidance_scale=options.guidance_scale,
        batch_size=options.batch_size,
    )


class Judged(NamedTuple):
    """A run with what its images are worth.

    Attributes:
        name: of the run, as it was asked for.
        run: at its strength.
        sets: of prompts that it was sampled on.
        sampled: its images, and what they cost.
        values: of every image, as `judge_images` gives them.
    """

    name: str
    run: Run
    sets: Sequence[PromptSet]
    sampled: Sampled
    values: pd.DataFrame


def judged_runs(
    runs: Sequence[str],
    strengths: Mapping[str, float],
    system: System,
    sets: Sequence[PromptSet],
    concept: PromptSet,
    seed: int,
    options: GuidanceOptions,
) -> Iterator[Judged]:
    """All runs, each compared with the original model's images from the same noise.

    A run without strength takes its method's; what several names come to is sampled once.

    Args:
        runs: names.
        strengths: selected, by method.
        system: what is sampled from.
        sets: of prompts.
        concept: the set for runs whose negative is the prompt.
        seed: of the noise.
        options: of the guidance.
    """
    base, known = sample_run(Run("none"), system, sets, seed, options).images, {}
    with Progress(len(runs), "sampling runs") as progress:
        for name in runs:
            run = parse_run(name).at(strengths)
            if run not in known:
                asked = [concept] if run.method == "prompt" else sets
                sampled = sample_run(run, system, asked, seed, options)
                reference = sampled.images if run.method == "prompt" else base
                values = judge_images(sampled.images, reference, asked, system.judge, options.batch_size)
                known[run] = Judged(name, run, asked, sampled, values)
            progress.update({"dsr": known[run].values["dsr"].mean()})
            yield known[run]._replace(name=name)


@dataclass
class Findings:
    """What a job writes: a table row for each image and for each run, and pictures."""

    values: list[pd.DataFrame] = field(default_factory=list)
    totals: list[dict[str, object]] = field(default_factory=list)
    pictures: dict[str, Tensor] = field(default_factory=dict)

    def write(self, values: Output, totals: Output, pictures: Output) -> None:
        """Write the tables, and the pictures as uint8 (prompts, 3, H, W) for each run."""
        table = pd.concat(self.values, ignore_index=True)
        small = {name: "float32" for name in table.columns if name not in ("run", "set", "prompt")}
        write_table(values, table.astype(small | {"prompt": "int16"}))
        write_table(totals, pd.DataFrame(self.totals))
        save_file(self.pictures, pictures)


def sample_all(
    runs: Sequence[str],
    strengths: Mapping[str, float],
    system: System,
    sets: Sequence[PromptSet],
    concept: PromptSet,
    seed: int,
    options: GuidanceOptions,
) -> Findings:
    """What a job writes of its runs; arguments as of `judged_runs`."""
    found = Findings()
    for name, run, asked, sampled, values in judged_runs(runs, strengths, system, sets, concept, seed, options):
        if run.method == "prompt":
            values = values.drop(columns="similarity")
        found.values.append(values.assign(run=name))
        found.totals.append(
            {
                "run": name,
                "evaluations": sampled.evaluations,
                "wall_seconds": round(sampled.wall_seconds, DIGITS),
            }
        )
        if options.pictures_per_set and parse_run(name).shown:
            found.pictures[name] = first_images(sampled.images, asked, options.pictures_per_set)
    return found


def concept_of(bench: Bench, options: GuidanceOptions) -> PromptSet:
    """The bare explicit word, for runs whose negative is the prompt; nothing is asked for in a judge's terms."""
    return PromptSet(CONCEPT, bench.concepts[:1] * options.concept_prompts)
