"""What an image costs: evaluations of the denoiser, and the cost at which a method reaches a score."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

BACKWARD = 2
"""What a backward pass costs, in evaluations."""


def model_evaluations_per_image(
    *,
    target_steps: int,
    num_images: int,
    num_lookahead: int = 0,
    lookahead_steps: int = 0,
    target_cfg: bool = True,
    lookahead_cfg: bool = True,
) -> float:
    """Evaluations of the denoiser for one image: c_T τ + c_L n δ / images, with c = 2 under classifier-free guidance.

    Args:
        target_steps: τ, of the target sampler.
        num_images: images that share the lookahead set.
        num_lookahead: n, lookahead samples.
        lookahead_steps: δ, of the lookahead sampler.
        target_cfg: whether the target sampler evaluates with and without prompt.
        lookahead_cfg: whether the lookahead sampler does.

    Raises:
        ValueError: fewer than one image, or negative counts.
    """
    if num_images < 1:
        raise ValueError(f"num_images: must be at least 1, got {num_images}")
    for name, count in (
        ("target_steps", target_steps),
        ("num_lookahead", num_lookahead),
        ("lookahead_steps", lookahead_steps),
    ):
        if count < 0:
            raise ValueError(f"{name}: must not be negative, got {count}")
    target = (2 if target_cfg else 1) * target_steps
    return target + (2 if lookahead_cfg else 1) * num_lookahead * lookahead_steps / num_images


def cost_to_reach(
    score: ArrayLike, costs: ArrayLike, scores: ArrayLike, *, out_of_reach: float = 10.0
) -> NDArray[np.float64]:
    """The least cost at which a method's curve reaches a score, interpolated linearly between its settings.

    A curve that stays below the score costs `out_of_reach` times its dearest setting.

    Args:
        score: to be reached, a number or one for each replicate, (...).
        costs: of the method's settings, (S,).
        scores: of the same, (..., S).
        out_of_reach: factor.

    Returns:
        (...).

    Raises:
        ValueError: no settings, or not one score for each.
    """
    costs, scores = np.asarray(costs, float), np.asarray(scores, float)
    if costs.ndim != 1 or not len(costs) or scores.shape[-1:] != costs.shape:
        raise ValueError(f"scores: need one for each of the costs, got {scores.shape} and {costs.shape}")
    order = np.argsort(costs, kind="stable")
    costs, scores = costs[order], scores[..., order]
    reached = scores >= np.asarray(score, float)[..., None]
    first = reached.argmax(axis=-1)
    before = np.maximum(first - 1, 0)
    low, high = (np.take_along_axis(scores, place[..., None], axis=-1)[..., 0] for place in (before, first))
    rise = np.where(high > low, high - low, 1.0)
    share = np.where(first > 0, (score - low) / rise, 0.0)
    found = costs[before] + share * (costs[first] - costs[before])
    return np.where(reached.any(axis=-1), found, out_of_reach * costs[-1])
