"""Sample from a pipeline of the hub and unlearned models of it: one group of runs from one seed.

What concept inversion learns is itself an attack on the model. It is learned here, where it is used, and goes nowhere.
Images are not kept either, only scores. Processes of accelerate share the inversions and the prompts.
"""

from __future__ import annotations

import json

from accelerate import PartialState
from torch import Tensor

from papers.implicit_negatives.hub import open_unlearned
from papers.implicit_negatives.hub_runs import invert_together, sample_together
from papers.implicit_negatives.invert import invert_on
from papers.implicit_negatives.measurement import System, concept_of
from papers.implicit_negatives.options import GuidanceOptions, InversionOptions, UnlearnedHubOptions
from papers.implicit_negatives.runs import BASE, parse_run
from shared.stage import Input, Output, run
from shared.t2i.hub import open_hub_judge
from shared.t2i.hub_prompts import hub_prompt_sets


def sample_hub(
    options: GuidanceOptions,
    inversion: InversionOptions,
    hub: UnlearnedHubOptions,
    *,
    seed: int,
    runs: tuple[str, ...],
    selection: Input,
    values: Output,
    totals: Output,
    pictures: Output,
) -> None:
    """Invert the concept on the models that ``runs`` name, and sample them on the test prompts of each file."""
    parsed = [parse_run(text) for text in runs]
    sources = sorted({each.inverted_on for each in parsed} - {None})
    models = sorted(({each.model for each in parsed} | set(sources)) - {BASE})
    bench, latents = open_unlearned(hub, models)

    def invert(model: str) -> Tensor:
        network = bench.on(None if model == BASE else model)
        draw = (seed, sources.index(model))
        return invert_on(network, latents, inversion, inversion.inversion_target, draw)[0]

    system = System(bench, open_hub_judge(hub, options.batch_size), invert_together(sources, invert))
    strengths = json.loads(selection.read_text(encoding="utf-8"))
    sets = hub_prompt_sets(hub.prompts, skip=hub.dev_prompts, count=hub.test_prompts)
    found = sample_together(runs, strengths, system, sets, concept_of(bench, options), seed, options)
    if PartialState().is_main_process:
        found.write(values, totals, pictures)


if __name__ == "__main__":
    run(sample_hub)
