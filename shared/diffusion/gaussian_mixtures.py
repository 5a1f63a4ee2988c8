"""Mixtures of isotropic Gaussians, whose density, score and denoiser are known exactly at every noise level."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Σ_m weights_m N(means_m, std² I) in D dimensions; with noise of level σ the variance is std² + σ².

    Noise levels are scalars or (N,); samples x are (N, D). Everything is computed in float64.

    Attributes:
        means: (M, D).
        std: of every component, positive.
        weights: (M,), positive, of any sum.

    Raises:
        ValueError: shapes that do not match, a std that is not positive, or weights that are not.
    """

    means: Tensor
    std: float
    weights: Tensor

    def __post_init__(self) -> None:
        if self.means.ndim != 2 or self.weights.shape != self.means.shape[:1]:
            raise ValueError(
                f"means, weights: need (M, D) and (M,), got {tuple(self.means.shape)}, {tuple(self.weights.shape)}"
            )
        if not self.std > 0 or not (self.weights > 0).all():
            raise ValueError(f"std, weights: need positive numbers, got {self.std}, {self.weights.tolist()}")
        object.__setattr__(self, "means", self.means.double())
        object.__setattr__(self, "weights", self.weights.double() / self.weights.double().sum())

    def log_density(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """log p^σ(x), (N,)."""
        variance = self._variance(sigma)
        normalisation = 0.5 * self.means.shape[1] * (2 * math.pi * variance).log()
        return self._joint(x, variance).logsumexp(1) - normalisation

    def responsibilities(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """P(component m | x) (N, M)."""
        return self._joint(x, self._variance(sigma)).softmax(1)

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """E[x_0 | x] (N, D): in each component the mean of x and its centre, weighted by std² and σ²."""
        keep = (self.std**2 / self._variance(sigma))[..., None]
        return (keep * x.double() + (1 - keep) * (self.responsibilities(x, sigma) @ self.means)).to(x.dtype)

    def score(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """∇ log p^σ(x), (N, D)."""
        pull = self.responsibilities(x, sigma) @ self.means - x.double()
        return (pull / self._variance(sigma)[..., None]).to(x.dtype)

    def sample(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Samples (count, D) and their components, int64 (count,)."""
        components = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return self.around(components, generator), components

    def around(self, components: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One sample (N, D) of each of the components (N,)."""
        noise = torch.randn(len(components), self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[components] + self.std * noise

    def _variance(self, sigma: Tensor | float) -> Tensor:
        return self.std**2 + torch.as_tensor(sigma, dtype=torch.float64) ** 2

    def _joint(self, x: Tensor, variance: Tensor) -> Tensor:
        """log weights_m − ‖x − means_m‖²/(2 variance), (N, M)."""
        squares = (x.double()[:, None] - self.means).square().sum(-1)
        return self.weights.log() - squares / (2 * variance[..., None])


def ring(modes: int = 8, std: float = 0.07) -> GaussianMixture:
    """Equal Gaussians evenly spaced on the unit circle."""
    angles = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    return GaussianMixture(torch.stack([angles.cos(), angles.sin()], 1), std, torch.ones(modes))


def orthonormal_mixture(dimension: int, std: float, weights: Tensor, seed: int) -> GaussianMixture:
    """Gaussians around random orthonormal centres, one for each of the weights (M,).

    Raises:
        ValueError: more centres than dimensions.
    """
    if len(weights) > dimension:
        raise ValueError(f"weights: {dimension} dimensions have room for as many centres, got {len(weights)}")
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(dimension, len(weights), generator=generator, dtype=torch.float64)
    return GaussianMixture(torch.linalg.qr(directions).Q.T, std, weights)
