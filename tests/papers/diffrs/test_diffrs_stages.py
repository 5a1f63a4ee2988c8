"""The stages end to end at a tiny size: ring, glyphs, CIFAR-10's files and the hub's network; resume; mistakes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffrs_cases import (
    DENOISER,
    DISCRIMINATOR,
    GLYPHS,
    JUDGE,
    RING,
    SAMPLER,
    TABLES,
    TRAINING,
    outputs,
    write_cifar,
)
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file
from scipy import stats
from stage_commands import command_line

from papers.diffrs import evaluate, exact, figures, prepare, sample, select, train
from papers.diffrs.data_sets import load_judge, reference_set, training_set
from papers.diffrs.options import ExactOptions, Scale
from papers.diffrs.pretrained import load_pretrained
from shared.diffusion.denoisers import EdmDenoiser
from shared.diffusion.options import DiscriminatorOptions
from shared.diffusion.training import build_denoiser, build_discriminator
from shared.errors import InputError
from shared.options import read_scale
from shared.plotting import house_style, save_figure
from shared.results import read_metrics, read_units
from shared.stage import run
from shared.tables import read_table
from shared.vision.options import ClassifierOptions

ROOT = Path(__file__).resolve().parents[3]
STAGES = {
    "prepare": prepare.prepare, "train": train.train, "sample": sample.sample, "select": select.select,
    "exact": exact.exact, "evaluate": evaluate.evaluate, "figures": figures.draw,
}  # fmt: skip
CANDIDATES = ("longer@steps=6", "dg@weight=1", "dg@weight=2", "diffrs@percentile=0.5", "diffrs@percentile=0.9",
              "restart@repeats=2", "final@percentile=0.5", "best@candidates=3", "churn@amount=3")  # fmt: skip
RUNS = ("base", "longer@steps=6", "longer@steps=8", "churn", "restart", "dg", "best", "final", "final@percentile=0.5",
        "final@percentile=0.75", "diffrs", "diffrs@percentile=0.5", "diffrs@percentile=0.75",
        "diffrs@percentile=0.9")  # fmt: skip


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with denoisers of the ring and of glyphs, and the judge of glyphs."""
    folder = tmp_path_factory.mktemp("diffrs")
    start("prepare", GLYPHS, JUDGE, seed=0, prepared=folder / "prepared", state=folder / "s1")
    for name, data, prepared in (("ring", RING, ()), ("glyphs", GLYPHS, (folder / "prepared",))):
        given = {"prepared": prepared} if prepared else {}
        start("train", data, DENOISER, model=name, seeds=(0, 1, 100), denoisers=folder / name,
              curves=folder / f"{name}.parquet", state=folder / "s2", **given)  # fmt: skip
    return folder


