"""Lookahead sample reward guidance (LiDAR): clean samples drawn once per prompt tell every noisy step where to go.

Yeongmin Kim, Donghyeok Shin, Byeonghu Na, Minsang Park, Richard Lee Kim, Il-Chul Moon. "Lookahead Sample Reward
Guidance for Test-Time Scaling of Diffusion Models", ICML 2026, arXiv 2602.03211.

Samples of p^r(x0) ∝ p(x0) exp(λ r(x0)) need at every noisy x_t = α_t x0 + σ_t ε the expected future reward

    r_t(x_t) = log E[exp(λ r(x0)) | x_t].

Roll-outs from each x_t are too dear. By Bayes' rule the posterior expectation is one over the prior, weighted by the
Gaussian kernel p(x_t | x0) (Theorem 3.1), so that clean samples x̂_1, ..., x̂_n, drawn once from a cheap sampler, serve
all times and all images. With ℓ_i = -‖x_t - α_t x̂_i‖² / (2σ_t²), base weights w = softmax(ℓ) and tilted weights
w^r = softmax(λ r + ℓ) (Definition 3.2),

    r̂_t(x_t) = logsumexp_i(λ r_i + ℓ_i) - logsumexp_i(ℓ_i)          `expected_future_reward`
    ∇ r̂_t(x_t) = (α_t / σ_t²) Σ_i (w^r_i - w_i) x̂_i                 `lookahead_score`  (Theorem 3.3)

since the terms of x_t in the two softmaxes cancel. No network is differentiated and the reward may be a black box. The
score is added, s times, to what the network predicts (`guide_model_output`). In terms of the clean prediction that is

    x̂0 <- x̂0 + s Σ_i (w^r_i - w_i) x̂_i,

a step from the distance-weighted to the reward-and-distance-weighted mean of the lookahead samples. For s = 1 and a
model that is the empirical distribution of these samples it is exactly the tilted prediction. Where one sample
dominates both softmaxes the guidance ends by itself.

Here ‖x_t‖² is dropped, which cancels in both softmaxes, and the samples are centred, which changes neither the weights
nor the difference of means, so that two matrix products of [B, d] with [d, n] do all the work.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")


def lookahead_weights(
    x_t: Tensor,
    lookahead: Tensor,
    rewards: Tensor,
    alpha_t: float | Tensor,
    sigma_t: float | Tensor,
    reward_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Tilted weights w^r and base weights w of the lookahead samples, (B, n) each; rows sum to 1.

    Half precision is computed, and returned, in single precision.

    Args:
        x_t: noisy samples, (B, *shape).
        lookahead: clean samples x̂, (n, *shape) for all of them, or (B, n, *shape).
        rewards: r of these, (n,) or (B, n).
        alpha_t: α_t >= 0, a number or (B,).
        sigma_t: σ_t > 0, a number or (B,).
        reward_weight: λ, compared with ‖x̂_i - x̂_j‖², which grows with the number of elements.

    Raises:
        ValueError: no lookahead samples, shapes or lengths that do not fit, a σ_t that is not positive, a negative α_t,
            or rewards or a λ that are not finite.
    """
    problem = _prepare(x_t, lookahead, rewards, alpha_t, sigma_t, reward_weight)
    return (problem.tilt + problem.logits).softmax(dim=-1), problem.logits.softmax(dim=-1)


def expected_future_reward(
    x_t: Tensor,
    lookahead: Tensor,
    rewards: Tensor,
    alpha_t: float | Tensor,
    sigma_t: float | Tensor,
    reward_weight: float = 1.0,
) -> Tensor:
    """r̂_t(x_t) (B,), between the least and the largest λ r; arguments and errors as `lookahead_weights`."""
    problem = _prepare(x_t, lookahead, rewards, alpha_t, sigma_t, reward_weight)
    return (problem.tilt + problem.logits).logsumexp(dim=-1) - problem.logits.logsumexp(dim=-1) + problem.largest


def lookahead_score(
    x_t: Tensor,
    lookahead: Tensor,
    rewards: Tensor,
    alpha_t: float | Tensor,
    sigma_t: float | Tensor,
    reward_weight: float = 1.0,
) -> Tensor:
    """g(x_t) = ∇ r̂_t(x_t), in the shape and precision of x_t; arguments and errors as `lookahead_weights`."""
    problem = _prepare(x_t, lookahead, rewards, alpha_t, sigma_t, reward_weight)
    shift = (problem.tilt + problem.logits).softmax(dim=-1) - problem.logits.softmax(dim=-1)
    moved = _product(shift, problem.centred.transpose(-1, -2))
    score = problem.alpha / problem.sigma**2 * moved
    return score.view(x_t.shape).to(x_t.dtype)


