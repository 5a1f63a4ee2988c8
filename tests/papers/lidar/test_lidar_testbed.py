from dataclasses import replace

import numpy as np
import pytest
import torch
from lidar_cases import SAMPLER, scene_bench

from papers.lidar.lookahead_sets import LookaheadSet, load_set, lookahead_key, save_set
from papers.lidar.measures import crisp, diversity, ranking, ranking_within
from papers.lidar.peak_memory import PeakMemory
from papers.lidar.runs import parse_run
from papers.lidar.testbed import Strength
from shared.errors import InputError
from shared.t2i.model import LatentCodec
from shared.t2i.scenes import SceneObject, render_scene

RUNS = {
    "lidar/d2-n4": Strength(2.0, 50.0),
    "permuted/d2-n4": Strength(2.0, 50.0),
    "lidar/target-n3": Strength(2.0, 50.0),
    "best/d2-n4": None,
    "renoised/d2-n4": Strength(2.0),
    "universal": Strength(3.0),
    "date/2": Strength(1.0),
    "smc-difference/k4": Strength(100.0),
    "smc-max/k2": Strength(100.0),
    "smc-sum/k2": Strength(100.0),
    "bon/3": None,
}
VANILLA = parse_run("vanilla")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bench():
    return scene_bench()


@pytest.fixture(scope="module")
def plain(bench):
    return bench.sample_run(VANILLA, None)


class Counting:
    """Counts evaluations of a bench's denoiser: forward, and differentiated ones."""

    def __init__(self, pipeline):
        self.unet, self.forward, self.backward = pipeline.unet, 0, 0

    def __enter__(self):
        self.handle = self.unet.register_forward_hook(self.count)
        return self

    def count(self, unet, arguments, output):
        self.forward += len(arguments[0])
        self.backward += len(arguments[0]) if torch.is_grad_enabled() else 0

    def __exit__(self, *_):
        self.handle.remove()


def test_the_oracle_follows_the_checkers_verdicts(monkeypatch):
    """What counts as right is set here, since an untrained model shows nothing right."""
    verdicts, strength = np.eye(4)[[2, 0, 3]], Strength(2.0, 50.0)
    fresh, other = scene_bench(), scene_bench()
    monkeypatch.setattr(fresh, "judge", lambda latents: {"gold": verdicts})
    found = fresh.sample_run(parse_run("oracle/d2-n4"), strength)
    monkeypatch.setattr(other, "rewards_of", lambda latents: torch.from_numpy(verdicts).float())
    assert torch.equal(found.latents, other.sample_run(parse_run("lidar/d2-n4"), strength).latents)


@pytest.mark.parametrize("name", RUNS)
def test_every_run_differs_and_costs_what_it_says(bench, plain, name):
    fresh = scene_bench()
    with Counting(fresh.pipeline) as counted:
        found = fresh.sample_run(parse_run(name), RUNS[name])
    assert found.latents.shape == plain.latents.shape == (3, 2, 12, 6, 6)
    assert torch.isfinite(found.latents).all() and not torch.allclose(found.latents, plain.latents, atol=1e-3)
    images = 3 * 2
    if "target" not in name and fresh._sets:  # whole sets are drawn, of which smaller runs pay their share
        assert len(fresh._sets["d2"][0][0].rewards) == SAMPLER.lookahead_size
    expected = (counted.forward + 2 * counted.backward) / images
    assert found.evaluations == pytest.approx(expected)


def test_prompts_and_batches_do_not_matter(plain):
    alone = scene_bench(replace(SAMPLER, batch_size=2), prompts=slice(0, 2)).sample_run(VANILLA, None)
    assert torch.allclose(alone.latents, plain.latents[:2], atol=1e-4)
    ahead = parse_run("lidar/d2-n3")
    split = scene_bench(replace(SAMPLER, batch_size=2)).sample_run(ahead, RUNS["lidar/d2-n4"])
    together = scene_bench(replace(SAMPLER, batch_size=60)).sample_run(ahead, RUNS["lidar/d2-n4"])
    assert torch.allclose(split.latents, together.latents, atol=1e-3)


def test_without_strength_lidar_is_the_target_sampler(bench, plain):
    for strength in (Strength(0.0, 50.0), Strength(5.0, 0.0)):
        found = bench.sample_run(parse_run("lidar/d2-n4"), strength)
        assert torch.allclose(found.latents, plain.latents, atol=1e-4)
    late = scene_bench(replace(SAMPLER, end_timestep=999.0)).sample_run(parse_run("lidar/d2-n4"), Strength(5.0, 50.0))
    assert torch.equal(late.latents, plain.latents)


def test_sets_are_nested_and_permuting_moves_rewards_alone(bench):
    large, _ = bench.lookahead(parse_run("lidar/d2-n4"))
    small, _ = bench.lookahead(parse_run("lidar/d2-n3"))
    for few, many in zip(small, large, strict=True):
        assert torch.equal(few.latents, many.latents[:3]) and torch.equal(few.rewards, many.rewards[:3])
    rewards = torch.stack([each.rewards for each in large])
    assert torch.allclose(rewards, bench.rewards_of(torch.stack([each.latents for each in large])), atol=1e-5)
    best = bench.sample_run(parse_run("best/d2-n4"), None)
    assert torch.allclose(bench.rewards_of(best.latents)[:, 0], rewards.amax(dim=1), atol=1e-5)


