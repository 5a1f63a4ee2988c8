"""Gradients of a network in its input."""

from collections.abc import Callable

import torch
from torch import Tensor


def value_and_score(log_density: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(values (B,), their gradients in x (B, ...)), both detached; works under `torch.no_grad`.

    Only the input is differentiated: parameters of `log_density` are given no `.grad`.

    Args:
        log_density: `(x (B, ...), sigma (B,)) -> (B,)`, each value a function of its own sample.
        x: (B, ...) floats.
        sigma: (B,) noise levels.

    Raises:
        ValueError: log_density does not return (B,).
    """
    with torch.enable_grad():
        inputs = x.detach().requires_grad_()
        values = log_density(inputs, sigma)
        if values.shape != (len(x),):
            raise ValueError(f"log_density: must return shape ({len(x)},), got {tuple(values.shape)}")
        if not values.requires_grad:  # a constant
            return values, torch.zeros_like(x)
        (score,) = torch.autograd.grad(values.sum(), inputs, allow_unused=True, materialize_grads=True)
    return values.detach(), score
