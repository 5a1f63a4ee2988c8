"""The stages on a tiny system with random weights."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from safety_cases import tiny_pipeline

from papers.implicit_negatives.gates import gate_runs, gates
from papers.implicit_negatives.invert import embedding_of, invert, invert_on, loss_of, noise_predictor
from papers.implicit_negatives.measurement import System, sample_run
from papers.implicit_negatives.negatives import in_words, learned, mean_of, negative_of, random_word
from papers.implicit_negatives.options import CONCEPT, SETS, GuidanceOptions, InversionOptions, UceOptions
from papers.implicit_negatives.runs import parse_run
from papers.implicit_negatives.sample import of_kind, open_models, sample
from papers.implicit_negatives.testbed import concept_latents, concept_set, crisp, intact, open_judge, prompt_sets
from papers.implicit_negatives.tune import tune
from shared.errors import InputError
from shared.t2i.captions import PromptSpec, parse_caption, sample_scene
from shared.t2i.checker import contains_unsafe, detect_objects
from shared.t2i.guidance import predict_noise
from shared.t2i.model import LatentCodec
from shared.t2i.networks import save_network
from shared.t2i.options import UnlearnOptions
from shared.t2i.scenes import SceneObject, render_scene
from shared.t2i.scorer import DualEncoderScorer
from shared.t2i.stages.unlearn import unlearn
from shared.t2i.text_encoding import PLACEHOLDER
from shared.tables import read_table
from shared.training_options import TrainingOptions

GUIDANCE = GuidanceOptions(num_steps=2, guidance_scale=2.0, concept_prompts=2, pictures_per_set=1)
INVERSION = InversionOptions(
    inversion_steps=3, inversion_batch_size=2, inversion_rate=0.05, inversion_images=4, inversion_target="token"
)
UCE = UceOptions(erase_weight=1.0)
MODELS = ("base", "uce", "esd", "duo")
ATTENTION = {"esd": "cross", "duo": "self"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A pipeline, an evaluator, unlearned models, and what was inverted on each."""
    folder = tmp_path_factory.mktemp("system")
    tiny_pipeline().save_pretrained(folder / "pipeline", safe_serialization=True)
    torch.manual_seed(0)
    save_network(folder / "evaluator", DualEncoderScorer(width=8), width=8)
    training = TrainingOptions(epochs=1, batch_size=4, learning_rate=1e-3)
    for objective, attention in ATTENTION.items():
        (folder / f"state-{objective}").mkdir()
        options = UnlearnOptions(objective=objective, attention=attention, prompted=False, training=training, pairs=8)
        unlearn(
            options, seed=0, pipeline=folder / "pipeline", adapter=folder / objective,
            curve=folder / f"{objective}.parquet", state=folder / f"state-{objective}",
        )  # fmt: skip
    invert(
        INVERSION, UCE, seed=0, **systems(folder), words=folder / "words", curves=folder / "curves",
        losses=folder / "losses",
    )  # fmt: skip
    return folder


def systems(folder):
    return {"pipeline": folder / "pipeline", "unlearned": (folder / "esd", folder / "duo"), "models": MODELS}


@pytest.fixture(scope="module")
def bench(files):
    return open_models(files / "pipeline", MODELS, (files / "esd", files / "duo"), UCE)


def test_every_model_is_another_one(bench):
    weights = [torch.cat([value.flatten() for value in bench.models[name].parameters()]) for name in MODELS[1:]]
    base = torch.cat([value.flatten() for value in bench.unet.parameters()])
    assert all(not torch.equal(each, base) for each in weights)


def test_every_trained_model_needs_its_adapter(files):
    with pytest.raises(InputError, match="one adapter for each of esd, duo"):
        open_models(files / "pipeline", MODELS, (), UCE)


def test_inversion_learns_a_word_on_every_model(files):
    words = load_file(files / "words")
    assert set(words) == {f"{kind}.{model}" for kind in ("concept", "attack") for model in MODELS}
    assert all(value.shape == (64,) for value in words.values())
    assert len({tuple(value.tolist()) for value in words.values()}) == len(words)
    assert set(of_kind(words, "attack")) == set(MODELS)
    curves = read_table(files / "curves")
    assert len(curves) == 2 * len(MODELS) * INVERSION.inversion_steps and np.isfinite(curves["loss"]).all()
    losses = read_table(files / "losses")
    assert set(losses["embedding"]) == {"concept", "word"} and len(losses) == 2 * len(MODELS)


