"""Image classifiers for small images: MLP, CNN and ResNet, each a featurizer with a linear head."""

from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared.vision.options import ClassifierOptions

_RESNET_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


class Classifier(nn.Module):
    """head(featurizer(images)); `model.featurizer(images)` (B, D) and `model.head` serve methods that need the two."""

    def __init__(self, featurizer: nn.Module, head: nn.Linear):
        super().__init__()
        self.featurizer = featurizer
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, channels, H, W)."""
        return self.head(self.featurizer(images))


def build_classifier(
    options: ClassifierOptions, *, channels: int, size: int, num_classes: int, seed: int
) -> Classifier:
    """Classifier with random weights, a function of the options and the seed alone.

    Args:
        options: architecture.
        channels: of the images.
        size: their height and width in pixels.
        num_classes: number of logits.
        seed: of the weights.

    Raises:
        ValueError: widths that do not suit the architecture, or images too small for it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if options.architecture == "mlp":
            featurizer, features = _mlp(channels * size**2, options.layer_widths)
        elif options.architecture == "cnn":
            featurizer, features = _cnn(channels, size, options.layer_widths, options.hidden)
        else:
            featurizer, features = _resnet(channels, options.architecture, options.layer_widths)
        model = Classifier(featurizer, nn.Linear(features, num_classes))
    # On one core a training step of the small CNN takes two thirds of the time in this layout.
    return model.to(memory_format=torch.channels_last)


def save_classifier(path: Path, model: Classifier) -> None:
    """Write the weights and buffers as safetensors."""
    save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, path)


def load_classifier(path: Path, model: Classifier) -> None:
    """Read into a model of the same architecture what `save_classifier` wrote.

    Raises:
        RuntimeError: the file is of another architecture.
    """
    model.load_state_dict(load_file(path))


def _mlp(inputs: int, widths: tuple[int, ...]) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [nn.Flatten()]
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers), inputs


def _cnn(channels: int, size: int, widths: tuple[int, ...], hidden: int) -> tuple[nn.Module, int]:
    """3x3 convolution, ReLU and 2x2 max-pooling per width, then one hidden linear layer; no normalisation."""
    final_size = size // 2 ** len(widths)
    if final_size < 1:
        raise ValueError(f"size: {len(widths)} poolings need images of at least {2 ** len(widths)} pixels, got {size}")
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    layers += [nn.Flatten(), nn.Linear(channels * final_size**2, hidden), nn.ReLU()]
    return nn.Sequential(*layers), hidden


def _resnet(channels: int, architecture: str, widths: tuple[int, ...]) -> tuple[nn.Module, int]:
    """He et al., CVPR 2016, for small images: stride 1 in the stem and the first stage, 2 in the other stages."""
    blocks = _RESNET_BLOCKS[architecture]
    if len(widths) != len(blocks):
        raise ValueError(f"widths: {architecture} needs {len(blocks)}, one per stage, got {len(widths)}")
    make_block = _bottleneck_block if architecture == "resnet50" else _basic_block
    layers: list[nn.Module] = [_convolution(channels, widths[0], 3), nn.ReLU()]
    features = widths[0]
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            block, outputs = make_block(features, width, stride)
            layers.append(_Residual(block, features, outputs, stride))
            features = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    featurizer = nn.Sequential(*layers)
    for module in featurizer.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return featurizer, features


class _Residual(nn.Module):
    """ReLU of a block's output plus its input, which is projected where the shapes differ."""

    def __init__(self, block: nn.Module, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.block = block
        same_shape = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same_shape else _convolution(inputs, outputs, 1, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.block(inputs) + self.shortcut(inputs)).relu()


def _basic_block(inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
    return nn.Sequential(_convolution(inputs, width, 3, stride), nn.ReLU(), _convolution(width, width, 3)), width


def _bottleneck_block(inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
    layers = [_convolution(inputs, width, 1), nn.ReLU(), _convolution(width, width, 3, stride), nn.ReLU()]
    return nn.Sequential(*layers, _convolution(width, 4 * width, 1)), 4 * width


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    """Convolution, size-preserving at stride 1, followed by batch normalisation."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=convolution, norm=nn.BatchNorm2d(outputs)))