def test_the_best_of_n_is_the_best(bench):
    pool, rewards = bench.pool(3)
    found = bench.rewards_of(bench.sample_run(parse_run("bon/3"), None).latents)
    assert torch.allclose(found, rewards.view(3, 3, 2).amax(dim=1), atol=1e-5)
    assert torch.equal(pool[:, :2], bench.sample_run(VANILLA, None).latents)


def test_steering_without_weight_is_the_target_sampler(bench, plain):
    found = bench.sample_run(parse_run("smc-difference/k2"), Strength(0.0))
    # Equal weights resample all the same, so that each image comes from one of the prompt's own.
    assert torch.isfinite(found.latents).all() and found.evaluations == plain.evaluations
    still = scene_bench(replace(SAMPLER, steering_steps=()))
    assert torch.equal(still.sample_run(parse_run("smc-max/k2"), Strength(0.0)).latents, plain.latents)


def test_steered_particles_have_higher_rewards(bench, plain):
    rewards = bench.rewards_of(plain.latents).mean()
    for potential in ("difference", "max", "sum"):
        found = bench.sample_run(parse_run(f"smc-{potential}/k4"), Strength(1e4))
        assert bench.rewards_of(found.latents).mean() > rewards


def test_judges_know_a_right_image(bench):
    group = bench.specs[0].groups[0]
    image = torch.from_numpy(render_scene([SceneObject(group.shape, group.color or "red", 4, 4)]))
    latents = LatentCodec.encode(image[None]).expand(3, 2, -1, -1, -1)
    judged = bench.judge(latents)
    assert judged["gold"][0].tolist() == [1, 1] and judged["crisp"].all()
    assert np.isclose(judged["diversity"], 0, atol=1e-6).all() and judged["diversity_right"][0] < 1e-6


# Sets in files


def test_a_set_survives_its_file_and_is_refused_for_another_prompt(tmp_path):
    key = lookahead_key("a cat", "model", {"steps": 3})
    lookahead = LookaheadSet(key, torch.randn(3, 4, 2, 2), torch.randn(3))
    save_set(tmp_path, lookahead)
    loaded = load_set(tmp_path, key)
    assert torch.allclose(loaded.latents, lookahead.latents, atol=2e-3)
    assert torch.equal(loaded.rewards, lookahead.rewards)
    other = lookahead_key("a dog", "model", {"steps": 3})
    assert len({key, other, lookahead_key("a cat", "m", {"steps": 3}), lookahead_key("a cat", "model", {})}) == 4
    with pytest.raises(InputError, match="no lookahead set for this prompt"):
        load_set(tmp_path, other)
    (tmp_path / f"{key}.safetensors").rename(tmp_path / f"{other}.safetensors")
    with pytest.raises(InputError, match="belongs to another prompt"):
        load_set(tmp_path, other)
    (tmp_path / f"{other}.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="no lookahead set: "):
        load_set(tmp_path, other)
    with pytest.raises(ValueError, match=r"^count: "):
        lookahead.first(4)
    with pytest.raises(ValueError, match=r"^rewards: "):
        LookaheadSet(key, lookahead.latents, torch.zeros(2))


# Measures


def test_crisp_images_are_in_the_palettes_colours():
    image = torch.from_numpy(render_scene([SceneObject("square", "red", 4, 4)]))[None]
    assert crisp(torch.cat([image, image + 0.2, (image + 1) * 0.4 - 1, torch.zeros_like(image)])).tolist() == [
        1,
        1,
        1,
        0,
    ]


def test_diversity_is_the_mean_squared_distance():
    features = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    assert diversity(features) == pytest.approx([4 / 3])
    assert diversity(features, torch.tensor([[1.0, 0.0, 1.0]])) == pytest.approx([0.0])
    assert np.isnan(diversity(features, torch.tensor([[1.0, 0.0, 0.0]]))).all()


def test_rankings_are_shares_of_pairs():
    rewards, right = np.array([[0.1, 0.5, 0.3], [9.0, 8.0, 8.0]]), np.array([[0, 1, 1], [0, 0, 1]])
    assert ranking(rewards[0], right[0]) == 1 and ranking(rewards[1], right[1]) == 0.25
    assert ranking_within(rewards, right) == pytest.approx((1 * 2 + 0.25 * 2) / 4)
    assert ranking(rewards[0], np.ones(3)) == 0.5 and ranking_within(rewards, np.ones((2, 3))) == 0.5


def test_peak_memory_counts_what_lives_together():
    x, layer = torch.randn(100, 100), torch.nn.Sequential(*[torch.nn.Tanh() for _ in range(5)])
    with PeakMemory() as memory:
        once = x + 1
        del once
        once = x * 2
        view = once.T
        del once, view
    assert memory.peak == x.nbytes
    with PeakMemory() as plain_, torch.no_grad():
        layer(x)
    with PeakMemory() as kept:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(layer(leaf).sum(), leaf)
    assert plain_.peak == 2 * x.nbytes and kept.peak >= 6 * x.nbytes


@pytest.mark.parametrize("name", ["bon/0", "lidar/d0-n3", "lidar/d5", "smc/k4", "fixed", "best/d5-n0", ""])
def test_unknown_runs_are_refused(name):
    with pytest.raises(ValueError, match=r"^run: "):
        parse_run(name)
