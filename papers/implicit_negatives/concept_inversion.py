"""Concept inversion: the place in the text embedding space from which an unlearned model still draws a concept.

Jiwoo Shin, Byeonghu Na, Mina Kang, Wonhyeok Choi, Il-Chul Moon. "Prompt-Based Safety Guidance Is Ineffective for
Unlearned Text-to-Image Diffusion Models", NeurIPS 2025 workshop on Generative and Protective AI for Content Creation,
arXiv 2511.04834.

Unlearning unties a concept from its words, so that a negative prompt of these words points nowhere. The concept itself
lives on, elsewhere. With images z of it, textual inversion on the unlearned model θ' finds where,

    c_* = argmin_c E_{z,t,ε} ‖ε - ε_θ'(√ᾱ_t z + √(1-ᾱ_t) ε, t, c)‖²,

and c_* takes the place of the negative prompt in whatever guidance used one. What is learned is the embedding of one
token, of which the frozen text encoder makes c_*, or c_* itself.
"""

from collections.abc import Callable

import torch
from torch import Tensor

PredictNoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(noisy latents (B, C, H, W), timesteps (B,), condition (B, ...)) -> ε (B, C, H, W)`."""


def concept_inversion_loss(
    predict_noise: PredictNoise,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    concept: Tensor,
) -> Tensor:
    """The loss ‖ε - ε_θ'(x_t, t, c)‖² of an embedding c, a mean over all elements, a scalar.

    Args:
        predict_noise: ε_θ'; a network of another prediction type is converted to it.
        latents: z, of images of the concept, (B, C, H, W).
        noise: ε, of the same shape.
        timesteps: t, (B,) integers in 0..T-1.
        alphas_cumprod: ᾱ, (T,).
        concept: c, one for the batch, (D) or (L, D); the loss is differentiable in it.

    Raises:
        ValueError: timesteps outside 0..T-1, shapes that do not fit, or a concept with other axes.
    """
    if noise.shape != latents.shape:
        raise ValueError(f"noise: need the latents' shape {tuple(latents.shape)}, got {tuple(noise.shape)}")
    if timesteps.shape != latents.shape[:1]:
        raise ValueError(f"timesteps: need one for each of {len(latents)} latents, got {tuple(timesteps.shape)}")
    if len(timesteps) and not 0 <= int(timesteps.min()) <= int(timesteps.max()) < len(alphas_cumprod):
        raise ValueError(f"timesteps: must lie in 0..{len(alphas_cumprod) - 1}, got {timesteps.tolist()}")
    if concept.ndim not in (1, 2):
        raise ValueError(f"concept: need (D,) or (L, D), got {tuple(concept.shape)}")
    level = alphas_cumprod.to(latents)[timesteps].view(-1, *[1] * (latents.ndim - 1))
    noisy = level.sqrt() * latents + (1 - level).sqrt() * noise
    condition = concept.expand(len(latents), *concept.shape)
    return (predict_noise(noisy, timesteps, condition) - noise).square().mean()


def starting_word(table: Tensor) -> Tensor:
    """Where the token's embedding starts, (D): at the mean of all tokens' embeddings (V, D), which favours none."""
    return table.detach().float().mean(dim=0)


def invert_concept(
    predict_noise: PredictNoise,
    encode: Callable[[Tensor], Tensor],
    start: Tensor,
    latents: Tensor,
    alphas_cumprod: Tensor,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    first_timestep: int = 0,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Tensor:
    """What was learned, of the shape of `start`, detached: by Adam without weight decay, with everything else frozen.

    Args:
        predict_noise: ε_θ', frozen.
        encode: from what is learned to c: the text encoder, or nothing where c itself is learned.
        start: the first value.
        latents: of all images of the concept, (M, C, H, W).
        alphas_cumprod: ᾱ, (T,).
        steps: of Adam.
        batch_size: images in a step, drawn with replacement.
        learning_rate: of Adam.
        generator: of all draws, on the CPU.
        first_timestep: timesteps are uniform over first_timestep..T-1. Where a network predicts clean latents, its ε is
            all error at the least noisy timesteps, which then tell nothing of the concept.
        on_step: called with the number of each step, from 0, and its loss.
    """
    learned = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([learned], lr=learning_rate)
    for step in range(steps):
        rows = torch.randint(len(latents), (batch_size,), generator=generator)
        drawn = torch.randint(first_timestep, len(alphas_cumprod), (batch_size,), generator=generator)
        timesteps = drawn.to(latents.device)
        batch = latents[rows.to(latents.device)]
        noise = torch.randn(batch.shape, generator=generator).to(batch)
        with torch.enable_grad():
            loss = concept_inversion_loss(predict_noise, batch, noise, timesteps, alphas_cumprod, encode(learned))
            (learned.grad,) = torch.autograd.grad(loss, learned)
        optimizer.step()
        on_step(step, loss.item())
    return learned.detach()
