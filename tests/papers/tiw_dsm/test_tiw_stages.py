"""The stages at tiny sizes: tables of the documented columns, the same bytes twice, and one line for what is wrong."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiw_cases import TINY, TINY_IMAGES, write_images

from papers.tiw_dsm import figures
from papers.tiw_dsm.evaluate import evaluate
from papers.tiw_dsm.judge import judge, open_judge
from papers.tiw_dsm.options import JudgeOptions
from papers.tiw_dsm.prepare import prepare
from papers.tiw_dsm.train import distinct_trainings, groups_of, parse_arm, train
from shared.errors import InputError
from shared.files import checksum, write_json
from shared.results import read_metrics, read_units
from shared.training_options import TrainingOptions
from shared.vision.options import ClassifierOptions

TABLES = ("measured", "shares", "lengths", "errors", "weights")
JUDGE = JudgeOptions(
    ClassifierOptions("mlp", (64,)), TrainingOptions(epochs=6, batch_size=32, learning_rate=0.005), 512
)
ARMS = ("dsm_ref", "dsm_obs", "guidance", "iw", "tiw", "tiw@selected", "tiw@exact", "oracle", "iw^0.5@3")


def run_train(folder: Path, options=TINY, methods=ARMS, seed=0, setting="mixture-10", **inputs):
    paths = {name: folder / f"{name}.parquet" for name in TABLES} | {"drawn": folder / "drawn"}
    folder.mkdir(exist_ok=True)
    found = train(
        options, setting=setting, seed=seed, methods=methods, state=folder / "state", **paths, **inputs
    )  # fmt: skip
    return paths, found


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return run_train(tmp_path_factory.mktemp("tiw") / "first")


def test_every_arm_is_measured(ran):
    paths, found = ran
    tables = {name: pd.read_parquet(paths[name]) for name in TABLES}
    measured = tables["measured"]
    metrics = {"energy_distance", "group_tv", "reference_distance", "denoiser_error"}
    assert {name: set(rows["metric"]) for name, rows in measured.groupby("method") if name in ARMS} == dict.fromkeys(
        ARMS, metrics
    )
    steps = measured[measured["metric"] == "steps"].set_index("method")["value"]
    assert steps["noisy"] == steps["clean"] == 6 and steps["noisy@3"] == 3 and steps["noisy@selected"] in (2, 4)
    assert set(found["seconds"]) == set(ARMS)
    assert set(tables["errors"]["method"]) == {"noisy", "noisy@selected", "noisy@3"}
    counts = tables["weights"].groupby(["method", "sigma"])["count"].sum()
    assert len(counts) == 15 and set(counts) == {120}
    assert tables["shares"].groupby("method")["share"].sum().tolist() == pytest.approx([1] * len(ARMS))
    assert tables["lengths"]["selected"].sum() == 2
    drawn = load_file(paths["drawn"])
    assert set(drawn) == set(ARMS) and drawn["tiw"].shape == (40, 2)


def test_guidance_samples_differently_from_the_same_denoiser(ran):
    drawn = load_file(ran[0]["drawn"])
    assert not torch.equal(drawn["guidance"], drawn["dsm_obs"])


def test_the_same_bytes_twice(ran, tmp_path):
    again, _ = run_train(tmp_path / "again")
    assert {name: checksum(path) for name, path in again.items()} == {
        name: checksum(path) for name, path in ran[0].items()
    }


def test_a_killed_job_resumes_to_the_same_bytes(ran, tmp_path, monkeypatch):
    """Killed when all is trained, and nothing is measured."""

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("papers.tiw_dsm.train.measure_arms", killed)
        run_train(tmp_path / "again")
    assert not (tmp_path / "again/drawn").exists()
    again, _ = run_train(tmp_path / "again")
    assert {name: checksum(path) for name, path in again.items()} == {
        name: checksum(path) for name, path in ran[0].items()
    }


def test_arms_that_share_a_denoiser_are_trained_once():
    arms = [parse_arm(name) for name in ("dsm_obs", "tiw", "guidance", "tiw@50")]
    assert [arm.name for arm in distinct_trainings(arms)] == ["dsm_obs", "tiw", "tiw@50"]
    alone = groups_of(arms, side_by_side=False)
    assert {name: [arm.name for arm in group] for name, group in alone.items()} == {
        "dsm_obs": ["dsm_obs", "guidance"], "tiw": ["tiw"], "tiw@50": ["tiw@50"]
    }  # fmt: skip


def test_images_through_unets_and_a_judge(tmp_path):
    found = judge(JUDGE, testbed="glyphs", seed=0, classifier=tmp_path / "judge", state=tmp_path / "judge-state")
    assert 0.5 < found["accuracy"] <= 1
    assert open_judge(tmp_path / "judge")(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    options = replace(TINY_IMAGES, sampling=replace(TINY.sampling, samples=12))
    paths, _ = run_train(
        tmp_path / "run", options, ("dsm_obs", "guidance", "tiw"), setting="glyphs-10", judge=(tmp_path / "judge",)
    )
    measured = pd.read_parquet(paths["measured"])
    assert {"feature_distance", "coverage"} <= set(measured.loc[measured["method"] == "tiw", "metric"])
    drawn = load_file(paths["drawn"])["tiw"]
    assert drawn.dtype == torch.uint8 and drawn.shape == (12, 1, 8, 8)
    with pytest.raises(InputError, match="methods: the exact ratio of glyphs is not known"):
        run_train(tmp_path / "exact", options, ("tiw@exact",), judge=(tmp_path / "judge",))


def test_cifar_from_its_files_to_samples(tmp_path):
    files = (write_images(tmp_path / "train.parquet", 12), write_images(tmp_path / "test.parquet", 2, seed=1))
    data = replace(TINY_IMAGES.data, testbed="cifar10", reference_fraction=0.25, biased_size=40, imbalance=8.0)
    prepare(data, seed=0, files=files, images=tmp_path / "images", subsets=tmp_path / "subsets")
    judge(JUDGE, testbed="cifar10", seed=0, files=files, classifier=tmp_path / "judge", state=tmp_path / "judge-state")
    options = replace(
        TINY_IMAGES,
        data=data,
        denoiser=replace(TINY_IMAGES.denoiser, widths=(4, 4), attention=False),
        ratio=replace(TINY_IMAGES.ratio, ratio_widths=(4, 4)),
        sampling=replace(TINY.sampling, samples=8),
    )
    inputs = {"images": (tmp_path / "images",), "judge": (tmp_path / "judge",)}
    paths, _ = run_train(tmp_path / "run", options, ("tiw",), setting="cifar10-25", **inputs)
    assert load_file(paths["drawn"])["tiw"].shape == (8, 3, 32, 32)
    assert set(pd.read_parquet(paths["shares"])["group"]) == set(range(10))


def test_tables_are_joined(ran, tmp_path):
    paths, found = ran
    options = {"setting": "mixture-10", "seed": 0}
    write_json(tmp_path / "record.json", {"options": options, "measurements": found, "outputs": {}})
    twice = {name: (paths[name], paths[name]) for name in ("measured", "shares")}
    outputs = {"metrics": tmp_path / "metrics", "units": tmp_path / "units"}
    evaluate(paper="tiw_dsm", scale="small", **twice, records=(tmp_path / "record.json",), **outputs)
    metrics, units = read_metrics(outputs["metrics"]), read_units(outputs["units"])
    assert set(ARMS) <= set(metrics["method"])
    assert metrics.loc[metrics["method"] == "tiw", "wall_seconds"].notna().all()
    assert units.groupby("method")["value"].sum().tolist() == pytest.approx([1] * len(ARMS))


def test_figures_are_drawn_from_the_tables(ran, tmp_path):
    paths, found = ran
    record = {"options": {"setting": "mixture-10", "seed": 0}, "measurements": found, "outputs": {}}
    write_json(tmp_path / "record.json", record)
    evaluate(paper="tiw_dsm", scale="small", measured=(paths["measured"],), shares=(paths["shares"],),
             records=(tmp_path / "record.json",), metrics=tmp_path / "metrics", units=tmp_path / "units")  # fmt: skip
    drawn = tmp_path / "mixture-10-core-seed0.safetensors"
    drawn.write_bytes(paths["drawn"].read_bytes())
    tables = {name: (paths[name],) for name in ("shares", "lengths", "errors", "weights")}
    for figure in ("quality", "samples"):
        outputs = {"png": tmp_path / f"{figure}.png", "pdf": tmp_path / f"{figure}.pdf"}
        figures.draw(figure=figure, metrics=tmp_path / "metrics", **tables, drawn=(drawn,), **outputs)
        assert outputs["png"].stat().st_size > 5000 and outputs["pdf"].exists()


def test_samples_are_found_by_their_setting(ran, tmp_path):
    first, second = tmp_path / "mixture-2.5-core-seed1.safetensors", tmp_path / "mixture-2.5-studies-seed10.safetensors"
    for path in (first, second):
        path.write_bytes(ran[0]["drawn"].read_bytes())
    assert set(figures.read_drawn([second, first])) == {"mixture-2.5"}
