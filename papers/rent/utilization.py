"""How a training step uses the transition matrix: RENT, the family it belongs to, and its baselines, side by side.

All but the two loss corrections are one weighted sum of cross-entropies with the noisy labels, Σ_i v_i CE_i, and differ
in the per-sample weights v alone. With the importance weights w and mu = w / Σ w of a batch of B samples:

    ce          v = 1/B
    rw          v = w/B                                     reweighting (Liu & Tao, 2016), not normalised
    rw_norm     v = mu                                      self-normalised reweighting, DWS with alpha = inf
    dws:alpha   v = mean of B draws from Dirichlet(alpha mu)
    rent        v = n/B,  n ~ Multinomial(B, mu)            resampling with replacement, DWS with alpha = 0
    b0          v = n/B,  n ~ Multinomial(B, 1/B)           control: RENT's sampling noise without T
    fl          forward loss,  backward: backward loss      the corrections; no weights

Given w, E[v] of dws and rent is mu: in expectation they take the step of self-normalised reweighting, and all that
they add is noise in the gradient, of variance (mu − mu²)/(B (alpha + 1)) in every weight.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from papers.rent.importance_weighting import (
    backward_corrected_cross_entropy,
    forward_corrected_cross_entropy,
    transition_importance_weights,
    weighted_cross_entropy,
)
from papers.rent.weight_sampling import resample_indices, sample_dirichlet_weights

CORRECTIONS = {"fl": forward_corrected_cross_entropy, "backward": backward_corrected_cross_entropy}
WEIGHTINGS = ("ce", "rw", "rw_norm", "dws", "rent", "b0")


@dataclass(frozen=True)
class Utilization:
    """A row of the table above."""

    name: str
    concentration: float | None = None
    """alpha, of dws alone."""

    @classmethod
    def parse(cls, text: str) -> "Utilization":
        """From its written form: "rent", "dws:0.1", ...

        Raises:
            ValueError: unknown name; no number >= 0 after "dws:", or anything after another name.
        """
        name, colon, argument = text.partition(":")
        if name not in (*WEIGHTINGS, *CORRECTIONS) or bool(colon) != (name == "dws"):
            known = ", ".join((*WEIGHTINGS, *CORRECTIONS)).replace("dws", "dws:<alpha>")
            raise ValueError(f"utilization: need one of {known}; got {text!r}")
        if name != "dws":
            return cls(name)
        try:
            concentration = float(argument)
        except ValueError:
            concentration = -1.0
        if not concentration >= 0:
            raise ValueError(f"utilization: need a number >= 0 after 'dws:', got {text!r}")
        return cls(name, concentration)


class StepLoss(NamedTuple):
    """What one batch contributes to training."""

    loss: Tensor
    """Scalar, to be minimised."""
    weights: Tensor | None
    """(B,) per-sample weights v; None for the corrections."""
    fell_back: bool
    """True where every importance weight was zero and plain cross-entropy took their place."""


def utilization_loss(
    utilization: Utilization,
    logits: Tensor,
    noisy_labels: Tensor,
    transition: Tensor,
    generator: torch.Generator | None = None,
) -> StepLoss:
    """Loss of a batch from one forward pass: the logits that give the weights are the ones that are trained.

    Args:
        utilization: which.
        logits: (B, C) floats, in training mode.
        noisy_labels: (B,) integers in [0, C).
        transition: T (C, C) or (B, C, C), rows sum to one; not looked at by ce and b0.
        generator: source of randomness of dws, rent and b0.

    Raises:
        ValueError: as the functions of `papers.rent.importance_weighting`.
    """
    if utilization.name in CORRECTIONS:
        return StepLoss(CORRECTIONS[utilization.name](logits, noisy_labels, transition), None, False)
    importance = logits.new_ones(len(logits), dtype=torch.promote_types(logits.dtype, torch.float32))
    fell_back = False
    if utilization.name not in ("ce", "b0"):
        importance = transition_importance_weights(logits.to(importance), noisy_labels, transition)
        fell_back = not importance.any()
    weights = sample_weights(Utilization("ce") if fell_back else utilization, importance, generator)
    return StepLoss(weighted_cross_entropy(logits, noisy_labels, weights), weights, fell_back)


def sample_weights(
    utilization: Utilization, importance_weights: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """The per-sample weights v of the table above, (B,), detached.

    Args:
        utilization: one that has weights.
        importance_weights: w (B,) floats >= 0; for ce and b0 only their number counts.
        generator: source of randomness.

    Raises:
        ValueError: a loss correction, which has no weights; weights that cannot be normalised where mu is needed.
    """
    weights = importance_weights.detach()
    count = len(weights)
    match utilization.name:
        case "ce":
            return torch.full_like(weights, 1 / count)
        case "rw":
            return weights / count
        case "rw_norm":
            return sample_dirichlet_weights(weights, float("inf"))[0]
        case "dws":
            return sample_dirichlet_weights(weights, utilization.concentration, count, generator).mean(0)
        case "rent":
            return _multiplicities(weights, generator)
        case "b0":
            return _multiplicities(torch.ones_like(weights), generator)
    raise ValueError(f"utilization: {utilization.name!r} has no per-sample weights")


def clean_weight_share(weights: Tensor, is_clean: Tensor) -> float:
    """Purity: the share of the weight of a batch, (B,), that lies on samples whose label is right, (B,) bool.

    Raises:
        ValueError: shapes that differ.
    """
    if weights.shape != is_clean.shape:
        raise ValueError(f"is_clean: need shape {tuple(weights.shape)}, got {tuple(is_clean.shape)}")
    return (weights[is_clean].sum() / weights.sum()).item()


def _multiplicities(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """n/B: how often each of B samples is drawn in B draws, as a share."""
    indices = resample_indices(weights, generator=generator)
    return torch.bincount(indices, minlength=len(weights)).to(weights) / len(weights)
