"""Networks, their modes, and images as their inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoConfig, ResNetModel

from papers.udim.augmentation import domainbed_augmentation
from papers.udim.options import InputOptions, NetworkOptions
from shared.errors import InputError
from shared.vision.augmentation import random_crop_and_flip
from shared.vision.data import as_float
from shared.vision.models import Classifier, build_classifier


def build_network(options: NetworkOptions, *, channels: int, size: int, classes: int, seed: int) -> Classifier:
    """A featurizer with a linear head; random weights are functions of the seed.

    Args:
        options: architecture, pretrained weights, dropout and batch norm.
        channels, size: of the images.
        classes: logits of the head.
        seed: of random weights.

    Raises:
        InputError: pretrained weights that are not a ResNet's.
        ValueError: as `build_classifier`.
    """
    if options.pretrained is None:
        model = build_classifier(options.classifier, channels=channels, size=size, num_classes=classes, seed=seed)
    else:
        model = _pretrained(options.pretrained, classes, seed)
    if options.head_dropout:
        model.featurizer = nn.Sequential(model.featurizer, nn.Dropout(options.head_dropout))
    if options.batch_norm == "batch":
        for layer in _batch_norms(model):
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    return model


def set_training_mode(model: nn.Module, options: NetworkOptions) -> None:
    """Training mode; frozen batch norm keeps its running statistics."""
    model.train()
    if options.batch_norm == "frozen":
        for layer in _batch_norms(model):
            layer.eval()


class Normalization(nn.Module):
    """Images uint8, or floats in [0, 1], become inputs: channels minus mean, divided by std."""

    def __init__(self, options: InputOptions, channels: int) -> None:
        """For images of `channels`.

        Raises:
            InputError: means of another number of channels.
        """
        super().__init__()
        if len(options.mean) not in (0, channels):
            raise InputError(f"mean: need {channels} values for these images, got {len(options.mean)}")
        for name, values in (("mean", options.mean or [0.0]), ("std", options.std or [1.0])):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, H, W), channels last in memory."""
        inputs = (as_float(images) - self.mean) / self.std
        return inputs.contiguous(memory_format=torch.channels_last)


def augmented(images: Tensor, options: InputOptions, generator: torch.Generator) -> Tensor:
    """Training images, changed at random.

    Args:
        images: (B, channels, H, W) uint8.
        options: which changes.
        generator: on the CPU.
    """
    if options.augmentation == "crop_flip":
        return random_crop_and_flip(images, generator)
    if options.augmentation == "domainbed":
        return domainbed_augmentation(as_float(images), generator)
    return images


class _Backbone(nn.Module):
    """A ResNet of transformers as a featurizer (B, D)."""

    def __init__(self, resnet: ResNetModel) -> None:
        super().__init__()
        self.resnet = resnet

    def forward(self, inputs: Tensor) -> Tensor:
        return self.resnet(inputs).pooler_output.flatten(1)


def _pretrained(source: str, classes: int, seed: int) -> Classifier:
    try:
        config = AutoConfig.from_pretrained(source)
        resnet = ResNetModel.from_pretrained(source) if config.model_type == "resnet" else None
    except (OSError, ValueError) as error:
        raise InputError(f"pretrained: {source} cannot be loaded: {str(error).splitlines()[0]}") from None
    if resnet is None:
        raise InputError(f"pretrained: {source} is a {config.model_type}, expected a resnet")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(config.hidden_sizes[-1], classes)
    return Classifier(_Backbone(resnet), head).to(memory_format=torch.channels_last)


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]
