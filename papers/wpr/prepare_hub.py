"""Prepare a data set of the paper: split its preference pairs for supervised learning, reward model and PPO."""

from __future__ import annotations

import numpy as np
import pandas as pd

from papers.wpr.options import HubDataOptions
from shared.errors import InputError
from shared.lm.preference_data import read_preferences
from shared.stage import Output, run
from shared.tables import write_table


def prepare_hub(
    options: HubDataOptions, *, seed: int, words: Output, supervised: Output, preferences: Output, prompts: Output
) -> dict[str, int]:
    """Split the pairs 20/40/40 as the paper's code does: preferred answers to learn from, pairs, and prompts."""
    table, left_out = read_preferences(options.train, options.dataset)
    evaluation, _ = read_preferences(options.evaluation, options.dataset)
    evaluation = evaluation.drop_duplicates("prompt")
    needed = options.validation_prompts + options.test_prompts
    if len(evaluation) < needed:
        raise InputError(f"{options.evaluation}: {needed} prompts are asked for, but there are only {len(evaluation)}")
    # No training on a prompt that results are reported on.
    table = table[~table["prompt"].isin(evaluation["prompt"])]
    order = np.random.default_rng(options.split_seed).permutation(len(table))
    ends = np.cumsum([options.supervised_share, options.reward_share]) * len(table)
    for_supervised, for_reward, for_policy = np.split(order, np.round(ends).astype(int))
    examples = table.iloc[for_supervised]
    write_table(supervised, pd.DataFrame({"prompt": examples["prompt"], "answer": examples["chosen"]}))
    write_table(preferences, table.iloc[for_reward])
    chosen = evaluation.sample(needed, random_state=options.split_seed)["prompt"]
    splits = {
        "train": table.iloc[for_policy]["prompt"],
        "validation": chosen[: options.validation_prompts],
        "test": chosen[options.validation_prompts :],
    }
    write_table(
        prompts,
        pd.concat(
            pd.DataFrame({"split": split, "prompt_id": np.arange(len(texts)), "prompt": texts.to_numpy()})
            for split, texts in splits.items()
        ),
    )
    words.write_text("", encoding="utf-8")  # pretrained models bring their vocabulary
    return {"pairs": len(table), "left_out": left_out}


if __name__ == "__main__":
    run(prepare_hub)
