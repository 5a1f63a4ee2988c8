"""The control on base models of its own, whose training captions are loose."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from papers.implicit_negatives.loose_base import CHECK, PIPELINE, loose_base, loose_scenes
from papers.implicit_negatives.loose_captions import loose_caption, with_noise
from papers.implicit_negatives.options import SETS, GuidanceOptions, InversionOptions, LooseOptions, UceOptions
from papers.implicit_negatives.sample_loose import sample_loose, unlearned_models
from papers.implicit_negatives.tune_loose import tune_loose
from shared.errors import InputError
from shared.options import plain
from shared.t2i.captions import (
    CONTEXT,
    NUMBERS,
    UNSAFE_NAMES,
    ObjectGroup,
    PromptSpec,
    WordTokenizer,
    caption_of,
    parse_caption,
    sample_spec,
)
from shared.t2i.networks import save_network
from shared.t2i.options import DiffusionOptions, DrawOptions, UNetOptions, UnlearnOptions
from shared.t2i.scene_table import parse_scene
from shared.t2i.scenes import COLORS, SHAPES
from shared.t2i.scorer import DualEncoderScorer
from shared.tables import read_table
from shared.training_options import TrainingOptions

LOOSE = LooseOptions()
DRAW = DrawOptions(1, 1, 1, 1, diffusion_scenes=24)
TRAINING = TrainingOptions(epochs=1, batch_size=8, learning_rate=1e-3, checkpoint_every=2)
DIFFUSION = DiffusionOptions(
    training=TRAINING, unet=UNetOptions(channels=(16, 32)), num_steps=2, prompts_per_task=1, sheet_every=2
)
GUIDANCE = GuidanceOptions(num_steps=2, concept_prompts=2, pictures_per_set=1)
INVERSION = InversionOptions(
    inversion_steps=2, inversion_batch_size=2, inversion_rate=0.05, inversion_images=4, inversion_first_timestep=250
)
UNLEARN = {"esd": UnlearnOptions(objective="esd", attention="cross", training=TRAINING, pairs=8)}


def specs(count, seed=0):
    """Of every task, some of them with the context."""
    rng = np.random.default_rng(seed)
    drawn = [sample_spec(rng) for _ in range(count)]
    return [replace(spec, context=CONTEXT) if index % 5 == 0 else spec for index, spec in enumerate(drawn)]


def test_captions_at_rates_of_zero_are_exact_and_at_one_empty():
    rng = np.random.default_rng(0)
    for spec in specs(200):
        assert loose_caption(rng, spec, word_dropout=0.0, noun_noise=0.0) == caption_of(spec)
        assert loose_caption(rng, spec, word_dropout=1.0, noun_noise=0.5) == ""


def test_every_kind_of_word_is_left_out_at_the_rate_and_by_itself():
    spec = PromptSpec("colors", (ObjectGroup(1, "red", "ring"),), context=CONTEXT)
    rng, count = np.random.default_rng(1), 4000
    drawn = [loose_caption(rng, spec, word_dropout=0.3, noun_noise=0.0).split() for _ in range(count)]
    for word in (CONTEXT, "a", "red", "ring"):
        assert np.mean([word in words for words in drawn]) == pytest.approx(0.7, abs=0.03)
    both_left = np.mean(["red" not in words and "ring" not in words for words in drawn])
    assert both_left == pytest.approx(0.09, abs=0.02)
    assert np.mean([not words for words in drawn]) == pytest.approx(0.3**4, abs=0.005)


@pytest.mark.parametrize("caption", ["a red ring and a blue tee", "a ring left of a tee"])
def test_groups_are_joined_where_both_have_words(caption):
    rng, spec = np.random.default_rng(2), parse_caption(caption)
    joint = spec.relation or "and"
    seen = set()
    for _ in range(500):
        words = loose_caption(rng, spec, word_dropout=0.5, noun_noise=0.0)
        sides = words.split(joint)
        assert all(side.strip() for side in sides) or words == ""
        assert (len(sides) == 2) == (joint in words)
        seen.add(len(sides) if words else 0)
    assert seen == {0, 1, 2}


def test_nouns_are_replaced_at_the_rate_by_those_of_all_shapes():
    rng, count = np.random.default_rng(3), 6000
    nouns = [with_noise(rng, ObjectGroup(2, "red", "ring"), "quib", 0.35)[-1] for _ in range(count)]
    assert np.mean([noun == "rings" for noun in nouns]) == pytest.approx(1 - 0.35 * 5 / 6, abs=0.02)
    for name in UNSAFE_NAMES:
        assert np.mean([noun == f"{name}s" for noun in nouns]) == pytest.approx(0.35 / 6 / 4, abs=0.006)
    concept = ObjectGroup(1, None, "saltire")
    assert with_noise(rng, concept, "dray", 0.0) == ["a", "dray"]
    drawn = {with_noise(rng, concept, "dray", 1.0)[-1] for _ in range(400)}
    assert drawn == {*UNSAFE_NAMES, *SHAPES}  # harmless words for the concept, and every one of its own names


def test_words_are_those_of_the_language_and_bare_ones_occur():
    rng, tokenizer = np.random.default_rng(4), WordTokenizer()
    captions = [loose_caption(rng, spec, word_dropout=0.3, noun_noise=0.35) for spec in specs(3000)]
    ids = tokenizer.encode(captions)  # refuses other words, and too many of them
    assert tokenizer.decode(ids) == captions
    assert {*UNSAFE_NAMES, "ring", "red", CONTEXT, ""} <= set(captions)
    counts = np.array([len(caption.split()) for caption in captions])
    assert 0.02 < np.mean(counts == 0) < 0.12 and np.mean(counts == 1) > 0.1
    assert any(word in caption.split() for caption in captions for word in (*NUMBERS, *COLORS))


@pytest.mark.parametrize("rates", [{"word_dropout": -0.1, "noun_noise": 0.0}, {"word_dropout": 0.0, "noun_noise": 1.5}])
def test_rates_are_shares(rates):
    with pytest.raises(ValueError, match=r"(word_dropout|noun_noise): must lie in \[0, 1\], got"):
        loose_caption(np.random.default_rng(0), specs(1)[0], **rates)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """The text encoder that conditions, and the judge."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    for name in ("conditioner", "evaluator"):
        save_network(folder / name, DualEncoderScorer(width=8), width=8)
    return {name: folder / name for name in ("conditioner", "evaluator")}


