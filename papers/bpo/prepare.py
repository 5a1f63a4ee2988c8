"""Prepare: draw the testbed's data: labelled pairs, prompts to evaluate on, and fresh preferred responses to them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from papers.bpo.options import DataOptions
from papers.bpo.writer_language import WORDS, PreferencePairs, all_prompts, draw_pairs_for, draw_preference_pairs
from shared.lm.word_texts import to_texts
from shared.stage import Output, run
from shared.tables import write_table

# References are the same for every training seed, so that all policies are compared with the same responses.
REFERENCE_SEED = 20_250_519


def prepare(
    options: DataOptions,
    *,
    seed: int,
    kappa: float,
    words: Output,
    supervised: Output,
    pairs: Output,
    held_out: Output,
    prompts: Output,
    references: Output,
) -> None:
    """Draw the data of one training seed under labels of sharpness ``kappa``.

    Every kappa labels the same pairs of responses.
    """
    words.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    drawn = pair_table(draw_preference_pairs(options.preference_pairs, kappa, np.random.default_rng([seed, 0])))
    write_table(pairs, drawn)
    write_table(supervised, supervised_examples(drawn))
    write_table(
        held_out, pair_table(draw_preference_pairs(options.held_out_pairs, kappa, np.random.default_rng([seed, 1])))
    )

    asked = all_prompts()
    texts = pd.DataFrame({"prompt_id": np.arange(len(asked)), "prompt": to_texts(asked, WORDS)})
    # A policy meets every prompt in training; what it is evaluated on are new responses to them.
    write_table(prompts, pd.concat([texts.assign(split=split) for split in ("validation", "test")]))
    ids = np.repeat(np.arange(len(asked)), options.references_per_prompt)
    fresh = draw_pairs_for(asked[ids], kappa, np.random.default_rng(REFERENCE_SEED))
    write_table(
        references,
        pd.DataFrame(
            {
                "prompt_id": ids,
                "sample": np.tile(np.arange(options.references_per_prompt), len(asked)),
                "response": to_texts(fresh.chosen, WORDS),
            }
        ),
    )


def pair_table(pairs: PreferencePairs) -> pd.DataFrame:
    """Columns prompt, chosen, rejected, as texts."""
    columns = {"prompt": pairs.prompts, "chosen": pairs.chosen, "rejected": pairs.rejected}
    return pd.DataFrame({name: to_texts(ids, WORDS) for name, ids in columns.items()})


def supervised_examples(pairs: pd.DataFrame) -> pd.DataFrame:
    """Columns prompt, answer: the preferred responses, which the supervised model learns from."""
    return pairs.rename(columns={"chosen": "answer"})[["prompt", "answer"]]


if __name__ == "__main__":
    run(prepare)