def test_from_data_to_figures(trained, tmp_path, monkeypatch):
    start("sample", RING, SAMPLER, DISCRIMINATOR, setting="ring", seeds=100, names=CANDIDATES,
          denoisers=trained / "ring", **outputs(tmp_path / "tuning"))  # fmt: skip
    start("select", runs=tmp_path / "tuning/runs.parquet", selection=tmp_path / "selection.json",
          grid=tmp_path / "grid.parquet")  # fmt: skip
    selected = json.loads((tmp_path / "selection.json").read_text())["ring"]
    tried = read_table(tmp_path / "tuning/runs.parquet").set_index("run")["sliced_w2"]
    best = min(("dg@weight=1", "dg@weight=2"), key=lambda name: tried[name])
    assert selected["dg"] == {"weight": float(best[-1])} and set(selected) == {
        "longer", "dg", "diffrs", "restart", "final", "best", "churn",
    }  # fmt: skip

    start("sample", RING, SAMPLER, DISCRIMINATOR, setting="ring", seeds=(0, 1), names=RUNS,
          denoisers=trained / "ring", selection=tmp_path / "selection.json", **outputs(tmp_path / "ring"))  # fmt: skip
    weak = replace(SAMPLER, solver="euler", followed=0, keep_discriminator=True)
    start("sample", RING, weak, DISCRIMINATOR, setting="ring-ddim", seeds=(0, 1), names=("base", *RUNS[-3:]),
          denoisers=trained / "ring", **outputs(tmp_path / "ring-ddim"))  # fmt: skip
    start("sample", GLYPHS, replace(SAMPLER, followed=0), DISCRIMINATOR, setting="glyphs", seeds=0, names=RUNS,
          denoisers=trained / "glyphs", prepared=trained / "prepared", **outputs(tmp_path / "glyphs"))  # fmt: skip
    check_runs(tmp_path, selected)

    monkeypatch.setattr(exact, "REFERENCES", 500)
    start("exact", ExactOptions(exact_samples=60, exact_steps=12, exact_runs=("base", *RUNS[-3:])), seeds=(0, 1),
          runs=tmp_path / "exact.parquet")  # fmt: skip
    jobs = [tmp_path / name for name in ("ring", "ring-ddim", "glyphs")]
    inputs = {"runs": "runs", "level_counts": "levels", "cost_counts": "costs", "blocks": "blocks",
              "followed": "paths", "log_ratios": "ratios", "curves": "curves"}  # fmt: skip
    written = ("metrics", "units", "levels", "costs", "paths", "ratios", "training")
    start("evaluate", paper="diffrs", scale="smoke", exact=tmp_path / "exact.parquet",
          denoisers=[trained / "ring.parquet", trained / "glyphs.parquet"],
          **{name: [job / f"{table}.parquet" for job in jobs] for name, table in inputs.items()},
          **{name: tmp_path / f"{name}.parquet" for name in written})  # fmt: skip
    check_tables(tmp_path)

    tables = {name: tmp_path / f"{name}.parquet" for name in ("levels", "costs", "paths", "ratios", "training", "grid")}
    pictures = {job.name: load_file(job / "pictures.safetensors") for job in jobs}
    drawn_from = figures.Tables(
        metrics=read_metrics(tmp_path / "metrics.parquet"),
        pictures=pictures,
        **{name: read_table(path) for name, path in tables.items()},
    )
    for name, draw in figures.FIGURES.items():
        with house_style():
            save_figure(draw(drawn_from), tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 4_000
    start("figures", figure="quality", metrics=tmp_path / "metrics.parquet", **tables,
          settings=[job.name for job in jobs], pictures=[job / "pictures.safetensors" for job in jobs],
          png=tmp_path / "one.png", pdf=tmp_path / "one.pdf")  # fmt: skip
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "quality.png").read_bytes()


def check_runs(folder: Path, selected: dict) -> None:
    """Tables of the sampling jobs against each other."""
    runs = read_table(folder / "ring/runs.parquet")
    assert len(runs) == 2 * len(RUNS) and set(runs["seed"]) == {0, 1}
    row = runs[runs["seed"] == 1].set_index("run")
    assert row["nfe"]["base"] == 7 and row["nfe"]["longer@steps=8"] == 15 and row["nfe"]["best"] == 21
    assert row["hyperparameters"]["dg"] == f"steps=0 weight={selected['dg']['weight']:g} corrector=0"
    same = f"diffrs@percentile={selected['diffrs']['percentile']:g}"
    assert (row.loc["diffrs"].drop("hyperparameters") == row.loc[same].drop("hyperparameters")).sum() >= 9
    assert row["warm_up_nfe"][same] == 40 * 7 / 50 and row["warm_up_nfe"]["base"] == 0
    costs = read_table(folder / "ring/costs.parquet").query("seed == 1 and run == @same")
    assert costs["count"].sum() == 50
    assert (costs["count"] * costs["nfe"]).sum() / 50 == pytest.approx(row["request_nfe"][same])
    assert costs["nfe"].max() <= 21 and row["request_nfe"][same] <= row["nfe"][same]
    blocks = read_table(folder / "ring/blocks.parquet").query("seed == 1").groupby("run")["outliers"].mean()
    assert blocks["dg"] == pytest.approx(row["outliers"]["dg"], abs=1e-6)
    assert set(read_table(folder / "ring/paths.parquet")["seed"]) == {0}
    ddim = read_table(folder / "ring-ddim/runs.parquet").set_index("run")["nfe"]
    assert ddim["base"].eq(4).all()
    names = {path.name for path in (folder / "ring-ddim/discriminators").iterdir()}
    assert names == {"seed0.safetensors", "seed1.safetensors"}
    assert not list((folder / "ring/discriminators").iterdir()) and not (folder / "ring/state").exists()
    kept = load_file(folder / "glyphs/pictures.safetensors")
    assert set(kept) == {"data", *RUNS} and {value.dtype for value in kept.values()} == {torch.uint8}
    assert {"frechet", "precision", "coverage", "energy", "nearest", "class_variation"} <= set(
        read_table(folder / "glyphs/runs.parquet").columns
    )


