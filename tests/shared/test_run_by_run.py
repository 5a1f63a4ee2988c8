import pandas as pd
import pytest

from shared.files import write_json
from shared.run_by_run import FINISHED, RunFolders, run_seconds
from shared.tables import write_table


def make(folder, value):
    write_table(folder / "samples.parquet", pd.DataFrame({"value": [value, -value]}))
    write_json(folder / FINISHED, {"seconds": value})


def test_only_what_is_not_finished_is_made_again(tmp_path):
    runs = RunFolders(tmp_path, ["a:0.1", "off-policy/b", "c"])
    for number, (name, folder) in enumerate(runs.unfinished()):
        if name == "c":
            write_table(folder / "samples.parquet", pd.DataFrame({"value": [9.0]}))  # killed before it had finished
            break
        make(folder, float(number))
    assert [name for name, _ in runs.unfinished()] == ["c"]
    with pytest.raises(FileNotFoundError):
        runs.records()
    make(runs.folder("c"), 2.0)
    assert list(runs.unfinished()) == []
    assert runs.records() == {"a:0.1": {"seconds": 0.0}, "off-policy/b": {"seconds": 1.0}, "c": {"seconds": 2.0}}
    gathered = runs.gather("samples", lambda name: {"method": name, "seed": 3})
    assert gathered["method"].tolist() == ["a:0.1"] * 2 + ["off-policy/b"] * 2 + ["c"] * 2
    assert gathered["value"].tolist() == [0, 0, 1, -1, 2, -2] and set(gathered["seed"]) == {3}


def test_folders_of_runs_lie_side_by_side(tmp_path):
    folders = [RunFolders(tmp_path, []).folder(name) for name in ("x/y", "x", "x:0.5")]
    assert {folder.parent for folder in folders} == {tmp_path} and len(set(folders)) == 3


def test_a_run_may_lack_a_table_and_all_may(tmp_path):
    runs = RunFolders(tmp_path, ["a", "b"])
    for name, folder in runs.unfinished():
        write_json(folder / FINISHED, {})
        if name == "b":
            write_table(folder / "curves.parquet", pd.DataFrame({"step": [1]}))
    assert runs.gather("curves")["run"].tolist() == ["b"]
    assert runs.gather("margins").columns.tolist() == ["run"] and runs.gather("margins").empty


def test_seconds_of_runs_come_from_the_records_of_their_jobs(tmp_path):
    for seed in (0, 1):
        options = {"setting": "noisy", "seed": seed, "other": 1}
        times = {"a": 1.5 + seed, "b": 2.0}
        record = {"options": options, "measurements": {"seconds": times}, "outputs": {}}
        write_json(tmp_path / f"{seed}.json", record)
    found = run_seconds([tmp_path / "0.json", tmp_path / "1.json"])
    assert found.columns.tolist() == ["setting", "seed", "method", "wall_seconds"]
    assert found.to_numpy().tolist() == [
        ["noisy", 0, "a", 1.5], ["noisy", 0, "b", 2.0], ["noisy", 1, "a", 2.5], ["noisy", 1, "b", 2.0]
    ]  # fmt: skip
