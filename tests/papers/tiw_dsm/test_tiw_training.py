"""Training: arms side by side learn what they learn alone, on paired batches, with ratios of a chosen length."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiw_cases import TINY, TINY_IMAGES

from papers.tiw_dsm import training
from papers.tiw_dsm.data import draw_problem
from papers.tiw_dsm.members import build_members
from papers.tiw_dsm.methods import parse_arm
from papers.tiw_dsm.training import choose_lengths, held_out_loss, make_batch, train_arms, train_ratio
from shared.diffusion.training import build_denoiser

PROBLEM = draw_problem(TINY.data, seed=0, test_size=40)
IMAGES = draw_problem(TINY_IMAGES.data, seed=0, test_size=20)


def trained(names, folder, options=TINY, problem=PROBLEM):
    arms = [parse_arm(name) for name in names]
    logits = {"exact": problem.densities.logits} if problem.densities else {}
    return train_arms(
        options, arms, problem, logits, seed=1, accelerator=Accelerator(cpu=True), checkpoints=folder
    )  # fmt: skip


def test_members_say_what_their_denoisers_say():
    denoiser = build_denoiser(TINY.denoiser, (6,), seed=0)
    members = build_members(denoiser, [0, 1, 0])
    x, sigma = torch.randn(2, 5, 6), torch.linspace(0.1, 2, 5)
    expected = build_denoiser(TINY.denoiser, (6,), seed=0)
    found = members(x, sigma)
    for index, source in enumerate([0, 1, 0]):
        torch.testing.assert_close(found[index], expected(x[source], sigma))
    with torch.no_grad():
        members.all.network.biases[-1][1] += 1
    moved = members.member(1)(x[1], sigma)
    assert not torch.allclose(moved, found[1])
    torch.testing.assert_close(moved, members(x, sigma)[1])


def test_networks_that_are_no_mlps_train_alone():
    denoiser = build_denoiser(TINY_IMAGES.denoiser, (1, 8, 8), seed=0)
    x, sigma = torch.randn(1, 2, 1, 8, 8), torch.ones(2)
    torch.testing.assert_close(build_members(denoiser, [0])(x, sigma)[0], denoiser(x[0], sigma))
    with pytest.raises(ValueError, match="only MLPs train side by side, got 2 members"):
        build_members(denoiser, [0, 0])


def test_arms_learn_side_by_side_what_they_learn_alone(tmp_path):
    names = ["dsm_ref", "tiw@exact", "iw@exact", "oracle"]
    together = trained(names, tmp_path / "all")
    x, sigma = torch.randn(30, 6), torch.linspace(0.05, 3, 30)
    said = [together.member(index)(x, sigma).clone() for index in range(len(names))]
    for index, name in enumerate(names):
        alone = trained([name], tmp_path / name).member(0)
        torch.testing.assert_close(said[index], alone(x, sigma), rtol=1e-3, atol=1e-4)
    assert all(not torch.allclose(said[0], each, atol=1e-2) for each in said[1:])


def test_batches_pair_all_kinds_of_data():
    numbers = np.arange(20)
    torch.manual_seed(0)
    batch = make_batch(TINY, PROBLEM, numbers)
    assert {kind: len(clean) for kind, clean in batch.items()} == dict.fromkeys(
        ("observed", "references", "unbiased"), 40
    )
    assert torch.equal(batch["observed"][:20], batch["references"][:20])
    assert torch.equal(batch["observed"][20:], PROBLEM.biased[:20])
    skewed = make_batch(replace(TINY, ref_fraction=0.2), PROBLEM, numbers)
    assert len(skewed["observed"]) == 25 and torch.equal(skewed["observed"][5:], PROBLEM.biased[:20])


def test_mirrored_images_are_mirrored_alone():
    torch.manual_seed(0)
    plain = make_batch(replace(TINY_IMAGES, mirror=False), IMAGES, np.arange(20))["unbiased"]
    torch.manual_seed(0)
    mirrored = make_batch(TINY_IMAGES, IMAGES, np.arange(20))["unbiased"]
    changed = [not torch.equal(*pair) for pair in zip(plain, mirrored, strict=True)]
    assert 8 < sum(changed) < 32
    assert all(
        torch.equal(image.flip(-1) if flipped else image, other)
        for image, other, flipped in zip(plain, mirrored, changed, strict=True)
    )


def test_the_running_mean_is_what_samples(tmp_path):
    options = replace(TINY, denoiser=replace(TINY.denoiser, ema_decay=0.5))
    x, sigma = torch.randn(30, 6), torch.ones(30)
    mean = trained(["dsm_obs"], tmp_path / "mean", options).member(0)(x, sigma)
    last = trained(["dsm_obs"], tmp_path / "last").member(0)(x, sigma)
    start = build_denoiser(TINY.denoiser, (6,), seed=1)(x, sigma)
    assert not torch.allclose(mean, last, atol=1e-5)
    assert (mean - last).norm() < (start - last).norm()


def test_a_candidate_goes_on_from_the_one_before(tmp_path):
    accelerator = Accelerator(cpu=True)
    lengths = choose_lengths(TINY, PROBLEM, seed=0, accelerator=accelerator, checkpoints=tmp_path / "a")
    straight = replace(TINY, ratio=replace(TINY.ratio, ratio_candidates=(4,)))
    direct = choose_lengths(straight, PROBLEM, seed=0, accelerator=accelerator, checkpoints=tmp_path / "b")
    assert [(each.discriminator, each.steps) for each in lengths] == [
        ("noisy", 2), ("noisy", 4), ("clean", 2), ("clean", 4)
    ]  # fmt: skip
    assert [each.held_out_loss for each in lengths if each.steps == 4] == [each.held_out_loss for each in direct]
    for name in ("noisy", "clean"):
        own = [each for each in lengths if each.discriminator == name]
        assert [each for each in own if each.selected] == [min(own, key=lambda each: each.held_out_loss)]


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_choice_that_is_killed_comes_to_the_same(tmp_path, monkeypatch, call):
    """Killed when a candidate of two for each discriminator has been trained, and its loss is to be measured."""
    undisturbed = choose_lengths(TINY, PROBLEM, seed=0, accelerator=Accelerator(cpu=True), checkpoints=tmp_path / "a")
    calls = []

    def killed(*arguments, **values):
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return held_out_loss(*arguments, **values)

    monkeypatch.setattr(training, "held_out_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        choose_lengths(TINY, PROBLEM, seed=0, accelerator=Accelerator(cpu=True), checkpoints=tmp_path / "b")
    for _ in range(2):  # the second time nothing is left to do
        resumed = choose_lengths(TINY, PROBLEM, seed=0, accelerator=Accelerator(cpu=True), checkpoints=tmp_path / "b")
        assert resumed == undisturbed


def test_held_out_loss_of_known_logits():
    def guess(x, sigma):
        return torch.zeros(len(x))

    def exact(x, sigma):
        return PROBLEM.densities.log_ratio(x, sigma)

    for noisy in (True, False):
        losses = [
            held_out_loss(logit, PROBLEM.unbiased, PROBLEM.biased, noisy=noisy, seed=0) for logit in (guess, exact)
        ]
        assert losses[0] == pytest.approx(math.log(2), rel=1e-6) and losses[1] < losses[0] - 0.02


def test_discriminators_tell_the_sets_apart_and_are_frozen(tmp_path):
    easy = replace(PROBLEM, reference=PROBLEM.reference + 3)
    logits = train_ratio(
        TINY, easy, {"noisy": 150, "clean": 150}, seed=0, accelerator=Accelerator(cpu=True), checkpoints=tmp_path
    )
    level = torch.full((len(easy.reference),), 0.1)
    assert (
        logits.noisy(easy.reference, level).mean() > 1 > -1 > logits.noisy(easy.biased, torch.full((120,), 0.1)).mean()
    )
    assert logits.clean(easy.reference, torch.zeros_like(level)).mean() > 1
    assert not any(weight.requires_grad for logit in logits for weight in logit.parameters())