def guide_model_output(
    model_output: Tensor,
    score: Tensor,
    alpha_t: float | Tensor,
    sigma_t: float | Tensor,
    scale: float,
    prediction_type: str,
) -> Tensor:
    """A network's output with s times the score g added, in the network's own parametrisation.

    ε: ε - s σ g; x0: x0 + s (σ²/α) g; v = α ε - σ x0: v - s σ (α² + σ²)/α g; flow u = ε - x0: u - s σ (α + σ)/α g.

    Args:
        model_output: after classifier-free guidance, (B, *shape).
        score: g, of the same shape.
        alpha_t: α_t, a number or (B,); 0 is possible for ε alone.
        sigma_t: σ_t > 0, a number or (B,).
        scale: s; 0 returns the output as it is, bit for bit.
        prediction_type: `epsilon`, `sample`, `v_prediction` or `flow_prediction`.

    Raises:
        ValueError: shapes that differ, an unknown type, a σ_t that is not positive, a negative α_t or one of 0 where it
            divides, or a scale that is not finite.
    """
    if model_output.shape != score.shape:
        raise ValueError(f"score: need shape {tuple(model_output.shape)}, got {tuple(score.shape)}")
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type: expected one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")
    if not math.isfinite(scale):
        raise ValueError(f"scale: must be finite, got {scale}")
    wide = torch.promote_types(model_output.dtype, torch.float32)
    alpha, sigma = _levels(alpha_t, sigma_t, model_output, wide)
    if prediction_type != "epsilon" and (alpha == 0).any():
        raise ValueError(f"alpha_t: must be positive for {prediction_type}, got 0")
    if scale == 0:
        return model_output
    if prediction_type == "epsilon":
        factor = -sigma
    elif prediction_type == "sample":
        factor = sigma**2 / alpha
    elif prediction_type == "v_prediction":
        factor = -sigma * (alpha**2 + sigma**2) / alpha
    else:
        factor = -sigma * (alpha + sigma) / alpha
    factor = factor.view(-1, *[1] * (model_output.ndim - 1))
    return (model_output.to(wide) + scale * factor * score.to(wide)).to(model_output.dtype)


class _Problem(NamedTuple):
    """What the formulas share.

    Attributes:
        logits: ℓ_i up to a constant, (B, n).
        tilt: λ r_i - max_j λ r_j, (1 or B, n).
        largest: max_j λ r_j, (1 or B,).
        centred: lookahead samples less their mean, as columns, (d, n) or (B, d, n).
        alpha, sigma: (1 or B, 1).
    """

    logits: Tensor
    tilt: Tensor
    largest: Tensor
    centred: Tensor
    alpha: Tensor
    sigma: Tensor


def _prepare(
    x_t: Tensor,
    lookahead: Tensor,
    rewards: Tensor,
    alpha_t: float | Tensor,
    sigma_t: float | Tensor,
    reward_weight: float,
) -> _Problem:
    shared = lookahead.ndim == x_t.ndim
    _check_shapes(x_t, lookahead, rewards, shared=shared)
    if not math.isfinite(reward_weight):
        raise ValueError(f"reward_weight: must be finite, got {reward_weight}")
    if not torch.isfinite(rewards).all():
        raise ValueError(f"rewards: must be finite, got {int((~torch.isfinite(rewards)).sum())} that are not")
    wide = torch.promote_types(x_t.dtype, torch.float32)
    alpha, sigma = _levels(alpha_t, sigma_t, x_t, wide)
    flat = lookahead.to(wide).flatten(1 if shared else 2)
    mean = flat.mean(dim=-2, keepdim=True)  # (1, d) or (B, 1, d)
    centred = (flat - mean).transpose(-1, -2)
    rest = x_t.to(wide).flatten(1) - alpha * mean.view(-1, flat.shape[-1])
    squares = centred.square().sum(dim=-2).view(-1, flat.shape[-2])
    logits = (alpha * _product(rest, centred) - alpha**2 * squares / 2) / sigma**2
    tilt = reward_weight * rewards.to(wide).view(-1, flat.shape[-2])
    largest = tilt.amax(dim=-1)
    return _Problem(logits, tilt - largest[:, None], largest, centred, alpha, sigma)


def _product(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows (B, k) times a matrix (k, m) for all of them, or one for each (B, k, m): (B, m)."""
    return rows @ matrix if matrix.ndim == 2 else (rows[:, None] @ matrix)[:, 0]


def _check_shapes(x_t: Tensor, lookahead: Tensor, rewards: Tensor, *, shared: bool) -> None:
    leading = lookahead.shape[: 1 if shared else 2]
    fits = shared or (lookahead.ndim == x_t.ndim + 1 and leading[0] == len(x_t))
    if x_t.ndim < 2 or not fits or lookahead.shape[len(leading) :] != x_t.shape[1:]:
        raise ValueError(
            f"lookahead: need shape (n, *shape) or (B, n, *shape) for samples {tuple(x_t.shape)}, "
            f"got {tuple(lookahead.shape)}"
        )
    count = leading[-1]
    if count == 0:
        raise ValueError("lookahead: need at least one sample, got none")
    if rewards.shape not in ((count,), (len(x_t), count)):
        raise ValueError(f"rewards: need shape ({count},) or ({len(x_t)}, {count}), got {tuple(rewards.shape)}")


def _levels(
    alpha_t: float | Tensor, sigma_t: float | Tensor, samples: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """α_t and σ_t as columns (1 or B, 1)."""
    columns = []
    for name, level in (("alpha_t", alpha_t), ("sigma_t", sigma_t)):
        values = torch.as_tensor(level, dtype=dtype, device=samples.device)
        if values.ndim > 1 or (values.ndim == 1 and len(values) != len(samples)):
            raise ValueError(f"{name}: need a number or ({len(samples)},), got shape {tuple(values.shape)}")
        low_enough = values >= 0 if name == "alpha_t" else values > 0
        if not (low_enough & torch.isfinite(values)).all():
            raise ValueError(f"{name}: must be {'at least 0' if name == 'alpha_t' else 'positive'}, got {level}")
        columns.append(values.view(-1, 1))
    return columns[0], columns[1]