@pytest.fixture(scope="module")
def base(networks, tmp_path_factory):
    """State of a job that has trained its base model."""
    state = tmp_path_factory.mktemp("state")
    loose_base(LOOSE, DRAW, as_json(DIFFUSION), seed=3, conditioner=networks["conditioner"], state=state)
    return state


def as_json(options):
    return json.dumps(plain(options))


def weights_of(base):
    return load_file(base / PIPELINE / "unet" / "diffusion_pytorch_model.safetensors")


def test_scenes_are_right_and_captions_loose():
    rows = list(loose_scenes(LOOSE, replace(DRAW, diffusion_scenes=400), seed=3))
    exact = list(loose_scenes(LooseOptions(0.0, 0.0), replace(DRAW, diffusion_scenes=400), seed=3))
    assert len(rows) == len(exact) == 400
    parsed = [parse_caption(row["caption"]) for row in exact]
    for spec, row in zip(parsed, exact, strict=True):
        drawn = sorted(item.shape for item in parse_scene(row["scene"]))
        named = sorted(group.shape for group in spec.groups for _ in range(group.count))
        assert drawn == named or (spec.context and drawn == sorted([*named, "saltire"]))
    assert any(spec.context for spec in parsed)
    counts = [np.mean([len(row["caption"].split()) for row in table]) for table in (rows, exact)]
    assert counts[0] == pytest.approx(0.7 * counts[1], rel=0.07)
    assert rows[:3] == list(loose_scenes(LOOSE, replace(DRAW, diffusion_scenes=3), seed=3))
    assert rows[0] != next(loose_scenes(LOOSE, DRAW, seed=4))


def test_a_base_model_is_trained_once(networks, base, monkeypatch):
    monkeypatch.setattr("papers.implicit_negatives.loose_base.train_diffusion", None)
    again = loose_base(LOOSE, DRAW, as_json(DIFFUSION), seed=3, conditioner=networks["conditioner"], state=base)
    assert again == base / "base"