def check_tables(folder: Path) -> None:
    """The tables of results against those they were made of."""
    metrics = read_metrics(folder / "metrics.parquet")
    values = metrics.set_index(["setting", "method", "seed", "metric"])["value"]
    runs = read_table(folder / "ring/runs.parquet").query("seed == 0").set_index("run")
    for metric in ("nfe", "sliced_w2", "energy", "coverage"):
        assert values["ring", "dg", 0, metric] == runs[metric]["dg"]
    assert values["ring", "dg", 0, "outliers"] == pytest.approx(100 * runs["outliers"]["dg"], abs=1e-4)
    spent = metrics.query("setting == 'ring' and method == 'restart' and seed == 0")
    assert (spent["cost"] == runs["nfe"]["restart"]).all()
    low, high = sorted(runs["nfe"][["base", "final@percentile=0.5", "final@percentile=0.75"]])[::2]
    assert low <= values["ring", "final", 0, "nfe_to_match"] <= high
    gamma = [runs["nfe"][f"diffrs@percentile={value}"] for value in (0.5, 0.75, 0.9)]
    expected = np.corrcoef(stats.rankdata(gamma), [1, 2, 3])[0, 1]
    assert values["ring", "diffrs", 0, "spearman_nfe"] == pytest.approx(expected)
    assert values["exact-1d", "base", 0, "w1"] > values["exact-1d", "diffrs@percentile=0.9", 0, "w1"]
    assert read_units(folder / "units.parquet").groupby("setting")["unit"].nunique().to_dict() == {
        "ring": 50, "ring-ddim": 50,
    }  # fmt: skip
    assert set(read_table(folder / "training.parquet")["network"]) == {"denoiser", "discriminator"}


def test_acceptance_is_what_was_not_pushed_back():
    rows = [(0, 3, -1, 10), (0, 3, 2, 1), (0, 3, 0, 3), (0, 4, -1, 5)]
    table = pd.DataFrame(rows, columns=["seed", "origin", "target", "count"])
    assert figures.acceptance(table).loc[0].to_dict() == {3: 0.6, 4: 1.0}


def test_the_gpu_scale_on_small_files(tmp_path):
    """CIFAR-10's parquet layout through the options of the scale, with narrow networks and few steps."""
    scale = read_scale(ROOT / "papers/diffrs/config.yaml", "gpu", Scale)
    model, setting = scale.models["cifar10"], scale.settings["cifar10"]
    data = replace(model.data, train_files=(str(write_cifar(tmp_path / "a.parquet", 40)),), references=20,
                   test_files=(str(write_cifar(tmp_path / "b.parquet", 20, seed=1)),))  # fmt: skip
    few = {"epochs": 1, "batch_size": 20, "mixed_precision": "no"}
    judge = replace(model.judge, classifier=ClassifierOptions(architecture="resnet18", widths=(4, 4, 4, 4)),
                    training=replace(model.judge.training, **few))  # fmt: skip
    denoiser = replace(model.denoiser, training=replace(model.denoiser.training, **few), widths=(4, 8),
                       layers_per_block=1, attention=False)  # fmt: skip
    discriminator = replace(setting.discriminator, channels=(4, 8),
                            training=replace(setting.discriminator.training, **few))  # fmt: skip
    start("prepare", data, judge, seed=0, prepared=tmp_path / "prepared", state=tmp_path / "s1")
    assert load_file(tmp_path / "prepared/images.safetensors")["train"].shape == (40, 3, 32, 32)
    start("train", data, denoiser, model="cifar10", seeds=0, prepared=tmp_path / "prepared",
          denoisers=tmp_path / "denoisers", curves=tmp_path / "c.parquet", state=tmp_path / "s2")  # fmt: skip
    sampler = replace(setting.sampler, steps=3, samples=12, slots=8, warm_up=10, fakes=20, judged=10, kept=4)
    start("sample", data, sampler, discriminator, setting="cifar10", seeds=0, names=("base", "diffrs"),
          denoisers=tmp_path / "denoisers", prepared=tmp_path / "prepared", **outputs(tmp_path / "out"))  # fmt: skip
    runs = read_table(tmp_path / "out/runs.parquet")
    assert np.isfinite(runs[["frechet", "precision", "coverage", "energy"]]).all(axis=None)
    assert (tmp_path / "out/discriminators/seed0.safetensors").exists()


