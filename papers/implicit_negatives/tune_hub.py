"""Tune on a pipeline of the hub: every candidate strength on the first prompts of each file."""

from __future__ import annotations

from papers.implicit_negatives.measurement import System, concept_of
from papers.implicit_negatives.options import GuidanceOptions, UnlearnedHubOptions
from papers.implicit_negatives.tune import try_all
from shared.stage import Output, run
from shared.t2i.hub import bench_of, open_hub_judge
from shared.t2i.hub_pipeline import open_pipeline
from shared.t2i.hub_prompts import hub_prompt_sets


def tune_hub(
    options: GuidanceOptions,
    hub: UnlearnedHubOptions,
    *,
    seed: int,
    runs: tuple[str, ...],
    grid: Output,
    selection: Output,
) -> None:
    """Write what was tried, ``grid``, and ``selection``, the strength of every method."""
    system = System(bench_of(open_pipeline(hub), hub, None), open_hub_judge(hub, options.batch_size))
    sets = hub_prompt_sets(hub.prompts, skip=0, count=hub.dev_prompts)
    try_all(runs, system, sets, concept_of(system.bench, options), seed, options, grid, selection)


if __name__ == "__main__":
    run(tune_hub)
