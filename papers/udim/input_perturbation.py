"""Crafting the unknown domain: inputs moved to where the loss is high and sharp (arXiv 2403.07329).

UDIM's worst unseen domain within reach is approximated by the source inputs themselves, each moved by at most ρ_x in
the direction that raises the loss and its sharpness,

    x̃_i = x_i + ρ_x G_i/|G_i|,    G = dJ/dx,    J(x) = L(θ; x) + ρ |∇_θ L(θ; x)|,

where J is SAM's worst loss in the ρ-ball around θ to first order. Since d|g| = ⟨g/|g|, dg⟩, the second term needs no
graph of the norm: G = ∂/∂x [L + ⟨e, ∇_θ L⟩] with e = ρ g/|g|, the perturbation of SAM, held constant. One forward pass
thus serves the loss, g, e and G.

It is one step from x itself, without random start or clipping to the range of images, in the units of the (normalised)
inputs. `restyle_inputs` moves only the mean and contrast of each channel instead.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papers.udim.gradients import (
    Average,
    Criterion,
    frozen_running_statistics,
    same_on_every_process,
    trainable_parameters,
)
from papers.udim.sharpness import sam_perturbation

NORMALIZATIONS = ("per_sample", "per_coordinate")


class CleanPass(NamedTuple):
    """What one pass over the unperturbed inputs gives."""

    loss: Tensor
    """L(θ; x) (), detached."""
    gradients: list[Tensor]
    """g = ∇_θ L, detached, in the order of `trainable_parameters`."""
    input_gradient: Tensor | None
    """G of the inputs' shape, detached; None if not asked for."""


def clean_pass(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    rho: float,
    *,
    with_input_gradient: bool = True,
    criterion: Criterion = F.cross_entropy,
    average: Average = same_on_every_process,
) -> CleanPass:
    """Loss, parameter gradient g and worst-case input gradient G from one forward pass.

    Unlike `worst_case_input_gradient` it lets batch norm see the batch, as the training pass it is.

    Args:
        model: [B, ...] ↦ logits [B, C], differentiable twice if ρ > 0 (no fused attention kernels).
        inputs, labels: [B, ...] floating, [B] int64.
        rho: ρ ≥ 0; 0 makes G the plain input gradient of L.
        with_input_gradient: False skips G and the graph it needs.
        criterion: L.
        average: applied to g before e is made of it. G stays per process.

    Raises:
        ValueError: ρ negative or not finite.
    """
    _check_not_negative("rho", rho)
    parameters = list(trainable_parameters(model).values())
    second_order = with_input_gradient and rho > 0 and bool(parameters)
    with torch.enable_grad():
        x = inputs.detach().requires_grad_(with_input_gradient)
        loss = criterion(model(x), labels)
        sources = parameters if second_order or not with_input_gradient else [*parameters, x]
        first = torch.autograd.grad(loss, sources, create_graph=second_order, materialize_grads=True)
    local = first[: len(parameters)]
    gradients = average([g.detach() for g in local])
    if not second_order:
        return CleanPass(loss.detach(), gradients, first[-1] if with_input_gradient else None)
    return CleanPass(loss.detach(), gradients, _sharpness_aware(loss, local, sam_perturbation(gradients, rho), x))


def _sharpness_aware(loss: Tensor, local: Sequence[Tensor], perturbation: Sequence[Tensor], x: Tensor) -> Tensor:
    """∂/∂x [L + ⟨e, ∇_θ L⟩]; a parameter that the loss does not use has a constant gradient, without a graph."""
    terms = [(g, e) for g, e in zip(local, perturbation, strict=True) if g.requires_grad]
    outputs, weights = zip((loss, torch.ones_like(loss)), *terms, strict=True)
    return torch.autograd.grad(outputs, x, grad_outputs=weights, materialize_grads=True)[0]


def worst_case_input_gradient(model: nn.Module, inputs: Tensor, labels: Tensor, rho: float) -> Tensor:
    """G = d/dx [CE + ρ |∇_θ CE|_2], with CE the mean cross-entropy: the direction of the worst unknown domain.

    The model is left as it was: parameters, their `.grad`, the running statistics of batch norm, the mode.

    Args:
        model: [B, ...] ↦ logits [B, C], differentiable twice. Parameters without requires_grad are not part of θ.
        inputs, labels: [B, ...] floating, [B] int64 in [0, C).
        rho: ρ ≥ 0, the radius of SAM's perturbation of θ (0.05); 0 gives the plain input gradient.

    Returns:
        [B, ...], detached. Magnitudes are those of the gradient of a *mean* over the batch.

    Raises:
        ValueError: ρ negative or not finite.
    """
    _check_not_negative("rho", rho)
    with frozen_running_statistics(model):
        return clean_pass(model, inputs, labels, rho).input_gradient


