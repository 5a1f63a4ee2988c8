"""The control on base models of its own, whose training captions are loose."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from safety_cases import tiny_pipeline

from papers.implicit_negatives.gates import gate_runs
from papers.implicit_negatives.loose_base import SCENE_TASKS, loose_base, loose_scenes, train_on
from papers.implicit_negatives.loose_captions import loose_caption, with_noise
from papers.implicit_negatives.options import SETS, GuidanceOptions, InversionOptions, LooseOptions, UceOptions
from papers.implicit_negatives.sample_loose import sample_loose, unlearned_models
from papers.implicit_negatives.testbed import lone_prompt_sets
from papers.implicit_negatives.tune_loose import tune_loose
from shared.errors import InputError
from shared.options import plain
from shared.t2i.captions import (
    UNSAFE_NAMES,
    ObjectGroup,
    PromptSpec,
    WordTokenizer,
    caption_of,
    parse_caption,
    sample_spec,
)
from shared.t2i.checker import check_prompt
from shared.t2i.model import LatentCodec, diffusion_loss
from shared.t2i.networks import save_network
from shared.t2i.options import UnlearnOptions
from shared.t2i.scenes import SHAPES, SceneObject, render_scene
from shared.t2i.scorer import DualEncoderScorer
from shared.t2i.text_encoding import PLACEHOLDER
from shared.tables import read_table
from shared.training_options import TrainingOptions

LOOSE = LooseOptions(scenes=24)
TRAINING = TrainingOptions(epochs=1, batch_size=8, learning_rate=1e-3, checkpoint_every=2)
GUIDANCE = GuidanceOptions(num_steps=2, concept_prompts=2, pictures_per_set=1)
INVERSION = InversionOptions(
    inversion_steps=2, inversion_batch_size=2, inversion_rate=0.05, inversion_images=4, inversion_first_timestep=250
)
UNLEARN = {"esd": UnlearnOptions(objective="esd", attention="cross", training=TRAINING, pairs=8)}


def described(count, seed=0):
    """Groups of scenes of every kind, and how saltires are called in them."""
    rng = np.random.default_rng(seed)
    specs = [sample_spec(rng, SCENE_TASKS) for _ in range(count)]
    return [(spec.groups, spec.unsafe_name) for spec in specs]


def test_captions_at_rates_of_zero_are_exact_and_at_one_empty():
    rng = np.random.default_rng(0)
    for groups, name in described(200):
        exact = caption_of(PromptSpec("two" if len(groups) == 2 else "single", groups, unsafe_name=name))
        assert loose_caption(rng, groups, name, word_dropout=0.0, noun_noise=0.0) == exact
        assert loose_caption(rng, groups, name, word_dropout=1.0, noun_noise=0.5) == ""


def test_every_kind_of_word_is_left_out_at_the_rate_and_by_itself():
    groups = (ObjectGroup(1, "red", "ring"),)
    rng, count = np.random.default_rng(1), 4000
    drawn = [loose_caption(rng, groups, "zorp", word_dropout=0.3, noun_noise=0.0).split() for _ in range(count)]
    for word in ("a", "red", "ring"):
        assert np.mean([word in words for words in drawn]) == pytest.approx(0.7, abs=0.03)
    both_left = np.mean(["red" not in words and "ring" not in words for words in drawn])
    assert both_left == pytest.approx(0.09, abs=0.02)
    assert np.mean([not words for words in drawn]) == pytest.approx(0.3**3, abs=0.01)


def test_groups_are_joined_where_both_have_words():
    groups = parse_caption("a red ring and a blue tee").groups
    rng, seen = np.random.default_rng(2), set()
    for _ in range(500):
        words = loose_caption(rng, groups, "zorp", word_dropout=0.5, noun_noise=0.0)
        sides = words.split("and")
        assert all(side.strip() for side in sides) or words == ""
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
    captions = [loose_caption(rng, *each, word_dropout=0.3, noun_noise=0.35) for each in described(3000)]
    ids = tokenizer.encode(captions)  # refuses other words
    assert tokenizer.decode(ids) == captions
    assert {*UNSAFE_NAMES, "ring", "red", ""} <= set(captions)
    counts = np.array([len(caption.split()) for caption in captions])
    assert 0.01 < np.mean(counts == 0) < 0.12 and np.mean(counts == 1) > 0.1


@pytest.mark.parametrize("rates", [{"word_dropout": -0.1, "noun_noise": 0.0}, {"word_dropout": 0.0, "noun_noise": 1.5}])
def test_rates_are_shares(rates):
    with pytest.raises(ValueError, match=r"(word_dropout|noun_noise): must lie in \[0, 1\], got"):
        loose_caption(np.random.default_rng(0), *described(1)[0], **rates)


def test_prompts_that_name_the_concept_alone_hold_nothing_else():
    sets = {part.name: part for part in lone_prompt_sets(4, 6, 0, "test")}
    assert set(sets) == set(SETS) and [len(part.captions) for part in sets.values()] == [4, 6, 4, 4]
    assert all(len(spec.groups) == 1 and spec.groups[0].count == 1 for part in sets.values() for spec in part.specs)
    assert not any("saltire" in caption for caption in (*sets["attack"].captions, *sets["soft"].captions))
    assert all("saltire" in caption.split() for caption in sets["explicit"].captions)
    assert all(PLACEHOLDER in caption.split() for caption in sets["soft"].captions)
    assert not any(spec.names_unsafe for spec in sets["safe"].specs)
    other = {part.name: part for part in lone_prompt_sets(4, 6, 0, "dev")}
    assert all(other[name].captions != sets[name].captions for name in SETS)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """The shared base model, and the judge."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    save_network(folder / "evaluator", DualEncoderScorer(width=8), width=8)
    tiny_pipeline().save_pretrained(folder / "pipeline")
    return {name: folder / name for name in ("pipeline", "evaluator")}


