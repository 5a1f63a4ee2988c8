"""The stages end to end at a tiny size: digits, CIFAR-10's files, folders of domains; kill and resume; mistakes."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from stage_commands import command_line
from transformers import ResNetConfig, ResNetModel
from udim_cases import CORRUPTIONS, OPTIONS, STYLED, image_set, write_cifar, write_folders

from papers.udim import evaluate, figures, prepare, select, slices, train
from papers.udim.image_sets import write_image_set
from papers.udim.options import InputOptions, Scale, SliceOptions
from shared.options import read_scale
from shared.plotting import house_style, save_figure
from shared.results import read_metrics, read_units
from shared.run_by_run import FINISHED
from shared.stage import run
from shared.tables import read_table
from shared.vision.options import ClassifierOptions

ROOT = Path(__file__).resolve().parents[3]
STAGES = {
    "prepare": prepare.prepare, "train": train.train, "select": select.select, "slices": slices.slices,
    "evaluate": evaluate.evaluate, "figures": figures.draw,
}  # fmt: skip
TABLES = ("runs", "accuracies", "per_image", "landscape", "curves")
TABLES_OF_FIGURES = ("metrics", "radii", "training", "grid", "lines", "plane")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def start(stage: str, *options, **values) -> None:
    """Run a stage in this process, by the command line that a rule would use."""
    run(STAGES[stage], command_line(*options, **values))


def outputs(folder: Path) -> dict[str, Path]:
    return {name: folder / f"{name}.parquet" for name in TABLES} | {
        "models": folder / "models", "state": folder / "state", "record": folder / "record.json",
    }  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("udim") / "images.safetensors"
    write_image_set(path, image_set(count=120))
    return path


def test_from_images_to_figures(images, tmp_path):
    candidates = ("sam@rho=0.05", "sam@rho=0.1", "sam+udim@data_radius=0.5", "sam+udim@data_radius=1")
    start("train", CORRUPTIONS, OPTIONS, seed=100, setting="corruptions", names=candidates, images=images,
          **outputs(tmp_path / "tuning"))  # fmt: skip
    start("select", runs=tmp_path / "tuning/runs.parquet", accuracies=tmp_path / "tuning/accuracies.parquet",
          hyperparameters=tmp_path / "selected.json", grid=tmp_path / "grid.parquet")  # fmt: skip
    selected = json.loads((tmp_path / "selected.json").read_text())
    grid = read_table(tmp_path / "grid.parquet")
    assert set(selected) == {"sam", "sam+udim"} and grid["selected"].sum() == 2
    source = read_table(tmp_path / "tuning/accuracies.parquet").query("domain == 'source'").set_index("run")["accuracy"]
    for method, values in selected.items():
        of_method = {name: source[name] for name in candidates if name.startswith(f"{method}@")}
        chosen = next(name for name in of_method if name.endswith(f"{next(iter(values.values())):g}"))
        assert of_method[chosen] == max(of_method.values())

    corruption_runs = ("erm", "sam", "sam+udim", "sam+cross_entropy", "sam+random", "sam+zero")
    style_runs = ("erm", "sam", "sam+udim", "erm+fishr@weight=1000")
    jobs = [
        ("corruptions", 0, CORRUPTIONS, corruption_runs),
        ("corruptions", 1, CORRUPTIONS, corruption_runs),
        ("leave-one-out", 0, STYLED, style_runs),
        ("single-source", 0, replace(STYLED, protocol="single_source"), style_runs[:3]),
    ]
    for setting, seed, protocol, names in jobs:
        folder = tmp_path / f"{setting}-{seed}"
        start("train", protocol, OPTIONS, seed=seed, setting=setting, names=names, images=images,
              hyperparameters=tmp_path / "selected.json", **outputs(folder))  # fmt: skip
        assert not (folder / "state").exists()
        runs = read_table(folder / "runs.parquet")
        tasks = 1 if setting == "corruptions" else len(STYLED.styles)
        assert len(runs) == tasks * len(names) and set(runs["setting"]) == {setting} and set(runs["seed"]) == {seed}
        radius = runs.set_index("run")["data_radius"]
        assert (radius["sam+udim"] == selected["sam+udim"]["data_radius"]).all()
        saved = {path.name for path in (folder / "models").iterdir()}
        assert saved == {f"{name}--{task}.safetensors" for name in OPTIONS.saved for task in set(runs["task"])}
    weights = load_file(tmp_path / "corruptions-0/models/sam--corruptions.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}

    folders = [tmp_path / f"{setting}-{seed}" for setting, seed, _, _ in jobs]
    start("evaluate", paper="udim", scale="smoke",
          **{name: [folder / f"{name}.parquet" for folder in folders] for name in TABLES},
          records=[folder / "record.json" for folder in folders],
          **{name: tmp_path / f"{name}.parquet" for name in ("metrics", "units", "radii", "training")})  # fmt: skip
    check_metrics(tmp_path)

    start("slices", CORRUPTIONS, OPTIONS, SliceOptions(suite="corruptions", points=5, directions=2, slice_images=5),
          seeds=(0, 1), images=images, models=[tmp_path / f"corruptions-{seed}/models" for seed in (0, 1)],
          lines=tmp_path / "lines.parquet", plane=tmp_path / "plane.parquet")  # fmt: skip
    lines, plane = read_table(tmp_path / "lines.parquet"), read_table(tmp_path / "plane.parquet")
    assert len(lines) == 4 * 2 * 2 * 5 and len(plane) == 4 * 2 * 25
    here = {"run": "sam", "seed": 0, "domain": "unseen"}
    of_one = [table[np.logical_and.reduce([table[k] == v for k, v in here.items()])] for table in (lines, plane)]
    centre = of_one[0][of_one[0]["x"] == 0]["loss"].to_numpy()
    np.testing.assert_allclose(of_one[1].query("x == 0 and y == 0")["loss"].to_numpy(), centre[:1], rtol=1e-4)
    assert centre[0] == centre[1]

    tables = {name: tmp_path / f"{name}.parquet" for name in TABLES_OF_FIGURES}
    for name, draw in figures.FIGURES.items():
        with house_style():
            read = {table: read_table(path) for table, path in tables.items()}
            save_figure(draw(figures.Tables(**read)), tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000
    start("figures", figure="levels", png=tmp_path / "one.png", pdf=tmp_path / "one.pdf", **tables)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "levels.png").read_bytes()
    with pytest.raises(SystemExit, match="figure 'nothing': there is none; there are: levels"):
        start("figures", figure="nothing", png=tmp_path / "x.png", pdf=tmp_path / "x.pdf", **tables)


def check_metrics(folder: Path) -> None:
    """The tables of results against the tables they were made of."""
    metrics = read_metrics(folder / "metrics.parquet").set_index(["setting", "method", "seed", "metric"])["value"]
    for setting in ("corruptions", "leave-one-out", "single-source"):
        measured = read_table(folder / f"{setting}-0/accuracies.parquet")
        here = measured[measured["run"] == "sam+udim"]
        unseen, source = here[here["domain"] != "source"], here[here["domain"] == "source"]
        assert metrics[setting, "sam+udim", 0, "accuracy"] == pytest.approx(100 * unseen["accuracy"].mean())
        assert metrics[setting, "sam+udim", 0, "source_accuracy"] == pytest.approx(100 * source["accuracy"].mean())
        assert metrics[setting, "sam+udim", 0, "unseen_loss"] == pytest.approx(unseen["loss"].mean())
        domain = unseen["domain"].iloc[0]
        assert metrics[f"{setting} / {domain}", "sam+udim", 0, "accuracy"] == pytest.approx(
            100 * unseen[unseen["domain"] == domain]["accuracy"].mean()
        )
    landscape = read_table(folder / "corruptions-0/landscape.parquet").query("run == 'erm' and radius == 0.05")
    for metric, rows in (
        ("sharpness", landscape.query("quantity == 'sharpness' and domain != 'source'")),
        ("source_sharpness", landscape.query("quantity == 'sharpness' and domain == 'source'")),
        ("inconsistency", landscape.query("quantity == 'inconsistency'")),
    ):
        assert metrics["corruptions", "erm", 0, metric] == pytest.approx(rows["value"].mean())
    level = read_table(folder / "corruptions-0/accuracies.parquet").query("run == 'erm' and level == 3")
    assert metrics["corruptions / level 3", "erm", 0, "accuracy"] == pytest.approx(100 * level["accuracy"].mean())
    units = read_units(folder / "units.parquet")
    assert units.groupby("setting")["unit"].nunique().to_dict() == {
        "corruptions": 20, "leave-one-out": 60, "single-source": 60,
    }  # fmt: skip
    seconds = json.loads((folder / "corruptions-0/record.json").read_text())["measurements"]["seconds"]
    rows = read_metrics(folder / "metrics.parquet").query("setting == 'corruptions' and seed == 0 and method == 'sam'")
    assert (rows["wall_seconds"] == seconds["sam"]).all()


def test_targets_count_the_same_whatever_their_size():
    correct = {"a": [1.0] * 6, "b": [0.0, 1.0], "source": [0.0]}
    images = pd.DataFrame(
        [(domain, image, value) for domain, values in correct.items() for image, value in enumerate(values)],
        columns=["domain", "image", "correct"],
    ).assign(setting="s", method="sam", seed=0, task="t")
    rows = evaluate.unit_rows(images)
    assert rows["value"].mean() == pytest.approx(75.0) and len(rows) == 8
    assert set(rows["unit"]) == {f"a/{i}" for i in range(6)} | {"b/0", "b/1"}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("a", 0.9, 1.0), ("b", 0.8, 0.1)], "a"),
        ([("a", 0.9, 1.0), ("b", 0.9, 0.1)], "b"),
        ([("a", 0.9, 0.1), ("b", 0.9, 0.1)], "a"),
    ],
)
def test_the_best_candidate_on_the_source_is_selected(rows, expected):
    table = pd.DataFrame(rows, columns=["run", "source_accuracy", "source_loss"]).assign(method="sam")
    assert select.best_candidates(table) == {"sam": expected}


def test_the_gpu_scale_on_small_files(tmp_path):
    """CIFAR-10's parquet layout through the options of the scale, with a narrow network and few steps."""
    scale = read_scale(ROOT / "papers/udim/config.yaml", "gpu", Scale)
    suite = scale.suites["corruptions"]
    data = replace(scale.data["cifar10"], train=(str(write_cifar(tmp_path / "a.parquet", 60)),),
                   test=(str(write_cifar(tmp_path / "b.parquet", 20, seed=1)),))  # fmt: skip
    start("prepare", data, images=tmp_path / "images.safetensors")
    narrow = ClassifierOptions(architecture="resnet18", widths=(4, 4, 4, 4))
    options = replace(suite.train, network=replace(suite.train.network, classifier=narrow), steps=2, batch_size=8,
                      evaluate_every=1, probe_images=6)  # fmt: skip
    protocol = replace(suite.domains, corruptions=("gaussian_blur", "pixelation"), levels=(3,))
    start("train", protocol, options, seed=0, setting="corruptions", names=("sam", "gam+udim"),
          images=tmp_path / "images.safetensors", **outputs(tmp_path))  # fmt: skip
    accuracies = read_table(tmp_path / "accuracies.parquet")
    assert set(accuracies["domain"]) == {"source", "gaussian_blur", "pixelation"}
    assert set(accuracies["images"]) == {20}
    weights = load_file(tmp_path / "models/sam--corruptions.safetensors")
    assert any("running_mean" in name for name in weights)


