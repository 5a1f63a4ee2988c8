"""Unlearning the unsafe shape by preference (DUO, Park et al., 2024): a diffusion model that prefers the safe twin.

Two scenes of one layout, with the unsafe shape and without it, are noised alike. Under the unsafe caption the model
shall reconstruct the safe one better, and the unsafe one worse, than the frozen original does, and shall otherwise keep
answering pure noise as before.
"""

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from shared.t2i.model import TRAINING_TIMESTEPS


def train_attention_only(unet: nn.Module) -> None:
    """Freeze all weights but those of attention layers.

    Raises:
        ValueError: the network has no attention.
    """
    names = [name for name, parameter in unet.named_parameters() if ".attn1." in name or ".attn2." in name]
    if not names:
        raise ValueError("unet: it has no attention layers to train")
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(name in names)


def unlearning_loss(
    unet: nn.Module,
    original: nn.Module,
    scheduler: DDIMScheduler,
    safe: Tensor,
    unsafe: Tensor,
    embeddings: Tensor,
    *,
    strength: float,
    matching_weight: float,
    largest_timestep: int,
) -> Tensor:
    """-log σ(-β [(ℓ(x⁺) - ℓ_0(x⁺)) - (ℓ(x⁻) - ℓ_0(x⁻))]) + λ ‖f(ε, T) - f_0(ε, T)‖², a scalar, means over the batch.

    ℓ is a sample's mean squared error, x⁺ the safe and x⁻ the unsafe latents under one noise, and f the network's
    output. Noise and timesteps are drawn from PyTorch's global generator.

    Args:
        unet: the model that unlearns.
        original: its frozen original.
        scheduler: of the noise schedule.
        safe: latents (B, C, H, W).
        unsafe: latents of the same layout.
        embeddings: (B, L, D), of the unsafe captions.
        strength: β.
        matching_weight: λ.
        largest_timestep: timesteps are uniform below it.
    """
    timesteps = torch.randint(largest_timestep, (len(safe),), device=safe.device)
    noise = torch.randn_like(safe)

    def gain(clean: Tensor) -> Tensor:
        """How much worse than the original the model reconstructs, (B,)."""
        noisy = scheduler.add_noise(clean, noise, timesteps)
        with torch.no_grad():
            before = _errors(original(noisy, timesteps, encoder_hidden_states=embeddings).sample, clean)
        return _errors(unet(noisy, timesteps, encoder_hidden_states=embeddings).sample, clean) - before

    preference = -F.logsigmoid(-strength * (gain(safe) - gain(unsafe))).mean()
    last = torch.full_like(timesteps, TRAINING_TIMESTEPS - 1)
    with torch.no_grad():
        expected = original(noise, last, encoder_hidden_states=embeddings).sample
    matching = F.mse_loss(unet(noise, last, encoder_hidden_states=embeddings).sample, expected)
    return preference + matching_weight * matching


def _errors(prediction: Tensor, clean: Tensor) -> Tensor:
    return (prediction - clean).square().flatten(1).mean(dim=1)
