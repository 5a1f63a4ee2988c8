"""Select: the strength of every method, by its success on development prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from papers.stg.options import SAFE
from papers.stg.runs import parse_run
from shared.errors import InputError
from shared.files import write_json
from shared.stage import Input, Output, run
from shared.tables import read_table, write_table


def select(*, runs: tuple[str, ...], development: tuple[Input, ...], selection: Output, grid: Output) -> None:
    """Write ``selection``, a JSON object from names to selected runs, and all that was tried, ``grid``.

    The names are methods, and ``stg-as-safe-as-<method>``, see `matching_runs`.
    """
    results = pd.concat([read_table(path, ("run", "set", "dsr", "success")) for path in development], ignore_index=True)
    write_table(grid, results)
    selected = select_runs(runs, results)
    write_json(selection, selected | matching_runs(runs, results, selected))


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


def matching_runs(runs: Sequence[str], results: pd.DataFrame, selected: Mapping[str, str]) -> dict[str, str]:
    """The weakest STG whose DSR on unsafe development prompts is at least that of each other method's selected run.

    Fidelity can only be compared at equal safety. Where no strength is as safe, it is the safest.
    """
    dsr = results[results["set"] != SAFE].groupby("run")["dsr"].mean()
    ours = [text for text in runs if parse_run(text).method == "stg"]
    found = {}
    for method, text in selected.items():
        if method != "stg" and ours:
            safe_enough = [each for each in ours if dsr[each] >= dsr[text]]
            found[f"stg-as-safe-as-{method}"] = safe_enough[0] if safe_enough else max(ours, key=lambda each: dsr[each])
    return found


if __name__ == "__main__":
    run(select)
