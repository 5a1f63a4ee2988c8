"""Validate: on development prompts, whether the testbed can show what the claims are about, and what methods hold in
memory.

``gates``    parquet: method, unit (number of the prompt; empty for values of a whole seed), metric, value, seed.

``gold`` and ``crisp`` of the target sampler alone and of the best of four; ``reward_auc``, how often the reward ranks a
right image above a wrong one, among target samples and among lookahead samples of each δ, and ``reward_auc_within``,
the same for two images of one prompt; ``quality_gap``, by how much lookahead samples of the largest δ exceed those of
the least, in that or in crispness; and ``peak_mib``, the peak of the memory of tensors while the images of one prompt
are sampled.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from papers.lidar.measures import ranking, ranking_within
from papers.lidar.options import SamplerOptions, ScenePromptOptions
from papers.lidar.peak_memory import PeakMemory
from papers.lidar.runs import parse_run
from papers.lidar.sample import read_strengths
from papers.lidar.testbed import SceneBench, Strength, open_bench
from shared.stage import Input, Output, run
from shared.t2i.captions import PromptSpec
from shared.tables import write_table

POOL = 4
"""N of the best of N."""
WHOLE = ""


def validate(
    sampler: SamplerOptions,
    prompts: ScenePromptOptions,
    *,
    seed: int,
    lookahead: tuple[str, ...],
    weighed: tuple[str, ...],
    strengths: Input,
    pipeline: Input,
    guidance: Input,
    evaluator: Input,
    gates: Output,
) -> None:
    """Write the table described above.

    Args:
        lookahead: runs ``best/d<δ>-n<n>`` whose lookahead samples are looked at, by rising δ.
        weighed: runs whose memory is measured.
    """
    system = {"pipeline": pipeline, "guidance": guidance, "evaluator": evaluator}
    many, bench = (
        open_bench(sampler, prompts_per_task=count, seed=seed, split="dev", **system)
        for count in (prompts.gate_prompts_per_task, prompts.dev_prompts_per_task)
    )
    rows = target_rows(many) + lookahead_rows(bench, lookahead)
    selected = read_strengths(strengths)
    rows += [memory_row(bench, name, selected) for name in weighed]
    write_table(gates, pd.DataFrame(rows).assign(seed=seed))


def _row(method: str, metric: str, value: float, unit: str = WHOLE) -> dict[str, object]:
    return {"method": method, "unit": unit, "metric": metric, "value": float(value)}


def target_rows(bench: SceneBench) -> list[dict[str, object]]:
    """Accuracy and crispness of the target sampler and the best of four, and how well the reward ranks all of them."""
    names = {"vanilla": parse_run("vanilla"), f"bon/{POOL}": parse_run(f"bon/{POOL}")}
    judged = {name: bench.judge(bench.sample_run(each, None).latents) for name, each in names.items()}
    rows = [
        _row(name, metric, values.mean(), str(unit))
        for name, scores in judged.items()
        for metric in ("gold", "crisp")
        for unit, values in enumerate(scores[metric])
    ]
    pool, rewards = bench.pool(POOL)
    ranked = rankings(rewards, bench.judge(pool)["gold"])
    return [*rows, *(_row("vanilla", metric, value) for metric, value in ranked.items())]


def lookahead_rows(bench: SceneBench, names: tuple[str, ...]) -> list[dict[str, object]]:
    """AUC, accuracy and crispness of lookahead samples, and how much the last ones exceed the first."""
    rows, found = [], []
    for name in names:
        sets, _ = bench.lookahead(parse_run(name))
        judged = bench.judge(torch.stack([each.latents for each in sets]))
        rewards = torch.stack([each.rewards for each in sets])
        values = rankings(rewards, judged["gold"])
        values |= {metric: judged[metric].mean() for metric in ("gold", "crisp")}
        method = "lookahead/" + name.partition("/")[2].partition("-")[0]
        rows += [_row(method, metric, value) for metric, value in values.items()]
        found.append((method, values))
    (method, low), (_, high) = found[0], found[-1]
    gap = max(high[metric] - low[metric] for metric in ("reward_auc_within", "crisp"))
    return [*rows, _row(method, "quality_gap", gap)]


def rankings(rewards: torch.Tensor, gold: np.ndarray) -> dict[str, float]:
    """How well rewards (P, N) rank right images above wrong ones, over all and within prompts."""
    values = rewards.double().numpy()
    return {"reward_auc": ranking(values.ravel(), gold.ravel()), "reward_auc_within": ranking_within(values, gold)}


def memory_row(bench: SceneBench, name: str, strengths: dict[str, Strength]) -> dict[str, object]:
    """Peak memory of the images of the first prompt, beyond the networks, in two steps; more steps hold no more.

    No more samples than these images are drawn together, lookahead samples included.
    """
    each = parse_run(name)
    few = replace(bench.options, num_steps=2, steering_steps=(), batch_size=bench.images)
    first: list[PromptSpec] = bench.specs[:1]
    alone = SceneBench(few, bench.pipeline, bench.reward, bench.evaluator, first, seed=bench.seed, model=bench.model)
    with PeakMemory() as memory:
        alone.sample_run(each, strengths.get(each.tuned))
    return _row(name, "peak_mib", memory.peak / 2**20)


if __name__ == "__main__":
    run(validate)
