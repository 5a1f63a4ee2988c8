"""Tune on a pipeline of the hub: every candidate strength on the first prompts of each file.

Processes of accelerate share the prompts.
"""

from __future__ import annotations

from accelerate import PartialState

from papers.implicit_negatives.hub_runs import try_together
from papers.implicit_negatives.measurement import System, concept_of
from papers.implicit_negatives.options import GuidanceOptions, UnlearnedHubOptions
from papers.implicit_negatives.tune import select_strengths
from shared.files import write_json
from shared.stage import Output, run
from shared.t2i.hub import bench_of, open_hub_judge
from shared.t2i.hub_pipeline import open_pipeline
from shared.t2i.hub_prompts import hub_prompt_sets
from shared.tables import write_table


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
    tried = try_together(runs, system, sets, concept_of(system.bench, options), seed, options)
    if PartialState().is_main_process:
        write_table(grid, tried)
        write_json(selection, select_strengths(runs, tried))


if __name__ == "__main__":
    run(tune_hub)
