"""One update of UDIM on top of any sharpness-aware base (arXiv 2403.07329), and of its controls.

    1  clean pass at θ: L, g = ∇L and, with its graph, G = d/dx [L + ρ|g|]      `input_perturbation.clean_pass`
    2  unknown domain: x̃ from x and G                                           `unknown_domain`
    3  base gradient, e.g. SAM's ∇L(θ + e)                                      `sharpness`
    4  g_u = ∇_θ R(x, x̃) at θ (not at θ + e), through the whole network         `inconsistency`
    5  the base optimiser is given  g_base + λ₁ g_u

The controls change one piece each: a random direction of the same length (2), radius 0 (2), the cross-entropy of the
same x̃ in place of R (4), and λ₁ = 0 (5), which is the base alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papers.udim.gradients import (
    Average,
    Criterion,
    frozen_running_statistics,
    loss_gradient,
    same_on_every_process,
    trainable_parameters,
)
from papers.udim.inconsistency import FORMS, summed_over_domains
from papers.udim.input_perturbation import (
    NORMALIZATIONS,
    clean_pass,
    perturb_inputs,
    restyle_inputs,
    style_gradients,
)
from papers.udim.sharpness import BaseRule, sam_gradient

DIRECTIONS = ("worst_case", "random")
PERTURBATIONS = (*NORMALIZATIONS, "style")
PENALTIES = (*FORMS, "cross_entropy")


@dataclass(frozen=True)
class UnknownDomainTerm:
    """What is added to the base gradient; the defaults are UDIM at the scale of digits in [0, 1]."""

    weight: float = 1.0
    """λ₁ ≥ 0; 0 leaves the base alone."""
    radius: float = 1.0
    """ρ_x ≥ 0 in the units of the inputs, or the step size of a style perturbation."""
    direction: str = "worst_case"
    """"worst_case": along G; "random": along standard normal noise (control)."""
    perturbation: str = "per_sample"
    """"per_sample" or "per_coordinate" normalised pixels, or "style"."""
    penalty: str = "squared"
    """"squared" or "norm": R; "variance" or "gradient": half of it (ablation); "cross_entropy": its mean over all x̃
    (control: adversarial augmentation)."""

    def __post_init__(self) -> None:
        for name in ("weight", "radius"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        for name, known in (("direction", DIRECTIONS), ("perturbation", PERTURBATIONS), ("penalty", PENALTIES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")

    @property
    def needs_input_gradient(self) -> bool:
        return self.weight > 0 and self.radius > 0 and self.direction == "worst_case"


class Update(NamedTuple):
    """Result of `udim_update`."""

    gradients: list[Tensor]
    """For the base optimiser, in the order of `trainable_parameters`."""
    loss: Tensor
    """L(θ; x) ()."""
    penalty: Tensor
    """R, before λ₁, (); 0 if λ₁ is."""


def udim_update(
    model: nn.Module,
    head: nn.Linear,
    inputs: Tensor,
    labels: Tensor,
    *,
    term: UnknownDomainTerm,
    rho: float = 0.05,
    base: BaseRule | None = None,
    domain_sizes: Sequence[int] | None = None,
    criterion: Criterion = F.cross_entropy,
    average: Average = same_on_every_process,
    generator: torch.Generator | None = None,
) -> Update:
    """Gradient of one step on a batch, g_base + λ₁ g_u. The model's parameters, mode and `.grad` are not changed.

    Running statistics of batch norm are updated by the clean pass alone.

    Args:
        model: [B, ...] ↦ logits [B, C], not wrapped for data parallelism.
        head: the linear layer of `model` that makes the logits of the features.
        inputs, labels: [B, ...] floating, [B] int64; several source domains one after the other.
        term: the inconsistency term or one of its controls.
        rho: ρ ≥ 0 of J, of the penalty's "norm" form and of the default base.
        base: the gradient to add to, one of `papers.udim.sharpness`; None for SAM of radius ρ.
        domain_sizes: samples of each source domain; None for one domain.
        criterion: L, for the base and for J; label smoothing goes here.
        average: mean of gradients over processes.
        generator: of the random direction, on the inputs' device.

    Raises:
        ValueError: as the functions above.
    """
    parameters = list(trainable_parameters(model).values())
    clean = clean_pass(
        model,
        inputs,
        labels,
        rho,
        with_input_gradient=term.needs_input_gradient,
        criterion=criterion,
        average=average,
    )
    base = partial(sam_gradient, rho=rho) if base is None else base
    with frozen_running_statistics(model):
        gradient = loss_gradient(model, inputs, labels, criterion=criterion, average=average)
        gradients = base(gradient, parameters, clean.gradients)
        if term.weight == 0:
            return Update(gradients, clean.loss, torch.zeros_like(clean.loss))
        perturbed = unknown_domain(inputs, clean.input_gradient, term, generator)
        sizes = [len(labels)] if domain_sizes is None else domain_sizes
        penalty = _penalty(model, head, inputs, perturbed, labels, sizes, term.penalty, rho)
    g_u = average(list(torch.autograd.grad(penalty, parameters, materialize_grads=True)))
    total = [g + term.weight * u for g, u in zip(gradients, g_u, strict=True)]
    return Update(total, clean.loss, penalty.detach())


def unknown_domain(
    inputs: Tensor, input_gradient: Tensor | None, term: UnknownDomainTerm, generator: torch.Generator | None = None
) -> Tensor:
    """x̃ [B, ...] as `term` says, detached.

    Args:
        inputs: x [B, ...].
        input_gradient: G of that shape; not read, and may be None, for a random direction or radius 0.
        term: direction, kind and radius of the perturbation.
        generator: of the random direction.

    Raises:
        ValueError: as `perturb_inputs` and `restyle_inputs`; G missing.
    """
    if term.radius == 0:
        return inputs.detach()
    if term.direction == "random":
        direction = torch.randn(inputs.shape, dtype=inputs.dtype, device=inputs.device, generator=generator)
    elif input_gradient is None:
        raise ValueError("input_gradient must be given for the worst-case direction, got None")
    else:
        direction = input_gradient
    if term.perturbation == "style":
        return restyle_inputs(inputs, *style_gradients(inputs, direction), term.radius)
    return perturb_inputs(inputs, direction, term.radius, term.perturbation)


def features_and_logits(model: nn.Module, head: nn.Linear, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """h [B, D], what `head` is given, and the model's logits [B, C], from one forward pass.

    Raises:
        ValueError: the model does not call `head` exactly once.
    """
    captured: list[Tensor] = []
    with head.register_forward_pre_hook(lambda _, arguments: captured.append(arguments[0])):
        logits = model(inputs)
    if len(captured) != 1:
        raise ValueError(f"head must be a layer that model calls once per pass, got {len(captured)} calls")
    return captured[0], logits


def _penalty(
    model: nn.Module,
    head: nn.Linear,
    inputs: Tensor,
    perturbed: Tensor,
    labels: Tensor,
    domain_sizes: Sequence[int],
    penalty: str,
    rho: float,
) -> Tensor:
    with torch.enable_grad():
        if penalty == "cross_entropy":
            return F.cross_entropy(model(perturbed), labels)
        features, logits = features_and_logits(model, head, torch.cat([inputs, perturbed]))
        h, h_perturbed = features.chunk(2)
        z, z_perturbed = logits.chunk(2)
        return summed_over_domains(h, z, labels, h_perturbed, z_perturbed, domain_sizes, penalty, rho)
