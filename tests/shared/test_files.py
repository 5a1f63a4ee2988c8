"""Outputs are whole or not there."""

import pytest

from shared.files import atomic_output, checksum, partial_path, publish_partial, write_json


def test_an_output_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "table.parquet"
    with atomic_output(path) as partial:
        partial.write_text("whole")
        assert partial.suffix == ".parquet" and not path.exists()
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_an_exception_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "table.parquet"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_output(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_a_folder_and_a_link(tmp_path):
    elsewhere = tmp_path / "store"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    for make_old in (lambda path: path.symlink_to(elsewhere), lambda path: path.mkdir()):
        path = tmp_path / "model"
        make_old(path)
        partial_path(path).mkdir()
        (partial_path(path) / "weights").write_text("new")
        publish_partial(path)
        assert not path.is_symlink() and [entry.name for entry in path.iterdir()] == ["weights"]
        (path / "weights").unlink()
        path.rmdir()
    assert (elsewhere / "kept").exists()


def test_json_is_the_same_whatever_the_order_of_keys(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1, "y": 2})
    write_json(tmp_path / "b.json", {"y": 2, "x": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_checksum_of_a_folder_sees_names_content_and_places(tmp_path):
    def folder(name, files):
        for file, text in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return checksum(tmp_path / name)

    first = folder("one", {"a": "1", "b/c": "2"})
    assert first == folder("two", {"a": "1", "b/c": "2", ".snakemake_timestamp": "now"})
    others = [{"a": "2", "b/c": "1"}, {"a": "1", "c": "2"}, {"a": "1"}, {"a": "1", "b/c": "2", "d": ""}]
    assert first not in {folder(f"other{index}", files) for index, files in enumerate(others)}
