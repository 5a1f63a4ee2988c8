"""Phase 1 on a pipeline of the hub: lookahead sets of all prompts, one file for each."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState

from papers.lidar.hub import draw_sets, open_hub, own_prompts
from papers.lidar.options import HubOptions, SamplerOptions, SolverOptions
from shared.stage import Input, Output, State, run


def draw_sets_hub(
    sampler: SamplerOptions,
    hub: HubOptions,
    solver: SolverOptions,
    *,
    seed: int,
    name: str,
    prompts: Input,
    state: State,
    sets: Output,
) -> dict[str, Any]:
    """Draw sets with the solver of this name (``d<δ>``); a killed job goes on from those that are written already.

    Processes of accelerate share the prompts. ``sets`` is the folder.
    """
    folder = state / "sets"
    folder.mkdir(parents=True, exist_ok=True)
    own = own_prompts(prompts, hub)
    draw_sets(open_hub(sampler, hub, seed=seed, solver=solver), own, name, solver, folder)
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        folder.rename(sets)
    return {"sets": len(own)}


if __name__ == "__main__":
    run(draw_sets_hub)
