"""Stages from the command line: what they write, kill and resume, several processes, the paper's scale made small."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from papers.rent import evaluate as evaluation
from papers.rent import prepare as preparation
from papers.rent import train as stage
from papers.rent.options import Scale, TrainOptions
from papers.rent.prepare import prepare
from shared.artifacts import read_record
from shared.errors import InputError
from shared.files import checksum
from shared.options import flags, read_scale
from shared.results import read_metrics, read_units
from shared.stage import run
from shared.tables import read_table
from shared.vision.options import ClassifierOptions
from tests.papers.rent.conftest import SETTINGS
from tests.papers.rent.test_rent_prepare import write_cifar

REPOSITORY = Path(__file__).resolve().parents[3]
CONFIG = REPOSITORY / "papers" / "rent" / "config.yaml"
METHODS = ("ce", "b0", "fl/forward", "rw/forward", "rent/forward", "dws:0.1/forward", "dws:1/forward",
           "dws:10/forward", "rent/tv")  # fmt: skip


def train_command(options, data, folder, methods, *, setting="sym50", seed=3, dataset="digits"):
    paths = {"images": data["images"], "labels": data["labels"], "state": folder / "state"}
    paths |= {name: folder / name for name in stage.TABLES} | {"record": folder / "record.json"}
    files = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    label = ["--dataset", dataset, "--setting", setting, "--seed", str(seed)]
    return [*flags(options), *label, "--methods", *methods, *files]


@pytest.fixture(scope="module")
def trained(tiny_data, tiny_options, tmp_path_factory):
    """Folders of the training stage for two settings and two seeds."""
    folders = []
    for setting in ("sym50", "asym40"):
        for seed in (3, 4):
            folder = tmp_path_factory.mktemp(f"{setting}-{seed}")
            run(stage.train, train_command(tiny_options, tiny_data, folder, METHODS, setting=setting, seed=seed))
            folders.append(folder)
    return folders


def test_what_the_training_writes(trained):
    folder = trained[0]
    tables = {name: read_table(folder / name) for name in stage.TABLES}
    for name, table in tables.items():
        assert {"setting", "seed", "method"} <= set(table.columns), name
        assert set(table["seed"]) == {3} and set(table["setting"]) == {"sym50"}
    assert len(tables["curves"]) == 4 * len(METHODS) and set(tables["predictions"]["method"]) == set(METHODS)
    last = tables["curves"][tables["curves"]["epoch"] == 4].set_index("method")["accuracy"]
    means = tables["predictions"].groupby("method")["correct"].mean()
    np.testing.assert_allclose(means[list(METHODS)], last[list(METHODS)], rtol=1e-6)
    assert len(tables["predictions"]) == 1637 * len(METHODS)
    rows = tables["transitions"].groupby(["method", "true_class"])["probability"].sum()
    np.testing.assert_allclose(rows, 1, atol=1e-4)
    assert set(tables["transitions"]["method"]) == {name for name in METHODS if "/" in name}
    seconds = read_record(folder / "record.json")["measurements"]["seconds"]
    assert set(seconds) == set(METHODS) and min(seconds.values()) > 0
    assert not (folder / "state").exists()


def test_curves_hold_the_true_error_of_the_transition(trained):
    tables = {name: read_table(trained[0] / name) for name in ("curves", "transitions")}
    truth = np.full((10, 10), 0.5 / 9)
    np.fill_diagonal(truth, 0.5)
    for name in ("rent/forward", "rent/tv"):
        found = tables["transitions"].query(f"method == '{name}'")["probability"].to_numpy().reshape(10, 10)
        error = tables["curves"].query(f"method == '{name}' and epoch == 4")["transition_error"].item()
        assert error == pytest.approx(np.abs(found - truth).sum(1).mean() / 2, rel=1e-4)


def test_mistakes_end_the_job_before_it_begins(tiny_data, tiny_options, tmp_path):
    def message(**changes):
        asked = {"setting": "sym50", "seed": 3, "methods": ("ce",)} | changes
        with pytest.raises(SystemExit) as error:
            run(stage.train, train_command(tiny_options, tiny_data, tmp_path, asked.pop("methods"), **asked))
        assert "\n" not in str(error.value) and not (tmp_path / "curves").exists()
        return str(error.value)

    assert message(methods=("ce", "rent")).startswith("error: method 'rent': needs an estimator")
    assert "no column 'sym30'" in message(setting="sym30")
    assert message(seed=7).endswith("no rows of seed 7")


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    tables = {name: [str(each / name) for each in trained] for name in ("curves", "predictions")}
    records = [str(each / "record.json") for each in trained]
    outputs = ["--metrics", str(folder / "metrics"), "--units", str(folder / "units")]
    inputs = ["--curves", *tables["curves"], "--predictions", *tables["predictions"], "--records", *records]
    run(evaluation.evaluate, ["--paper", "rent", "--scale", "small", *inputs, *outputs])
    return folder


def test_evaluation(trained, evaluated):
    metrics, units = read_metrics(evaluated / "metrics"), read_units(evaluated / "units")
    assert set(units["metric"]) == {"accuracy"} and len(units) == 4 * len(METHODS) * 1637
    assert sorted(units["unit"].unique()) == [f"{place:05d}" for place in range(1, 1638)]
    mine = units.query("setting == 'sym50' and seed == 4 and method == 'rent/forward'").set_index("unit")["value"]
    truth = read_table(trained[1] / "predictions").query("method == 'rent/forward'").sort_values("image")
    assert mine.sort_index().tolist() == truth["correct"].astype(float).tolist()
    curves = read_table(trained[1] / "curves")  # sym50, seed 4
    rows = metrics[(metrics["setting"] == "sym50") & (metrics["seed"] == 4)]
    for name in METHODS:
        mine = rows[rows["method"] == name].set_index("metric")["value"]
        curve = curves[curves["method"] == name].sort_values("epoch")
        assert mine["accuracy"] == pytest.approx(curve["accuracy"].iloc[-1])
        assert mine["best_accuracy"] == pytest.approx(curve["accuracy"].max())
        assert mine["fit_mislabelled"] == pytest.approx(curve["fit_mislabelled"].iloc[-1])
        assert mine["fell_back"] == 0
        assert ("transition_error" in mine) == ("/" in name) and ("purity" in mine) == (not name.startswith("fl"))
    assert rows["wall_seconds"].notna().sum() == (rows["method"] != "dws").sum()


def test_concentrations_are_ranked_by_alpha(evaluated):
    grid = evaluation.concentrations(["ce", "dws:10/forward", "dws:0.1/forward", "dws:inf/forward", "dws:1/true",
                                      "dws:0/forward", "dws:1000/forward"])  # fmt: skip
    assert list(grid.items()) == [("dws:0.1/forward", 0.1), ("dws:10/forward", 10.0), ("dws:1000/forward", 1000.0)]
    metrics = read_metrics(evaluated / "metrics")
    ranks = metrics[metrics["metric"] == "concentration_rank"]
    assert len(ranks) == 4 and set(ranks["method"]) == {"dws"}
    row = ranks.iloc[0]
    same = (metrics["setting"] == row["setting"]) & (metrics["seed"] == row["seed"]) & (metrics["metric"] == "accuracy")
    found = metrics[same].set_index("method")["value"]
    values = [found[f"dws:{alpha}/forward"] for alpha in ("0.1", "1", "10")]
    order = np.argsort(np.argsort(values)) - 1.0
    assert len(set(values)) == 3
    assert row["value"] == pytest.approx((order * [-1, 0, 1]).sum() / 2)


@pytest.mark.slow
def test_a_killed_job_ends_with_the_same_bytes(tiny_data, tiny_options, tmp_path):
    """Killed after the warm-up, when T is estimated, and once more later on."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "papers.rent.train", *train_command(tiny_options, tiny_data, whole, METHODS)]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True)
    resumed = train_command(tiny_options, tiny_data, killed, METHODS)
    for number in (2, 3):
        killer = (
            "import os, runpy, sys, pathlib\n"
            "marker = pathlib.Path(sys.argv.pop(1))\n"
            "sys.addaudithook(lambda event, _: event == 'open' and marker.exists() and os.kill(os.getpid(), 9))\n"
            "runpy.run_module('papers.rent.train', run_name='__main__', alter_sys=True)\n"
        )
        marker = killed / "state" / "all" / "training" / f"step-{number:09d}"
        died = subprocess.run(
            [sys.executable, "-c", killer, str(marker), *resumed], cwd=REPOSITORY, env=environment, capture_output=True
        )
        assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-2000:]
        assert not (killed / "curves").exists()
    command = [sys.executable, "-m", "papers.rent.train", *resumed]
    again = subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True, text=True)
    assert "9 methods: 4/4" in again.stderr and not (killed / "state").exists()
    assert {name: checksum(whole / name) for name in stage.TABLES} == {
        name: checksum(killed / name) for name in stage.TABLES
    }


