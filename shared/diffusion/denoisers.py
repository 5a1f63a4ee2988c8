"""Denoisers D(x, σ): what samplers call, how a network is made into one, and the loss that trains it.

A denoiser estimates the clean x_0 in x = x_0 + σ ε; the score of the noisy density is (D(x, σ) − x)/σ². Networks of
other conventions are wrapped, so that samplers and methods know only this one.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from shared.diffusion.noise_levels import sigma_to_vp

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""`(x (B, ...), sigma (B,)) -> denoised`, of the shape and dtype of x, for sigma > 0."""


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) as (B, 1, ...), in the dtype and on the device of a batch (B, ...)."""
    return values.to(like).reshape(-1, *[1] * (like.ndim - 1))


class EdmDenoiser(nn.Module):
    """D = c_skip x + c_out F(c_in x, c_noise) with EDM's preconditioning (Karras et al., 2022, Table 1).

    The network's inputs and targets have unit variance at every noise level, if the data's is σ_data²:
    c_skip = σ_data²/(σ² + σ_data²), c_out = σ σ_data/√(σ² + σ_data²), c_in = 1/√(σ² + σ_data²), c_noise = ¼ log σ.

    Args:
        network: F, `(scaled x (B, ...), c_noise (B,)) -> (B, ...)`.
        sigma_data: standard deviation of the data.

    Raises:
        ValueError: sigma_data is not positive.
    """

    def __init__(self, network: nn.Module, sigma_data: float = 0.5):
        super().__init__()
        _check_sigma_data(sigma_data)
        self.network = network
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoised (B, ...) in the dtype of x; the network computes in the dtype of its own weights."""
        noise, scale = per_sample(sigma, x), self.sigma_data
        total = (noise**2 + scale**2).sqrt()
        dtype = next(self.network.parameters()).dtype
        output = self.network((x / total).to(dtype), (sigma.log() / 4).to(dtype)).to(x.dtype)
        return (scale / total) ** 2 * x + (noise * scale / total) * output


class NoisePredictionDenoiser(nn.Module):
    """D = x − σ ε̂(α x, t) of a network that was trained to predict noise at discrete times of DDPM's chain.

    Levels between two times are given the time that interpolates log σ. Noisier levels than the chain's are an error:
    the network has never seen them.

    Args:
        network: ε̂, `(x_vp (B, ...), t (B,) in [0, T − 1]) -> (B, ...)`.
        alphas_cumprod: ᾱ (T,) of the chain, decreasing in (0, 1), as diffusers' schedulers hold it.

    Raises:
        ValueError: alphas_cumprod is not decreasing in (0, 1).
    """

    def __init__(self, network: nn.Module, alphas_cumprod: Tensor):
        super().__init__()
        levels = alphas_cumprod.double()
        if levels.ndim != 1 or not (levels.diff() < 0).all() or not 0 < levels[-1] <= levels[0] < 1:
            raise ValueError("alphas_cumprod: need a decreasing vector in (0, 1)")
        self.network = network
        self.register_buffer("log_sigmas", ((1 - levels) / levels).log() / 2)

    def time(self, sigma: Tensor) -> Tensor:
        """Fractional times (B,) in [0, T − 1] of noise levels (B,); levels below the chain's first are given 0.

        Raises:
            ValueError: a level above the chain's last.
        """
        log_sigma = sigma.double().log()
        if (log_sigma > self.log_sigmas[-1] + 1e-6).any():
            raise ValueError(f"sigma: the network knows levels up to {self.log_sigmas[-1].exp().item():.4g}, "
                             f"got {sigma.max().item():.4g}")  # fmt: skip
        above = torch.searchsorted(self.log_sigmas, log_sigma).clamp(1, len(self.log_sigmas) - 1)
        low, high = self.log_sigmas[above - 1], self.log_sigmas[above]
        return (above - 1 + (log_sigma - low) / (high - low)).clamp(0, len(self.log_sigmas) - 1)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoised (B, ...) in the dtype of x."""
        alpha, _ = sigma_to_vp(sigma)
        dtype = next(self.network.parameters()).dtype
        noise = self.network((per_sample(alpha, x) * x).to(dtype), self.time(sigma).to(dtype)).to(x.dtype)
        return x - per_sample(sigma, x) * noise


def edm_loss_weight(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """λ(σ) = (σ² + σ_data²)/(σ σ_data)², which makes the network's effective loss weight 1 at every level (EDM)."""
    _check_sigma_data(sigma_data)
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def lognormal_sigmas(count: int, mean: float, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Noise levels (count,) of training examples: log σ ~ N(mean, std²)."""
    return (mean + std * torch.randn(count, generator=generator)).exp()


def _check_sigma_data(sigma_data: float) -> None:
    if not sigma_data > 0:
        raise ValueError(f"sigma_data: need a positive number, got {sigma_data}")
