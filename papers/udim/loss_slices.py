"""Slices of the loss around trained weights along random, filter-normalised directions (Li et al., NeurIPS 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from papers.udim.measurements import Loss


def filter_normalised_direction(parameters: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """A random direction in which every filter is moved by its own length.

    Args:
        parameters: θ. A filter is a row of a tensor of 2 or more dimensions; biases and norms are not moved.
        generator: on the CPU.

    Returns:
        Tensors like θ's, each filter normal and as long as θ's.
    """
    direction = []
    for parameter in parameters:
        if parameter.ndim < 2:
            direction.append(torch.zeros_like(parameter))
            continue
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        lengths = [torch.linalg.vector_norm(tensor.flatten(1), dim=1) for tensor in (parameter.detach(), noise)]
        scale = lengths[0] / lengths[1].clamp(min=1e-12)
        direction.append(noise * scale.reshape(-1, *[1] * (parameter.ndim - 1)))
    return direction


@torch.no_grad()
def loss_along(loss: Loss, parameters: Sequence[Tensor], direction: Sequence[Tensor], steps: Sequence[float]) -> Tensor:
    """L(θ + t d) for every step t, (steps,)."""
    return torch.stack([loss(_moved(parameters, direction, step)) for step in steps])


@torch.no_grad()
def loss_over_plane(
    loss: Loss,
    parameters: Sequence[Tensor],
    directions: tuple[Sequence[Tensor], Sequence[Tensor]],
    steps: Sequence[float],
) -> Tensor:
    """L(θ + s d₁ + t d₂), (steps of s, steps of t)."""
    rows = [loss_along(loss, _moved(parameters, directions[0], step), directions[1], steps) for step in steps]
    return torch.stack(rows)


def _moved(parameters: Sequence[Tensor], direction: Sequence[Tensor], step: float) -> list[Tensor]:
    return [parameter.detach() + step * offset for parameter, offset in zip(parameters, direction, strict=True)]
