"""Sample: one group of runs on the test prompts of one seed, and the measurements of every image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from papers.stg.bench import Bench, Judge, PromptSet
from papers.stg.measurement import DIGITS, judge_run, sample_run, summarise_trace
from papers.stg.options import DefenceOptions
from papers.stg.testbed import open_judge, open_testbed, prompt_sets
from shared.errors import InputError
from shared.progress import Progress
from shared.stage import Input, Output, run
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


def sample_all(
    runs: Sequence[str], bench: Bench, sets: Sequence[PromptSet], judge: Judge, seed: int, options: DefenceOptions
) -> Findings:
    """All runs, each compared with the base model's images from the same noise."""
    base, found = sample_run("base", bench, sets, seed, options), Findings()
    with Progress(len(runs), "sampling runs") as progress:
        for text in runs:
            sampled = base if text == "base" else sample_run(text, bench, sets, seed, options)
            table, distance = judge_run(sampled, base, sets, judge, options.batch_size)
            found.values.append(table.assign(run=text))
            found.totals.append(
                {
                    "run": text,
                    "evaluations": sampled.evaluations,
                    "seconds": round(sampled.seconds, DIGITS),
                    "wall_seconds": round(sampled.wall_seconds, DIGITS),
                    "frechet": float("nan") if distance is None else distance,
                }
            )
            if not sampled.trace.empty:
                found.traces.append(summarise_trace(sampled.trace, sets).assign(run=text))
            if options.pictures_per_set:
                found.pictures[text] = first_images(sampled.images, sets, options.pictures_per_set)
            progress.update({"dsr": table["dsr"].mean()})
    return found


def first_images(images: Tensor, sets: Sequence[PromptSet], count: int) -> Tensor:
    """The first images of every set, uint8 (sets x count, 3, H, W), set by set."""
    firsts, first = [], 0
    for part in sets:
        firsts.append(images[first : first + min(count, len(part.captions))])
        first += len(part.captions)
    return ((torch.cat(firsts).clamp(-1, 1) + 1) * 127.5).round().byte()


if __name__ == "__main__":
    run(sample)
