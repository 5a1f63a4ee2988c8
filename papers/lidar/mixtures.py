"""Gaussian mixtures with a linear reward: the expected future reward and its gradient in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shared.diffusion.gaussian_mixtures import GaussianMixture, orthonormal_mixture


@dataclass(frozen=True, eq=False)
class LinearReward:
    """r(x0) = a · x0 on samples of a mixture, noised as x = x0 + σ ε; everything in float64.

    Attributes:
        mixture: p(x0).
        slope: a, (D,).
    """

    mixture: GaussianMixture
    slope: Tensor

    def expected_future_reward(self, x: Tensor, sigma: float, reward_weight: float) -> Tensor:
        """log E[exp(λ a · x0) | x], (N,).

        Given x and its component m, x0 is normal with mean k x + (1 - k) c_m and variance k σ², where
        k = std² / (std² + σ²), so that each component adds P(m | x) exp(λ a · mean + λ² ‖a‖² k σ² / 2).
        """
        keep = self.mixture.std**2 / (self.mixture.std**2 + sigma**2)
        means = keep * x[:, None] + (1 - keep) * self.mixture.means  # (N, M, D)
        spread = reward_weight**2 * self.slope.square().sum() * keep * sigma**2 / 2
        logs = self.mixture.responsibilities(x, sigma).log() + reward_weight * means @ self.slope
        return logs.logsumexp(dim=1) + spread

    def score(self, x: Tensor, sigma: float, reward_weight: float) -> Tensor:
        """Gradient of the expected future reward with respect to x, (N, D)."""
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.expected_future_reward(leaf, sigma, reward_weight).sum(), leaf)
        return gradient


def graded_reward(dimension: int, std: float, seed: int, components: int = 8) -> LinearReward:
    """Equal components around orthonormal centres, whose rewards rise evenly from 0 to 1."""
    mixture = orthonormal_mixture(dimension, std, torch.ones(components), seed)
    return LinearReward(mixture, torch.linspace(0, 1, components, dtype=torch.float64) @ mixture.means)
