"""Several runs in one job, one after another, each in a folder of the job's state.

A run writes its tables into its folder, and last of all ``finished.json``. A job that is killed goes on with the run it
was in, and at the end gathers the tables of all::

    runs = RunFolders(state, ["wpr:0.3", "rkl:0.1"])
    for name, folder in runs.unfinished():
        ...
        write_table(folder / "samples.parquet", table)
        write_json(folder / FINISHED, {"seconds": seconds})
    write_table(samples, runs.gather("samples"))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from shared.artifacts import read_record
from shared.tables import read_table

FINISHED = "finished.json"


@dataclass(frozen=True)
class RunFolders:
    """The folders of a job's runs."""

    state: Path
    """The job's state folder (:data:`shared.stage.State`)."""
    names: Sequence[str]
    """Distinct names of the runs, in the order in which they are made; a slash in one becomes ``--`` on disk."""

    def folder(self, name: str) -> Path:
        """The folder of a run."""
        return self.state / name.replace("/", "--")

    def unfinished(self) -> Iterator[tuple[str, Path]]:
        """Runs that are still to be made, with their folders."""
        for name in self.names:
            if not (self.folder(name) / FINISHED).exists():
                yield name, self.folder(name)

    def records(self) -> dict[str, Any]:
        """What each run wrote into its ``finished.json``.

        Raises:
            FileNotFoundError: a run has not been made.
        """
        return {name: json.loads((self.folder(name) / FINISHED).read_text(encoding="utf-8")) for name in self.names}

    def gather(
        self, table: str, columns: Callable[[str], Mapping[str, object]] = lambda name: {"run": name}
    ) -> pd.DataFrame:
        """The tables ``<table>.parquet`` of the runs that wrote one, below each other.

        Args:
            table: their name.
            columns: of each run, by its name: constants put beside its rows.
        """
        parts = []
        for name in self.names:
            path = self.folder(name) / f"{table}.parquet"
            if path.exists():
                parts.append(read_table(path).assign(**columns(name)))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(columns(self.names[0])))


def run_seconds(records: Iterable[Path]) -> pd.DataFrame:
    """Time of every run of several jobs: setting, seed, method (the run's name), wall_seconds.

    Args:
        records: of jobs with the options ``setting`` and ``seed``, whose measurement ``seconds`` holds every run's.
    """
    rows = []
    for path in records:
        record = read_record(path)
        label = {name: record["options"][name] for name in ("setting", "seed")}
        times = record["measurements"]["seconds"]
        rows += [{**label, "method": name, "wall_seconds": seconds} for name, seconds in times.items()]
    return pd.DataFrame(rows, columns=["setting", "seed", "method", "wall_seconds"])
