"""Select: the learning rate of every run, by its ROUGE-L on the validation prompts of the tuning seed."""

from __future__ import annotations

import pandas as pd

from papers.csd.runs import parse_run
from shared.errors import InputError
from shared.files import write_json
from shared.stage import Input, Output, run
from shared.tables import read_table, write_table


def select(*, runs: tuple[str, ...], validation: tuple[Input, ...], rates: Output, grid: Output) -> None:
    """Write ``rates``, a JSON object from run to learning rate, and all validation results, ``grid``."""
    results = pd.concat(
        [read_table(path, ("run", "learning_rate", "rouge_l")) for path in validation], ignore_index=True
    )
    write_table(grid, results)
    write_json(rates, select_rates(runs, results))


def select_rates(runs: tuple[str, ...], results: pd.DataFrame) -> dict[str, float]:
    """The rate with the highest ROUGE-L of the run that each is tuned as; the smaller of two equal ones.

    Raises:
        InputError: a run was not tuned.
    """
    ordered = results.sort_values("learning_rate", kind="stable")
    best = ordered.loc[ordered.groupby("run")["rouge_l"].idxmax()].set_index("run")["learning_rate"]
    rates = {}
    for text in runs:
        planned = parse_run(text)
        if planned.is_trained:
            if str(planned.tuned_as) not in best:
                raise InputError(f"run {text!r}: no validation results of {planned.tuned_as}, as which it is tuned")
            rates[text] = float(best[str(planned.tuned_as)])
    return rates


if __name__ == "__main__":
    run(select)
