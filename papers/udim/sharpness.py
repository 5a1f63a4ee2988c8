"""Sharpness-aware gradients, the part of UDIM that flattens the source loss (Shin et al., ICLR 2024, arXiv 2403.07329).

UDIM adds its inconsistency term (`papers.udim.inconsistency`) to the gradient of an optimiser that looks for flat
minima of the source loss. Such an optimiser is written here as a function of three things: `gradient`, which evaluates
∇L(θ') at any θ' given as a list of tensors; `parameters`, θ; and `clean_gradient`, g = ∇L(θ), which the caller has
computed already. It returns the gradient that the base optimiser (Adam, SGD) is then given:

    ERM   g
    SAM   ∇L(θ + e),  e = ρ g/|g|                       Foret et al., ICLR 2021, eq. 2
    ASAM  ∇L(θ + e),  e = ρ θ²g/| |θ|g |                Kwon et al., ICML 2021
    SAGM  ½ [g + ∇L(θ + (ρ/|g| − α) g)]                 Wang et al., CVPR 2023
    GAM   see `gam_gradient`                            Zhang et al., CVPR 2023

θ itself is never changed, not even for a moment, so there is nothing to restore. All norms are over all tensors
jointly; with data parallelism let `gradient` average over the processes, so that e is the same on each.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Gradient = Callable[[Sequence[Tensor]], list[Tensor]]
"""θ' ↦ ∇L(θ'), one tensor for each of θ'."""

BaseRule = Callable[[Gradient, Sequence[Tensor], Sequence[Tensor]], list[Tensor]]
"""(gradient, parameters, clean_gradient) ↦ the gradient to follow, as the functions below with their options bound."""


@torch.no_grad()
def sam_perturbation(
    gradients: Sequence[Tensor],
    rho: float,
    parameters: Sequence[Tensor] | None = None,
    adaptive: bool = False,
    eps: float = 1e-12,
) -> list[Tensor]:
    """e, the ascent step of length ρ that SAM evaluates the gradient at: argmax over |e| ≤ ρ of ⟨g, e⟩.

    Args:
        gradients: g, at least one floating tensor.
        rho: ρ ≥ 0, the radius (usually 0.05).
        parameters: θ, tensors of the gradients' shapes; needed if `adaptive`, else ignored.
        adaptive: False for SAM, e = ρ g/(|g| + eps); True for ASAM, e = ρ θ²g/(| |θ|g | + eps), whose radius is
            relative to the size of each parameter: |e/|θ|| = ρ.
        eps: keeps e = 0 where the gradient is zero.

    Returns:
        One detached tensor per gradient, of its shape and dtype. Norms of half precision are computed in float32.

    Raises:
        ValueError: no gradients; ρ negative or not finite; adaptive without parameters; lengths or shapes differ.
    """
    if len(gradients) == 0:
        raise ValueError("gradients must hold at least one tensor, got none")
    if not (math.isfinite(rho) and rho >= 0):
        raise ValueError(f"rho must be finite and at least 0, got {rho}")
    if not adaptive:
        scale = rho / (global_norm(gradients) + eps)
        return [_scaled(g, scale) for g in gradients]
    if parameters is None:
        raise ValueError("parameters must be given when adaptive is True, got None")
    _check_same_shapes("parameters", parameters, gradients)
    parameters = [_at_least_float32(p) for p in parameters]
    relative = [p * g for p, g in zip(parameters, gradients, strict=True)]
    scale = rho / (global_norm(relative) + eps)
    return [_scaled(p * r, scale).to(g.dtype) for p, r, g in zip(parameters, relative, gradients, strict=True)]


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm (), at least float32, of all tensors taken as one vector; on the first one's device."""
    norms = [torch.linalg.vector_norm(_at_least_float32(tensor)).to(tensors[0].device) for tensor in tensors]
    return torch.linalg.vector_norm(torch.stack(norms))


def erm_gradient(gradient: Gradient, parameters: Sequence[Tensor], clean_gradient: Sequence[Tensor]) -> list[Tensor]:
    """g itself: empirical risk minimisation as a `BaseRule`."""
    return list(clean_gradient)


def sam_gradient(
    gradient: Gradient,
    parameters: Sequence[Tensor],
    clean_gradient: Sequence[Tensor],
    *,
    rho: float,
    adaptive: bool = False,
) -> list[Tensor]:
    """∇L(θ + e), with e from `sam_perturbation`: SAM, or ASAM if `adaptive`.

    Raises:
        ValueError: as `sam_perturbation`.
    """
    perturbation = sam_perturbation(clean_gradient, rho, parameters, adaptive)
    return gradient(_moved(parameters, perturbation))


