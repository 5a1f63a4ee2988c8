"""Phase 2 on a pipeline of the hub: runs of all prompts; the files are those of :mod:`papers.lidar.sample`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors.torch import save_file

from papers.lidar.hub import HubBench, open_hub, own_prompts, run_prompt
from papers.lidar.options import HubOptions, SamplerOptions, SolverOptions
from papers.lidar.sample import PICTURES_PER_PROMPT, first_of_tasks
from shared.stage import Input, Output, run
from shared.t2i.prompt_files import Prompt
from shared.tables import write_table


def sample_hub(
    sampler: SamplerOptions,
    hub: HubOptions,
    solver: SolverOptions,
    *,
    seed: int,
    name: str,
    runs: tuple[str, ...],
    prompts: Input,
    sets: tuple[Input, ...],
    scores: Output,
    images: Output,
) -> dict[str, Any]:
    """Sample runs with the lookahead sets of one solver, ``d<δ>``; without sets, runs that need none."""
    bench = open_hub(sampler, hub, seed=seed, runs=runs)
    solvers = {name: (solver, sets[0])} if sets else {}
    own = own_prompts(prompts, hub)
    found = gather_object([(row, prompt, sampled_prompt(bench, row, prompt, runs, solvers)) for row, prompt in own])
    found.sort(key=lambda entry: entry[0])
    if PartialState().is_main_process:
        write_table(scores, score_table(found, seed))
        save_file(pictures(found, sampler.pictured), images)
    return {"runs": mean_costs(found)}


def sampled_prompt(
    bench: HubBench, row: int, prompt: Prompt, runs: Sequence[str], solvers: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """What `run_prompt` finds; pictures are kept of the images that may be shown."""
    found = run_prompt(bench, row, prompt, runs, solvers)
    return {name: entry | {"images": entry["images"][:PICTURES_PER_PROMPT]} for name, entry in found.items()}


Found = list[tuple[int, Prompt, dict[str, dict[str, Any]]]]
"""Prompts by number with what was found of each in every run."""


def score_table(found: Found, seed: int) -> pd.DataFrame:
    """A row for each image, as the testbed's."""
    tables = []
    for row, prompt, entries in found:
        for name, entry in entries.items():
            columns = {metric: values.astype("float32") for metric, values in entry["scores"].items()}
            table = pd.DataFrame({"unit": row, "copy": np.arange(len(next(iter(columns.values())))), **columns})
            tables.append(table.assign(run=name, task=prompt.task, prompt=prompt.text))
    rows = pd.concat(tables, ignore_index=True).assign(seed=seed)
    return rows.astype({"unit": "int32", "copy": "int8"})


def pictures(found: Found, pictured: Sequence[str]) -> dict[str, torch.Tensor]:
    """The first images of the first prompt of each task under every run that is pictured, reduced to 64 pixels."""
    shown = [found[place] for place in first_of_tasks([prompt.task for _, prompt, _ in found])]
    names = [name for name in shown[0][2] if name in pictured]
    return {name: torch.cat([_reduced(entries[name]["images"]) for _, _, entries in shown]) for name in names}


def _reduced(images: torch.Tensor) -> torch.Tensor:
    small = torch.nn.functional.interpolate(images.float(), size=(64, 64), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).byte()


def mean_costs(found: Found) -> dict[str, dict[str, float]]:
    """Costs of an image in each run, means over prompts."""
    names = found[0][2]
    return {
        name: pd.DataFrame([entries[name]["costs"] for _, _, entries in found]).mean().round(5).to_dict()
        for name in names
    }


if __name__ == "__main__":
    run(sample_hub)
