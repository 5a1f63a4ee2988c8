"""The stages on a tiny system with random weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from safety_cases import tiny_pipeline

from papers.stg.options import SETS, DefenceOptions, ToyOptions
from papers.stg.sample import sample
from papers.stg.study_toy import study_toy
from papers.stg.testbed import open_judge, prompt_sets, real_scenes
from papers.stg.tune import tune
from shared.errors import InputError
from shared.t2i.captions import caption_of, sample_scene
from shared.t2i.checker import contains_unsafe, detect_objects
from shared.t2i.detector import UnsafeDetector
from shared.t2i.networks import save_network
from shared.t2i.options import UnlearnOptions
from shared.t2i.scenes import render_scene
from shared.t2i.scorer import DualEncoderScorer
from shared.t2i.stages.unlearn import unlearn
from shared.t2i.testbed import CONCEPTS, load_unlearned, open_testbed
from shared.tables import read_table
from shared.training_options import TrainingOptions

DEFENCE = DefenceOptions(num_steps=2, guidance_scale=2.0, threshold=0.0, pictures_per_set=1, traced=("base",))
ATTENTION = {"duo": "all", "esd": "cross"}
TRAINING = TrainingOptions(epochs=1, batch_size=4, learning_rate=1e-3)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A pipeline, detectors, an evaluator, and an unlearned model of each kind."""
    folder = tmp_path_factory.mktemp("system")
    tiny_pipeline().save_pretrained(folder / "pipeline", safe_serialization=True)
    torch.manual_seed(0)
    for name in ("detector", "judge_detector"):
        save_network(folder / name, UnsafeDetector())
    save_network(folder / "evaluator", DualEncoderScorer(width=8), width=8)
    for objective in ("duo", "esd"):
        state = folder / f"state-{objective}"
        state.mkdir()
        options = UnlearnOptions(objective=objective, attention=ATTENTION[objective], training=TRAINING, pairs=8)
        unlearn(
            options, seed=0, pipeline=folder / "pipeline", adapter=folder / objective,
            curve=folder / f"{objective}.parquet", state=state,
        )  # fmt: skip
    return folder


def base_files(files):
    return {name: files / name for name in ("pipeline", "detector", "evaluator", "judge_detector")}


@pytest.mark.parametrize("objective", ["duo", "esd"])
def test_unlearning_changes_attention_alone(files, objective):
    before, after = (
        tiny_pipeline().unet.state_dict(),
        load_unlearned(files / "pipeline", files / objective).state_dict(),
    )
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    layers = (".attn2.",) if objective == "esd" else (".attn1.", ".attn2.")
    assert changed and all(any(layer in name for layer in layers) for name in changed)
    assert np.isfinite(read_table(files / f"{objective}.parquet")["loss"]).all()


def test_an_adapter_of_another_network_is_refused(files):
    with pytest.raises(InputError, match="the network has no weight"):
        load_unlearned(files / "pipeline", files / "evaluator")


def test_strengths_are_tried_on_development_prompts(files, tmp_path):
    runs = ("stg:0.5", "uce:1")
    tune(DEFENCE, seed=100, count=2, runs=runs, **base_files(files), development=tmp_path / "tried.parquet")
    tried = read_table(tmp_path / "tried.parquet", ("run", "set", "dsr", "kept", "similarity", "success"))
    assert set(tried["run"]) == set(runs) and set(tried["set"]) == set(SETS) - {"solo"}


def test_sampling_measures_every_image(files, tmp_path):
    runs = ("base", "stg:0.5", "sld:1", "base@duo", "stg:0.5@esd")
    arguments = dict(
        seed=0, count=2, runs=runs, **base_files(files), unlearned=(files / "duo", files / "esd"),
        models=("duo", "esd"), totals=tmp_path / "totals", traces=tmp_path / "traces",
    )  # fmt: skip
    sample(DEFENCE, **arguments, values=tmp_path / "values", pictures=tmp_path / "pictures")
    values = read_table(tmp_path / "values")
    assert len(values) == len(runs) * len(SETS) * 2
    assert values[values["set"] == "solo"]["kept"].isna().all()
    assert (values[values["run"] == "base"]["similarity"] == 1).all()
    assert values["dsr"].isin([0.0, 1.0]).all()
    totals = read_table(tmp_path / "totals").set_index("run")
    assert totals["evaluations"].to_dict()["base"] == 4 and totals["frechet"].notna().all()
    assert set(read_table(tmp_path / "traces")["run"]) == {"base"}
    pictures = load_file(tmp_path / "pictures")
    assert set(pictures) == set(runs) and all(each.shape == (len(SETS), 3, 12, 12) for each in pictures.values())
    sample(DEFENCE, **arguments, values=tmp_path / "again", pictures=tmp_path / "pictures_again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "values").read_bytes()
    with pytest.raises(InputError, match="models: need one name"):
        sample(DEFENCE, **arguments | {"models": ("duo",)}, values=tmp_path / "values", pictures=tmp_path / "pictures")


def test_prompts_differ_between_seeds_and_splits():
    first, other, dev = prompt_sets(8, 0, "test"), prompt_sets(8, 1, "test"), prompt_sets(8, 0, "dev")
    assert [part.name for part in first] == list(SETS)
    for left, right in ((first, other), (first, dev)):
        assert all(a.captions != b.captions for a, b in zip(left, right, strict=True))
    assert all(part.captions == tuple(map(caption_of, part.specs)) for part in first)
    named = [CONCEPTS[0].split()[1] in caption for caption in first[0].captions + first[1].captions]
    assert named == [True] * 8 + [False] * 8


def test_the_bench_masks_one_word_at_a_time(files):
    bench = open_testbed(files / "pipeline", files / "detector", {})
    masked = bench.text.masked_pooled("a red square")
    assert masked.shape == (3, 64) and not torch.isclose(masked, bench.text.pooled(["a red square"])).all(dim=1).any()


def test_the_judge_finds_what_is_there(files):
    judge = open_judge(files / "evaluator", files / "judge_detector", 0)
    rng = np.random.default_rng(0)
    for part in prompt_sets(6, 0, "test"):
        scenes = [sample_scene(rng, spec) for spec in part.specs]
        images = torch.from_numpy(np.stack([render_scene(scene) for scene in scenes]))
        found = judge.measure(part, images)
        assert found["dsr"].tolist() == [float(not contains_unsafe(scene)) for scene in scenes]
        if part.name == "solo":
            assert "kept" not in found and "success" not in found
        else:
            assert found["kept"].all() and found["success"].tolist() == found["dsr"].tolist()
    safe = prompt_sets(6, 0, "test", ("safe",))[0]
    real = real_scenes(safe.specs, 0)
    assert judge.distance(safe, real) < 1e-6 < judge.distance(safe, -real)
    assert all(detect_objects(image) for image in real.numpy())


def test_the_toy_is_measured_for_every_value_run_and_seed(tmp_path):
    study_toy(
        ToyOptions(samples=20, steps=5, scales=(3.0, 10.0), shown=5), seeds=(0, 1), quality=tmp_path / "quality",
        points=tmp_path / "points",
    )  # fmt: skip
    quality, points = read_table(tmp_path / "quality"), read_table(tmp_path / "points")
    assert len(quality) == 3 * 5 * 2
    assert set(quality["run"]) == {"base", "sdg:3", "sdg:10", "stg:3", "stg:10"}
    assert set(points["run"]) == {"base", "sdg:10", "stg:10"} and len(points) == 3 * 3 * 5
