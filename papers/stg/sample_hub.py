"""Sample from a pipeline of the hub: one group of runs from one seed. Only scores are kept, no image."""

from __future__ import annotations

from papers.stg.options import DefenceOptions, GuidedHubOptions
from papers.stg.pipeline_runs import drawing, sample_runs
from shared.stage import Output, run
from shared.t2i.hub import open_hub, open_hub_judge
from shared.t2i.hub_prompts import hub_prompt_sets


def sample_hub(
    options: DefenceOptions,
    hub: GuidedHubOptions,
    *,
    seed: int,
    runs: tuple[str, ...],
    values: Output,
    totals: Output,
    traces: Output,
    pictures: Output,
) -> None:
    """Sample ``runs`` on the test prompts, those after the development prompts in each file."""
    bench, judge = open_hub(hub, hub.guidance), open_hub_judge(hub, options.batch_size)
    sets = hub_prompt_sets(hub.prompts, skip=hub.dev_prompts, count=hub.test_prompts)
    draw = drawing(bench, sets, seed, options)
    sample_runs(runs, draw, sets, judge, options).write(values, totals, traces, pictures)


if __name__ == "__main__":
    run(sample_hub)
