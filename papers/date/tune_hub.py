"""Tune on a pipeline of the hub: every candidate strength of some variants on development prompts."""

from __future__ import annotations

from accelerate import PartialState

from papers.date.hub import open_hub
from papers.date.options import HubOptions, SamplerOptions, TuneOptions
from papers.date.tune import try_strengths
from shared.stage import Input, Output, run
from shared.t2i.prompt_files import read_prompts, split_prompts
from shared.tables import write_table


def tune_hub(
    sampler: SamplerOptions,
    hub: HubOptions,
    options: TuneOptions,
    *,
    seed: int,
    variants: tuple[str, ...],
    prompts: Input,
    trials: Output,
) -> None:
    """Write the table of :func:`papers.date.tune.try_strengths`."""
    split = split_prompts(read_prompts(prompts), dev=hub.dev_prompts, test=hub.test_prompts, seed=hub.split_seed)
    bench = open_hub(sampler, hub, split["dev"], seed=seed)
    found = try_strengths(bench, variants, options)
    if PartialState().is_main_process:
        write_table(trials, found)


if __name__ == "__main__":
    run(tune_hub)
