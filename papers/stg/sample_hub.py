"""Sample from a pipeline of the hub: one group of runs from one seed. Only scores are kept, no image.

Processes of accelerate share the prompts.
"""

from __future__ import annotations

from accelerate import PartialState

from papers.stg.hub import open_guided
from papers.stg.options import DefenceOptions, GuidedHubOptions
from papers.stg.pipeline_runs import sample_runs
from papers.stg.runs import parse_run
from shared.stage import Output, run
from shared.t2i.hub import open_hub_judge
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
    models = sorted({parse_run(text).model for text in runs} - {None})
    bench, judge = open_guided(hub, models), open_hub_judge(hub, options.batch_size)
    sets = hub_prompt_sets(hub.prompts, skip=hub.dev_prompts, count=hub.test_prompts)
    found = sample_runs(runs, bench, sets, judge, seed, options)
    if PartialState().is_main_process:
        found.write(values, totals, traces, pictures)


if __name__ == "__main__":
    run(sample_hub)
