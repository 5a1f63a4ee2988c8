"""Rewards from the relation model's own predictions, and the policy gradient that they give the selector.

Of a path with label y (maybe "n/a", class 0), logits l in R^R and P = softmax(l), the reward is either

    margin      r = max(0, (P_y - max_{c != y} P_c) / P_y) = max(0, 1 - exp(-(l_y - max_{c != y} l_c)))
    threshold   r = l_y - theta, with the threshold theta of the two-threshold loss

The right-hand form of the margin needs no softmax: it depends on the logits' margin alone, lies in [0, 1), and is
positive exactly where y is predicted. A sampled selection of path p has log pi(p) = sum_t log pi_t; REINFORCE descends

    L = - sum_p w_p A_p log pi(p),   A_p = r_p - baseline

whose gradient, with the baseline "none", is without bias that of - sum_p w_p E[r_p]. The mean of the batch, the path's
own reward included, scales it by 1 - 1/n for n independent paths; "leave_one_out" does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASELINES = ("none", "mean", "leave_one_out")


def relation_reward(logits: Tensor, labels: Tensor, *, kind: str = "margin", threshold: float = 10.0) -> Tensor:
    """Reward of each path's prediction.

    Args:
        logits: (..., R); half precisions are computed in float32.
        labels: (...) int64 in [0, R).
        kind: "margin" (R >= 2, rewards in [0, 1)) or "threshold" (rewards unbounded).
        threshold: of the second kind.

    Returns:
        (...), without a gradient.

    Raises:
        ValueError: unknown kind, shapes that do not fit, or a label outside [0, R).
    """
    if kind not in ("margin", "threshold"):
        raise ValueError(f"kind: unknown reward {kind!r}; there are: margin, threshold")
    if logits.ndim == 0 or logits.shape[:-1] != labels.shape:
        raise ValueError(f"labels: need the shape {tuple(logits.shape[:-1])}, got {tuple(labels.shape)}")
    classes = logits.shape[-1]
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels: need integers, got {labels.dtype}")
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise ValueError(f"labels: must lie in [0, {classes}), got {labels.flatten().tolist()}")
    if kind == "margin" and classes < 2:
        raise ValueError(f"logits: a margin needs at least 2 classes, got {classes}")
    logits = logits.detach()
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    own = logits.gather(-1, labels.long()[..., None])
    if kind == "threshold":
        return own.squeeze(-1) - threshold
    others = logits.scatter(-1, labels.long()[..., None], -torch.inf).amax(-1)
    reward = -torch.expm1(-(own.squeeze(-1) - others).relu())
    return reward.clamp(max=1 - torch.finfo(reward.dtype).eps / 2)  # 1 is never reached, but by rounding


def advantages(rewards: Tensor, baseline: str = "mean") -> Tensor:
    """Rewards minus their baseline, (P,), without a gradient; errors as `reinforce_loss`."""
    if baseline not in BASELINES:
        raise ValueError(f"baseline: unknown {baseline!r}; there are: {', '.join(BASELINES)}")
    if rewards.ndim != 1 or len(rewards) == 0:
        raise ValueError(f"rewards: need shape (P,) with P > 0, got {tuple(rewards.shape)}")
    rewards, count = rewards.detach(), len(rewards)
    if baseline == "none":
        return rewards
    centered = rewards - rewards.mean()
    if baseline == "mean":
        return centered
    if count < 2:
        raise ValueError("rewards: leave_one_out needs at least 2 paths, got 1")
    return centered * (count / (count - 1))


def reinforce_loss(
    log_probs: Tensor, rewards: Tensor, *, baseline: str = "mean", weights: Tensor | None = None
) -> Tensor:
    """- sum_p w_p A_p log pi(p), a scalar; its gradient in log pi(p) is -w_p A_p.

    Args:
        log_probs: (P,) or (P, T), summed over T: picks of a path's documents.
        rewards: (P,).
        baseline: "none", "mean" or "leave_one_out".
        weights: (P,); they multiply the advantage, after the baseline. None: ones.

    Raises:
        ValueError: shapes that do not fit, no path, an unknown baseline, or leave-one-out of a single path.
    """
    advantage = advantages(rewards, baseline)
    if log_probs.ndim not in (1, 2) or len(log_probs) != len(rewards):
        raise ValueError(
            f"log_probs: need shape ({len(rewards)},) or ({len(rewards)}, T), got {tuple(log_probs.shape)}"
        )
    if weights is not None:
        if weights.shape != rewards.shape:
            raise ValueError(f"weights: need shape ({len(rewards)},), got {tuple(weights.shape)}")
        advantage = weights.detach() * advantage
    log_pi = log_probs.sum(-1) if log_probs.ndim == 2 else log_probs
    return -(advantage * log_pi).sum()
