import pytest
import torch
from torch import nn

from shared.options import flags, from_mapping
from shared.vision.models import build_classifier, load_classifier, save_classifier
from shared.vision.options import ClassifierOptions

SMALL = {
    "mlp": ClassifierOptions(widths=(7, 5)),
    "cnn": ClassifierOptions("cnn", widths=(3, 4), hidden=6),
    "resnet18": ClassifierOptions("resnet18", widths=(4, 4, 8, 8)),
    "resnet50": ClassifierOptions("resnet50", widths=(2, 2, 4, 4)),
}


def _build(options, *, channels=3, size=8, num_classes=5, seed=0):
    return build_classifier(options, channels=channels, size=size, num_classes=num_classes, seed=seed)


def _parameter_count(options, **shape):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in _build(options, **shape).parameters())


@pytest.mark.parametrize("architecture", SMALL)
def test_logits_are_the_head_of_the_features(architecture):
    model = _build(SMALL[architecture]).eval()
    images = torch.rand(4, 3, 8, 8)
    features = model.featurizer(images)
    logits = model(images)
    assert logits.shape == (4, 5) and features.shape == (4, model.head.in_features)
    torch.testing.assert_close(logits, features @ model.head.weight.T + model.head.bias)
    assert logits.std() > 0


@pytest.mark.parametrize("architecture", SMALL)
def test_every_parameter_is_trained(architecture):
    model = _build(SMALL[architecture])
    nn.functional.cross_entropy(model(torch.rand(16, 3, 8, 8)), torch.arange(16) % 5).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("architecture", SMALL)
def test_weights_are_a_function_of_the_seed_alone(architecture):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = _build(SMALL[architecture], seed=1).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(6)
    second = _build(SMALL[architecture], seed=1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = _build(SMALL[architecture], seed=2).state_dict()
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_sizes_of_the_testbeds():
    mlp = _build(ClassifierOptions(), channels=1, size=8, num_classes=10)
    assert [tuple(p.shape) for p in mlp.parameters()] == [(256, 64), (256,), (256, 256), (256,), (10, 256), (10,)]
    cnn = _build(ClassifierOptions("cnn"), channels=1, size=16, num_classes=10)
    assert [tuple(p.shape) for p in cnn.parameters() if p.ndim > 1] == [
        (8, 1, 3, 3), (16, 8, 3, 3), (16, 16, 3, 3), (64, 64), (10, 64),
    ]  # fmt: skip
    assert not any(isinstance(module, nn.BatchNorm2d | nn.Dropout) for module in cnn.modules())


@pytest.mark.parametrize(
    ("architecture", "num_classes", "count"),
    [("resnet18", 10, 11_173_962), ("resnet34", 10, 21_282_122), ("resnet50", 100, 23_705_252)],
)
def test_resnets_have_the_known_number_of_parameters(architecture, num_classes, count):
    assert _parameter_count(ClassifierOptions(architecture), size=32, num_classes=num_classes) == count


def test_resnet_keeps_the_resolution_of_small_images():
    model = _build(SMALL["resnet18"], size=32)
    sizes = []
    for module in model.featurizer:
        module.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    model(torch.rand(1, 3, 32, 32).expand(2, -1, -1, -1))
    assert sizes == [32, 32, *[32] * 2, *[16] * 2, *[8] * 2, *[4] * 2, 1, 8]


def test_a_residual_block_adds_its_input():
    model = _build(SMALL["resnet18"]).eval()
    block = model.featurizer[2]
    inputs = torch.rand(2, 4, 8, 8)
    torch.testing.assert_close(block(inputs), (block.block(inputs) + inputs).relu())
    assert block.shortcut(inputs) is inputs
    assert model.featurizer[6].shortcut(inputs).shape == (2, 8, 4, 4)


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_second_derivatives_exist(architecture):
    model = _build(SMALL[architecture], channels=1).double()
    images = torch.rand(3, 1, 8, 8, dtype=torch.float64, requires_grad=True)

    def gradient_norm(x):
        loss = nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2]))
        gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        return sum(gradient.square().sum() for gradient in gradients).sqrt()

    assert torch.autograd.gradcheck(gradient_norm, images)


@pytest.mark.parametrize("architecture", SMALL)
def test_weights_travel_through_a_file(tmp_path, architecture):
    model = _build(SMALL[architecture], seed=3)
    model(torch.rand(4, 3, 8, 8))  # moves the statistics of batch normalisation
    save_classifier(tmp_path / "model.safetensors", model)
    copy = _build(SMALL[architecture], seed=4)
    load_classifier(tmp_path / "model.safetensors", copy)
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(copy.eval()(images), model.eval()(images))
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_classifier(tmp_path / "model.safetensors", _build(SMALL[architecture], num_classes=6))


def test_bad_options():
    with pytest.raises(ValueError, match=r"^widths: resnet34 needs 4"):
        _build(ClassifierOptions("resnet34", widths=(8, 16)))
    with pytest.raises(ValueError, match=r"^size: 3 poolings need images of at least 8 pixels, got 7"):
        _build(ClassifierOptions("cnn"), size=7)


def test_options_are_read_from_a_configuration():
    options = from_mapping({"architecture": "cnn", "widths": [4, 8]}, ClassifierOptions, where="config")
    assert options == ClassifierOptions("cnn", (4, 8)) and options.layer_widths == (4, 8)
    assert ClassifierOptions("resnet34").layer_widths == (64, 128, 256, 512)
    assert flags(options) == ["--architecture", "cnn", "--widths", "4", "8", "--hidden", "64"]
