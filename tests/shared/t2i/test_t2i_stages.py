"""The stages that draw scenes and train the networks, at tiny sizes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import shared.t2i.stages.train_diffusion as diffusion_stage
from shared.errors import InputError
from shared.files import checksum
from shared.options import read_scale
from shared.stage import run
from shared.t2i.captions import parse_caption
from shared.t2i.checker import check_prompt
from shared.t2i.detector import UnsafeDetector
from shared.t2i.networks import load_network, refuse_several_processes
from shared.t2i.options import DrawOptions, ScorerOptions, Testbed
from shared.t2i.pipeline import load_pipeline
from shared.t2i.sampling import initial_noise
from shared.t2i.scene_table import parse_scene, read_scenes
from shared.t2i.scorer import DualEncoderScorer
from shared.t2i.stages.draw_scenes import captioned_scenes, draw_scenes, training_spec
from shared.t2i.stages.train_detector import train_detector
from shared.t2i.stages.train_diffusion import train_diffusion
from shared.t2i.stages.train_preference import train_preference
from shared.t2i.stages.train_scorer import guessing_loss, train_scorer

SETS = ("conditioner", "guidance", "evaluator", "preference", "diffusion")
COUNTS = ["--conditioner-scenes", "60", "--guidance-scenes", "60", "--evaluator-scenes", "60"]
COUNTS += ["--preference-pairs", "60", "--diffusion-scenes", "48"]
TRAINING = ["--batch-size", "12", "--learning-rate", "0.001", "--schedule", "linear"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with scenes, and a scorer trained on them."""
    path = tmp_path_factory.mktemp("t2i")
    draw(path)
    train(train_scorer, path, "scorer", "--epochs", "1", "--width", "8", scenes=path / "conditioner.parquet")
    return path


def draw(path, seed=0):
    outputs = [part for name in SETS for part in (f"--{name}", str(path / f"{name}.parquet"))]
    run(draw_scenes, ["--seed", str(seed), *COUNTS, *outputs])


def train(stage, path, output, *arguments, name=None, **inputs):
    name = name or output
    suffix = "" if output == "pipeline" else ".safetensors"
    files = {**inputs, output: path / f"{name}{suffix}", "curve": path / f"{name}-curve.parquet"}
    flags = [part for key, value in files.items() for part in (f"--{key}", str(value))]
    extra = ["--state", str(path / f"{name}-state"), "--record", str(path / f"{name}.json")]
    run(stage, ["--seed", "3", *TRAINING, *arguments, *flags, *extra])
    return path / f"{name}{suffix}"


def test_scenes_are_those_of_their_captions(folder):
    for name in SETS:
        table = pd.read_parquet(folder / f"{name}.parquet")
        for row in table.itertuples():
            spec = parse_caption(row.caption)
            assert check_prompt(spec, parse_scene(row.scene))
            if name == "preference":
                assert not check_prompt(spec, parse_scene(row.loser))
    assert len(pd.read_parquet(folder / "diffusion.parquet")) == 48


def test_scenes_are_a_function_of_the_seed_and_differ_between_sets(folder, tmp_path):
    draw(tmp_path)
    assert [checksum(tmp_path / f"{name}.parquet") for name in SETS] == [
        checksum(folder / f"{name}.parquet") for name in SETS
    ]
    draw(tmp_path, seed=1)
    captions = [read_scenes(path / f"{name}.parquet")[0][:40] for path in (folder, tmp_path) for name in SETS]
    assert len({tuple(each) for each in captions}) == 10


def test_pirates_come_where_there_is_room():
    rng, options = np.random.default_rng(0), DrawOptions(1, 1, 1, 1, 1, context_rate=0.5)
    specs = [training_spec(rng, options) for _ in range(600)]
    crowded = [spec.context for spec in specs if spec.object_count == 3]
    roomy = [spec.context is not None for spec in specs if spec.object_count < 3]
    assert set(crowded) == {None} and 0.44 < np.mean(roomy) < 0.56


def test_a_share_of_captions_may_be_wrong():
    options = DrawOptions(1, 1, 1, 1, 1, context_rate=0.0, caption_noise=0.4)
    rows = list(captioned_scenes(np.random.default_rng(0), 300, options, noisy=True))
    wrong = [not check_prompt(parse_caption(row["caption"]), parse_scene(row["scene"])) for row in rows]
    assert 0.32 < np.mean(wrong) < 0.48
    with pytest.raises(ValueError, match=r"^caption_noise: "):
        DrawOptions(1, 1, 1, 1, 1, caption_noise=1.5)


def test_a_scorer_learns_something(folder):
    curve = pd.read_parquet(folder / "scorer-curve.parquet")
    assert curve["step"].iloc[-1] == 5 and curve["loss"].iloc[-1] < curve["loss"].iloc[0]
    assert load_network(folder / "scorer.safetensors", DualEncoderScorer).width == 8
    found = json.loads((folder / "scorer.json").read_text())["measurements"]
    assert 0.4 < found["choice_all"] < 0.9 and "choice_color_attr" in found  # hardly better than a guess after 5 steps


