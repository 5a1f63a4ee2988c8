"""One process that samples and tunes on a tiny system in the place of one of the hub's.

With the repository and tests/shared/t2i on PYTHONPATH, python hub_process.py DIRECTORY, or
torchrun --nproc_per_node=2 hub_process.py DIRECTORY
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from safety_cases import tiny_bench, tiny_judge

from papers.implicit_negatives import sample_hub, tune_hub
from papers.implicit_negatives.options import GuidanceOptions, InversionOptions
from shared.t2i.bench import PromptSet

SETS = [PromptSet("attack", ("a ring", "a red zorp", "two quibs")), PromptSet("safe", ("a disk", "two red tees"))]
GUIDANCE = GuidanceOptions(num_steps=2, guidance_scale=2.0, concept_prompts=3, batch_size=2)
INVERSION = InversionOptions(inversion_steps=2, inversion_batch_size=2, inversion_rate=0.05, inversion_images=4)
RUNS = ("none@duo", "np:1/explicit@duo", "sld/implicit@duo", "prompt/implicit@duo", "sld:3/implicit-base@duo")
CANDIDATES = ("np:0.5/explicit", "np:1/explicit", "sld:3/explicit", "sld:9/explicit")
HUB = SimpleNamespace(prompts=(), dev_prompts=0, test_prompts=3)


def sample_and_tune(folder):
    bench, latents = tiny_bench(), torch.randn(4, 12, 6, 6, generator=torch.Generator().manual_seed(0))
    sample_hub.open_unlearned = lambda hub, models: (bench, latents)
    tune_hub.open_pipeline = tune_hub.bench_of = lambda *_: bench
    for stage in (sample_hub, tune_hub):
        stage.open_hub_judge = lambda hub, size: tiny_judge()
        stage.hub_prompt_sets = lambda prompts, skip, count: SETS
    tables = {name: folder / name for name in ("grid", "selection", "values", "totals", "pictures")}
    tune_hub.tune_hub(
        GUIDANCE, HUB, seed=1, runs=CANDIDATES, grid=tables.pop("grid"), selection=tables["selection"]
    )  # fmt: skip
    (folder / "strengths").write_text('{"sld": 3.0}')  # all processes may write it: it is the same
    tables["selection"] = folder / "strengths"
    sample_hub.sample_hub(GUIDANCE, INVERSION, HUB, seed=0, runs=RUNS, **tables)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sample_and_tune(Path(sys.argv[1]))
