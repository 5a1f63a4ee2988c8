"""Prepare: draw the testbed's data: answers to learn from, pairs to compare, prompts to train and evaluate on."""

from __future__ import annotations

import numpy as np
import pandas as pd

from papers.wpr.options import DataOptions
from papers.wpr.testbed import LANGUAGE
from shared.lm.word_texts import to_texts
from shared.stage import Output, run
from shared.tables import write_table

# Validation and test prompts are the same for every training seed, so that seeds are paired prompt by prompt.
EVALUATION_SEED = 20_260_201
WORDS = LANGUAGE.words()


def prepare(
    options: DataOptions, *, seed: int, words: Output, supervised: Output, pairs: Output, prompts: Output
) -> None:
    """Draw the supervised examples, the pairs of answers and the prompts of one training seed."""
    words.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    rng = np.random.default_rng([seed, 0])
    asked = LANGUAGE.prompts(options.supervised_examples, rng)
    write_table(
        supervised,
        pd.DataFrame({"prompt": to_texts(asked, WORDS), "answer": to_texts(LANGUAGE.answers(asked, rng), WORDS)}),
    )

    asked = LANGUAGE.prompts(options.preference_pairs, rng)
    write_table(
        pairs,
        pd.DataFrame(
            {
                "prompt": to_texts(asked, WORDS),
                "answer_a": to_texts(LANGUAGE.answers(asked, rng), WORDS),
                "answer_b": to_texts(LANGUAGE.answers(asked, rng), WORDS),
            }
        ),
    )

    fixed = np.random.default_rng(EVALUATION_SEED)
    splits = {
        "train": LANGUAGE.prompts(options.training_prompts, rng),
        "validation": LANGUAGE.prompts(options.validation_prompts, fixed),
        "test": LANGUAGE.prompts(options.test_prompts, fixed),
    }
    write_table(
        prompts,
        pd.concat(
            [
                pd.DataFrame({"split": split, "prompt_id": np.arange(len(ids)), "prompt": to_texts(ids, WORDS)})
                for split, ids in splits.items()
            ]
        ),
    )


if __name__ == "__main__":
    run(prepare)
