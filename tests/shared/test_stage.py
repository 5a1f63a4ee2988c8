"""A stage run as a user runs it: its outputs, its record, and what happens when something is wrong."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from shared.files import checksum

STAGE = """
from __future__ import annotations
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from shared.errors import InputError
from shared.stage import Input, Output, State, run

@dataclass(frozen=True)
class CopyOptions:
    times: int
    "How often the text is repeated."
    label: str | None = None

def copy(options: CopyOptions, *, seed: int, ending: str = "", text: Input, more: tuple[Input, ...], out: Output,
         model: Output, state: State):
    "Copy a text."
    (state / "step").write_text("1")
    out.write_text(text.read_text() * options.times + ending + str(random.random()))
    model.mkdir()
    (model / "weights").write_text("w")
    if options.label == "wrong":
        raise InputError("text: expected words")
    if options.label == "broken":
        raise RuntimeError("a bug")
    return {"letters": len(text.read_text())}

if __name__ == "__main__":
    run(copy)
"""


@pytest.fixture
def stage(tmp_path):
    """Runs the stage above as a subprocess inside a scratch project that has the real ``shared``."""
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "copying.py").write_text(textwrap.dedent(STAGE))
    shutil.copytree("shared", tmp_path / "shared", ignore=shutil.ignore_patterns("lm", "__pycache__"))
    (tmp_path / "text").write_text("ab")

    def call(*extra, text="text", **environment):
        command = [sys.executable, "-m", "papers.copying", "--times", "2", "--seed", "1", "--text", text]
        command += ["--more", "text", "text", "--out", "made/out.txt", "--model", "made/model", "--state", "made/state"]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), **environment}
        return subprocess.run(
            [*command, "--record", "made/record.json", *extra],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return call, tmp_path


def test_outputs_and_record(stage):
    call, root = stage
    result = call()
    assert result.returncode == 0, result.stderr
    made = root / "made"
    assert (made / "out.txt").read_text().startswith("abab")
    assert sorted(path.name for path in made.iterdir()) == ["model", "out.txt", "record.json"]
    record = json.loads((made / "record.json").read_text())
    assert record["stage"] == "papers.copying"
    assert record["options"] == {"options": {"times": 2, "label": None}, "seed": 1, "ending": ""}
    assert record["inputs"]["more"] == {"text": checksum(root / "text")}
    assert record["outputs"] == {name: checksum(made / file) for name, file in (("out", "out.txt"), ("model", "model"))}
    assert record["measurements"] == {"letters": 2}
    assert record["wall_seconds"] >= 0 and record["peak_memory_mib"] > 1


def test_same_seed_same_bytes(stage):
    call, root = stage
    call()
    first = checksum(root / "made" / "out.txt")
    call()
    assert checksum(root / "made" / "out.txt") == first
    call("--seed", "2")
    assert checksum(root / "made" / "out.txt") != first


def test_a_users_mistake_is_one_line_and_leaves_nothing(stage):
    call, root = stage
    result = call("--label", "wrong")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "error: text: expected words" and "Traceback" not in result.stderr
    assert sorted(path.name for path in (root / "made").iterdir()) == ["state"]


def test_a_bug_keeps_its_traceback_and_leaves_the_old_outputs(stage):
    call, root = stage
    call()
    before = checksum(root / "made" / "out.txt")
    result = call("--label", "broken")
    assert result.returncode == 1 and "a bug" in result.stderr and "Traceback" in result.stderr
    assert checksum(root / "made" / "out.txt") == before


def test_a_missing_input_is_named(stage):
    call, _ = stage
    result = call(text="nowhere")
    assert result.returncode == 1 and result.stderr.strip() == "error: nowhere: no such input file"


def test_state_of_other_options_is_not_resumed(stage):
    call, root = stage
    call("--label", "broken")
    (root / "made" / "state" / "old").touch()
    call("--label", "broken")
    assert (root / "made" / "state" / "old").exists()
    call("--label", "broken", "--times", "3")
    assert not (root / "made" / "state" / "old").exists()


def test_only_the_first_process_writes_and_records(stage):
    call, root = stage
    (root / "made" / "state").mkdir(parents=True)
    assert call(RANK="1").returncode == 0
    assert not (root / "made" / "out.txt").exists() and not (root / "made" / "record.json").exists()


def test_shows_the_options_in_force(stage):
    call, root = stage
    result = call("--show-options", text="nowhere")
    assert result.stdout == "options:\n  times: 2\n  label: null\nseed: 1\nending: ''\n"
    assert not (root / "made").exists()


def test_refuses_a_damaged_artifact(stage):
    call, root = stage
    stored = root / "store" / f"{'a' * 64}_table.txt"
    stored.parent.mkdir()
    stored.write_text("good")
    record = {"outputs": {"table": checksum(stored)}}
    stored.with_name(f"{'a' * 64}_record.json").write_text(json.dumps(record))
    (root / "link").symlink_to(stored)
    assert call(text="link").returncode == 0
    stored.write_text("goo")
    result = call(text="link")
    assert result.returncode == 1 and f"{stored.name}: damaged artifact" in result.stderr