@pytest.mark.slow
def test_two_processes_train_as_one(tiny_data, tiny_options, tmp_path):
    """What does not draw random weights gives the same numbers; each process draws weights of its own."""
    methods = ("ce", "fl/forward", "rw/dual_t", "rw/cycle", "rent/volminnet")
    results = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        command = ["papers.rent.train", *train_command(tiny_options, tiny_data, folder, methods)]
        launch = ["launch", "--num_processes", str(processes), "--cpu", "--num_cpu_threads_per_process", "1", "-m"]
        subprocess.run(
            [sys.executable, "-m", "accelerate.commands.accelerate_cli", *launch, *command],
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True,
            timeout=300,
            capture_output=True,
        )
        results[processes] = {name: read_table(folder / name) for name in stage.TABLES}
    one, two = results[1], results[2]
    same = [table["transitions"]["method"] != "rent/volminnet" for table in (one, two)]
    np.testing.assert_allclose(
        one["transitions"]["probability"][same[0]], two["transitions"]["probability"][same[1]], atol=2e-3
    )
    for table in ("curves", "weights"):
        assert len(one[table]) == len(two[table])
    pairs = [table["curves"][table["curves"]["method"] != "rent/volminnet"] for table in (one, two)]
    for column in ("accuracy", "fit_mislabelled", "purity"):
        np.testing.assert_allclose(pairs[0][column], pairs[1][column], atol=0.02)
    assert one["weights"]["count"].sum() == two["weights"]["count"].sum()


