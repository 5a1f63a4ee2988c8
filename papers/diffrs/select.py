"""Select: in every setting, for every method the candidate with the best primary metric on the tuning seed."""

from __future__ import annotations

import pandas as pd

from papers.diffrs.methods import parse_run
from papers.diffrs.options import PRIMARY
from shared.files import write_json
from shared.stage import Input, Output, run
from shared.tables import read_table, write_table


def select(*, runs: tuple[Input, ...], selection: Output, grid: Output) -> None:
    """Write the hyperparameters selected, and the table of all candidates.

    ``grid`` has setting, method, run, nfe, value of the primary metric, and whether it was selected.
    """
    tables = [read_table(path, ("setting", "run", "nfe")) for path in runs]
    candidates = pd.concat([candidate_rows(table) for table in tables], ignore_index=True)
    chosen = best_candidates(candidates)
    keys = pd.MultiIndex.from_frame(candidates[["setting", "run"]])
    write_table(grid, candidates.assign(selected=keys.isin(list(zip(chosen["setting"], chosen["run"], strict=True)))))
    settings: dict[str, dict[str, dict[str, float]]] = {}
    for row in chosen.itertuples():
        settings.setdefault(row.setting, {})[row.method] = dict(parse_run(row.run).overrides)
    write_json(selection, settings)


def candidate_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """Columns setting, method, run, nfe, value of a table of one job's runs."""
    metric = next(name for name in dict.fromkeys(PRIMARY.values()) if name in runs)
    named = runs[["setting", "run", "nfe"]].assign(value=runs[metric])
    return named.assign(method=[parse_run(name).method for name in named["run"]])


def best_candidates(candidates: pd.DataFrame) -> pd.DataFrame:
    """The row of the least value for each setting and method; of equal ones the cheapest."""
    ordered = candidates.sort_values(["setting", "method", "value", "nfe"], kind="stable")
    return ordered.drop_duplicates(["setting", "method"])


if __name__ == "__main__":
    run(select)
