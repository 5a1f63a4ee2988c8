"""Fishr (Rame, Dancette, Cord, ICML 2022), the baseline whose Hessian proxy UDIM uses: the gradient variances of the
classifier head are matched between the source domains, of which it therefore needs at least two."""

from collections.abc import Sequence

import torch
from torch import Tensor

from papers.udim.inconsistency import head_gradient_variance


def domain_variances(features: Tensor, logits: Tensor, labels: Tensor, domain_sizes: Sequence[int]) -> Tensor:
    """Head-gradient variance of each domain about its own mean, [domains, C D + C].

    Args:
        features, logits, labels: [B, D], [B, C], [B], the domains one after the other.
        domain_sizes: samples of each domain, at least 1 each.

    Raises:
        ValueError: as `head_gradient_variance`; sizes that do not sum to B.
    """
    sizes = list(domain_sizes)
    if not sizes or sum(sizes) != len(labels):
        raise ValueError(f"domain_sizes must sum to B = {len(labels)}, got {sizes}")
    domains = zip(*(batch.split(sizes) for batch in (features, logits, labels)), strict=True)
    variances = [head_gradient_variance(*domain) for domain in domains]
    return torch.stack([torch.cat([weight.flatten(), bias]) for weight, bias in variances])


def smoothed_variances(variances: Tensor, average: Tensor | None, decay: float = 0.95) -> tuple[Tensor, Tensor]:
    """Exponential moving average over steps of the variances of each domain.

    Args:
        variances: [domains, n] of this step.
        average: the state of the previous step, like `variances`; None before the first, for zeros.
        decay: γ in [0, 1).

    Returns:
        v + γ/(1 − γ) average, to be penalised: the average of `variances` with this step's gradient undamped; and the
        new state, γ average + (1 − γ) v, detached.

    Raises:
        ValueError: decay out of range.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}")
    previous = torch.zeros_like(variances) if average is None else average
    penalised = variances + decay / (1 - decay) * previous
    return penalised, (1 - decay) * penalised.detach()


def fishr_penalty(variances: Tensor) -> Tensor:
    """Mean over domains of the mean squared distance of a domain's variance to the average of all, ().

    Args:
        variances: [domains ≥ 2, n], from `domain_variances`, smoothed or not.

    Raises:
        ValueError: fewer than two domains.
    """
    if variances.ndim != 2 or len(variances) < 2:
        raise ValueError(f"variances must have shape [domains >= 2, n], got {tuple(variances.shape)}")
    return (variances - variances.mean(0)).square().mean()