@pytest.mark.parametrize(("scale", "setting"), [("paper", "sym50"), ("gpu", "asym40"), ("paper_cifar100", "asym40")])
def test_large_scales_run_on_small_files(scale, setting, tmp_path):
    """The scale's own options with a thin network and few epochs, on files in the published format."""
    settings = read_scale(CONFIG, scale, Scale)
    wide = 100 if settings.data.dataset == "cifar100" else 10
    column = "fine_label" if wide == 100 else "label"
    labels = np.arange(800 if wide == 100 else 64) % wide
    files = [
        write_cifar(tmp_path / f"{part}.parquet", len(labels), labels=labels, column=column, size=8, seed=seed)
        for seed, part in enumerate(("train", "test"))
    ]
    data = {name: tmp_path / name for name in ("images", "labels")}
    prepare(settings.data, seeds=(0,), settings=tuple(settings.settings), files=tuple(files), **data)
    train = settings.train
    architecture = train.classifier.architecture
    assert architecture == {"paper": "resnet34", "gpu": "resnet18", "paper_cifar100": "resnet50"}[scale]
    changes = {"classifier": ClassifierOptions(architecture, (4, 4, 4, 4)), "epochs": 3, "warmup_epochs": 1}
    options = dataclasses.replace(train, **changes, dual_warmup_epochs=2, batch_size=32)
    methods = ("ce", "rent/forward", "dws:0.1/forward", "rw/dual_t", "rent/cycle")
    methods = methods[:2] if wide == 100 else methods  # its bottleneck blocks and images are more work
    command = train_command(options, data, tmp_path, methods, setting=setting, seed=0, dataset=settings.data.dataset)
    AcceleratorState._reset_state()  # the precision of an earlier training in this process
    run(stage.train, command)
    AcceleratorState._reset_state()
    curves = read_table(tmp_path / "curves")
    assert curves.groupby("method")["epoch"].max().to_dict() == dict.fromkeys(methods, 3)
    assert np.isfinite(curves[["accuracy", "fit_mislabelled", "purity"]]).all(axis=None)
    errors = curves[curves["epoch"] == 3].set_index("method")["transition_error"]
    assert errors.drop("ce").between(0, 1).all() and np.isnan(errors["ce"])


def test_the_papers_hyperparameters():
    settings = read_scale(CONFIG, "paper", Scale)
    train = settings.train
    assert (train.classifier.architecture, train.batch_size, train.learning_rate) == ("resnet34", 128, 0.001)
    assert (train.warmup_epochs, train.dual_warmup, train.epochs) == (10, 20, 210)
    assert train.augment and train.mixed_precision == "no" and train.classifier.layer_widths == (64, 128, 256, 512)
    assert len(settings.seeds) == 5 and set(settings.settings) == {"sym20", "sym50", "asym20", "asym40"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_epochs": 0}, r"warmup_epochs: must lie in \[1, epochs\), got 0 of 4"),
        ({"warmup_epochs": 4}, r"warmup_epochs: must lie in \[1, epochs\), got 4 of 4"),
        ({"dual_warmup_epochs": 9}, r"dual_warmup_epochs: must lie in \[1, epochs\), got 9 of 4"),
    ],
)
def test_epochs_that_do_not_fit(tiny_options, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny_options, **changes)


def test_stages_take_their_options_from_the_command_line(tmp_path):
    options = read_scale(CONFIG, "small", Scale)
    paths = ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels")]
    run(preparation.prepare, [*flags(options.data), "--seeds", "5", "--settings", *SETTINGS, *paths])
    table = read_table(tmp_path / "labels")
    assert set(table["seed"]) == {5} and (table["part"] == "train").sum() == 1200
    assert isinstance(options.train, TrainOptions) and torch.is_grad_enabled() is not False
    with pytest.raises(SystemExit, match="error: setting 'noise': need sym"):
        run(preparation.prepare, [*flags(options.data), "--seeds", "5", "--settings", "noise", *paths])
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path / "none")
