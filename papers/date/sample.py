"""Sample: test prompts under some variants with the same noise, judged.

Files that every job writes; all tables have a column seed, too:

``scores``         parquet: variant, unit (number of the prompt), task, prompt, shown, and a column for every score
``steps``          parquet: variant, step, and means over prompts of distance, length and, where measured, reward
``directions``     parquet: variant, step, other, cosine between the updates in two steps, a mean over shown prompts
``paths``          parquet: variant, prompt, step, first, second: the embedding's path in its plane of largest extent
``images``         safetensors: for each variant the shown prompts' images, (shown, 3, H, W), uint8
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save_file

from papers.date.drawn import Bench, Drawn, direction_cosines, principal_paths
from papers.date.options import SamplerOptions, ScenePromptOptions
from papers.date.testbed import open_testbed
from papers.date.variants import parse_variant
from shared.progress import Progress
from shared.stage import Input, Output, run
from shared.tables import read_table, write_table


def draw_all(
    bench: Bench, variants: tuple[str, ...], strengths: dict[str, float]
) -> tuple[dict[str, Drawn], dict[str, Any]]:
    """Sample every variant; also measurements for the record.

    They are, for each variant, its strength, seconds and evaluations of the network per image, and measures of its
    images as a set.
    """
    found: dict[str, Drawn] = {}
    measured: dict[str, Any] = {"strength": {}, "seconds": {}, "evaluations": {}, "sets": {}}
    with Progress(len(variants), "sampling") as progress:
        for variant in map(parse_variant, variants):
            drawn = found[variant.name] = bench.draw(variant, strengths.get(variant.name))
            measured["strength"][variant.name] = strengths.get(variant.name)
            measured["seconds"][variant.name] = round(drawn.seconds, 6)
            measured["evaluations"][variant.name] = drawn.evaluations
            measured["sets"][variant.name] = drawn.sets
            progress.update()
    return found, measured


def write_drawn(
    bench: Bench,
    found: dict[str, Drawn],
    *,
    seed: int,
    scores: Path,
    steps: Path,
    directions: Path,
    paths: Path,
    images: Path,
) -> None:
    """Write the files described above."""
    prompts = pd.DataFrame(
        {
            "unit": [str(row) for row in range(len(bench.prompts))],
            "task": [prompt.task for prompt in bench.prompts],
            "prompt": [prompt.text for prompt in bench.prompts],
            "shown": [row in bench.shown for row in range(len(bench.prompts))],
        }
    )
    judged = [prompts.assign(variant=name, **drawn.scores) for name, drawn in found.items()]
    write_table(scores, pd.concat(judged, ignore_index=True).assign(seed=seed))
    means = [drawn.steps.groupby("step").mean().reset_index().assign(variant=name) for name, drawn in found.items()]
    write_table(steps, pd.concat(means, ignore_index=True).assign(seed=seed))
    write_table(directions, direction_rows(found).assign(seed=seed))
    write_table(paths, path_rows(found).assign(seed=seed))
    save_file({name: drawn.images.contiguous() for name, drawn in found.items()}, images)


def direction_rows(found: dict[str, Drawn]) -> pd.DataFrame:
    """The table of directions, of variants that update in more than one step; only steps with an update."""
    rows = []
    for name, drawn in found.items():
        cosines = direction_cosines(drawn.displacements)
        moved = torch.nonzero(cosines.diagonal() > 0.5).flatten().tolist()
        rows += [
            {"variant": name, "step": step, "other": other, "cosine": float(cosines[step, other])}
            for step in moved
            for other in moved
            if len(moved) > 1
        ]
    return pd.DataFrame(rows, columns=["variant", "step", "other", "cosine"])


def path_rows(found: dict[str, Drawn]) -> pd.DataFrame:
    """The table of paths, of variants that move the embedding and make the same steps."""
    moving = {name: drawn.displacements for name, drawn in found.items() if drawn.displacements.abs().max() > 0}
    if not moving:
        return pd.DataFrame(columns=["variant", "prompt", "step", "first", "second"])
    stacked = torch.stack(list(moving.values()))  # (variants, steps, shown, features)
    tables = []
    for prompt in range(stacked.shape[2]):
        for name, path in zip(moving, principal_paths(stacked[:, :, prompt]), strict=True):
            coordinates = {"first": path[:, 0], "second": path[:, 1]}
            tables.append(pd.DataFrame({"variant": name, "prompt": prompt, "step": range(len(path)), **coordinates}))
    return pd.concat(tables, ignore_index=True)


def sample(
    sampler: SamplerOptions,
    prompts: ScenePromptOptions,
    *,
    seed: int,
    variants: tuple[str, ...],
    strengths: Input,
    pipeline: Input,
    guidance: Input,
    preference: Input,
    plain: Input,
    evaluator: Input,
    scores: Output,
    steps: Output,
    directions: Output,
    paths: Output,
    images: Output,
) -> dict[str, Any]:
    """Sample with the selected strengths on the testbed, and write the files described above."""
    bench = open_testbed(
        sampler,
        prompts,
        seed=seed,
        split="test",
        pipeline=pipeline,
        guidance=guidance,
        preference=preference,
        plain=plain,
        evaluator=evaluator,
    )
    selected = read_table(strengths, ("variant", "strength")).set_index("variant")["strength"].to_dict()
    found, measured = draw_all(bench, variants, selected)
    write_drawn(bench, found, seed=seed, scores=scores, steps=steps, directions=directions, paths=paths, images=images)
    return measured


if __name__ == "__main__":
    run(sample)
