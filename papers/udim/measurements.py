"""What is measured of a network: accuracy on every domain, sharpness, and the inconsistency of the loss landscape.

All in evaluation mode, on inputs that training has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from papers.udim.gradients import trainable_parameters
from papers.udim.networks import Normalization
from papers.udim.options import SOURCE, TrainOptions
from papers.udim.sharpness import sam_perturbation
from papers.udim.tasks import Task
from shared.vision.data import LabeledImages
from shared.vision.evaluation import predict_logits

Loss = Callable[[Sequence[Tensor]], Tensor]
"""θ' ↦ L(θ') (), θ' in the order of `trainable_parameters`."""


class Batch(NamedTuple):
    """Inputs (B, channels, H, W) of a domain with their classes (B,)."""

    inputs: Tensor
    labels: Tensor


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every layer's own mode is restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def loss_function(model: nn.Module, batch: Batch) -> Loss:
    """θ' ↦ mean cross-entropy on a batch; the model keeps its own θ."""
    names = list(trainable_parameters(model))

    def loss(point: Sequence[Tensor]) -> Tensor:
        logits = functional_call(model, dict(zip(names, point, strict=True)), (batch.inputs,))
        return F.cross_entropy(logits, batch.labels)

    return loss


def sharpness_curve(loss: Loss, parameters: Sequence[Tensor], radii: Sequence[float]) -> list[float]:
    """L(θ + ρ g/|g|) − L(θ) for every ρ of `radii`, g = ∇L(θ); loss and gradient on the same images."""
    value, gradient = _value_and_gradient(loss, parameters)
    with torch.no_grad():
        return [(loss(_moved(parameters, gradient, radius)) - value).item() for radius in radii]


def domain_inconsistency(source: Loss, unknown: Loss, parameters: Sequence[Tensor], rho: float) -> float:
    """max over |θ' − θ| ≤ ρ of |L_e(θ') − L_s(θ')|, to first order: UDIM's objective for a given unknown domain e.

    It is the gap at θ + ρ d/|d|, where d is the gradient of the gap's size at θ. The paper keeps θ' where the source
    loss is low as well; this does not.

    Raises:
        ValueError: as `sam_perturbation`.
    """

    def gap(point: Sequence[Tensor]) -> Tensor:
        return (unknown(point) - source(point)).abs()

    _, direction = _value_and_gradient(gap, parameters)
    with torch.no_grad():
        return gap(_moved(parameters, direction, rho)).item()


class Probe:
    """Some images of the sources and of every unknown domain, the same for all networks of a task."""

    def __init__(self, options: TrainOptions, task: Task, device: torch.device) -> None:
        """At most `probe_images` of each domain; corruptions at `probe_level` alone."""
        self.normalization = Normalization(options.inputs, task.validation.images.shape[1]).to(device)
        self._device, self._options = device, options
        self.source = self._batch(task.source_test)
        self.unknown = {
            target.name: self._batch(target.data) for target in task.targets if target.level in (0, options.probe_level)
        }

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Means over unknown domains, source_loss aside: unseen_accuracy in [0, 1], unseen_loss, inconsistency.

        The last is `domain_inconsistency` at the largest of the options' radii.
        """
        parameters = list(trainable_parameters(model).values())
        rows = []
        with evaluation_mode(model):
            source = loss_function(model, self.source)
            with torch.no_grad():
                source_loss = source(parameters).item()
            for batch in self.unknown.values():
                with torch.no_grad():
                    logits = model(batch.inputs)
                unknown = loss_function(model, batch)
                correct = (logits.argmax(1) == batch.labels).double().mean().item()
                gap = domain_inconsistency(source, unknown, parameters, max(self._options.radii))
                rows.append((correct, F.cross_entropy(logits, batch.labels).item(), gap))
        accuracy, loss, inconsistency = np.mean(rows, axis=0).tolist()
        return {
            "source_loss": source_loss,
            "unseen_accuracy": accuracy,
            "unseen_loss": loss,
            "inconsistency": inconsistency,
        }

    def landscape(self, model: nn.Module) -> pd.DataFrame:
        """Sharpness and inconsistency by domain: columns domain, quantity, radius, value.

        Quantities are ``sharpness`` at every radius and ``inconsistency`` at the largest; the domain `SOURCE` has no
        inconsistency.
        """
        parameters = list(trainable_parameters(model).values())
        radii = self._options.radii
        rows = []
        with evaluation_mode(model):
            source = loss_function(model, self.source)
            for domain, batch in {SOURCE: self.source, **self.unknown}.items():
                loss = loss_function(model, batch)
                rises = sharpness_curve(loss, parameters, radii)
                rows += [(domain, "sharpness", radius, rise) for radius, rise in zip(radii, rises, strict=True)]
                if domain != SOURCE:
                    gap = domain_inconsistency(source, loss, parameters, max(radii))
                    rows.append((domain, "inconsistency", max(radii), gap))
        return pd.DataFrame(rows, columns=["domain", "quantity", "radius", "value"])

    def _batch(self, data: LabeledImages) -> Batch:
        some = data[: self._options.probe_images]
        return Batch(self.normalization(some.images.to(self._device)), some.labels.to(self._device))


def measure_accuracy(model: nn.Module, normalization: Normalization, task: Task) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracy on the sources' held-out images and on every target.

    Returns:
        A row for each target, `SOURCE` first: domain, level, images, accuracy in [0, 1], loss (mean cross-entropy).
        And a row for each image: domain (`SOURCE`, ``corrupted`` for all corruptions together, or the target's name),
        image (its number), correct: whether it is classified rightly, the mean over corruptions and levels.
    """
    with_inputs = nn.Sequential(normalization, model)
    rows, images = [], []
    for domain, level, data in [
        (SOURCE, 0, task.source_test),
        *[(target.name, target.level, target.data) for target in task.targets],
    ]:
        with evaluation_mode(model):
            logits = predict_logits(with_inputs, data.images)
        correct = (logits.argmax(1) == data.labels).double().numpy()
        loss = F.cross_entropy(logits, data.labels).item()
        rows.append((domain, level, len(data), correct.mean(), loss))
        together = "corrupted" if level else domain
        images.append(pd.DataFrame({"domain": together, "image": np.arange(len(data)), "correct": correct}))
    per_image = pd.concat(images).groupby(["domain", "image"], sort=True)["correct"].mean().reset_index()
    return pd.DataFrame(rows, columns=["domain", "level", "images", "accuracy", "loss"]), per_image


def _value_and_gradient(loss: Loss, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    with torch.enable_grad():
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        value = loss(leaves)
        return value.detach(), list(torch.autograd.grad(value, leaves, materialize_grads=True))


def _moved(parameters: Sequence[Tensor], gradient: Sequence[Tensor], radius: float) -> list[Tensor]:
    steps = sam_perturbation(gradient, radius)
    return [parameter + step for parameter, step in zip(parameters, steps, strict=True)]
