"""Sample: test prompts under some runs with the same noise, judged.

``scores``   parquet, a row for each image: run, unit (number of the prompt), copy, task, prompt, seed, the scores of
             :meth:`papers.lidar.testbed.SceneBench.judge`, and its measures of a prompt's images on all rows of these
``images``   safetensors: for each pictured run two images of the first prompt of each task, (tasks · 2, 3, H, W), uint8
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from papers.lidar.options import SamplerOptions, ScenePromptOptions
from papers.lidar.runs import parse_run
from papers.lidar.testbed import Sampled, SceneBench, Strength, open_bench
from shared.progress import Progress
from shared.stage import Input, Output, run
from shared.t2i.model import LatentCodec
from shared.tables import read_table, write_table

PICTURES_PER_PROMPT = 2


def sample(
    sampler: SamplerOptions,
    prompts: ScenePromptOptions,
    *,
    seed: int,
    runs: tuple[str, ...],
    strengths: Input,
    pipeline: Input,
    guidance: Input,
    evaluator: Input,
    scores: Output,
    images: Output,
) -> dict[str, Any]:
    """Sample with the selected strengths on the testbed, and write the files described above.

    The record tells of each run its strength, and for one image the evaluations of the denoiser (a backward pass counts
    as two) and of the reward, and processor seconds; a shared lookahead set is shared out.
    """
    bench = open_bench(
        sampler,
        prompts_per_task=prompts.prompts_per_task,
        seed=seed,
        split="test",
        pipeline=pipeline,
        guidance=guidance,
        evaluator=evaluator,
    )
    selected = read_strengths(strengths)
    tables, pictures, measured = [], {}, {}
    with Progress(len(runs), "sampling") as progress:
        for name in runs:
            each = parse_run(name)
            sampled = bench.sample_run(each, selected.get(each.tuned))
            tables.append(score_rows(bench, sampled).assign(run=name))
            if name in sampler.pictured:
                pictures[name] = picture(bench, sampled)
            measured[name] = costs(sampled)
            progress.update()
    write_table(scores, pd.concat(tables, ignore_index=True).assign(seed=seed))
    save_file(pictures, images)
    return {"runs": measured}


def costs(sampled: Sampled) -> dict[str, float]:
    """What one image of a run costs, for the record."""
    return {
        "evaluations": sampled.evaluations,
        "reward_evaluations": sampled.reward_evaluations,
        "seconds": round(sampled.seconds, 5),
    }


def read_strengths(path: Input) -> dict[str, Strength]:
    """The selected strengths by the name of what was tuned."""
    table = read_table(path, ("tuned", "value", "reward_weight"))
    return {
        row.tuned: Strength(row.value, None if np.isnan(row.reward_weight) else row.reward_weight)
        for row in table.itertuples()
    }


def score_rows(bench: SceneBench, sampled: Sampled) -> pd.DataFrame:
    """A row for each image: unit, copy, task, prompt, and the judges' scores in single precision."""
    judged = bench.judge(sampled.latents)
    prompts, copies = sampled.latents.shape[:2]
    columns = {
        name: np.repeat(values, copies) if values.ndim == 1 else values.ravel() for name, values in judged.items()
    }
    rows = np.repeat(np.arange(prompts), copies)
    return pd.DataFrame(
        {
            "unit": rows.astype("int32"),
            "copy": np.tile(np.arange(copies), prompts).astype("int8"),
            "task": [bench.specs[row].task for row in rows],
            "prompt": [bench.captions[row] for row in rows],
            **{name: values.astype("float32") for name, values in columns.items()},
        }
    )


def picture(bench: SceneBench, sampled: Sampled) -> torch.Tensor:
    """The first images of the first prompt of each task as bytes."""
    rows = first_of_tasks([spec.task for spec in bench.specs])
    images = LatentCodec.decode(sampled.latents[rows, :PICTURES_PER_PROMPT].flatten(0, 1))
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().contiguous()


def first_of_tasks(tasks: list[str]) -> list[int]:
    """Number of the first prompt of each task."""
    return [tasks.index(task) for task in dict.fromkeys(tasks)]


if __name__ == "__main__":
    run(sample)