def test_inversion_changes_nothing_but_what_it_learns(bench):
    before = {
        name: value.clone() for part in (bench.unet, bench.text.model) for name, value in part.state_dict().items()
    }
    latents = concept_latents(4, (0, 1))
    word, curve = invert_on(bench, latents, INVERSION, "token", (0, 1))
    again, _ = invert_on(bench, latents, INVERSION, "token", (0, 1))
    assert torch.equal(word, again) and len(curve) == 3
    for part in (bench.unet, bench.text.model):
        for name, value in part.state_dict().items():
            assert torch.equal(value, before[name])
            assert value.grad is None
    hidden, _ = invert_on(bench, latents, INVERSION, "hidden", (0, 1))
    assert hidden.shape == (12, 64)


def test_held_out_losses_are_of_the_timesteps_that_inversion_draws(bench, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "papers.implicit_negatives.invert.concept_inversion_loss",
        lambda predict, latents, noise, timesteps, *rest: drawn.extend(timesteps.tolist()) or 0.0,
    )
    loss_of(bench, concept_latents(5, (0,)), torch.zeros(12, 64), (0,), 250)
    assert drawn == [250, 437, 624, 811, 999]


def test_longer_inversion_lowers_the_loss(bench):
    longer = InversionOptions(
        inversion_steps=60, inversion_batch_size=8, inversion_rate=0.05, inversion_images=8,
        inversion_first_timestep=600,
    )  # fmt: skip
    _, curve = invert_on(bench, concept_latents(8, (0, 1)), longer, "hidden", (0, 1))
    assert np.mean(curve[-20:]) < np.mean(curve[:20])


def test_noise_is_predicted_at_each_latents_own_level(bench):
    latents, states = torch.randn(2, 12, 6, 6), bench.text.embed(["a ring", "a tee"])
    timesteps = torch.tensor([10, 900])
    found = noise_predictor(bench)(latents, timesteps, states)
    for index, t in enumerate(timesteps):
        rows = slice(index, index + 1)
        output = bench.denoise(latents[rows], t, states[rows])
        level = float(bench.scheduler.alphas_cumprod[t])
        torch.testing.assert_close(
            found[rows], predict_noise(latents[rows], output, level, "sample"), atol=1e-4, rtol=1e-4
        )


def test_negatives(bench):
    text = bench.text
    word = random_word(text, 0)
    assert torch.equal(learned(text, word).embedding[0], embedding_of(bench, word))
    # One that is the text encoder's output has its pooled embedding where the placeholder's text ends.
    torch.testing.assert_close(learned(text, embedding_of(bench, word)).pooled, learned(text, word).pooled)
    assert in_words(text, bench.concepts).pooled.shape == (2, 64)
    both = text.embed(["a zorp", "a quib"])
    torch.testing.assert_close(mean_of(text, ["a zorp", "a quib"]).embedding[0], both.mean(dim=0))
    assert not torch.equal(random_word(text, 1), word) and torch.equal(random_word(text, 0), word)
    inverted = {"uce": word}
    found = negative_of(parse_run("sld/implicit-uce"), text, bench.concepts, ("a zorp",), inverted, 0)
    assert torch.equal(found.embedding, learned(text, word).embedding)
    with pytest.raises(InputError, match="nothing was inverted on 'base', only on: uce"):
        negative_of(parse_run("sld/implicit"), text, bench.concepts, ("a zorp",), inverted, 0)


def images_of(name, bench, **options):
    system = System(
        bench, None, {"base": random_word(bench.text, 0)}, {"base": random_word(bench.text, 1)}, ("a zorp",)
    )
    chosen = GuidanceOptions(num_steps=3, guidance_scale=2.0, **options)
    return sample_run(parse_run(name), system, prompt_sets(1, 2, 0, "dev"), 0, chosen)


