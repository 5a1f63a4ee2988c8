"""Select: for every method the candidate with the best accuracy on held-out images of the sources."""

from __future__ import annotations

import pandas as pd

from papers.udim.methods import parse_run
from papers.udim.options import SOURCE
from shared.files import write_json
from shared.stage import Input, Output, run
from shared.tables import read_table, write_table


def select(*, runs: tuple[Input, ...], accuracies: tuple[Input, ...], hyperparameters: Output, grid: Output) -> None:
    """Write the hyperparameters selected for each method, and the table of all candidates.

    ``grid`` has run, method, its hyperparameters, source_accuracy and source_loss on held-out images of the sources,
    whether it was selected, and for information alone unseen_accuracy, the mean over the targets; selection does not
    see it.
    """
    trained = pd.concat([read_table(path) for path in runs], ignore_index=True)
    measured = pd.concat([read_table(path) for path in accuracies], ignore_index=True)
    is_source = measured["domain"] == SOURCE
    source = measured[is_source].groupby("run")[["accuracy", "loss"]].mean()
    unseen = measured[~is_source].groupby("run")["accuracy"].mean()
    per_run = trained.groupby("run", sort=False)[["learning_rate", "rho", "data_radius", "weight"]].first()
    candidates = per_run.assign(
        source_accuracy=source["accuracy"], source_loss=source["loss"], unseen_accuracy=unseen
    ).reset_index()
    candidates["method"] = [parse_run(name).method for name in candidates["run"]]
    chosen = best_candidates(candidates)
    write_table(grid, candidates.assign(selected=candidates["run"].isin(chosen.values())))
    write_json(hyperparameters, {method: dict(parse_run(name).overrides) for method, name in chosen.items()})


def best_candidates(candidates: pd.DataFrame) -> dict[str, str]:
    """The selected run of each method: best accuracy on the sources, then lowest loss.

    Args:
        candidates: columns run, method, source_accuracy, source_loss.
    """
    ordered = candidates.sort_values(["source_accuracy", "source_loss"], ascending=[False, True], kind="stable")
    return ordered.drop_duplicates("method").set_index("method")["run"].to_dict()


if __name__ == "__main__":
    run(select)