@torch.no_grad()
def perturb_inputs(
    inputs: Tensor, gradients: Tensor, radius: float, normalization: str = "per_sample", eps: float = 1e-12
) -> Tensor:
    """x̃ = x + ρ_x · normalised gradient, one step of steepest ascent.

    Args:
        inputs: x [B, ...] floating.
        gradients: G, of the same shape; a random tensor makes the random-direction control.
        radius: ρ_x ≥ 0, in the units of the inputs.
        normalization: "per_sample" divides G_i by max(|G_i|_2, eps), so that each sample moves by ρ_x in L2 (the
            paper's ball); "per_coordinate" divides each coordinate by max((Σ_i G_i²)^½, eps), its norm over the
            batch, which moves a sample of D coordinates by about ρ_x (D/B)^½ and depends on the other samples (the
            published experiments).
        eps: floor of the norms. Shorter gradients move their sample by less than ρ_x, zero ones not at all.

    Returns:
        New detached tensor of the inputs' shape and dtype; norms of half precision are computed in float32.

    Raises:
        ValueError: radius negative or not finite; shapes differ; no batch dimension; inputs not floating; unknown
            normalization.
    """
    _check_not_negative("radius", radius)
    if inputs.shape != gradients.shape:
        raise ValueError(f"gradients must have the shape of inputs {tuple(inputs.shape)}, got {tuple(gradients.shape)}")
    if inputs.ndim == 0 or not inputs.is_floating_point():
        raise ValueError(f"inputs must be floating with a batch dimension, got {inputs.dtype} {tuple(inputs.shape)}")
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {NORMALIZATIONS}, got {normalization!r}")
    g = gradients.to(torch.promote_types(gradients.dtype, torch.float32))
    if normalization == "per_sample":
        norm = torch.linalg.vector_norm(g.flatten(1) if g.ndim > 1 else g[:, None], dim=1)
        norm = norm.reshape(-1, *[1] * (g.ndim - 1))
    else:
        norm = torch.linalg.vector_norm(g, dim=0)
    return (inputs + radius * (g / norm.clamp(min=eps))).to(inputs.dtype)


def style_gradients(inputs: Tensor, gradients: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """dJ/dμ and dJ/dσ [B, Ch, 1, 1] of the style x = z σ + μ at fixed z, from G = dJ/dx by the chain rule.

    Args:
        inputs: x [B, Ch, H, W] with H W ≥ 2.
        gradients: G, of the same shape.
        eps: as in `restyle_inputs`.

    Raises:
        ValueError: wrong shapes.
    """
    if inputs.shape != gradients.shape:
        raise ValueError(f"gradients must have the shape of inputs {tuple(inputs.shape)}, got {tuple(gradients.shape)}")
    content = _content(inputs, eps)
    return gradients.sum((2, 3), keepdim=True), (gradients * content).sum((2, 3), keepdim=True)


@torch.no_grad()
def restyle_inputs(
    inputs: Tensor, mean_gradient: Tensor, std_gradient: Tensor, step_size: float, eps: float = 1e-5
) -> Tensor:
    """x̃ = z (σ + s dJ/dσ) + (μ + s dJ/dμ) with x = z σ + μ: one step of ascent on the style of each image.

    μ and σ = (unbiased variance + eps)^½ are taken over the pixels of each channel of each sample. The gradients are
    not normalised.

    Args:
        inputs: x [B, Ch, H, W] with H W ≥ 2.
        mean_gradient, std_gradient: dJ/dμ, dJ/dσ [B, Ch, 1, 1], as from `style_gradients`.
        step_size: s (10 in the published experiments).
        eps: added to the variance.

    Returns:
        New detached tensor like the inputs; equal to them where the step is zero.

    Raises:
        ValueError: other shapes.
    """
    content = _content(inputs, eps)
    expected = (*inputs.shape[:2], 1, 1)
    for name, value in (("mean_gradient", mean_gradient), ("std_gradient", std_gradient)):
        if value.shape != expected:
            raise ValueError(f"{name} must have shape {expected} for these inputs, got {tuple(value.shape)}")
    # As an offset from x, not rebuilt from z: rounding then vanishes with the step.
    return (inputs + step_size * (content * std_gradient + mean_gradient)).to(inputs.dtype)


def _content(inputs: Tensor, eps: float) -> Tensor:
    """z = (x − μ)/σ."""
    if inputs.ndim != 4 or inputs.shape[2] * inputs.shape[3] < 2:
        raise ValueError(f"inputs must have shape [B, Ch, H, W] with H*W >= 2, got {tuple(inputs.shape)}")
    variance, mean = torch.var_mean(inputs.detach(), dim=(2, 3), keepdim=True)
    return (inputs.detach() - mean) / (variance + eps).sqrt()


def _check_not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {value}")
