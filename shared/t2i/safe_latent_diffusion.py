"""Safe latent diffusion (SLD): a correction of classifier-free guidance that pushes away from a concept's prediction.

Patrick Schramowski, Manuel Brack, Björn Deiseroth, Kristian Kersting. "Safe Latent Diffusion: Mitigating Inappropriate
Degeneration in Diffusion Models", CVPR 2023, arXiv 2211.05105.
"""

import torch
from torch import Tensor


def safe_latent_diffusion_guidance(
    noise_uncond: Tensor,
    noise_text: Tensor,
    noise_unsafe: Tensor,
    momentum: Tensor | None,
    *,
    step: int,
    guidance_scale: float,
    safety_scale: float,
    threshold: float,
    warmup_steps: int,
    momentum_scale: float,
    momentum_beta: float,
) -> tuple[Tensor, Tensor]:
    """Safe latent diffusion (SLD) in one step: the guided noise (B, C, H, W) and the new momentum ν.

    φ = min(1, s_S |ε_c - ε_S|), 0 where ε_c - ε_S >= λ_S; γ = φ (ε_S - ε_∅) + s_m ν; ν <- β_m ν + (1 - β_m) γ;
    ε = ε_∅ + w (ε_c - ε_∅ - γ), without γ during the warm-up, in which the momentum grows all the same.

    Args:
        noise_uncond: ε_∅, (B, C, H, W).
        noise_text: ε_c, of the prompt.
        noise_unsafe: ε_S, of the unsafe concept's text.
        momentum: ν of the step before; None: zeros.
        step: index of the sampler step, from 0.
        guidance_scale: w.
        safety_scale: s_S >= 0.
        threshold: λ_S.
        warmup_steps: steps without safety guidance.
        momentum_scale: s_m.
        momentum_beta: β_m in [0, 1].

    Raises:
        ValueError: shapes that differ, or β_m outside [0, 1].
    """
    for name, value in (("noise_text", noise_text), ("noise_unsafe", noise_unsafe), ("momentum", momentum)):
        if value is not None and value.shape != noise_uncond.shape:
            raise ValueError(f"{name}: need shape {tuple(noise_uncond.shape)}, got {tuple(value.shape)}")
    if not 0 <= momentum_beta <= 1:
        raise ValueError(f"momentum_beta: must lie in [0, 1], got {momentum_beta}")
    momentum = torch.zeros_like(noise_uncond) if momentum is None else momentum
    difference = noise_text - noise_unsafe
    strength = (safety_scale * difference.abs()).clamp(max=1.0)
    strength = torch.where(difference >= threshold, 0.0, strength)
    safety = strength * (noise_unsafe - noise_uncond) + momentum_scale * momentum
    guidance = noise_text - noise_uncond
    if step >= warmup_steps:
        guidance = guidance - safety
    return noise_uncond + guidance_scale * guidance, momentum_beta * momentum + (1 - momentum_beta) * safety
