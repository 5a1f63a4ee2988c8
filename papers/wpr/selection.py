"""Selection of the penalty weight: the same rule for every method, on validation prompts alone."""

from __future__ import annotations

import numpy as np
import pandas as pd

from papers.wpr.testbed import judge_texts


def quality(samples: pd.DataFrame, judge: str) -> np.ndarray:
    """Quality of every response, (n,): the gold reward for judge ``gold``, the reward model's score for ``score``."""
    if judge == "gold":
        return judge_texts(samples["prompt"], samples["response"])["gold"]
    return samples["score"].to_numpy()


def select_weights(samples: pd.DataFrame, judge: str) -> dict[str, float]:
    """The penalty weight of each method with the highest mean quality on the validation prompts.

    Args:
        samples: responses of one training seed in one setting (columns method, beta, split, prompt, response, score);
            rows of other splits are not looked at.
        judge: see :func:`quality`.

    Of weights that tie, the largest, which stays closest to the reference model, is taken.
    """
    validation = samples[samples["split"] == "validation"]
    means = validation.assign(quality=quality(validation, judge)).groupby(["method", "beta"])["quality"].mean()
    ranked = means.reset_index().sort_values(["quality", "beta"])
    return ranked.groupby("method")["beta"].last().to_dict()
