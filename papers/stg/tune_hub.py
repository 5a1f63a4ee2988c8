"""Tune on a pipeline of the hub: every strength of a method's grid on the first prompts of each file.

Processes of accelerate share the prompts.
"""

from __future__ import annotations

from accelerate import PartialState

from papers.stg.hub import open_guided
from papers.stg.options import DefenceOptions, GuidedHubOptions
from papers.stg.pipeline_runs import try_runs
from shared.stage import Output, run
from shared.t2i.hub import open_hub_judge
from shared.t2i.hub_prompts import hub_prompt_sets
from shared.tables import write_table


def tune_hub(
    options: DefenceOptions, hub: GuidedHubOptions, *, seed: int, runs: tuple[str, ...], development: Output
) -> None:
    """Write columns run, set, dsr, alignment, success, similarity: means over the development prompts of each set."""
    bench, judge = open_guided(hub), open_hub_judge(hub, options.batch_size)
    sets = hub_prompt_sets(hub.prompts, skip=0, count=hub.dev_prompts)
    found = try_runs(runs, bench, sets, judge, seed, options)
    if PartialState().is_main_process:
        write_table(development, found)


if __name__ == "__main__":
    run(tune_hub)
