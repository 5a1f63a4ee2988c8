"""An invented paper with tables in which every kind of verdict occurs."""

import numpy as np
import yaml

from shared import results
from shared.claims import Paper

DOCUMENT = yaml.safe_load("""
id: demo
title: "Demonstrations <are> all you need: a study of A & B"
authors: [A. Author, B. Writer]
venue: Imaginary Conference 2026
arxiv: "2601.01234"
code: https://example.org/demo
summary: Regularise with a demonstration and the gold reward rises where the annotators are biased.
metrics: {gold: "Gold reward (higher is better)", kl: "KL to the reference, nats"}
methods: {ours: Our method, theirs: PPO with reverse KL, shuffled: Ours with shuffled costs}
settings: {A: biased annotators, B: unbiased annotators}
reported:
  - {table: Table 1, setting: "TL;DR, win rate against SFT", method: ours, value: 0.924}
  - {table: Table 1, setting: "TL;DR, win rate against SFT", method: theirs, value: 0.848}
claims:
  - id: beats-kl
    statement: The method reaches a higher gold reward than reverse-KL PPO
    reported: {value: 0.608, quantity: win rate against PPO, source: "Table 1, TL;DR"}
    guards:
      - {name: the reward model learns, setting: A, metric: accuracy, method: reward_model, direction: greater,
         threshold: 0.52}
    tests:
      - {name: biased annotators, setting: A, metric: gold, method: ours, baseline: theirs, direction: greater}
      - {name: unbiased annotators, setting: B, metric: gold, method: ours, baseline: theirs, direction: greater}
  - id: semantic
    statement: Shuffled costs do worse
    reported:
      - {value: 0.216, quantity: Pearson correlation, source: Table 7}
      - {quantity: direction only, source: Table 8}
    tests:
      - {name: against shuffled costs, setting: A, metric: gold, method: ours, baseline: shuffled, direction: greater,
         margin: 0.05}
  - id: iterations
    statement: More iterations change nothing
    tests:
      - {name: 30 against 10 iterations, setting: A, metric: gold, method: ours_30, baseline: ours,
         direction: equivalent, margin: 0.05}
  - id: cheap
    statement: The penalty takes at most 5 % of a step
    reported: {value: 0.025, quantity: share of time, source: Table 15}
    tests:
      - {name: share of the step, setting: A, metric: penalty_share, method: ours, direction: less, threshold: 0.05}
  - id: wins
    statement: It wins more than half of its comparisons under unbiased annotators
    tests:
      - {name: win rate, setting: B, metric: wins, method: ours, direction: greater, threshold: 0.5}
  - id: larger-where-biased
    statement: The gain is larger where annotators are biased
    note: Not tested in the paper.
    tests:
      - {name: gain in A less gain in B, setting: A, metric: gold, method: ours, baseline: theirs,
         minus: {method: ours, baseline: theirs, setting: B}, direction: greater}
""")

# Mean gold reward by method and setting.
GOLD = {
    ("ours", "A"): 0.62,
    ("theirs", "A"): 0.47,
    ("shuffled", "A"): 0.48,
    ("ours_30", "A"): 0.625,
    ("ours", "B"): 0.80,
    ("theirs", "B"): 0.84,
}
VERDICTS = {
    "beats-kl": "conditional",
    "semantic": "supported",
    "iterations": "supported",
    "cheap": "contradicted",
    "wins": "inconclusive",
    "larger-where-biased": "supported",
}


def paper(**changes):
    return Paper.model_validate(DOCUMENT | changes)


def tables(*, scale="small", seeds=(0, 1, 2), prompts=60, random=0):
    """Metrics and units tables: gold and wins per prompt, the rest per seed."""
    generator = np.random.default_rng(random)
    units, metrics = [], []
    for seed in seeds:
        prompt_effect = generator.normal(0.0, 0.2, size=prompts)
        for (method, setting), mean in GOLD.items():
            key = {"paper": "demo", "scale": scale, "method": method, "setting": setting, "seed": seed}
            gold = mean + generator.normal(0.0, 0.004) + prompt_effect + generator.normal(0.0, 0.05, size=prompts)
            units += [
                key | {"unit": f"p{unit:03}", "metric": "gold", "value": value} for unit, value in enumerate(gold)
            ]
            metrics.append(key | {"metric": "kl", "value": 2.0 + generator.normal(0.0, 0.1), "wall_seconds": 5.0})
        key = {"paper": "demo", "scale": scale, "seed": seed}
        ours_b = key | {"method": "ours", "setting": "B", "metric": "wins"}
        wins = np.resize([1.0, 0.0, 0.5, 0.5], prompts)
        units += [ours_b | {"unit": f"p{unit:03}", "value": value} for unit, value in enumerate(wins)]
        metrics.append(
            key | {"method": "ours", "setting": "A", "metric": "penalty_share", "value": 0.08 + 0.001 * seed}
        )
        metrics.append(
            key | {"method": "reward_model", "setting": "A", "metric": "accuracy", "value": 0.55 + 0.002 * seed}
        )
    units = results.units_table(units)
    return results.metrics_table([*metrics, *results.aggregate(units).to_dict("records")]), units
