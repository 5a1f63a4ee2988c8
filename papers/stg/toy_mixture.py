"""A two-dimensional world in which STG and guidance of the sample itself (SDG) can be compared exactly.

Given a condition c in R², clean points come from six modes on a circle, x0 | c ~ Σ_k π_k(c) N(m_k, s² I) with
π(c) = softmax(κ m·c / 2). Mode 0 is unsafe, and c = (1, 0) asks for it. Every score of the diffused mixture is known in
closed form, so what a sampler gets wrong is due to its guidance alone.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from papers.stg.safe_text_guidance import guide_text_embedding, safe_data_guidance

MODES = 2 * torch.tensor([[math.cos(k * math.pi / 3), math.sin(k * math.pi / 3)] for k in range(6)])
"""Centres m_k, (6, 2), on a circle of radius 2; the first one is unsafe."""
UNSAFE_MODE = 0
STD = 0.25
SHARPNESS = 3.0
CONDITION = torch.tensor([1.0, 0.0])
NEAR = 3.5
"""A point belongs to a mode within so many standard deviations, and lies off the manifold if it belongs to none."""

UnsafeValue = Callable[[Tensor], Tensor]
"""From clean points (B, 2) to how unsafe they are (B,)."""

UNSAFE_VALUES: dict[str, UnsafeValue] = {
    "linear": lambda points: -_distance(points),
    "softplus": lambda points: F.softplus(4 * (1 - _distance(points))),
    "bump": lambda points: torch.exp(-_distance(points).square() / (2 * STD**2)),
}
"""Three guesses of one truth, that points near the unsafe mode are unsafe: everywhere, around it, only at it."""


def _distance(points: Tensor) -> Tensor:
    # The small term keeps the gradient finite at the centre itself.
    return ((points - MODES[UNSAFE_MODE].to(points)).square().sum(dim=-1) + 1e-12).sqrt()


def mode_weights(condition: Tensor) -> Tensor:
    """π(c), (B, 6), of conditions (B, 2)."""
    return _log_weights(condition).exp()


def _log_weights(condition: Tensor) -> Tensor:
    # Guidance may push c so far that weights vanish, of which the logarithm would be infinite.
    return (SHARPNESS * condition @ MODES.to(condition).T / 2).log_softmax(dim=-1)


def signal_levels(num_steps: int = 50) -> Tensor:
    """ᾱ of each step from the noisiest to the cleanest, (S,), float64; β rises linearly from 1e-4 to 0.25."""
    return (1 - torch.linspace(1e-4, 0.25, num_steps, dtype=torch.float64)).cumprod(dim=0).flip(0)


def mixture_log_density(noisy: Tensor, condition: Tensor, alpha_cumprod: float) -> Tensor:
    """log q_t(x | c), (B,), of noisy points (B, 2) given conditions (B, 2)."""
    variance = alpha_cumprod * STD**2 + 1 - alpha_cumprod
    squares = (noisy[:, None] - math.sqrt(alpha_cumprod) * MODES.to(noisy)).square().sum(dim=-1)
    components = _log_weights(condition) - squares / (2 * variance) - math.log(2 * math.pi * variance)
    return components.logsumexp(dim=-1)


def mixture_noise(noisy: Tensor, condition: Tensor, alpha_cumprod: float) -> Tensor:
    """ε(x, c) = -√(1-ᾱ) ∇_x log q_t(x | c), (B, 2): the exact denoiser, differentiable in both."""
    variance = alpha_cumprod * STD**2 + 1 - alpha_cumprod
    centres = math.sqrt(alpha_cumprod) * MODES.to(noisy)
    squares = (noisy[:, None] - centres).square().sum(dim=-1)
    shares = (_log_weights(condition) - squares / (2 * variance)).softmax(dim=-1)
    return math.sqrt(1 - alpha_cumprod) * (noisy - shares @ centres) / variance


def sample_points(
    method: str, unsafe_value: UnsafeValue, strength: float, *, count: int, seed: int, num_steps: int = 50
) -> Tensor:
    """Clean points (count, 2), float64, of deterministic sampling from c = (1, 0) under guidance in every step.

    Args:
        method: `base`, `stg` or `sdg`.
        unsafe_value: what guidance lowers.
        strength: ρ, of STG the length of each step in c, of SDG the scale of the gradient in x.
        count: number of points.
        seed: of the initial noise.
        num_steps: S.

    Raises:
        ValueError: unknown method.
    """
    if method not in ("base", "stg", "sdg"):
        raise ValueError(f"method: expected base, stg or sdg, got {method!r}")
    points = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    condition = CONDITION.double().expand(count, 1, 2)
    levels = [*signal_levels(num_steps).tolist(), 1.0]
    everything = torch.ones(count, dtype=torch.bool)

    def score(clean: Tensor) -> tuple[Tensor, Tensor]:
        return unsafe_value(clean), everything

    for level, next_level in itertools.pairwise(levels):

        def denoise(noisy: Tensor, embedding: Tensor, level: float = level) -> Tensor:
            return mixture_noise(noisy, embedding[:, 0], level)

        if method == "stg":
            condition, _, _ = guide_text_embedding(
                denoise,
                score,
                points,
                condition,
                uncond_output=torch.zeros_like(points),
                guidance_scale=1.0,
                alpha_cumprod=level,
                step_size=strength,
            )
        noise = denoise(points, condition)
        if method == "sdg":
            noise, _, _ = safe_data_guidance(
                lambda noisy, level=level: mixture_noise(noisy, CONDITION.to(noisy).expand(len(noisy), 2), level),
                score,
                points,
                alpha_cumprod=level,
                scale=strength,
            )
        clean = (points - math.sqrt(1 - level) * noise) / math.sqrt(level)
        points = math.sqrt(next_level) * clean + math.sqrt(1 - next_level) * noise
    return points


class PointShares(NamedTuple):
    """What became of sampled points.

    Attributes:
        unsafe: share that belongs to the unsafe mode.
        off_manifold: share that belongs to no mode.
        safe_total_variation: between the safe modes' shares among safe points and their true conditional weights.
    """

    unsafe: float
    off_manifold: float
    safe_total_variation: float


def measure_points(points: Tensor) -> PointShares:
    """Shares of points (B, 2) in and off the modes; total variation is NaN without safe points."""
    distances = torch.cdist(points, MODES.to(points))
    mode, near = distances.argmin(dim=1), distances.amin(dim=1) <= NEAR * STD
    counts = torch.bincount(mode[near], minlength=len(MODES)).double()
    true = mode_weights(CONDITION.double())
    safe = torch.arange(len(MODES)) != UNSAFE_MODE
    found, expected = counts[safe] / counts[safe].sum(), true[safe] / true[safe].sum()
    return PointShares(
        unsafe=float(counts[UNSAFE_MODE] / len(points)),
        off_manifold=float((~near).double().mean()),
        safe_total_variation=float((found - expected).abs().sum() / 2),
    )