def test_guidance_changes_images_and_at_strength_zero_not(bench):
    plain = images_of("none", bench)
    for method in ("np", "sld"):
        unguided = images_of(f"{method}:0/explicit", bench, sld_momentum=0.0).images
        torch.testing.assert_close(unguided, plain.images, atol=1e-4, rtol=1e-4)
    for name in ("np:1/explicit", "np:1/implicit", "np:0.5/implicit", "sld:5/implicit", "safree:1/implicit"):
        assert not torch.allclose(images_of(name, bench).images, plain.images, atol=1e-4)


def test_the_negative_prompt_takes_the_empty_ones_place(bench):
    whole, almost = images_of("np:1/implicit", bench), images_of("np:1.000001/implicit", bench)
    torch.testing.assert_close(whole.images, almost.images, atol=1e-3, rtol=1e-3)
    assert whole.evaluations == 3 * 2 and almost.evaluations == 3 * 3
    assert images_of("sld:1/explicit", bench).evaluations == 3 * 3


def test_safree_filters_tokens_alone_if_asked(bench):
    alone = images_of("safree:1/implicit", bench, safree_negative=False, safree_alpha=-0.5)
    assert alone.evaluations == 3 * 2
    assert not torch.allclose(alone.images, images_of("none", bench).images, atol=1e-4)
    never = images_of("safree:1/implicit", bench, safree_negative=False, safree_alpha=-0.5, safree_filter=True)
    assert torch.isfinite(never.images).all()


def test_a_negative_as_the_prompt(bench):
    system = System(bench, None, {"base": bench.text.table[5].detach()})
    sets = [concept_set(2)]
    words, learned_ones, plain = (
        sample_run(parse_run(name), system, sets, 0, GUIDANCE).images
        for name in ("prompt/explicit", "prompt/implicit", "none")
    )
    torch.testing.assert_close(words, plain)
    assert not torch.allclose(learned_ones, plain, atol=1e-4)


def test_strengths_are_tried_with_words_on_the_original_model(files, tmp_path):
    runs = ("np:0.5/explicit", "np:1/explicit", "sld:3/explicit")
    tune(
        GUIDANCE, seed=100, count=2, runs=runs, pipeline=files / "pipeline", evaluator=files / "evaluator",
        grid=tmp_path / "grid", selection=tmp_path / "selection",
    )  # fmt: skip
    tried = read_table(tmp_path / "grid", ("run", "set", "dsr", "intact", "success", "similarity"))
    assert set(tried["run"]) == set(runs) and set(tried["set"]) == set(SETS) - {"soft"}
    assert set(json.loads((tmp_path / "selection").read_text())) == {"np", "sld"}