def test_the_papers_scale_on_small_folders(tmp_path):
    """Folders of domains, a pretrained ResNet with frozen batch norm, DomainBed's augmentation."""
    scale = read_scale(ROOT / "papers/udim/config.yaml", "paper", Scale)
    data = replace(scale.data["pacs"], train=(str(write_folders(tmp_path / "PACS", count=8)),), size=32)
    start("prepare", data, images=tmp_path / "images.safetensors")
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path / "resnet")
    for setting in ("leave-one-out", "single-source"):
        suite = scale.suites[setting]
        network = replace(suite.train.network, pretrained=str(tmp_path / "resnet"))
        options = replace(suite.train, network=network, steps=2, batch_size=4, evaluate_every=1, probe_images=6,
                          saved=("sam+udim",))  # fmt: skip
        start("train", replace(suite.domains, size=32), options, seed=0, setting=setting, names=("sam+udim",),
              images=tmp_path / "images.safetensors", **outputs(tmp_path / setting))  # fmt: skip
        runs = read_table(tmp_path / setting / "runs.parquet")
        assert runs["task"].tolist() == ["art", "photo", "sketch"] and (runs["data_radius"] == 10).all()
        for path in (tmp_path / setting / "models").iterdir():
            means = [value for name, value in load_file(path).items() if name.endswith("running_mean")]
            assert means and not any(value.any() for value in means), "batch norm is frozen"