@pytest.fixture(scope="module")
def base(networks, tmp_path_factory):
    """State of a job that has trained its base model."""
    state = tmp_path_factory.mktemp("state")
    loose_base(LOOSE, as_json(TRAINING), seed=3, pipeline=networks["pipeline"], state=state)
    return state


def as_json(options):
    return json.dumps(plain(options))


def weights_of(pipeline):
    return load_file(pipeline / "unet" / "diffusion_pytorch_model.safetensors")


def test_scenes_are_right_and_captions_loose():
    captions, scenes = loose_scenes(replace(LOOSE, scenes=400), seed=3)
    exact, same = loose_scenes(LooseOptions(400, word_dropout=0.0, noun_noise=0.0), seed=3)
    assert len(captions) == len(scenes) == len(exact) == 400
    for caption, scene in zip(exact, same, strict=True):
        assert check_prompt(parse_caption(caption), scene)
    counts = [np.mean([len(caption.split()) for caption in each]) for each in (captions, exact)]
    assert counts[0] == pytest.approx(0.7 * counts[1], rel=0.1)
    assert captions[:3] == loose_scenes(replace(LOOSE, scenes=3), seed=3)[0]
    assert captions[:24] != loose_scenes(LOOSE, seed=4)[0]


def test_a_base_model_is_trained_once_from_the_shared_one_on(networks, base, monkeypatch):
    before, after = weights_of(networks["pipeline"]), weights_of(base / "base")
    assert before.keys() == after.keys()
    changes = [float((after[name] - before[name]).abs().max()) for name in before]
    assert 0 < max(changes) < 0.1  # three steps do not lead far away
    monkeypatch.setattr("papers.implicit_negatives.loose_base.train_on", None)
    again = loose_base(LOOSE, as_json(TRAINING), seed=3, pipeline=networks["pipeline"], state=base)
    assert again == base / "base"


def test_training_on_lowers_the_loss_on_what_it_learns(tmp_path):
    system = tiny_pipeline()
    captions, scenes = ["a red ring"] * 8, [[SceneObject("ring", "red", 4, 4)]] * 8

    def loss():
        torch.manual_seed(0)
        latents = LatentCodec.encode(torch.from_numpy(np.stack(list(map(render_scene, scenes)))))
        with torch.no_grad():
            return float(diffusion_loss(system.unet, system.scheduler, latents, system.embed(captions)))

    before = loss()
    options = TrainingOptions(epochs=30, batch_size=8, learning_rate=3e-3)
    train_on(system, captions, scenes, options, seed=0, state=tmp_path)
    assert loss() < 0.7 * before