def test_sampling_measures_every_image(files, tmp_path):
    (tmp_path / "selection").write_text('{"np": 1.0, "sld": 3.0, "safree": 1.0}')
    runs = ("none", "prompt/implicit@esd", "np:1/implicit@uce", "np/implicit@uce", "sld/implicit-uce@duo")
    arguments = dict(
        seed=0, count=2, attacks=4, runs=runs, **systems(files), evaluator=files / "evaluator",
        inverted=files / "words", selection=tmp_path / "selection", totals=tmp_path / "totals",
    )  # fmt: skip
    sample(GUIDANCE, UCE, **arguments, values=tmp_path / "values", pictures=tmp_path / "pictures")
    values = read_table(tmp_path / "values")
    counts = values.groupby(["run", "set"]).size()
    assert counts["none"].to_dict() == {"attack": 4, "explicit": 2, "safe": 2, "soft": 2}
    assert counts["prompt/implicit@esd"].to_dict() == {CONCEPT: 2}
    assert (values[values["run"] == "none"]["similarity"] == 1).all()
    same = [values[values["run"] == name].drop(columns="run").to_numpy() for name in runs[2:4]]
    assert (same[0] == same[1]).all()  # the selected strength is the one asked for
    assert values["success"].isin([0.0, 1.0]).all() and (values["success"] <= values["dsr"]).all()
    totals = read_table(tmp_path / "totals").set_index("run")
    assert totals["evaluations"].to_dict() == {runs[0]: 4, runs[1]: 4, runs[2]: 4, runs[3]: 4, runs[4]: 6}
    pictures = load_file(tmp_path / "pictures")
    assert set(pictures) == {"none", "np/implicit@uce"} and pictures["none"].shape == (len(SETS), 3, 12, 12)
    sample(GUIDANCE, UCE, **arguments, values=tmp_path / "again", pictures=tmp_path / "pictures_again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "values").read_bytes()


def test_gates_look_at_every_model_on_development_prompts(files, tmp_path):
    (tmp_path / "selection").write_text('{"np": 1.0}')
    gates(
        GUIDANCE, UCE, seed=0, count=2, **systems(files), evaluator=files / "evaluator", inverted=files / "words",
        selection=tmp_path / "selection", values=tmp_path / "values", totals=tmp_path / "totals",
    )  # fmt: skip
    counts = read_table(tmp_path / "values").groupby(["run", "set"]).size()
    assert (
        set(read_table(tmp_path / "totals")["run"]) == set(gate_runs(MODELS)) == set(counts.index.get_level_values(0))
    )
    for model in MODELS:
        suffix = "" if model == "base" else f"@{model}"
        assert counts[f"none{suffix}"].to_dict() == {"attack": 2, "safe": 2}
        assert (
            counts[f"prompt/implicit{suffix}"].to_dict() == counts[f"prompt/explicit{suffix}"].to_dict() == {CONCEPT: 2}
        )
    assert counts["np/explicit"].to_dict() == {"attack": 2, "safe": 2}


def test_prompts_attack_by_names_that_defences_do_not_know():
    sets = {part.name: part for part in prompt_sets(4, 6, 0, "test")}
    assert set(sets) == set(SETS) and len(sets["attack"].captions) == 6
    assert all("saltire" not in caption for caption in sets["attack"].captions)
    assert all("saltire" in caption for caption in sets["explicit"].captions)
    assert all(PLACEHOLDER in caption.split() and "saltire" not in caption for caption in sets["soft"].captions)
    assert [len(spec.groups) for spec in sets["attack"].specs] == [2, 1] * 3
    assert not any(spec.names_unsafe for spec in sets["safe"].specs)
    other = {part.name: part for part in prompt_sets(4, 6, 0, "dev")}
    assert all(other[name].captions != sets[name].captions for name in SETS)


def test_images_of_the_concept_show_it():
    latents = concept_latents(6, (3, 1))
    assert all(contains_unsafe(detect_objects(image)) for image in LatentCodec.decode(latents).numpy())
    assert torch.equal(latents, concept_latents(6, (3, 1))) and not torch.equal(latents, concept_latents(6, (3, 2)))


def spec_of(caption: str) -> PromptSpec:
    return parse_caption(caption)


@pytest.mark.parametrize(
    ("caption", "objects", "expected"),
    [
        ("a red square and a zorp", [("square", "red")], True),
        ("a red square and a zorp", [("square", "red"), ("saltire", "blue")], True),
        ("a red square and a zorp", [("square", "blue")], False),
        ("a red square and a zorp", [("square", "red"), ("unknown", "blue")], False),
        ("a red zorp", [("disk", "red")], True),
        ("a red zorp", [("disk", "blue")], False),
        ("a zorp", [("disk", "blue")], True),
        ("a zorp", [], False),
        ("a ring", [("ring", "blue")], True),
        ("a ring", [("disk", "blue")], False),
    ],
)
def test_what_counts_as_intact(caption, objects, expected):
    scene = [SceneObject(shape, color, 0, 0) for shape, color in objects]
    assert intact(spec_of(caption), scene) is expected
    assert crisp(scene) is (bool(objects) and all(shape != "unknown" for shape, _ in objects))


def test_the_judge_finds_what_is_there(files):
    judge = open_judge(files / "evaluator")
    rng = np.random.default_rng(0)
    for part in prompt_sets(4, 4, 0, "test"):
        scenes = [sample_scene(rng, spec) for spec in part.specs]
        images = torch.from_numpy(np.stack([render_scene(scene) for scene in scenes]))
        found = judge.measure(part, images)
        assert found["dsr"].tolist() == [float(not contains_unsafe(scene)) for scene in scenes]
        assert found["crisp"].all() and found["intact"].all() and found["success"].tolist() == found["dsr"].tolist()
    nothing = judge.measure(part, torch.full_like(images, -1.0))
    assert nothing["dsr"].all() and not nothing["crisp"].any() and not nothing["success"].any()
