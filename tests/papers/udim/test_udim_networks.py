"""Networks, batch norm modes, and images as inputs."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import BertConfig, ResNetConfig, ResNetModel
from udim_cases import CNN, random_images

from papers.udim.augmentation import domainbed_augmentation
from papers.udim.networks import Normalization, augmented, build_network, set_training_mode
from papers.udim.options import InputOptions, NetworkOptions
from shared.errors import InputError
from shared.vision.options import ClassifierOptions

RESNET = NetworkOptions(classifier=ClassifierOptions(architecture="resnet18", widths=(4, 4, 4, 4)))


def statistics(model: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for name, value in model.named_buffers() if "running" in name]


def one_pass(options: NetworkOptions) -> tuple[nn.Module, list[torch.Tensor]]:
    model = build_network(options, channels=3, size=16, classes=5, seed=0)
    before = statistics(model)
    set_training_mode(model, options)
    model(torch.rand(6, 3, 16, 16))
    return model, before


def test_weights_follow_from_the_seed():
    first, second, third = (build_network(CNN, channels=1, size=8, classes=4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.head.weight, second.head.weight) and not torch.equal(first.head.weight, third.head.weight)


def test_frozen_batch_norm_keeps_its_statistics_and_running_does_not():
    model, before = one_pass(replace(RESNET, batch_norm="frozen"))
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(model), strict=True))
    assert model.training and before
    model, before = one_pass(RESNET)
    assert not any(torch.equal(a, b) for a, b in zip(before, statistics(model), strict=True))


def test_batch_mode_uses_the_batch_in_tests_too():
    images = torch.rand(6, 3, 16, 16)
    for mode, adapts in (("running", False), ("batch", True)):
        model = one_pass(replace(RESNET, batch_norm=mode))[0].eval()
        alone, together = model(images[:2]), model(images)[:2]
        assert torch.allclose(alone, together, atol=1e-5) != adapts


def test_dropout_is_between_features_and_head():
    model = build_network(replace(CNN, head_dropout=0.5), channels=1, size=8, classes=4, seed=0)
    images = torch.rand(3, 1, 8, 8)
    assert not torch.equal(model.train().featurizer(images), model.featurizer(images))
    assert torch.equal(model.eval()(images), model.head(model.featurizer(images)))


def test_a_pretrained_resnet_gets_a_new_head(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    torch.manual_seed(0)
    resnet = ResNetModel(config).eval()
    resnet.save_pretrained(tmp_path)
    options = replace(RESNET, pretrained=str(tmp_path), batch_norm="frozen")
    model = build_network(options, channels=3, size=32, classes=7, seed=0).eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model.featurizer(images), resnet(images).pooler_output.flatten(1))
    assert model(images).shape == (2, 7)


def test_other_pretrained_weights_are_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a bert, expected a resnet"):
        build_network(replace(RESNET, pretrained=str(tmp_path)), channels=3, size=32, classes=7, seed=0)
    with pytest.raises(InputError, match=r"pretrained: .*nowhere cannot be loaded"):
        build_network(replace(RESNET, pretrained=str(tmp_path / "nowhere")), channels=3, size=32, classes=7, seed=0)


def test_normalization():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    got = Normalization(InputOptions(mean=(0.0, 0.1, 0.5), std=(1.0, 0.5, 0.25)), 3)(images)
    torch.testing.assert_close(got.flatten(), torch.tensor([0.0, 0.2, 2.0]))
    torch.testing.assert_close(Normalization(InputOptions(), 3)(images).flatten(), torch.tensor([0.0, 0.2, 1.0]))
    with pytest.raises(InputError, match="mean: need 1 values for these images, got 3"):
        Normalization(InputOptions(mean=(0.0,) * 3, std=(1.0,) * 3), 1)
    with pytest.raises(ValueError, match="need as many of both, got 1 and 0"):
        InputOptions(mean=(0.5,))


@pytest.mark.parametrize("name", ["none", "crop_flip", "domainbed"])
def test_augmentation_follows_from_its_generator(name):
    images = random_images(6, channels=3, size=16).images
    options = InputOptions(augmentation=name)
    drawn = [augmented(images, options, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2]) == (name == "none")
    assert drawn[0].shape == images.shape


# --- DomainBed's augmentation


def changed(images: torch.Tensor, seed: int = 0, **options) -> torch.Tensor:
    still = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "jitter": 0.0, "grey": 0.0}
    return domainbed_augmentation(images, torch.Generator().manual_seed(seed), **still | options)


def test_nothing_changed_is_the_image_or_its_mirror():
    images = torch.rand(40, 3, 9, 11)
    got = changed(images)
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(got, images, strict=True)]
    mirrored = [torch.allclose(a, b.flip(2), atol=1e-5) for a, b in zip(got, images, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True)) and 10 < sum(same) < 30


def test_a_crop_is_a_part_of_the_image():
    ramp = torch.linspace(0, 1, 64).expand(50, 3, 64, 64).contiguous()
    got = changed(ramp, scale=(0.25, 0.25))
    widths = (got[:, 0, 0, -1] - got[:, 0, 0, 0]).abs()
    torch.testing.assert_close(widths, torch.full((50,), 0.5), atol=0.02, rtol=0)
    starts = torch.minimum(got[:, 0, 0, -1], got[:, 0, 0, 0])
    assert starts.min() < 0.1 and starts.max() > 0.4 and got.min() >= 0 and got.max() <= 1


def test_a_crop_has_its_ratio():
    across = torch.linspace(0, 1, 64).expand(30, 3, 64, 64)
    down = across.mT.contiguous()
    spans = [
        (value := changed(images.contiguous(), scale=(0.25, 0.25), ratio=(0.5, 2.0))).flatten(1).amax(1)
        - value.flatten(1).amin(1)
        for images in (across, down)
    ]
    torch.testing.assert_close(spans[0] * spans[1], torch.full((30,), 0.25), atol=0.03, rtol=0)
    assert (spans[0] / spans[1]).max() > 1.5 and (spans[0] / spans[1]).min() < 0.67


def test_grey_images_have_no_colour():
    images = torch.rand(200, 3, 4, 4)
    got = changed(images, grey=0.25, jitter=0.3)
    colourless = (got.amax(1) - got.amin(1)).flatten(1).amax(1) < 1e-6
    assert 30 < colourless.sum() < 70 and got.min() >= 0 and got.max() <= 1


def test_colour_jitter_bounds_brightness():
    grey = torch.full((300, 3, 4, 4), 0.5)
    levels = changed(grey, jitter=0.3).mean((1, 2, 3))
    assert levels.min() >= 0.35 - 1e-6 and levels.max() <= 0.65 + 1e-6 and levels.std() > 0.05


@pytest.mark.parametrize(
    "images", [torch.rand(2, 1, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.rand(3, 4, 4)]
)
def test_other_images_are_refused(images):
    with pytest.raises(ValueError, match=r"images: need floats \(B, 3, H, W\)"):
        changed(images)