def test_an_interrupted_training_goes_on_to_the_same_model(networks, base, tmp_path, monkeypatch):
    arguments = {"seed": 3, "pipeline": networks["pipeline"], "state": tmp_path}
    torch.rand(3)  # what was drawn before does not matter
    with monkeypatch.context() as patched, pytest.raises(TypeError):
        patched.setattr("papers.implicit_negatives.loose_base.atomic_output", None)
        loose_base(LOOSE, as_json(TRAINING), **arguments)
    assert not (tmp_path / "base").exists() and list((tmp_path / "training").glob("step-*2"))
    other = loose_base(LOOSE, as_json(TRAINING), **arguments)
    before, after = weights_of(base / "base"), weights_of(other)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_options_that_are_none_are_named(networks, base, tmp_path):
    arguments = {"seed": 3, "pipeline": networks["pipeline"], "state": tmp_path}
    with pytest.raises(InputError, match="training: not valid JSON"):
        loose_base(LOOSE, "epochs: 3", **arguments)
    with pytest.raises(InputError, match="training: unknown key 'steps'"):
        loose_base(LOOSE, '{"steps": 3}', **arguments)
    with pytest.raises(InputError, match=r"unlearn\.esd: unknown key 'steps'"):
        unlearned_models(base / "base", '{"esd": {"steps": 3}}', seed=0, state=tmp_path)


def test_strengths_are_tried_on_a_base_model_of_its_own(networks, base, tmp_path):
    tune_loose(
        LOOSE, GUIDANCE, seed=3, count=2, runs=("np:0.5/explicit", "np:1/explicit", "sld:3/explicit"),
        training=as_json(TRAINING), **networks, grid=tmp_path / "grid", selection=tmp_path / "selection", state=base,
    )  # fmt: skip
    assert set(json.loads((tmp_path / "selection").read_text())) == {"np", "sld"}
    assert len(read_table(tmp_path / "grid")) == 3 * 3


def test_one_job_trains_unlearns_inverts_and_samples(networks, base, tmp_path):
    (tmp_path / "selection").write_text('{"np": 1.0, "sld": 3.0, "safree": 1.0}')
    runs = ("none", "np/implicit", "none@uce", "np/implicit@uce", "none@esd", "prompt/implicit@esd")
    arguments = dict(
        seed=3, count=1, attacks=2, runs=runs, training=as_json(TRAINING),
        unlearn=json.dumps({name: plain(options) for name, options in UNLEARN.items()}), **networks,
        selection=tmp_path / "selection", totals=tmp_path / "totals", pictures=tmp_path / "pictures", gate_count=2,
        gate_values=tmp_path / "gate-values", gate_totals=tmp_path / "gate-totals",
    )  # fmt: skip
    options = (LOOSE, GUIDANCE, INVERSION, UceOptions(erase_weight=1.0))
    sample_loose(*options, **arguments, values=tmp_path / "values", state=base)
    values = read_table(
        tmp_path / "values", ("run", "set", "prompt", "dsr", "crisp", "intact", "success", "similarity")
    )
    assert list(values["run"].unique()) == list(runs)
    assert values[values["run"] == "none@uce"].groupby("set").size().to_dict() == dict.fromkeys(SETS, 1) | {"attack": 2}
    assert (values[values["run"] == "none"]["similarity"] == 1).all()
    looked = read_table(tmp_path / "gate-values")
    names = set(gate_runs(("base", "uce", "esd")))
    assert set(looked["run"]) == names == set(read_table(tmp_path / "gate-totals")["run"])
    counts = {run: rows.groupby("set").size().to_dict() for run, rows in looked.groupby("run")}
    assert counts["none@esd"] == {"attack": 2, "explicit": 2, "safe": 2}
    assert counts["prompt/implicit@uce"] == {"concept": 2}
    images = load_file(tmp_path / "pictures")
    assert not torch.equal(images["none"], images["none@uce"]) and not torch.equal(images["none"], images["none@esd"])
    learned = load_file(base / "words.safetensors")
    assert set(learned) == {f"{kind}.{model}" for kind in ("concept", "attack") for model in ("base", "uce", "esd")}
    # A job that is started again in the state it left behind ends with the same bytes.
    sample_loose(*options, **arguments, values=tmp_path / "again", state=base)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "values").read_bytes()
