"""A prior of z for unconditional generation: diffusion in the space of codes, fitted after the autoencoder (DiffAE).

Codes are standardised in each dimension; the mean and scale belong to the prior and are kept with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from papers.dbae.ddim_chain import add_noise, ddim_decode, from_noise
from papers.dbae.networks import LatentMlp

CONSTANT_BETA = 0.008
NUM_TIMES = 1000


class LatentPrior(nn.Module):
    """ε-prediction of standardised codes on a chain of constant β.

    Args:
        codes: (N, L), of the training images.
        width: of the network's hidden layers.
        depth: their number.

    Raises:
        ValueError: fewer than two codes, or codes that are not finite.
    """

    def __init__(self, codes: Tensor, *, width: int, depth: int):
        super().__init__()
        if codes.ndim != 2 or len(codes) < 2 or not codes.isfinite().all():
            raise ValueError(f"codes: need at least two finite ones (N, L), got {tuple(codes.shape)}")
        self.network = LatentMlp(codes.shape[1], width=width, depth=depth)
        self.register_buffer("mean", codes.mean(0))
        # A dimension that does not vary is left as it is.
        self.register_buffer("scale", codes.std(0).clamp(min=1e-6))
        self.register_buffer("alphas_cumprod", (1 - CONSTANT_BETA) ** torch.arange(1, NUM_TIMES + 1).double())

    def predict(self, z: Tensor, times: Tensor) -> Tensor:
        """ε̂ (B, L) of noisy standardised codes."""
        return self.network(z, times.to(z) / NUM_TIMES)

    def loss(self, codes: Tensor) -> Tensor:
        """Mean |ε̂ − ε| of codes (B, L)."""
        clean = (codes - self.mean) / self.scale
        times = torch.randint(NUM_TIMES, (len(clean),), device=clean.device)
        noise = torch.randn_like(clean)
        return (self.predict(add_noise(clean, noise, self.alphas_cumprod[times]), times) - noise).abs().mean()

    @torch.no_grad()
    def sample(self, noise: Tensor, num_steps: int) -> Tensor:
        """Codes (B, L) from standard normals, by DDIM."""
        bound = 5.0  # standard deviations

        def estimate(z: Tensor, times: Tensor) -> Tensor:
            level = self.alphas_cumprod[times]
            return from_noise(z, self.predict(z, times), level).clamp(-bound, bound)

        return self.mean + self.scale * ddim_decode(estimate, noise, self.alphas_cumprod, num_steps, clip=False)


def fit_latent_prior(
    codes: Tensor, *, width: int, depth: int, steps: int, batch_size: int, seed: int, learning_rate: float = 1e-3
) -> LatentPrior:
    """A prior of codes (N, L), trained with AdamW; a function of its arguments alone.

    Raises:
        ValueError: as `LatentPrior`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prior = LatentPrior(codes, width=width, depth=depth).to(codes.device)
        optimizer = torch.optim.AdamW(prior.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)
        for step in range(steps):
            # Without it the last steps' noise would stay in the samples.
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
            chosen = torch.randint(len(codes), (min(batch_size, len(codes)),)).to(codes.device)
            prior.loss(codes[chosen]).backward()
            optimizer.step()
            optimizer.zero_grad()
        return prior.eval()
