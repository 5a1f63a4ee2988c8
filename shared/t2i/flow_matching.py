"""Flow matching in the terms of variance-preserving diffusion, so that methods written for the one act in the other.

A flow-matching network (Lipman et al., 2023; Esser et al., 2024) sees x = (1-σ) x0 + σ ε and predicts the flow
u = ε - x0, so that x̄0 = x - σ u. Divided by its spread r = √((1-σ)² + σ²), the same x is what a variance-preserving
model sees at ᾱ = (1-σ)² / r²,

    x / r = √ᾱ x0 + √(1-ᾱ) ε,

and the flow stands for the v-prediction

    v = √ᾱ ε - √(1-ᾱ) x0 = (1 - 2σ) x / r + r u,

whose clean prediction √ᾱ x / r - √(1-ᾱ) v is x - σ u again. The map from u to v is affine, so that it commutes with
classifier-free guidance. At σ = 1 nothing of x0 is left in x and ᾱ is 0, where the noise ε is not defined by x and x̄0;
σ counts as `LARGEST_SIGMA` there, which moves x̄0 by a ten-thousandth of u. Methods that change ε itself (guidance in
data space) should leave that step alone: what a change of ε does to x̄0 has no bound there.
"""

from typing import NamedTuple

from torch import Tensor

LARGEST_SIGMA = 1 - 1e-4


class FlowStep(NamedTuple):
    """A noise level of flow matching.

    Attributes:
        sigma: σ in (0, 1), the share of noise.
    """

    sigma: float

    @property
    def spread(self) -> float:
        """r = √((1-σ)² + σ²), of the latents x."""
        return ((1 - self.sigma) ** 2 + self.sigma**2) ** 0.5

    @property
    def alpha_cumprod(self) -> float:
        """ᾱ = (1-σ)² / r², of the latents x / r."""
        return ((1 - self.sigma) / self.spread) ** 2

    def velocity(self, latents: Tensor, flow: Tensor) -> Tensor:
        """v that a flow u stands for; `latents` are x / r, of the same shape."""
        return (1 - 2 * self.sigma) * latents + self.spread * flow

    def flow(self, latents: Tensor, velocity: Tensor) -> Tensor:
        """u that stands for v: the inverse of `velocity`."""
        return (velocity - (1 - 2 * self.sigma) * latents) / self.spread


def flow_step(sigma: float) -> FlowStep:
    """The noise level of σ.

    Raises:
        ValueError: σ outside (0, 1].
    """
    if not 0 < sigma <= 1:
        raise ValueError(f"sigma: must lie in (0, 1], got {sigma}")
    return FlowStep(min(sigma, LARGEST_SIGMA))
