"""Annotate: have biased annotators choose between the two answers of every pair."""

from __future__ import annotations

import numpy as np
import pandas as pd

from papers.wpr.options import AnnotationOptions
from papers.wpr.testbed import LANGUAGE, annotator_utility, preferred, response_statistics
from shared.lm.word_texts import to_ids
from shared.stage import Input, Output, run
from shared.tables import read_table, write_table


def annotate(options: AnnotationOptions, *, seed: int, bias: float, pairs: Input, preferences: Output) -> None:
    """Turn ``pairs`` (prompt, answer_a, answer_b) into preferences (prompt, chosen, rejected).

    ``bias`` is what the annotators give for a boilerplate word in every place, in units of the gold reward.
    """
    table = read_table(pairs, ("prompt", "answer_a", "answer_b"))
    prompts = to_ids(table["prompt"], LANGUAGE.words())
    utilities = [
        annotator_utility(response_statistics(prompts, to_ids(table[column], LANGUAGE.words())), bias=bias)
        for column in ("answer_a", "answer_b")
    ]
    chooses_a = preferred(*utilities, sharpness=options.sharpness, rng=np.random.default_rng([seed, 1]))
    write_table(
        preferences,
        pd.DataFrame(
            {
                "prompt": table["prompt"],
                "chosen": np.where(chooses_a, table["answer_a"], table["answer_b"]),
                "rejected": np.where(chooses_a, table["answer_b"], table["answer_a"]),
            }
        ),
    )


if __name__ == "__main__":
    run(annotate)
