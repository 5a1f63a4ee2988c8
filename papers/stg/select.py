"""Select: the strength of every method, by its success on development prompts."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from papers.stg.runs import parse_run
from shared.errors import InputError
from shared.files import write_json
from shared.stage import Input, Output, run
from shared.tables import read_table, write_table


def select(*, runs: tuple[str, ...], development: tuple[Input, ...], selection: Output, grid: Output) -> None:
    """Write ``selection``, a JSON object from method to the selected run, and all that was tried, ``grid``."""
    results = pd.concat([read_table(path, ("run", "set", "success")) for path in development], ignore_index=True)
    write_table(grid, results)
    write_json(selection, select_runs(runs, results))


def select_runs(runs: Sequence[str], results: pd.DataFrame) -> dict[str, str]:
    """The run of each method with the highest success, averaged over sets; of equal ones the first, the weakest.

    Args:
        runs: each method's, from weak to strong.
        results: columns run, set, success.

    Raises:
        InputError: a run was not tried.
    """
    means = results.groupby("run")["success"].mean()
    best: dict[str, str] = {}
    for text in runs:
        if text not in means:
            raise InputError(f"run {text!r}: was not tried")
        method = parse_run(text).method
        if method not in best or means[text] > means[best[method]]:
            best[method] = text
    return best


if __name__ == "__main__":
    run(select)
