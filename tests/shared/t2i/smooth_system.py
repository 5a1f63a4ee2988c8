"""A small smooth network and a reward in float64, for the tests of guidance by gradients."""

import torch

B, C, H, L, D = 3, 2, 4, 5, 6
ALPHA = 0.3


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LATENTS, EMBEDDING, UNCOND = draw(B, C, H, H), draw(B, L, D, seed=1), draw(B, C, H, H, seed=2)
MIX = draw(C * H * H, L * D, seed=3) / 5
REWARD = draw(C * H * H, seed=4)


def denoise(latents, embedding):
    """A smooth network that mixes latents and embedding, sample by sample."""
    return torch.tanh(latents.flatten(1) + embedding.flatten(1) @ MIX.T).view_as(latents)


def evaluate(decoded):
    return torch.sin(decoded.flatten(1) @ REWARD / 5)