def sagm_gradient(
    gradient: Gradient,
    parameters: Sequence[Tensor],
    clean_gradient: Sequence[Tensor],
    *,
    rho: float,
    alpha: float = 0.001,
) -> list[Tensor]:
    """½ [g + ∇L(θ + e − α g)]: SAGM, which matches the gradient of the loss with that of the perturbed loss.

    Args:
        rho: ρ ≥ 0, the radius of e.
        alpha: α ≥ 0, the step of descent that the match is evaluated after, in units of a learning rate.

    Raises:
        ValueError: as `sam_perturbation`; α < 0.
    """
    if not alpha >= 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}")
    perturbation = sam_perturbation(clean_gradient, rho)
    ahead = gradient(_moved(_moved(parameters, perturbation), clean_gradient, -alpha))
    return [(g + a) / 2 for g, a in zip(clean_gradient, ahead, strict=True)]


def gam_gradient(
    gradient: Gradient,
    parameters: Sequence[Tensor],
    clean_gradient: Sequence[Tensor],
    *,
    rho: float,
    rho_flatness: float,
    sharpness_weight: float = 0.9,
    loss_weight: float = 0.9,
    orthogonal_weight: float = 0.05,
) -> list[Tensor]:
    """Gradient-norm-aware minimisation (GAM): flatness of first order, from the gradient of ρ|∇L|.

    With g₀ = g, g₁ at θ + ρ g₀/|g₀|, θ₂ = θ + ρ'(g₁ − g₀)/|g₁ − g₀|, g₂ at θ₂ and g₃ at θ₂ + ρ g₂/|g₂|, so that
    g₁ − g₀ and g₃ − g₂ are the gradients of ρ|∇L| at θ and at its own ascent point θ₂:

        u = (1 − β) g₁ + β g₃,   m = g₀ + γ g₂,   gradient = u − η m_⊥,

    where m_⊥ is the part of m orthogonal to u.

    Args:
        rho: ρ ≥ 0, the step of the finite differences (decays from 0.05 to 0.02 with the learning rate).
        rho_flatness: ρ' ≥ 0, the radius in which the gradient norm is maximised (as ρ).
        sharpness_weight: β in [0, 1].
        loss_weight: γ ≥ 0.
        orthogonal_weight: η ≥ 0.

    Raises:
        ValueError: as `sam_perturbation`; a weight out of range.
    """
    if not 0 <= sharpness_weight <= 1:
        raise ValueError(f"sharpness_weight must be in [0, 1], got {sharpness_weight}")
    for name, value in (("loss_weight", loss_weight), ("orthogonal_weight", orthogonal_weight)):
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0, got {value}")
    g0 = clean_gradient
    g1 = gradient(_moved(parameters, sam_perturbation(g0, rho)))
    norm_gradient = [a - b for a, b in zip(g1, g0, strict=True)]
    theta2 = _moved(parameters, sam_perturbation(norm_gradient, rho_flatness))
    g2 = gradient(theta2)
    g3 = gradient(_moved(theta2, sam_perturbation(g2, rho)))
    u = [torch.lerp(a, b, sharpness_weight) for a, b in zip(g1, g3, strict=True)]
    m = [a + loss_weight * b for a, b in zip(g0, g2, strict=True)]
    return _moved(u, _orthogonal_part(m, u), -orthogonal_weight)


@torch.no_grad()
def sharpness(
    loss: Callable[[Sequence[Tensor]], Tensor], gradient: Gradient, parameters: Sequence[Tensor], rho: float
) -> Tensor:
    """L(θ + ρ g/|g|) − L(θ) (), how fast the loss rises in its steepest direction: flatness as the claims measure it.

    Args:
        loss: θ' ↦ L(θ') (), on the data the sharpness is asked for, as `gradient` is ∇L on these data.
        parameters: θ.
        rho: ρ ≥ 0 (0.05).

    Raises:
        ValueError: as `sam_perturbation`.
    """
    with torch.enable_grad():
        g = gradient(parameters)
    return loss(_moved(parameters, sam_perturbation(g, rho))) - loss(parameters)


@torch.no_grad()
def _moved(points: Sequence[Tensor], offsets: Sequence[Tensor], scale: float = 1.0) -> list[Tensor]:
    return [p + scale * offset for p, offset in zip(points, offsets, strict=True)]


def _orthogonal_part(m: Sequence[Tensor], u: Sequence[Tensor], eps: float = 1e-12) -> list[Tensor]:
    """m − ⟨m, u⟩ u/|u|², all of m where u is zero."""
    scale = 1 / (global_norm(u) + eps)
    unit = [_scaled(b, scale) for b in u]
    along = torch.stack([(a * b).sum() for a, b in zip(m, unit, strict=True)]).sum()
    return [a - _scaled(b, along) for a, b in zip(m, unit, strict=True)]


def _scaled(tensor: Tensor, scale: Tensor) -> Tensor:
    """scale · tensor in the tensor's dtype; `scale` itself can be out of the range of half precision."""
    return (_at_least_float32(tensor) * scale.to(tensor.device)).to(tensor.dtype)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check_same_shapes(name: str, tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    shapes, expected = ([tuple(t.shape) for t in ts] for ts in (tensors, gradients))
    if shapes != expected:
        raise ValueError(f"{name} must have the shapes of gradients {expected}, got {shapes}")