# Runs the stage and kills its own process before the given step is applied; -1: never.
KILLED = """
import os, signal, sys
import torch
from papers.udim import train, training
from shared.stage import run
torch.set_num_threads(1)
calls, last, original = 0, int(sys.argv[1]), training._check_finite
def check(*arguments):
    global calls
    calls += 1
    if calls == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
training._check_finite = check
run(train.train, sys.argv[2:])
"""


@pytest.mark.slow
def test_a_killed_job_resumes_to_the_same_bytes(images, tmp_path):
    names = ("sam", "sam+random")
    contents = []
    # Ten steps a run, a state after every fourth: killed in the second run, two steps after a state.
    for kills, folder in (((), tmp_path / "whole"), ((16,), tmp_path / "resumed")):
        arguments = command_line(CORRUPTIONS, replace(OPTIONS, saved=names), seed=0, setting="corruptions", names=names,
                                 images=images, **outputs(folder))  # fmt: skip
        for last in (*kills, -1):
            command = [sys.executable, "-c", KILLED, str(last), *arguments]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == (0 if last == -1 else -signal.SIGKILL), done.stderr
        if kills:
            assert "sam on" not in done.stdout, "the finished run was made again"
        paths = [folder / f"{name}.parquet" for name in TABLES] + sorted((folder / "models").iterdir())
        contents.append([(path.name, path.read_bytes()) for path in paths])
    assert contents[0] == contents[1] and len(contents[0]) == len(TABLES) + 2


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        (OPTIONS, {"names": ("sam+udmi",)}, r"run 'sam\+udmi': unknown term 'udmi'"),
        (OPTIONS, {"names": ("sam@rho=a",)}, "rho must be a number, got 'a'"),
        (OPTIONS, {"images": "nowhere.safetensors"}, "nowhere.safetensors"),
        (OPTIONS, {"hyperparameters": "broken.json"}, "broken.json:1: not valid JSON"),
        (OPTIONS, {"hyperparameters": "list.json"}, "list.json: expected an object of methods, got list"),
        (OPTIONS, {"hyperparameters": "number.json"}, r"number.json: sam: expected an object, got 1"),
        (OPTIONS, {"hyperparameters": "unknown.json"}, "unknown.json: sam: expected numbers for some of learning_rate"),
        (replace(OPTIONS, inputs=InputOptions(mean=(0.5,) * 3, std=(1.0,) * 3)), {}, "mean: need 1 values"),
    ],
)
def test_a_mistake_is_one_line(images, tmp_path, monkeypatch, options, values, message):
    monkeypatch.chdir(tmp_path)
    for name, content in {"broken": "{", "list": "[]", "number": '{"sam": 1}', "unknown": '{"sam": {"r": 1}}'}.items():
        (tmp_path / f"{name}.json").write_text(content)
    arguments = {"seed": 0, "setting": "s", "names": ("sam",), "images": images} | outputs(tmp_path / "out") | values
    with pytest.raises(SystemExit, match=message) as caught:
        start("train", CORRUPTIONS, options, **arguments)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").rglob("*.parquet")) or not (tmp_path / "out" / FINISHED).exists()


