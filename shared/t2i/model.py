"""The parts of the latent diffusion model: codec, denoiser, noise schedule, training loss, running mean of weights.

The denoiser predicts the clean latents (prediction type `sample`); the noise schedule is Stable Diffusion's.
"""

import copy

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

from shared.t2i.options import UNetOptions
from shared.t2i.scenes import CANVAS
from shared.t2i.scorer import TEXT_WIDTH

LATENT_CHANNELS = 12
LATENT_SIZE = CANVAS // 2
LATENT_SHAPE = (LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
TRAINING_TIMESTEPS = 1000


class LatentCodec:
    """Images (B, 3, 12, 12) to latents (B, 12, 6, 6) and back, exactly: what a VAE is to a large model."""

    @staticmethod
    def encode(images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images, 2)

    @staticmethod
    def decode(latents: Tensor) -> Tensor:
        return F.pixel_shuffle(latents, 2)


def build_unet(options: UNetOptions, *, seed: int) -> UNet2DConditionModel:
    """The denoiser with random weights, a function of the options and the seed alone."""
    attended = len(options.channels) - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            sample_size=LATENT_SIZE,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            block_out_channels=options.channels,
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * attended),
            up_block_types=(*["CrossAttnUpBlock2D"] * attended, "UpBlock2D"),
            layers_per_block=options.layers_per_block,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=16,
            norm_num_groups=8,
        )


def build_scheduler() -> DDIMScheduler:
    """Deterministic DDIM on Stable Diffusion's noise schedule, from clean predictions, down to no noise at all."""
    return DDIMScheduler(
        num_train_timesteps=TRAINING_TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )


@torch.no_grad()
def embed_tokens(text_encoder: CLIPTextModel, ids: Tensor) -> Tensor:
    """Text embeddings (B, 12, 64) of token ids (B, 12): the last hidden states of all positions, padding included."""
    return text_encoder(input_ids=ids).last_hidden_state


def diffusion_loss(unet: nn.Module, scheduler: DDIMScheduler, clean: Tensor, embeddings: Tensor) -> Tensor:
    """Mean squared error of the predicted clean latents at uniform timesteps, a scalar.

    Noise and timesteps are drawn from PyTorch's global generator.

    Args:
        unet: the denoiser.
        scheduler: of the noise schedule.
        clean: latents (B, 12, 6, 6).
        embeddings: (B, 12, 64).
    """
    timesteps = torch.randint(TRAINING_TIMESTEPS, (len(clean),), device=clean.device)
    noisy = scheduler.add_noise(clean, torch.randn_like(clean), timesteps)
    return F.mse_loss(unet(noisy, timesteps, encoder_hidden_states=embeddings).sample, clean)


class RunningMean(nn.Module):
    """Exponential running mean of a model's weights, `model`, with decay min(decay, (1 + k) / (10 + k)) in update k."""

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.register_buffer("updates", torch.tensor(0))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the mean towards the weights of a model of the same architecture."""
        count = int(self.updates)
        decay = min(self.decay, (1 + count) / (10 + count))
        self.updates += 1
        means, values = list(self.model.parameters()), list(model.parameters())
        torch._foreach_lerp_(means, values, 1 - decay)
