"""Feynman-Kac steering, a baseline: particles are resampled along the way by how promising their predictions are.

Raghav Singhal, Zachary Horvitz, Ryan Teehan, Mengye Ren, Zhou Yu, Kathleen McKeown, Rajesh Ranganath. "A General
Framework for Inference-time Scaling and Steering of Diffusion Models", ICML 2025, arXiv 2501.06848.

At some steps every particle k is rated by the reward r_k of its clean prediction and weighted by a potential, with a
running value R_k that starts at 0:

    difference: log G_k = λ (r_k - R_k),      R_k <- r_k
    max:        log G_k = λ max(r_k, R_k),    R_k <- max(r_k, R_k)
    sum:        log G_k = λ (r_k + R_k),      R_k <- r_k + R_k

The product of all potentials must be exp(λ r(x0)). For the difference it is by itself; for the others the last step
divides what has accumulated out again: log G_k = λ r_k - Σ log G_k of the steps before.
"""

import math

import torch
from torch import Tensor

POTENTIALS = ("difference", "max", "sum")


def log_potentials(
    rewards: Tensor,
    running: Tensor,
    *,
    potential: str,
    reward_weight: float,
    log_product: Tensor | None = None,
    final: bool = False,
) -> tuple[Tensor, Tensor]:
    """log G (K,) and the updated running values (K,); arguments and errors as `feynman_kac_weights`."""
    if potential not in POTENTIALS:
        raise ValueError(f"potential: expected one of {', '.join(POTENTIALS)}, got {potential!r}")
    if rewards.ndim != 1 or not len(rewards):
        raise ValueError(f"rewards: need one for each particle, (K,), got shape {tuple(rewards.shape)}")
    for name, values in (("running", running), ("log_product", log_product)):
        if values is not None and values.shape != rewards.shape:
            raise ValueError(f"{name}: need shape {tuple(rewards.shape)}, got {tuple(values.shape)}")
    if not torch.isfinite(rewards).all():
        raise ValueError("rewards: must be finite")
    if not math.isfinite(reward_weight):
        raise ValueError(f"reward_weight: must be finite, got {reward_weight}")
    if potential == "difference":
        return reward_weight * (rewards - running), rewards
    updated = torch.maximum(rewards, running) if potential == "max" else rewards + running
    if not final:
        return reward_weight * updated, updated
    accumulated = 0.0 if log_product is None else log_product
    return reward_weight * rewards - accumulated, updated


def feynman_kac_weights(
    rewards: Tensor,
    running: Tensor,
    *,
    potential: str,
    reward_weight: float,
    log_product: Tensor | None = None,
    final: bool = False,
) -> tuple[Tensor, Tensor]:
    """Normalised weights (K,) of particles in a resampling step, and the updated running values (K,).

    Args:
        rewards: r, of the particles' clean predictions, (K,).
        running: R, (K,), zeros before the first step.
        potential: `difference`, `max` or `sum`.
        reward_weight: λ.
        log_product: (K,), the log potentials that each particle's ancestors have accumulated; None: none.
        final: whether this is the last step, in which `max` and `sum` divide the accumulated product out.

    Raises:
        ValueError: an unknown potential, shapes that differ, no particles, or rewards or a λ that are not finite.
    """
    logs, updated = log_potentials(
        rewards, running, potential=potential, reward_weight=reward_weight, log_product=log_product, final=final
    )
    return logs.softmax(dim=0), updated


def effective_sample_size(weights: Tensor) -> float:
    """1 / Σ w² of normalised weights (K,): between 1 and K."""
    return float(1 / weights.square().sum())


def resample(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Ancestors of the next particles, int64 (K,): multinomial with replacement."""
    return torch.multinomial(weights.cpu(), len(weights), replacement=True, generator=generator).to(weights.device)
