"""Prepare a public preference data set: pairs to learn from, pairs and prompts to evaluate on."""

from __future__ import annotations

import numpy as np
import pandas as pd

from papers.bpo.options import HubDataOptions
from papers.bpo.prepare import supervised_examples
from shared.errors import InputError
from shared.lm.preference_data import is_single_turn, read_preferences
from shared.stage import Output, run
from shared.tables import write_table


def prepare_hub(
    options: HubDataOptions,
    *,
    seed: int,
    words: Output,
    supervised: Output,
    pairs: Output,
    held_out: Output,
    prompts: Output,
    references: Output,
) -> dict[str, int]:
    """Split a data set. Prompts to evaluate on are the same for every seed, held-out pairs are drawn anew for each.

    ``words`` stays empty: pretrained models have a vocabulary of their own.
    """
    train, left_out = read_preferences(options.train, options.dataset, template=options.template)
    test, left_out_of_test = read_preferences(options.test, options.dataset, template=options.template)
    if options.single_turn:
        train, test = (table[table["prompt"].map(is_single_turn)] for table in (train, test))
    fixed = np.random.default_rng(options.split_seed)
    chosen_test = drawn(test.drop_duplicates("prompt"), options.test_prompts, fixed, options.test)
    # No training on a prompt that results are reported on.
    train = train[~train["prompt"].isin(chosen_test["prompt"])]
    validation = drawn(train.drop_duplicates("prompt"), options.validation_prompts, fixed, options.train)
    train = train[~train["prompt"].isin(validation["prompt"])]
    rng = np.random.default_rng([options.split_seed, seed])
    kept = drawn(train, options.held_out_pairs, rng, options.train)
    learned = train.drop(index=kept.index)
    if learned.empty:
        raise InputError(f"{options.train}: nothing is left to learn from")

    words.write_text("", encoding="utf-8")
    write_table(pairs, learned)
    write_table(held_out, kept)
    write_table(supervised, supervised_examples(learned))
    splits = {"validation": validation, "test": chosen_test}
    write_table(
        prompts,
        pd.concat(
            [
                pd.DataFrame({"prompt_id": np.arange(len(rows)), "prompt": rows["prompt"].to_numpy(), "split": split})
                for split, rows in splits.items()
            ]
        ),
    )
    write_table(
        references,
        pd.DataFrame({"prompt_id": np.arange(len(chosen_test)), "sample": 0, "response": chosen_test["chosen"]}),
    )
    return {"pairs": len(learned), "left_out": left_out, "left_out_of_test": left_out_of_test}


def drawn(table: pd.DataFrame, count: int, rng: np.random.Generator, source: str) -> pd.DataFrame:
    """``count`` random rows, in their order.

    Raises:
        InputError: there are fewer.
    """
    if count > len(table):
        raise InputError(f"{source}: {count} rows are to be set apart, but there are only {len(table)}")
    return table.iloc[np.sort(rng.permutation(len(table))[:count])]


if __name__ == "__main__":
    run(prepare_hub)
