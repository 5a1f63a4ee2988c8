"""Protocols: what is a source, what is held out, what is a target, and that nothing of a target is seen."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from udim_cases import CORRUPTIONS, STYLED, image_set

from papers.udim.tasks import make_tasks
from shared.errors import InputError
from shared.vision.domains import corrupt


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_corruptions_split_plain_images():
    everything = image_set()
    (task,) = make_tasks(everything, CORRUPTIONS, seed=0)
    whole = make_tasks(everything, replace(CORRUPTIONS, train_images=None, test_images=None), seed=0)[0]
    parts = [rows(part.images) for part in (whole.sources[0], whole.validation, whole.source_test)]
    assert [len(part) for part in parts] == [112, 28, 60]
    assert len(set.union(*parts)) == 200 and set.union(*parts) == rows(everything.images)
    assert len(task.sources[0]) == 60 and len(task.source_test) == 20 and len(task.validation) == 28
    assert [(target.name, target.level) for target in task.targets] == [
        ("gaussian_noise", 1), ("gaussian_noise", 3), ("contrast", 1), ("contrast", 3),
    ]  # fmt: skip
    for target in task.targets:
        assert torch.equal(target.data.labels, task.source_test.labels)
    expected = corrupt(task.source_test.images.numpy() / np.float32(255), "contrast", 3, np.random.default_rng())
    assert np.abs(task.targets[3].data.images.numpy() / 255 - expected).max() <= 0.5 / 255 + 1e-6


def test_a_test_part_of_the_data_is_used_where_there_is_one():
    parts = image_set(("train", "test"), count=40)
    (task,) = make_tasks(parts, replace(CORRUPTIONS, test_fraction=0.0, train_images=None, test_images=None), seed=0)
    assert rows(task.source_test.images) == rows(parts.domain("test").images)
    assert rows(task.sources[0].images) | rows(task.validation.images) == rows(parts.domain("train").images)


@pytest.mark.parametrize("protocol", ["leave_one_out", "single_source"])
def test_every_domain_has_its_turn(protocol):
    names = ("art", "photo", "sketch")
    domains = image_set(names, count=50)
    options = replace(STYLED, protocol=protocol, styles=(), train_images=None, test_images=None)
    tasks = make_tasks(domains, options, seed=3)
    assert [task.name for task in tasks] == list(names)
    for task in tasks:
        others = [name for name in names if name != task.name]
        sources, targets = ([task.name], others) if protocol == "single_source" else (others, [task.name])
        assert [target.name for target in task.targets] == targets
        assert [len(source) for source in task.sources] == [40] * len(sources)
        assert len(task.validation) == 10 * len(sources)
        for name, source in zip(sources, task.sources, strict=True):
            assert rows(source.images) < rows(domains.domain(name).images)
            assert not rows(source.images) & rows(task.validation.images)
        for target in task.targets:
            assert len(target.data) == 40 and rows(target.data.images) < rows(domains.domain(target.name).images)
            assert not rows(target.data.images) & rows(task.validation.images)


def test_styles_are_made_of_different_images():
    everything = image_set(count=120)
    tasks = make_tasks(everything, replace(STYLED, train_images=None, test_images=None), seed=0)
    assert [task.name for task in tasks] == list(STYLED.styles)
    white = tasks[0].targets[0].data.images
    assert white.shape == (32, 3, 8, 8) and torch.equal(white[:, 0], white[:, 2])
    assert rows(white[:, :1]) < rows(everything.images)
    labels = torch.cat([task.targets[0].data.labels for task in tasks])
    assert len(labels) == 96 and not torch.equal(labels[:32], labels[32:64])


def test_a_target_is_tested_on_the_same_images_in_both_protocols():
    everything = image_set(count=120)
    left_out = {task.name: task.targets[0] for task in make_tasks(everything, STYLED, seed=1)}
    for task in make_tasks(everything, replace(STYLED, protocol="single_source"), seed=1):
        for target in task.targets:
            assert torch.equal(target.data.images, left_out[target.name].data.images)


@pytest.mark.parametrize("options", [CORRUPTIONS, STYLED])
def test_everything_follows_from_the_seed(options):
    def drawn(seed: int, **changes) -> torch.Tensor:
        tasks = make_tasks(image_set(), replace(options, **changes), seed)
        return torch.cat(
            [target.data.images for task in tasks for target in task.targets] + [tasks[0].sources[0].images]
        )

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))
    assert torch.equal(drawn(0, split_seed=7), drawn(1, split_seed=7))


def test_small_images_are_enlarged():
    (task,) = make_tasks(image_set(), replace(CORRUPTIONS, size=16), seed=0)
    assert task.sources[0].images.shape[2:] == (16, 16) and task.targets[0].data.images.shape[2:] == (16, 16)


@pytest.mark.parametrize(
    ("options", "names", "message"),
    [
        (replace(CORRUPTIONS, test_fraction=0.0), ("plain",), "test_fraction: needs to leave images on both sides"),
        (replace(CORRUPTIONS, validation_fraction=1.0), ("plain",), r"validation_fraction: must lie in \(0, 1\)"),
        (replace(STYLED, styles=()), ("plain",), "leave_one_out: need at least 2 domains, got plain"),
        (replace(STYLED, styles=()), ("train", "test"), "parts of one domain; give styles"),
        (replace(STYLED, styles=("tinted", "neon")), ("plain",), "must be some of white_on_black.* got 'neon'"),
    ],
)
def test_a_protocol_that_does_not_fit_is_refused(options, names, message):
    with pytest.raises(InputError, match=message):
        make_tasks(image_set(names), options, seed=0)


def test_styles_need_one_channel():
    with pytest.raises(InputError, match="need images of one channel, got 3"):
        make_tasks(image_set(channels=3), STYLED, seed=0)