def test_the_papers_scale_on_a_small_network_of_the_hub(tmp_path):
    """A DDPM folder of diffusers, Inception as a TorchScript file, and no training."""
    scale = read_scale(ROOT / "papers/diffrs/config.yaml", "paper", Scale)
    model, setting = scale.models["cifar10"], scale.settings["cifar10"]
    assert model.pretrained and model.data.inception
    torch.manual_seed(0)
    UNet2DModel(
        sample_size=32, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).save_pretrained(tmp_path / "ddpm")  # fmt: skip
    DDPMScheduler().save_pretrained(tmp_path / "ddpm")
    torch.jit.script(Pixels()).save(tmp_path / "inception.pt")
    few = replace(TRAINING, epochs=1, batch_size=20)
    data = replace(model.data, train_files=(str(write_cifar(tmp_path / "a.parquet", 30)),), references=20,
                   test_files=(str(write_cifar(tmp_path / "b.parquet", 20, seed=1)),),
                   inception=str(tmp_path / "inception.pt"))  # fmt: skip
    judge = replace(model.judge, classifier=ClassifierOptions(architecture="cnn", widths=(4, 4, 4)), training=few)
    start("prepare", data, judge, seed=0, prepared=tmp_path / "prepared", state=tmp_path / "s1")
    sampler = replace(setting.sampler, steps=3, samples=10, slots=8, warm_up=10, fakes=20, judged=8, kept=4)
    discriminator = DiscriminatorOptions(few, encoder="unet", channels=(4, 8))
    start("sample", data, sampler, discriminator, setting="cifar10", seeds=0, names=("base", "diffrs"),
          pretrained=str(tmp_path / "ddpm"), prepared=tmp_path / "prepared", **outputs(tmp_path / "out"))  # fmt: skip
    runs = read_table(tmp_path / "out/runs.parquet")
    assert np.isfinite(runs["frechet"]).all() and runs["nfe"].iloc[0] == 5
    with pytest.raises(InputError, match="nowhere: no DDPM of diffusers"):
        load_pretrained(tmp_path / "nowhere")


class Pixels(torch.nn.Module):
    """Stands for Inception: means of the colours."""

    def forward(self, images: torch.Tensor, return_features: bool) -> torch.Tensor:
        return images.float().mean(dim=(2, 3)) if return_features else images


@pytest.mark.parametrize("scale", ["gpu", "paper"])
def test_networks_of_large_scales_are_built_on_the_meta_device(scale):
    settings = read_scale(ROOT / "papers/diffrs/config.yaml", scale, Scale)
    with torch.device("meta"):
        setting, model = settings.settings["cifar10"], settings.models["cifar10"]
        discriminator = build_discriminator(setting.discriminator, (3, 32, 32), sigma_data=0.5, seed=0)
        assert 1e6 < sum(parameter.numel() for parameter in discriminator.parameters()) < 5e7
        if model.denoiser is not None:
            denoiser = build_denoiser(model.denoiser, (3, 32, 32), seed=0)
            assert isinstance(denoiser, EdmDenoiser)
            assert 1e7 < sum(parameter.numel() for parameter in denoiser.parameters()) < 1e8


def test_nothing_is_trained_on_and_compared_with():
    for data in (RING, GLYPHS):
        first, second = training_set(data, 0, None), reference_set(data, 0, None)
        assert torch.cdist(first.flatten(1)[:50], second.flatten(1)[:50]).min() > 1e-5
        assert not torch.equal(training_set(data, 1, None), first)
        assert torch.equal(training_set(data, 0, None), first)


def test_a_judge_knows_its_file(trained, tmp_path):
    judge = load_judge(trained / "prepared/classifier.safetensors")
    assert judge(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"other.safetensors: no weights of a classifier"):
        load_judge(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"names": "dg@wait=1"}, "run 'dg@wait=1'"),
        ({"seeds": 7}, r"ring/seed7.safetensors: no weights of a denoiser"),
        ({"pretrained": "somewhere"}, "denoisers: need one folder, or one that is pretrained"),
        ({"selection": "broken.json"}, "broken.json:1: not valid JSON"),
    ],
)
def test_a_mistake_is_one_line(trained, tmp_path, monkeypatch, values, message):
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{")
    arguments = {"setting": "ring", "seeds": 0, "names": "base", "denoisers": trained / "ring"} | values
    with pytest.raises(SystemExit, match=message) as caught:
        start("sample", RING, SAMPLER, DISCRIMINATOR, **arguments, **outputs(tmp_path))
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("*.parquet"))


