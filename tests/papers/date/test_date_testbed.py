from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from date_cases import SAMPLER, STEPS, scene_bench

from papers.date import testbed
from papers.date.drawn import StepTrace, direction_cosines, principal_paths, shown_rows
from papers.date.testbed import render_references
from papers.date.variants import parse_variant
from shared.t2i.sampling import initial_noise

NAMES = ["date/all", "date-raw/late", "date-noisy/all", "date-anchor/all", "random/all", "universal", "ebca"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_fixed_embedding_is_the_pipelines_own_sampling():
    bench = scene_bench()
    drawn = bench.draw(parse_variant("fixed"), None)
    images = bench.pipeline(
        [prompt.text for prompt in bench.prompts], initial_noise(0, range(6)), num_steps=STEPS, guidance_scale=3.0
    )
    torch.testing.assert_close(drawn.images, ((images.clamp(-1, 1) + 1) * 127.5).round().byte(), rtol=0, atol=0)
    assert not drawn.displacements.any() and not drawn.steps["length"].any()
    assert drawn.scores["gold"].shape == (6,) and drawn.sets["frechet_distance"] > 0
    assert set(drawn.scores) == {
        "gold", "gold_share", "guidance_score", "preference_score", "plain_score", "evaluator_score"
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_without_strength_every_variant_is_the_fixed_embedding(name):
    bench = scene_bench()
    fixed, drawn = bench.draw(parse_variant("fixed"), None), bench.draw(parse_variant(name), 0.0)
    for metric, values in fixed.scores.items():
        np.testing.assert_allclose(drawn.scores[metric], values, atol=2e-4)
    np.testing.assert_allclose(drawn.steps["reward"], fixed.steps["reward"], atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_images_do_not_depend_on_the_batch_and_strength_matters(name):
    variant = parse_variant(name)
    whole = scene_bench().draw(variant, 0.5)
    parts = scene_bench(replace(SAMPLER, batch_size=4)).draw(variant, 0.5)
    for metric, values in whole.scores.items():
        np.testing.assert_allclose(parts.scores[metric], values, atol=2e-4)
    torch.testing.assert_close(parts.displacements, whole.displacements, atol=1e-3, rtol=1e-3)
    fixed = scene_bench().draw(parse_variant("fixed"), None)
    assert np.abs(whole.scores["evaluator_score"] - fixed.scores["evaluator_score"]).max() > 1e-4


def test_lengths_and_distances_of_updates():
    bench = scene_bench()
    for name, moved in (("date/all", 4), ("date/late", 2), ("random/late", 2)):
        steps = bench.draw(parse_variant(name), 0.5).steps
        lengths = steps.pivot_table(index="step", values="length")["length"]
        assert [length > 0 for length in lengths] == [step >= STEPS - moved for step in range(STEPS)]
        np.testing.assert_allclose(lengths[lengths > 0], 0.5, rtol=1e-4)
        assert steps["distance"].max() <= 0.5 * moved + 1e-4
    anchored = bench.draw(parse_variant("date-anchor/all"), 0.5).steps
    np.testing.assert_allclose(anchored["distance"], 0.5, rtol=1e-4)


def test_following_a_reward_raises_it_more_than_random_steps():
    bench = scene_bench()
    means = {
        name: bench.draw(parse_variant(name), 2.0).scores
        for name in ("date/all", "date-preference/all", "date-plain/all", "random/all")
    }
    for name, metric in (
        ("date/all", "guidance_score"),
        ("date-preference/all", "preference_score"),
        ("date-plain/all", "plain_score"),
    ):
        assert means[name][metric].mean() > means["random/all"][metric].mean() + 1e-3
        assert means[name][metric].mean() == max(scores[metric].mean() for scores in means.values())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fixed", 2 * STEPS),
        ("fixed-x2", 4 * STEPS),
        ("fixed-x2.5", 5 * STEPS),
        ("random/all", 2 * STEPS),
        ("date/all", 5 * STEPS),  # as much as with 2.5 times the steps
        ("date/late", 2 * STEPS + 2 * 3),
        ("date-sum/all", 5 * STEPS),
        ("universal", 8 * STEPS),  # two evaluations of the sampler, two of the method, and back through those
        ("ebca", 2 * STEPS),
    ],
)
def test_costs_are_what_the_network_evaluates(name, expected):
    bench = scene_bench()
    drawn = bench.draw(parse_variant(name), 0.5)
    assert drawn.evaluations == expected and drawn.seconds > 0
    assert "forward" not in vars(bench.pipeline.unet)


def test_further_updates_in_a_step_cost_as_many_gradients():
    drawn = scene_bench(replace(SAMPLER, num_updates=3)).draw(parse_variant("date/late"), 0.5)
    assert drawn.evaluations == 2 * STEPS + 2 * 3 * 3
    lengths = drawn.steps.pivot_table(index="step", values="length")["length"]
    assert (lengths[2:] > 0.5).all() and (lengths <= 1.5 + 1e-4).all()
    held = scene_bench(replace(SAMPLER, num_updates=2, prior_weight=1e4)).draw(parse_variant("date/late"), 0.5)
    assert (held.steps["distance"] < 0.01).all()


def test_a_sum_of_rewards_is_followed():
    fixed, drawn = (scene_bench().draw(parse_variant(name), 2.0).scores for name in ("fixed", "date-sum/all"))
    gain = {name: (drawn[name] - fixed[name]).mean() for name in ("guidance_score", "preference_score")}
    assert gain["guidance_score"] + 0.5 * gain["preference_score"] > 1e-3
    same = scene_bench(replace(SAMPLER, rewards=("guidance*2.0",))).draw(parse_variant("date-sum/all"), 2.0).scores
    alone = scene_bench().draw(parse_variant("date/all"), 2.0).scores
    np.testing.assert_allclose(same["guidance_score"], alone["guidance_score"], atol=2e-4)


def test_judging_takes_no_time_of_sampling(monkeypatch):
    bench = scene_bench()
    clock = iter(range(100))
    monkeypatch.setattr(testbed, "time", SimpleNamespace(process_time=lambda: next(clock)))
    assert bench.draw(parse_variant("fixed"), None).seconds == pytest.approx(1 / len(bench.prompts))
    assert next(clock) == 2


def test_seeds_and_splits_have_prompts_of_their_own():
    texts = {key: [prompt.text for prompt in scene_bench(seed=key[0], split=key[1]).prompts]
             for key in ((0, "test"), (1, "test"), (0, "dev"))}  # fmt: skip
    assert len({tuple(each) for each in texts.values()}) == 3
    assert [prompt.text for prompt in scene_bench().prompts] == texts[0, "test"]


def test_references_are_true_scenes():
    from shared.t2i.metrics import gold_accuracy

    specs = scene_bench().specs
    images = render_references(specs, 3, 7)
    assert gold_accuracy([spec for spec in specs for _ in range(3)], images).all()
    torch.testing.assert_close(images, render_references(specs, 3, 7), rtol=0, atol=0)


def test_the_first_prompts_of_each_task_are_shown():
    prompts = scene_bench().prompts
    assert shown_rows([prompts[0], *prompts], 1) == [0, 2, 3, 4, 5, 6]
    assert shown_rows([prompts[0], *prompts], 2) == [0, 1, 2, 3, 4, 5, 6]


def test_direction_cosines():
    right, up = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    path = torch.stack([right, right + up, up, up])[:, None]  # right, up, left, none
    expected = [[1, 0, -1, 0], [0, 1, 0, 0], [-1, 0, 1, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(direction_cosines(path), torch.tensor(expected, dtype=torch.float32))


def test_principal_paths_keep_distances_in_a_plane():
    plane = torch.linalg.qr(torch.randn(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    flat = torch.tensor([[[3.0, 0.0], [4.0, 1.0]], [[0.0, 0.5], [-1.0, 1.0]]], dtype=torch.float64)
    found = principal_paths(flat @ plane.T)
    assert found.shape == (2, 2, 2) and (found.mean(dim=(0, 1)) >= 0).all()
    points, paths = flat.flatten(0, 1), found.flatten(0, 1)
    torch.testing.assert_close(torch.cdist(paths, paths), torch.cdist(points, points))
    torch.testing.assert_close(paths.norm(dim=1), points.norm(dim=1))
    assert principal_paths(torch.ones(1, 1, 5)).shape == (1, 1, 2)


def test_a_trace_measures_lengths_and_distances():
    anchor = torch.zeros(2, 2, 2)
    trace = StepTrace(anchor, torch.tensor([1]))
    trace.embedding(0, anchor, anchor + 1)
    trace.embedding(2, anchor + 1, anchor + 3)
    trace.rewards([torch.tensor([0.5, 0.25]), torch.tensor([1.0, 2.0])])
    rows = trace.rows()
    assert rows["step"].tolist() == [0, 0, 2, 2]
    assert rows["length"].tolist() == [2, 2, 4, 4] and rows["distance"].tolist() == [2, 2, 6, 6]
    assert rows["reward"].tolist() == [0.5, 0.25, 1.0, 2.0]
    assert trace.displacements[1].shape == (1, 4)
