"""Runs on systems of the hub, and processes that share their prompts."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hub_process import GUIDANCE, RUNS, SETS
from safetensors.torch import load_file
from safety_cases import tiny_bench, tiny_judge

from papers.implicit_negatives import hub_runs
from papers.implicit_negatives.measurement import System, concept_of, sample_all
from papers.implicit_negatives.runs import parse_run
from shared.t2i.prompt_shares import own_share
from shared.tables import read_table

PROCESS = Path(__file__).with_name("hub_process.py")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def system():
    bench = tiny_bench()
    words = torch.randn(2, bench.text.table.shape[1], generator=torch.Generator().manual_seed(0))
    return System(bench, tiny_judge(), {"base": words[0], "duo": words[1]})


def test_one_process_finds_what_the_testbeds_stages_find(system):
    concept = concept_of(system.bench, GUIDANCE)
    arguments = (RUNS, {"sld": 3.0}, system, SETS, concept, 0, GUIDANCE)
    found, expected = hub_runs.sample_together(*arguments), sample_all(*arguments)
    for table, other in zip(found.values, expected.values, strict=True):
        pd.testing.assert_frame_equal(table, other)
    assert [row["run"] for row in found.totals] == list(RUNS)
    assert [row["evaluations"] for row in found.totals] == [row["evaluations"] for row in expected.totals]


def test_the_same_run_is_sampled_once(system, monkeypatch):
    sampled = []
    real = hub_runs.sample_run
    monkeypatch.setattr(hub_runs, "sample_run", lambda run, *rest: sampled.append(run.name) or real(run, *rest))
    concept = concept_of(system.bench, GUIDANCE)
    names = ["sld/explicit", "sld:3/explicit"]
    found = hub_runs.judged_together(names, {"sld": 3.0}, system, SETS, concept, 0, GUIDANCE)
    assert [each.name for each in found] == names
    assert sampled == ["none", "sld:3/explicit"]


def test_a_share_starts_from_the_noise_of_its_prompts(system, monkeypatch):
    whole = hub_runs.sample_run(parse_run("sld:3/implicit@duo"), system, own_share(SETS), 0, GUIDANCE)
    for index in range(2):
        process = SimpleNamespace(process_index=index, num_processes=2)
        monkeypatch.setattr("shared.t2i.prompt_shares.PartialState", lambda process=process: process)
        part = hub_runs.sample_run(parse_run("sld:3/implicit@duo"), system, own_share(SETS), 0, GUIDANCE)
        torch.testing.assert_close(part.images, whole.images[index::2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("models", "index", "own"), [
    (["a", "b", "c"], 0, ["a", "c"]),
    (["a", "b", "c"], 1, ["b"]),
    (["a"], 1, ["a"]),  # which would otherwise wait
    ([], 1, []),
])  # fmt: skip
def test_processes_share_the_inversions(models, index, own, monkeypatch):
    process = SimpleNamespace(process_index=index, num_processes=2)
    monkeypatch.setattr(hub_runs, "PartialState", lambda: process)
    asked = []
    monkeypatch.setattr(hub_runs, "gather_items", lambda items: [("a", torch.zeros(1)), *items])
    found = hub_runs.invert_together(models, lambda model: asked.append(model) or torch.ones(1))
    assert asked == own
    assert found["a"] == 0  # of the first process that learned it
    assert set(found) == {"a", *own}


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    for name, launcher in (("one", []), ("two", launch)):
        (tmp_path / name).mkdir()
        command = [sys.executable, *launcher, str(PROCESS), str(tmp_path / name)]
        folders = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "shared" / "t2i")))
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": folders}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    one, two = ({file: read_table(tmp_path / name / file) for file in ("values", "totals", "grid")}
                for name in ("one", "two"))  # fmt: skip
    pd.testing.assert_frame_equal(two["values"], one["values"], atol=1e-3)
    assert len(one["values"]) == 4 * 5 + 3
    pd.testing.assert_series_equal(two["totals"]["evaluations"], one["totals"]["evaluations"])
    pd.testing.assert_frame_equal(two["grid"], one["grid"], atol=1e-3)
    assert set(json.loads((tmp_path / "two" / "selection").read_text())) == {"np", "sld"}
    assert load_file(tmp_path / "two" / "pictures") == {}
