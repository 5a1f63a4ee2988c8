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

import math
from collections.abc import Sequence
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


class StepLosses(NamedTuple):
    """What one batch contributes to the training of M members."""

    loss: Tensor
    """Scalar, to be minimised: the sum of the members' losses, each of which depends on its own logits alone."""
    importance: Tensor
    """w (M, B), importance weights; 1 for ce, b0 and the corrections, which do not use them."""
    weights: Tensor
    """v (M, B), per-sample weights; NaN for the corrections, which have none."""
    fell_back: Tensor
    """(M,) bool, True where every importance weight was zero and plain cross-entropy took their place."""


def utilization_losses(
    utilizations: Sequence[Utilization],
    logits: Tensor,
    noisy_labels: Tensor,
    transitions: Tensor,
    generators: Sequence[torch.Generator | None],
) -> StepLosses:
    """Losses of M networks, each with a utilization and a T of its own, on one batch.

    From one forward pass: the logits that give the weights are the ones that are trained. No member's loss, weights or
    gradient depends on which other members there are.

    Args:
        utilizations: one for each member.
        logits: (M, B, C) floats, in training mode.
        noisy_labels: (B,) integers in [0, C), the same for all members.
        transitions: T (M, C, C), rows sum to one; not looked at by ce and b0.
        generators: sources of randomness of dws, rent and b0, one for each member.

    Raises:
        ValueError: as the functions of `papers.rent.importance_weighting`.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    members, batch, _ = logits.shape
    importance = logits.new_ones(members, batch)
    using = [index for index, each in enumerate(utilizations) if each.name in ("rw", "rw_norm", "dws", "rent")]
    if using:
        # One call for all members: in separate ones the overhead of many small operations would cost more than a
        # small network's own step.
        flat = transition_importance_weights(
            logits[using].flatten(0, 1).detach(),
            noisy_labels.repeat(len(using)),
            transitions[using].repeat_interleave(batch, 0),
        )
        importance[using] = flat.view(len(using), batch)
    fell_back = ~importance.any(1)
    weights = torch.full_like(importance, math.nan)
    corrections = []
    for index, (utilization, generator) in enumerate(zip(utilizations, generators, strict=True)):
        if utilization.name in CORRECTIONS:
            correct = CORRECTIONS[utilization.name]
            corrections.append(correct(logits[index], noisy_labels, transitions[index]))
        else:
            used = Utilization("ce") if fell_back[index] else utilization
            weights[index] = sample_weights(used, importance[index], generator)
    weighted = [index for index, each in enumerate(utilizations) if each.name not in CORRECTIONS]
    loss = sum(corrections, logits.new_zeros(()))
    if weighted:
        every = noisy_labels.repeat(len(weighted))
        loss = loss + weighted_cross_entropy(logits[weighted].flatten(0, 1), every, weights[weighted].flatten())
    return StepLosses(loss, importance, weights, fell_back)


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


def clean_weight_shares(weights: Tensor, is_clean: Tensor) -> Tensor:
    """Purity: the share of each member's weight in a batch, (M, B), on samples whose label is right, (B,) bool; (M,).

    Raises:
        ValueError: shapes that differ.
    """
    if weights.shape[1:] != is_clean.shape:
        raise ValueError(f"is_clean: need shape {tuple(weights.shape[1:])}, got {tuple(is_clean.shape)}")
    return (weights * is_clean).sum(1) / weights.sum(1)


def _multiplicities(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """n/B: how often each of B samples is drawn in B draws, as a share."""
    indices = resample_indices(weights, generator=generator)
    return torch.bincount(indices, minlength=len(weights)).to(weights) / len(weights)