def test_slices_name_weights_of_another_network(images, tmp_path):
    (tmp_path / "models").mkdir()
    shape = SliceOptions(suite="corruptions")
    arguments = {"seeds": 0, "images": images, "models": tmp_path / "models", "lines": tmp_path / "lines.parquet",
                 "plane": tmp_path / "plane.parquet"}  # fmt: skip
    with pytest.raises(SystemExit, match="models: the folders hold no weights"):
        start("slices", CORRUPTIONS, OPTIONS, shape, **arguments)
    train.save_weights(torch.nn.Linear(2, 2), tmp_path / "models" / "sam--corruptions.safetensors")
    with pytest.raises(SystemExit, match=r"sam--corruptions.safetensors: not weights of this network"):
        start("slices", CORRUPTIONS, OPTIONS, shape, **arguments)
    with pytest.raises(SystemExit, match="seeds: need one for each of 1 folders of models, got 2"):
        start("slices", CORRUPTIONS, OPTIONS, shape, **arguments | {"seeds": (0, 1)})


@pytest.mark.slow
def test_two_processes(images, tmp_path):
    """A base averages its gradients over processes: the same training as on one, up to rounding."""
    names = ("sam", "sam+udim")
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = ["accelerate.commands.launch", "--num_processes", "2", "--cpu", "-m"]
    for processes, prefix in ((1, []), (2, launch)):
        arguments = command_line(CORRUPTIONS, OPTIONS, seed=0, setting="corruptions", names=names, images=images,
                                 **outputs(tmp_path / str(processes)))  # fmt: skip
        command = [sys.executable, "-m", *prefix, "papers.udim.train", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
    one, two = (read_table(tmp_path / str(processes) / "curves.parquet") for processes in (1, 2))
    losses = [table[table["run"] == "sam"]["validation_loss"].to_numpy() for table in (one, two)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert len(two) == len(one) and np.isfinite(two.select_dtypes("number")).all(axis=None)
