"""Rewards and advantages of the PPO that all penalties of the Wasserstein-regularization paper share.

Per-token penalties and the reward model's score become the rewards r_t (arXiv 2602.01685, objective with R on the
last response token), and generalized advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16) turns them
into advantages without whitening. The mask of a row is one contiguous run of response tokens, end-of-sequence token
included. Here the score belongs to the last token of that run; DeepSpeed-Chat puts it one position later when a
response ends early, where it is never trained.
"""

import torch
from torch import BoolTensor, Tensor


@torch.no_grad()
def token_rewards(
    penalty: Tensor,
    score: Tensor,
    mask: BoolTensor,
    *,
    beta: float,
    score_clip: float | None = 2.5,
    penalty_clip: float | None = None,
) -> Tensor:
    """r_t = clip(−β·penalty_t, ±penalty_clip), plus clip(score, ±score_clip) on the last response token.

    Args:
        penalty: (B, T), per token; anything outside the mask.
        score: (B,) of the reward model.
        mask: (B, T) bool, at least one True per row.
        beta: β ≥ 0, in score units per unit of penalty.
        score_clip, penalty_clip: ≥ 0; None does not clip. The paper's code clips the penalties of the f-divergences
            to 2.5, those of the Wasserstein distance not.

    Returns:
        (B, T), 0 outside the mask, without gradient.

    Raises:
        ValueError: shapes do not match, β < 0, a negative clip, a row without response tokens.
    """
    _check_shapes(mask, penalty=penalty)
    if score.shape != mask.shape[:1]:
        raise ValueError(f"score must have shape (B,) = ({mask.shape[0]},), got {tuple(score.shape)}")
    for name, value in (("beta", beta), ("score_clip", score_clip), ("penalty_clip", penalty_clip)):
        if value is not None and not value >= 0:
            raise ValueError(f"{name} must be non-negative, got {value}")
    empty = (~mask.any(-1)).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(f"mask must have a response token in every row, got none in rows {empty}")
    rewards = torch.where(mask, _clip(-beta * penalty, penalty_clip), 0)
    last = mask.shape[-1] - 1 - mask.flip(-1).to(torch.uint8).argmax(-1)
    is_last = torch.arange(mask.shape[-1], device=mask.device) == last[:, None]
    return rewards + torch.where(is_last, _clip(score, score_clip)[:, None], 0)


@torch.no_grad()
def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: BoolTensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """A_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} − V_t, and returns G = A + V.

    Args:
        rewards: (B, T), anything outside the mask.
        values: V, (B, T), anything outside the mask; the value after the last response token is 0.
        mask: (B, T) bool, one contiguous run per row.
        gamma: γ, usually 1.
        lam: λ of the estimator in [0, 1]: 0 for one-step differences, 1 for Monte-Carlo returns.

    Returns:
        Advantages and returns, (B, T) each, 0 outside the mask, not whitened, without gradient.

    Raises:
        ValueError: shapes do not match.
    """
    _check_shapes(mask, rewards=rewards, values=values)
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    advantages = torch.zeros_like(rewards + values)
    next_value = next_advantage = advantages.new_zeros(len(mask))
    for t in reversed(range(mask.shape[-1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(mask[:, t], delta + gamma * lam * next_advantage, 0)
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def _check_shapes(mask: BoolTensor, **tensors: Tensor) -> None:
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool of shape (B, T), got {mask.dtype} {tuple(mask.shape)}")
    for name, tensor in tensors.items():
        if tensor.shape != mask.shape:
            raise ValueError(f"{name} must have the shape of mask, {tuple(mask.shape)}, got {tuple(tensor.shape)}")


def _clip(x: Tensor, limit: float | None) -> Tensor:
    return x if limit is None else x.clamp(-limit, limit)
