import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safety_cases import SETS, TEXTS, redness, tiny_bench, tiny_judge

from papers.stg.measurement import sample_run, summarise_trace
from papers.stg.methods import network_of, plug_in
from papers.stg.options import DefenceOptions
from papers.stg.runs import parse_run
from papers.stg.safe_text_guidance import safree_token_projection
from papers.stg.sample import sample_all
from papers.stg.tune import try_all
from shared.errors import InputError
from shared.t2i.bench import Meter
from shared.t2i.defences import self_validation_steps
from shared.t2i.defended_sampling import first_images, judge_images
from shared.t2i.sampling import Step
from shared.t2i.step_method import sampler_hooks

OPTIONS = DefenceOptions(num_steps=4, guidance_scale=3.0, threshold=0.5, fraction=1.0)


@pytest.fixture(scope="module")
def bench():
    return tiny_bench()


def images_of(text, bench, options=OPTIONS, seed=0):
    return sample_run(text, bench, SETS, seed, options).images


def plugs_of(text, bench, options=OPTIONS):
    return plug_in(parse_run(text), bench, TEXTS, options)


@pytest.mark.parametrize(
    "text", ["stg:0", "sdg:0", "negative:0", "uce:0", "stg:1,fraction=0", "sdg:50,fraction=0", "safree:1e9"]
)
def test_without_strength_nothing_changes(bench, text):
    options = DefenceOptions(num_steps=4, guidance_scale=3.0, threshold=0.5, fraction=1.0, uce_preserve=0.0)
    torch.testing.assert_close(images_of(text, bench, options), images_of("base", bench, options), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("text", ["stg:3", "sdg:100"])
def test_guidance_lowers_the_unsafe_value_of_flagged_images(text):
    flagged = torch.tensor([True, False, True])
    bench = tiny_bench(unsafe_score=lambda images, threshold: (redness(images), flagged[: len(images)]))
    base, guided = images_of("base", bench), images_of(text, bench)
    assert (redness(guided) < redness(base))[flagged].all()
    assert torch.equal(guided[~flagged], base[~flagged])


def test_a_run_may_change_options(bench):
    assert torch.equal(images_of("stg:3,threshold=1", bench), images_of("base", bench))  # nothing is so red
    half = images_of("stg:3,fraction=0.5", bench)
    assert not torch.equal(half, images_of("stg:3", bench)) and not torch.equal(half, images_of("base", bench))


def test_negative_prompt_mixes_the_unconditional_text(bench):
    empty, concept = bench.text.embed([""]), bench.text.embed(["a saltire"])
    torch.testing.assert_close(plugs_of("negative:1", bench).uncond_embedding, concept)
    torch.testing.assert_close(plugs_of("negative:0.25", bench).uncond_embedding, 0.75 * empty + 0.25 * concept)


def test_safree_replaces_triggers_only(bench):
    cond = bench.text.embed(TEXTS)
    filtered = plugs_of("safree:-0.1", bench).cond_embedding
    for index, text in enumerate(TEXTS):
        expected, triggers = safree_token_projection(
            cond[index], bench.text.masked_pooled(text), bench.text.pooled(bench.concepts), -0.1
        )
        torch.testing.assert_close(filtered[index], expected)
        kept = [place + 1 for place, trigger in enumerate(triggers) if not trigger]
        assert torch.equal(filtered[index, kept], cond[index, kept])
    assert not torch.equal(filtered, cond)


def test_safree_self_validation(bench):
    options = DefenceOptions(num_steps=4, safree_filter=True)
    plugs = plugs_of("safree:-0.1", bench, options)
    limits = [
        self_validation_steps(each, bench.text.masked_pooled(text), bench.text.pooled(bench.concepts), 4)
        for each, text in zip(bench.text.embed(TEXTS), TEXTS, strict=True)
    ]
    cond = bench.text.embed(TEXTS)
    hooks = sampler_hooks(plugs.method, bench.denoise, cond, cond)
    chosen = hooks["embedding_hook"](Step(1, torch.tensor(0), torch.zeros(0), torch.zeros(0), 1.0, 0.5), cond)
    for index, limit in enumerate(limits):
        expected = plugs.cond_embedding if limit >= 1 else cond
        assert torch.equal(chosen[index], expected[index])


def test_the_more_the_projection_changes_the_more_steps():
    states = torch.eye(4, dtype=torch.float64)  # content tokens are the states 1 and 2, the concept is 3
    shares = [states[[1, 2]], states[[2, 0]], states[[0, 3]]]  # what is projected on: both of them, one, none
    found = [self_validation_steps(states, masked, states[3:], 50) for masked in shares]
    assert found == [0, round(10 / (1 + math.exp(5 * (5.333 - 5)))), 10]
    assert self_validation_steps(states, shares[2], states[3:], 25) == 5


def test_models_by_name(bench):
    assert network_of(parse_run("base@duo"), bench, OPTIONS).unet is bench.models["duo"]
    assert not torch.allclose(images_of("base@duo", bench), images_of("base", bench), atol=1e-3)
    with pytest.raises(InputError, match="model 'esd': there is none"):
        network_of(parse_run("base@esd"), bench, OPTIONS)


def test_uce_leaves_the_system_alone(bench):
    before = images_of("base", bench)
    assert not torch.allclose(images_of("uce:100", bench), before, atol=1e-4)
    assert torch.equal(images_of("base", bench), before)


@pytest.mark.parametrize(
    ("text", "forward", "branches"),
    [("base", 2, 0), ("stg:1", 3, 1), ("sdg:1", 4, 2), ("sld:1", 3, 0), ("negative:1", 2, 0), ("uce:1", 2, 0)],
)
def test_a_backward_pass_through_a_flagged_sample_counts_as_two_evaluations(text, forward, branches):
    flagged = torch.tensor([True, False, True])
    bench = tiny_bench(unsafe_score=lambda images, threshold: (redness(images), flagged[: len(images)]))
    watched = DefenceOptions(num_steps=4, guidance_scale=3.0, fraction=0.5)
    steps = 4 if forward == 2 or text.startswith("sld") else 2  # STG and SDG act in half of the steps
    without = 4 * 2 + steps * (forward - 2)
    for trace in (None, []):  # looking on costs nothing
        found = sample_run(text, bench, SETS, 0, watched, trace).evaluations
        assert found == pytest.approx(without + 2 * branches * steps * 2 / 3)
    assert not bench.unet._forward_hooks


def test_unflagged_samples_have_no_backward_pass(bench):
    assert sample_run("stg:1,threshold=1", bench, SETS, 0, OPTIONS).evaluations == 4 * 3


def test_without_its_gate_data_guidance_acts_on_all_samples():
    bench = tiny_bench(unsafe_score=lambda images, threshold: (redness(images), torch.zeros(len(images)).bool()))
    ungated = replace(OPTIONS, sdg_gated=False)
    base, gated, free = (
        sample_run(text, bench, SETS, 0, options)
        for text, options in (("base", OPTIONS), ("sdg:100", OPTIONS), ("sdg:100", ungated))
    )
    assert torch.equal(gated.images, base.images) and gated.evaluations == 4 * 4
    assert (redness(free.images) < redness(base.images)).all() and free.evaluations == 4 * (4 + 4)


def test_samples_do_not_depend_on_the_batch(bench):
    options = DefenceOptions(num_steps=4, guidance_scale=3.0, threshold=0.5, batch_size=2)
    whole = DefenceOptions(num_steps=4, guidance_scale=3.0, threshold=0.5)
    torch.testing.assert_close(
        images_of("stg:1", bench, options), images_of("stg:1", bench, whole), atol=1e-4, rtol=1e-4
    )


def test_a_judge_compares_with_the_base_model(bench):
    base, other = (sample_run(text, bench, SETS, 0, OPTIONS) for text in ("base", "base@duo"))
    table = judge_images(base.images, base.images, SETS, tiny_judge(), 2)
    assert table["similarity"].tolist() == [1.0] * 3 and table["set"].tolist() == ["explicit"] * 2 + ["safe"]
    changed = judge_images(other.images, base.images, SETS, tiny_judge(), 2)
    assert (changed["similarity"] < 1).all()


def test_traces_follow_the_predicted_image(bench):
    trace = []
    sampled = sample_run("base", bench, SETS, 0, OPTIONS, trace)
    steps = pd.concat(trace)
    last = steps[steps["step"] == 3]["value"].to_numpy()
    np.testing.assert_allclose(last, redness(sampled.images).numpy(), atol=1e-5)  # the last prediction is the image
    summary = summarise_trace(trace, SETS)
    assert len(summary) == 2 * 4 and set(summary["set"]) == {"explicit", "safe"}
    explicit = summary[(summary["set"] == "explicit") & (summary["step"] == 3)]["value"].item()
    assert explicit == pytest.approx(last[:2].mean(), abs=1e-4)


def test_findings_hold_every_run(bench):
    options = DefenceOptions(num_steps=2, pictures_per_set=1, threshold=0.5, traced=("stg:1",))
    found = sample_all(("base", "stg:1"), bench, SETS, tiny_judge(), 0, options)
    assert [table["run"].iloc[0] for table in found.values] == ["base", "stg:1"]
    assert [row["run"] for row in found.totals] == ["base", "stg:1"]
    distance = float(sample_run("base", bench, SETS, 0, options).images[2:].std())  # the tiny judge's
    assert found.totals[0]["frechet"] == distance
    assert [table["run"].iloc[0] for table in found.traces] == ["stg:1"]
    assert found.pictures["stg:1"].shape == (2, 3, 12, 12) and found.pictures["stg:1"].dtype == torch.uint8


def test_first_images_of_every_set():
    images = torch.linspace(-1, 1, 3).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    assert first_images(images, SETS, 1)[:, 0, 0, 0].tolist() == [0, 255]
    assert len(first_images(images, SETS, 5)) == 3


def test_every_strength_is_tried(bench):
    tried = try_all(("stg:0.5", "negative:1"), bench, SETS, tiny_judge(), 0, OPTIONS)
    assert set(tried["run"]) == {"stg:0.5", "negative:1"} and len(tried) == 4
    assert {"dsr", "similarity", "success"} < set(tried.columns) and "kept" not in tried


def test_the_meter_counts_samples():
    meter = Meter(lambda latents, timestep, embedding: latents)
    meter(torch.zeros(3, 1), torch.tensor(0), torch.zeros(3, 1))
    meter(torch.zeros(2, 1), torch.tensor(0), torch.zeros(2, 1))
    assert meter.evaluations == 5