def test_samples_that_explode_are_told(trained, tmp_path):
    """A noise level beyond the denoiser's, at which its output is not finite."""
    huge = replace(SAMPLER, sigma_max=1e200)
    with pytest.raises(SystemExit, match="sigma_max: the base sampler's samples are not finite"):
        start("sample", RING, huge, DISCRIMINATOR, setting="ring", seeds=0, names="base",
              denoisers=trained / "ring", **outputs(tmp_path))  # fmt: skip


class Killed(BaseException):
    """Stands for the end of the process: nothing of the stage catches it."""


def kill_once(monkeypatch, module, name: str, *, call: int) -> None:
    """Let a function of a stage end the stage at its call of that number, and work as before later on."""
    original, calls = getattr(module, name), []

    def function(*arguments, **values):
        calls.append(name)
        if len(calls) == call:
            raise Killed
        return original(*arguments, **values)

    monkeypatch.setattr(module, name, function)


def sample_two_seeds(denoisers: Path, folder: Path) -> list[object]:
    """Everything that sampling writes, but for its times."""
    start("sample", RING, replace(SAMPLER, keep_discriminator=True), DISCRIMINATOR, setting="ring", seeds=(0, 1),
          names=("base", "dg", "diffrs"), denoisers=denoisers, **outputs(folder))  # fmt: skip
    tables = [read_table(folder / f"{name}.parquet").drop(columns="seconds", errors="ignore") for name in TABLES]
    files = [folder / "pictures.safetensors", *sorted((folder / "discriminators").iterdir())]
    return [table.to_csv() for table in tables] + [path.read_bytes() for path in files]


@pytest.fixture(scope="module")
def undisturbed(trained, tmp_path_factory) -> list[object]:
    return sample_two_seeds(trained / "ring", tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("place", ["build_discriminator", "make_runs", "write_json"])
def test_killed_sampling_resumes_to_the_same_bytes(trained, undisturbed, tmp_path, monkeypatch, place):
    """Killed in the second seed: before its discriminator is trained, after that, and when it is all but finished."""
    kill_once(monkeypatch, sample, place, call=2)
    with pytest.raises(Killed):
        sample_two_seeds(trained / "ring", tmp_path)
    assert not (tmp_path / "runs.parquet").exists() and (tmp_path / "state/0/finished.json").exists()
    assert sample_two_seeds(trained / "ring", tmp_path) == undisturbed


def test_killed_training_resumes_to_the_same_bytes(trained, tmp_path, monkeypatch):
    """Killed between the last saved state of the second seed's training and its end."""
    kill_once(monkeypatch, train, "save_denoiser", call=2)
    values = {"model": "ring", "seeds": (0, 1, 100), "denoisers": tmp_path / "ring", "curves": tmp_path / "c.parquet"}
    with pytest.raises(Killed):
        start("train", RING, DENOISER, **values, state=tmp_path / "state")
    start("train", RING, DENOISER, **values, state=tmp_path / "state")
    for seed in (0, 1, 100):
        name = f"ring/seed{seed}.safetensors"
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()
    assert read_table(tmp_path / "c.parquet").equals(read_table(trained / "ring.parquet"))


@pytest.mark.slow
def test_two_processes_share_the_requests(trained, tmp_path):
    arguments = command_line(RING, SAMPLER, DISCRIMINATOR, setting="ring", seeds=0, names=("base", "diffrs"),
                             denoisers=trained / "ring", **outputs(tmp_path))  # fmt: skip
    launch = ["accelerate.commands.launch", "--num_processes", "2", "--cpu", "-m", "papers.diffrs.sample"]
    done = subprocess.run([sys.executable, "-m", *launch, *arguments], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = read_table(tmp_path / "runs.parquet").set_index("run")
    assert runs["nfe"]["base"] == 7 and runs["nfe"]["diffrs"] >= 7
    assert read_table(tmp_path / "blocks.parquet").query("run == 'base'")["block"].nunique() == 50
