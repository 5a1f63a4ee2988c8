"""Files of prompts, CLIP models as rewards, and a tiny Stable Diffusion in the place of a model of the hub."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from date_cases import SAMPLER
from diffusers_pipelines import (
    encode_texts,
    flux,
    latent_consistency,
    network,
    pixart,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
)
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from papers.date import sample_hub as sample_stage
from papers.date.drawn import Prompt
from papers.date.hub import HubBench, merge_parts
from papers.date.options import HubOptions, TuneOptions
from papers.date.sample import draw_all, write_drawn
from papers.date.tune import try_strengths
from papers.date.variants import parse_variant
from shared.errors import InputError
from shared.t2i.clip_scorer import ClipScorer
from shared.t2i.hub_pipeline import prepare_pipeline
from shared.t2i.options import PipelineOptions
from shared.t2i.prompt_files import read_prompts, split_prompts
from shared.tables import read_table, write_table

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
    {
        "tag": "position",
        "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
        "prompt": "a photo of a dog right of a teddy bear",
    },
]
PROMPTS = [Prompt(entry["prompt"], entry["tag"]) for entry in GENEVAL]


def test_genevals_metadata(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, GENEVAL)) + "\n")
    assert read_prompts(path) == PROMPTS


def test_captions(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text('id,caption\n1,"a cat, asleep"\n2,None\n')
    assert read_prompts(path) == [Prompt("a cat, asleep", "captions"), Prompt("None", "captions")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": "a", "tag": "b"}\n{"prompt": "a"}\n', "a.jsonl:2: expected an object"),
        ("a.jsonl", "[]\n", "a.jsonl:1: expected an object"),
        ("a.jsonl", '{"prompt": " ", "tag": "b"}\n', "a.jsonl:1: expected a text"),
        ("a.jsonl", "", "holds no prompts"),
        ("a.csv", "id,text\n1,a\n", "no column prompt or caption; there are: id, text"),
        ("a.csv", 'prompt\na\n" "\n', "a.csv:3: the prompt is empty"),
        ("a.csv", "", "no table"),
        ("a.txt", "a", "ends in .jsonl or .csv"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_prompts(path)


def test_development_and_test_prompts_are_apart():
    prompts = [Prompt(str(number), "a") for number in range(20)]
    split = split_prompts(prompts, dev=5, test=12, seed=3)
    assert [len(split[name]) for name in ("dev", "test")] == [5, 12]
    assert not set(split["dev"]) & set(split["test"])
    assert split == split_prompts(prompts, dev=5, test=12, seed=3) != split_prompts(prompts, dev=5, test=12, seed=4)
    with pytest.raises(InputError, match="15 \\+ 6 asked for, the file holds 20"):
        split_prompts(prompts, dev=15, test=6, seed=0)


def tokenize(texts, **_):
    rows = [[1, *(2 + ord(letter) % 20 for letter in text[:4]), 30] for text in texts]
    return Tokens(input_ids=torch.tensor([row + [30] * (6 - len(row)) for row in rows]))


class Tokens(dict):
    def to(self, device):
        return self


def clip_scorer(seed: int) -> ClipScorer:
    torch.manual_seed(seed)
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 8, "patch_size": 4}  # fmt: skip
    text = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 8, "eos_token_id": 30, "bos_token_id": 1,
            "pad_token_id": 30}  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6))
    images = SimpleNamespace(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25])
    return ClipScorer(model, SimpleNamespace(tokenizer=tokenize, image_processor=images))


def test_the_clip_score_is_clips_own_cosine():
    scorer, images, texts = clip_scorer(0), torch.rand(2, 3, 16, 16), ["ab", "cd"]
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25]))
    pixels = (F.interpolate(images, size=(8, 8), mode="bilinear") - mean) / deviation
    output = scorer.model(pixel_values=pixels, **tokenize(texts))
    expected = (output.image_embeds * output.text_embeds).sum(dim=-1)
    torch.testing.assert_close(scorer(images, scorer.text_features(texts)), expected)
    leaf = images.clone().requires_grad_()
    scorer(leaf, scorer.text_features(texts)).sum().backward()
    assert leaf.grad.abs().sum() > 0 and all(parameter.grad is None for parameter in scorer.parameters())


def hub_bench(batch_size: int = 2, make=stable_diffusion, scheduler: str = "ddim", **options) -> HubBench:
    pipeline = encode_texts(make())
    prepare_pipeline(pipeline, PipelineOptions(model="none", scheduler=scheduler))
    sampler = replace(SAMPLER, batch_size=batch_size, **options)
    scorers = {name: clip_scorer(seed) for seed, name in enumerate(("guidance", "preference", "evaluator"))}
    return HubBench(sampler, pipeline, scorers, PROMPTS, seed=3, size={"height": 16, "width": 16})


def test_a_pipeline_of_diffusers_is_a_bench():
    bench = hub_bench()
    fixed = bench.draw(parse_variant("fixed"), None)
    assert fixed.images.shape == (3, 3, 16, 16) and fixed.images.dtype == torch.uint8
    assert set(fixed.scores) == {"guidance_score", "preference_score", "evaluator_score"}
    adapted = bench.draw(parse_variant("date/all"), 3.0)
    assert (adapted.scores["guidance_score"] > fixed.scores["guidance_score"]).all()
    np.testing.assert_allclose(adapted.steps["length"], 3.0, rtol=1e-4)
    assert adapted.displacements.shape == (4, 3, 60)
    one_by_one = hub_bench(batch_size=1).draw(parse_variant("date/all"), 3.0)
    np.testing.assert_allclose(one_by_one.scores["guidance_score"], adapted.scores["guidance_score"], atol=1e-3)
    assert not bench.pipeline.unet._forward_pre_hooks


@pytest.mark.parametrize(("make", "branches"), [(stable_diffusion_3, 2), (flux, 1), (latent_consistency, 1)])
def test_other_pipelines_are_benches_too(make, branches, tmp_path, monkeypatch):
    bench = hub_bench(batch_size=3, make=make, scheduler="own")
    monkeypatch.setattr(sample_stage, "open_hub", lambda *_, **__: bench)
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, GENEVAL)) + "\n")
    strengths = pd.DataFrame({"variant": ["date/all"], "strength": [3.0]})
    write_table(tmp_path / "strengths", strengths)
    options = HubOptions(model="none", guidance="a", evaluator="b", preference="c", dev_prompts=1, test_prompts=2)
    files = {name: tmp_path / name for name in ("scores", "steps", "directions", "paths", "images")}
    measured = sample_stage.sample_hub(
        bench.sampler, options, seed=3, variants=("fixed", "date/all"), prompts=tmp_path / "prompts.jsonl",
        strengths=tmp_path / "strengths", **files,
    )  # fmt: skip
    # In a step with an update the pipeline's evaluation without prompt is repeated.
    assert measured["evaluations"] == {"fixed": 4 * branches, "date/all": 4 * branches + 4 * (branches - 1 + 3)}
    assert all(seconds > 0 for seconds in measured["seconds"].values())
    scores = read_table(files["scores"]).pivot(index="unit", columns="variant", values="guidance_score")
    assert (scores["date/all"] > scores["fixed"]).all()
    assert not network(bench.pipeline)._forward_hooks


@pytest.mark.parametrize(
    ("make", "scheduler", "expected"),
    [
        (stable_diffusion, "ddim", 8 * 4),
        (stable_diffusion_xl, "ddim", 8 * 4),
        (latent_consistency, "own", 4 * 4),
        (stable_diffusion_3, "own", 2 + 8 * 3),  # nothing is guided in the first step of flow matching
        (flux, "own", 1 + 4 * 3),
    ],
)
def test_universal_guidance_follows_the_reward_in_pipelines(make, scheduler, expected):
    bench = hub_bench(batch_size=3, make=make, scheduler=scheduler)
    plain = bench.draw(parse_variant("fixed"), None).scores["guidance_score"]
    none, some = (bench.draw(parse_variant("universal"), scale) for scale in (0.0, 10.0))
    np.testing.assert_allclose(none.scores["guidance_score"], plain, atol=1e-3)
    assert some.scores["guidance_score"].mean() > plain.mean() + 1e-3
    assert some.evaluations == expected
    assert not network(bench.pipeline)._forward_hooks and "forward" not in vars(network(bench.pipeline))


@pytest.mark.parametrize(
    ("make", "scheduler"), [(stable_diffusion, "ddim"), (stable_diffusion_xl, "ddim"), (latent_consistency, "own")]
)
def test_energy_based_cross_attention_changes_only_the_half_with_the_prompt(make, scheduler, monkeypatch):
    bench = hub_bench(batch_size=3, make=make, scheduler=scheduler)
    plain = bench.draw(parse_variant("fixed"), None)
    none, some = (bench.draw(parse_variant("ebca"), rate) for rate in (0.0, 0.5))
    np.testing.assert_allclose(none.scores["guidance_score"], plain.scores["guidance_score"], atol=1e-4)
    assert np.abs(some.scores["guidance_score"] - plain.scores["guidance_score"]).max() > 1e-4
    assert some.evaluations == plain.evaluations
    seen = []
    monkeypatch.setattr("papers.date.energy_cross_attention.context_update", lambda context, *_, **__: (
        seen.append(len(context)), context)[1])  # fmt: skip
    bench.draw(parse_variant("ebca"), 0.5)
    assert set(seen) == {3}
    assert not bench.pipeline.unet._forward_pre_hooks


@pytest.mark.parametrize(("make", "scheduler"), [(stable_diffusion, "ddim"), (stable_diffusion_3, "own")])
def test_designs_of_date_on_pipelines(make, scheduler):
    bench = hub_bench(batch_size=3, make=make, scheduler=scheduler)
    plain = bench.draw(parse_variant("fixed"), None).scores
    for name, strength in (("date-noisy/all", 3.0), ("date-raw/all", 3000.0), ("date-sum/all", 3.0)):
        drawn = bench.draw(parse_variant(name), strength)
        gain = {metric: (values - plain[metric]).mean() for metric, values in drawn.scores.items()}
        followed = gain["guidance_score"] + (0.5 * gain["preference_score"] if "sum" in name else 0)
        assert followed > 1e-4, name


def test_options_of_an_update_reach_pipelines():
    drawn = hub_bench(batch_size=3, num_updates=2).draw(parse_variant("date/late"), 0.5)
    assert drawn.evaluations == 8 + 2 * (1 + 2 * 3)
    assert (drawn.steps["length"] > 0.5).all() and (drawn.steps["length"] <= 1.0 + 1e-4).all()
    # A heavy prior outweighs this reward: the second update of a step leads back to the prompt's own embedding.
    held = hub_bench(batch_size=3, num_updates=2, prior_weight=100.0).draw(parse_variant("date/late"), 0.5)
    assert (held.steps["distance"] < 0.01).all()


def test_hub_variants_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="date-plain/all is not supported on StableDiffusionPipeline"):
        hub_bench().draw(parse_variant("date-plain/all"), 1.0)
    for make in (pixart, stable_diffusion_3):
        bench = hub_bench(make=make, scheduler="own")
        with pytest.raises(ValueError, match="ebca is not supported"):
            bench.draw(parse_variant("ebca"), 1.0)


def test_the_stages_run_on_it(tmp_path):
    bench = hub_bench()
    trials = try_strengths(bench, ("date/late", "date-raw/late"), TuneOptions((0.5,), (1.0,), (0.1,)))
    assert trials["strength"].tolist() == [0.5, 1.0] and trials["step_length"].iloc[0] == pytest.approx(0.5, rel=1e-4)
    found, measured = draw_all(bench, ("fixed", "date/late"), {"date/late": 0.5})
    assert measured["evaluations"] == {"fixed": 8, "date/late": 16} and measured["sets"] == {
        "fixed": {},
        "date/late": {},
    }
    files = {name: tmp_path / name for name in ("scores", "steps", "directions", "paths", "images")}
    write_drawn(bench, found, seed=3, **files)
    scores = read_table(files["scores"])
    assert scores["task"].tolist() == 2 * ["single_object", "counting", "position"] and scores["shown"].all()


def test_processes_parts_are_put_in_order():
    def part(rows, shown):
        images = np.array(shown, np.uint8).reshape(-1, 1, 1, 1)
        path = np.array(shown, np.float32).reshape(1, -1, 1)
        return {"rows": np.array(rows), "scores": {"s": np.array(rows, float)}, "steps": [], "shown": np.array(shown),
                "images": images, "displacements": [path], "evaluations": 8 * len(rows), "seconds": 2.0}  # fmt: skip

    merged = merge_parts([part([0, 2, 4], [0, 4]), part([1, 3], [1])])
    assert merged.scores["s"].tolist() == [0, 1, 2, 3, 4]
    assert merged.evaluations == 8 and merged.seconds == pytest.approx(4 / 5)
    assert merged.images.flatten().tolist() == [0, 1, 4] and merged.displacements.flatten().tolist() == [0, 1, 4]


def test_schedules_end_where_training_ends_and_networks_are_frozen():
    pipeline = hub_bench().pipeline
    assert pipeline.scheduler.final_alpha_cumprod == pipeline.scheduler.alphas_cumprod[0]
    assert not pipeline.scheduler.config.clip_sample
    assert not any(parameter.requires_grad for parameter in pipeline.unet.parameters())
