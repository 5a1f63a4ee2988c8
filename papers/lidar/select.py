"""Select: the strength of every method, from the trials on development prompts alone."""

from __future__ import annotations

import pandas as pd

from shared.stage import Input, Output, run
from shared.tables import read_table, write_table

COLUMNS = ["tuned", "value", "reward_weight"]
REWARD = "guidance_score"


def best_strengths(trials: pd.DataFrame, criterion: str) -> pd.DataFrame:
    """Columns tuned, value, reward_weight: of each method the strength with the highest criterion, the first of equals.

    Universal Guidance is there a second time, as ``universal-reward``, with the strength that is best for its reward.
    """
    best = trials.loc[trials.groupby("tuned")[criterion].idxmax(), COLUMNS]
    universal = trials[trials["tuned"] == "universal"]
    if len(universal):
        greedy = universal.loc[[universal[REWARD].idxmax()], COLUMNS].assign(tuned="universal-reward")
        best = pd.concat([best, greedy])
    return best.reset_index(drop=True)


def select(*, criterion: str, trials: tuple[Input, ...], strengths: Output) -> None:
    """Write the table of :func:`best_strengths`."""
    tables = [read_table(path, (*COLUMNS, criterion, REWARD)) for path in trials]
    write_table(strengths, best_strengths(pd.concat(tables, ignore_index=True), criterion))


if __name__ == "__main__":
    run(select)