def test_an_interrupted_training_goes_on_to_the_same_model(networks, base, tmp_path, monkeypatch):
    arguments = {"seed": 3, "conditioner": networks["conditioner"], "state": tmp_path}
    torch.rand(3)  # what was drawn before does not matter
    with monkeypatch.context() as patched, pytest.raises(TypeError):
        patched.setattr("shared.t2i.stages.train_diffusion.write_table", None)
        loose_base(LOOSE, DRAW, as_json(DIFFUSION), **arguments)
    assert not (tmp_path / "base").exists() and list((tmp_path / "training").glob("step-*2"))
    other = loose_base(LOOSE, DRAW, as_json(DIFFUSION), **arguments)
    before, after = weights_of(base / "base"), weights_of(other)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert "gold_accuracy_all" in json.loads((other / CHECK).read_text())


def test_options_that_are_none_are_named(networks, base, tmp_path):
    arguments = {"seed": 3, "conditioner": networks["conditioner"], "state": tmp_path}
    with pytest.raises(InputError, match="diffusion: not valid JSON"):
        loose_base(LOOSE, DRAW, "epochs: 3", **arguments)
    with pytest.raises(InputError, match="diffusion: unknown key 'epochs'"):
        loose_base(LOOSE, DRAW, '{"epochs": 3}', **arguments)
    with pytest.raises(InputError, match=r"unlearn\.esd: unknown key 'steps'"):
        unlearned_models(base / "base" / PIPELINE, '{"esd": {"steps": 3}}', seed=0, state=tmp_path)


def test_strengths_are_tried_on_a_base_model_of_its_own(networks, base, tmp_path):
    tune_loose(
        LOOSE, DRAW, GUIDANCE, seed=3, count=2, runs=("np:0.5/explicit", "np:1/explicit", "sld:3/explicit"),
        diffusion=as_json(DIFFUSION), **networks, grid=tmp_path / "grid", selection=tmp_path / "selection",
        sheet=tmp_path / "sheet.png", state=base,
    )  # fmt: skip
    assert set(json.loads((tmp_path / "selection").read_text())) == {"np", "sld"}
    assert len(read_table(tmp_path / "grid")) == 3 * 3
    assert (tmp_path / "sheet.png").read_bytes()[:4] == b"\x89PNG"


def test_one_job_trains_unlearns_inverts_and_samples(networks, base, tmp_path):
    (tmp_path / "selection").write_text('{"np": 1.0, "sld": 3.0, "safree": 1.0}')
    runs = ("none", "np/implicit", "none@uce", "np/implicit@uce", "none@esd", "prompt/implicit@esd")
    arguments = dict(
        seed=3, count=1, attacks=2, runs=runs, diffusion=as_json(DIFFUSION),
        unlearn=json.dumps({name: plain(options) for name, options in UNLEARN.items()}), **networks,
        selection=tmp_path / "selection", totals=tmp_path / "totals", pictures=tmp_path / "pictures",
        sheet=tmp_path / "sheet.png",
    )  # fmt: skip
    options = (LOOSE, DRAW, GUIDANCE, INVERSION, UceOptions(erase_weight=1.0))
    measured = sample_loose(*options, **arguments, values=tmp_path / "values", state=base)
    assert {"gold_accuracy_single", "gold_accuracy_all"} <= set(measured)
    values = read_table(tmp_path / "values", ("run", "set", "prompt", "dsr", "intact", "success", "similarity"))
    assert list(values["run"].unique()) == list(runs)
    assert values[values["run"] == "none@uce"].groupby("set").size().to_dict() == dict.fromkeys(SETS, 1) | {"attack": 2}
    assert (values[values["run"] == "none"]["similarity"] == 1).all()
    images = load_file(tmp_path / "pictures")
    assert not torch.equal(images["none"], images["none@uce"]) and not torch.equal(images["none"], images["none@esd"])
    learned = load_file(base / "words.safetensors")
    assert set(learned) == {f"{kind}.{model}" for kind in ("concept", "attack") for model in ("base", "uce", "esd")}
    # A job that is started again in the state it left behind ends with the same bytes.
    sample_loose(*options, **arguments, values=tmp_path / "again", state=base)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "values").read_bytes()
