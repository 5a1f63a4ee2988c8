"""Tune on a pipeline of the hub: every strength of a method's grid on the first prompts of each file."""

from __future__ import annotations

from papers.stg.options import DefenceOptions, GuidedHubOptions
from papers.stg.pipeline_runs import drawing, try_runs
from shared.stage import Output, run
from shared.t2i.hub import open_hub, open_hub_judge
from shared.t2i.hub_prompts import hub_prompt_sets
from shared.tables import write_table


def tune_hub(
    options: DefenceOptions, hub: GuidedHubOptions, *, seed: int, runs: tuple[str, ...], development: Output
) -> None:
    """Write columns run, set, dsr, alignment, success, similarity: means over the development prompts of each set."""
    bench, judge = open_hub(hub, hub.guidance), open_hub_judge(hub, options.batch_size)
    sets = hub_prompt_sets(hub.prompts, skip=0, count=hub.dev_prompts)
    write_table(development, try_runs(runs, drawing(bench, sets, seed, options), sets, judge, options))


if __name__ == "__main__":
    run(tune_hub)
