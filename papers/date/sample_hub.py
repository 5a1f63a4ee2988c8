"""Sample with a pipeline of the hub; the files are those of :mod:`papers.date.sample`."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState

from papers.date.hub import open_hub
from papers.date.options import HubOptions, SamplerOptions
from papers.date.sample import draw_all, write_drawn
from shared.stage import Input, Output, run
from shared.t2i.prompt_files import read_prompts, split_prompts
from shared.tables import read_table


def sample_hub(
    sampler: SamplerOptions,
    hub: HubOptions,
    *,
    seed: int,
    variants: tuple[str, ...],
    prompts: Input,
    strengths: Input,
    scores: Output,
    steps: Output,
    directions: Output,
    paths: Output,
    images: Output,
) -> dict[str, Any]:
    """Sample with the selected strengths."""
    split = split_prompts(read_prompts(prompts), dev=hub.dev_prompts, test=hub.test_prompts, seed=hub.split_seed)
    bench = open_hub(sampler, hub, split["test"], seed=seed)
    selected = read_table(strengths, ("variant", "strength")).set_index("variant")["strength"].to_dict()
    found, measured = draw_all(bench, variants, selected)
    if PartialState().is_main_process:
        write_drawn(
            bench, found, seed=seed, scores=scores, steps=steps, directions=directions, paths=paths, images=images
        )
    return measured


if __name__ == "__main__":
    run(sample_hub)