def test_scorers_refuse_several_processes():
    refuse_several_processes(SimpleNamespace(num_processes=1))
    with pytest.raises(InputError, match="one process, got 2"):
        refuse_several_processes(SimpleNamespace(num_processes=2))


def test_training_fails_where_nothing_is_learned(folder, tmp_path):
    with pytest.raises(RuntimeError, match="did not learn"):
        train(
            train_scorer, tmp_path, "scorer", "--epochs", "1", "--width", "8", "--loss-bound", "0.1",
            scenes=folder / "guidance.parquet",
        )  # fmt: skip
    assert not (tmp_path / "scorer.safetensors").exists()


def test_guessing_costs_more_with_degraded_copies():
    scale = read_scale(Path("shared/t2i/config.yaml"), "small", Testbed)
    assert guessing_loss(scale.conditioner) == pytest.approx(np.log(192))
    assert guessing_loss(scale.guidance) == pytest.approx((np.log(160) + np.log(320)) / 2)
    assert isinstance(scale.evaluator, ScorerOptions) and scale.evaluator.width == 24


def test_the_preference_scorer_starts_from_the_scorer(folder):
    path = train(
        train_preference, folder, "preference", "--epochs", "3",
        pairs=folder / "preference.parquet", scorer=folder / "scorer.safetensors",
    )  # fmt: skip
    start, end = (load_network(file, DualEncoderScorer) for file in (folder / "scorer.safetensors", path))
    assert end.width == 8 and not torch.equal(start.log_scale, end.log_scale)
    change = (start.image_projection.weight - end.image_projection.weight).abs().max()
    assert 0 < change < 0.1


def test_a_detector_is_trained(folder):
    path = train(train_detector, folder, "detector", "--epochs", "2", scenes=folder / "guidance.parquet")
    curve = pd.read_parquet(folder / "detector-curve.parquet")
    assert curve["loss"].iloc[-1] < curve["loss"].iloc[0]
    load_network(path, UnsafeDetector)


DIFFUSION = ["--channels", "16", "32", "--epochs", "2", "--num-steps", "2", "--prompts-per-task", "1"]
DIFFUSION += ["--sheet-every", "3", "--checkpoint-every", "2", "--gold-range", "0.4", "0.7"]


def train_small_diffusion(folder, path, name):
    return train(
        train_diffusion, path, "pipeline", *DIFFUSION, "--sheets", str(path / f"{name}-sheets"), name=name,
        scenes=folder / "diffusion.parquet", conditioner=folder / "scorer.safetensors",
    )  # fmt: skip


def test_a_killed_training_resumes_to_the_same_bytes(folder, tmp_path, monkeypatch, capsys):
    whole = train_small_diffusion(folder, tmp_path, "whole")
    draw_sheet, drawn = diffusion_stage.draw_sheet, []

    def killed(path, *arguments):
        drawn.append(path.name)
        if path.name == "step-00006.png":
            raise KeyboardInterrupt
        draw_sheet(path, *arguments)

    monkeypatch.setattr(diffusion_stage, "draw_sheet", killed)
    with pytest.raises(KeyboardInterrupt):
        train_small_diffusion(folder, tmp_path, "resumed")
    assert not (tmp_path / "resumed").exists()
    monkeypatch.setattr(
        diffusion_stage, "draw_sheet", lambda path, *rest: drawn.append(path.name) or draw_sheet(path, *rest)
    )
    resumed = train_small_diffusion(folder, tmp_path, "resumed")
    assert drawn == ["step-00003.png", "step-00006.png", "step-00006.png"]
    assert checksum(resumed) == checksum(whole)
    assert checksum(tmp_path / "resumed-sheets") == checksum(tmp_path / "whole-sheets")
    assert sorted(path.name for path in (tmp_path / "whole-sheets").iterdir()) == ["step-00003.png", "step-00006.png"]
    assert pd.read_parquet(tmp_path / "resumed-curve.parquet")["step"].tolist() == [1, 8]

    found = json.loads((tmp_path / "whole.json").read_text())["measurements"]
    assert found["gold_accuracy_all"] == 0 and found["gold_accuracy_suitable"] is False
    assert "warning: gold accuracy" in capsys.readouterr().err
    images = load_pipeline(whole)(["a ring"], initial_noise(0, [0]), num_steps=2)
    assert images.shape == (1, 3, 12, 12)
    conditioner = load_network(folder / "scorer.safetensors", DualEncoderScorer).text_model
    for ours, theirs in zip(load_pipeline(whole).text_encoder.parameters(), conditioner.parameters(), strict=True):
        assert torch.equal(ours, theirs)
