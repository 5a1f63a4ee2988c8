"""Gradients of a model's loss at any parameters, without touching the model.

They are made by `torch.autograd.grad`, not `backward`: nothing accumulates in `.grad`, no graph outlives its step, and
the wrappers of data parallelism do not see them. `Average` is where their mean over the processes is taken.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from papers.udim.sharpness import Gradient

Criterion = Callable[[Tensor, Tensor], Tensor]
"""(logits [B, C], labels [B]) ↦ mean loss ()."""

Average = Callable[[list[Tensor]], list[Tensor]]
"""Mean of gradients over the processes of a data-parallel training; the identity on one process."""


def trainable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """θ by name: the parameters with requires_grad."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def same_on_every_process(gradients: list[Tensor]) -> list[Tensor]:
    """The `Average` of a single process."""
    return gradients


def loss_gradient(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    criterion: Criterion = F.cross_entropy,
    average: Average = same_on_every_process,
) -> Gradient:
    """θ' ↦ ∇L(θ'; x) on these inputs, for θ' in the order of `trainable_parameters`; the model keeps its own θ."""
    names = list(trainable_parameters(model))

    def gradient(point: Sequence[Tensor]) -> list[Tensor]:
        with torch.enable_grad():
            leaves = [p.detach().requires_grad_() for p in point]
            logits = functional_call(model, dict(zip(names, leaves, strict=True)), (inputs,))
            loss = criterion(logits, labels)
            return average(list(torch.autograd.grad(loss, leaves, materialize_grads=True)))

    return gradient


@contextmanager
def frozen_running_statistics(model: nn.Module) -> Iterator[None]:
    """Forward passes leave the running statistics of batch norm alone; layers in train mode still use the batch's own.

    For every pass but the first of a step: the perturbed passes must not count as data seen.
    """
    layers = [module for module in model.modules() if getattr(module, "track_running_stats", False)]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
