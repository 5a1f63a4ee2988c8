"""Sample: one group of runs on the test prompts of one seed, and the measurements of every image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd
from safetensors.torch import save_file
from torch import Tensor

from papers.stg.measurement import Trace, sample_run, summarise_trace
from papers.stg.options import SAFE, DefenceOptions
from papers.stg.testbed import open_judge, prompt_sets
from shared.errors import InputError
from shared.progress import Progress
from shared.stage import Input, Output, run
from shared.t2i.bench import Bench, Judge, PromptSet
from shared.t2i.defended_sampling import DIGITS, Sampled, first_images, judge_images, rows_of
from shared.t2i.testbed import open_testbed
from shared.tables import write_table

TRACE_COLUMNS = {"run": "str", "set": "str", "step": "int64", "value": "float64", "flagged": "float64"}


@dataclass
class Findings:
    """What a job writes: a table row for each image, for each run, and for each step of traced runs; and pictures."""

    values: list[pd.DataFrame] = field(default_factory=list)
    totals: list[dict[str, object]] = field(default_factory=list)
    traces: list[pd.DataFrame] = field(default_factory=list)
    pictures: dict[str, Tensor] = field(default_factory=dict)

    def write(self, values: Output, totals: Output, traces: Output, pictures: Output) -> None:
        """Write the three tables, and the pictures as uint8 (prompts, 3, H, W) for each run."""
        write_table(values, pd.concat(self.values, ignore_index=True))
        write_table(totals, pd.DataFrame(self.totals))
        empty = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in TRACE_COLUMNS.items()})
        write_table(traces, pd.concat([empty, *self.traces], ignore_index=True)[list(TRACE_COLUMNS)])
        save_file(self.pictures, pictures)


def sample(
    options: DefenceOptions,
    *,
    seed: int,
    count: int,
    runs: tuple[str, ...],
    pipeline: Input,
    detector: Input,
    evaluator: Input,
    judge_detector: Input,
    unlearned: tuple[Input, ...],
    models: tuple[str, ...],
    values: Output,
    totals: Output,
    traces: Output,
    pictures: Output,
) -> None:
    """Sample ``runs`` on ``count`` prompts of each set; ``unlearned`` are adapters, of ``models``."""
    if len(models) != len(unlearned):
        raise InputError(f"models: need one name for each of the {len(unlearned)} unlearned, got {len(models)}")
    bench = open_testbed(pipeline, detector, dict(zip(models, unlearned, strict=True)))
    judge = open_judge(evaluator, judge_detector, seed)
    found = sample_all(runs, bench, prompt_sets(count, seed, "test"), judge, seed, options)
    found.write(values, totals, traces, pictures)


class Judged(NamedTuple):
    """A run with what its images are worth.

    Attributes:
        run: its name.
        sampled: its images, and what they cost.
        values: of every image, as `judge_images` gives them.
        trace: of its steps; empty unless the run is traced.
    """

    run: str
    sampled: Sampled
    values: pd.DataFrame
    trace: Trace


def judged_runs(
    runs: Sequence[str], bench: Bench, sets: Sequence[PromptSet], judge: Judge, seed: int, options: DefenceOptions
) -> Iterator[Judged]:
    """All runs, each compared with the base model's images from the same noise."""
    base = sample_run("base", bench, sets, seed, options).images
    with Progress(len(runs), "sampling runs") as progress:
        for text in runs:
            trace: Trace = []
            sampled = sample_run(text, bench, sets, seed, options, trace if text in options.traced else None)
            values = judge_images(sampled.images, base, sets, judge, options.batch_size)
            progress.update({"dsr": values["dsr"].mean()})
            yield Judged(text, sampled, values, trace)


def sample_all(
    runs: Sequence[str], bench: Bench, sets: Sequence[PromptSet], judge: Judge, seed: int, options: DefenceOptions
) -> Findings:
    """What a job writes of its runs."""
    found = Findings()
    for text, sampled, values, trace in judged_runs(runs, bench, sets, judge, seed, options):
        found.values.append(values.assign(run=text))
        found.totals.append(
            {
                "run": text,
                "evaluations": sampled.evaluations,
                "seconds": round(sampled.seconds, DIGITS),
                "wall_seconds": round(sampled.wall_seconds, DIGITS),
                "frechet": _distance(sampled.images, sets, judge),
            }
        )
        if trace:
            found.traces.append(summarise_trace(trace, sets).assign(run=text))
        if options.pictures_per_set:
            found.pictures[text] = first_images(sampled.images, sets, options.pictures_per_set)
    return found


def _distance(images: Tensor, sets: Sequence[PromptSet], judge: Judge) -> float:
    """The Fréchet distance on harmless prompts, NaN where it is not measured."""
    harmless = [(part, rows) for part, rows in rows_of(sets) if part.name == SAFE]
    if judge.distance is None or not harmless:
        return float("nan")
    part, rows = harmless[0]
    return judge.distance(part, images[rows])


if __name__ == "__main__":
    run(sample)
