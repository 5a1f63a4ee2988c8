"""The discriminator of noisy images: the encoder of a U-Net with a logit on top."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from papers.tiw_dsm.options import RatioOptions
from shared.diffusion.denoisers import per_sample
from shared.diffusion.networks import LOWEST_SIGMA, NoisyDiscriminator
from shared.diffusion.training import build_discriminator


class UNetDiscriminator(nn.Module):
    """Logit (B,) of noisy images, by what diffusers' `UNet2DModel` computes down to its middle block.

    Args:
        image_shape: (channels, size, size).
        sigma_data: standard deviation of the data.
        channels: at each resolution, multiples of 4; all but the first attend.
    """

    def __init__(self, image_shape: tuple[int, ...], *, sigma_data: float, channels: tuple[int, ...]):
        super().__init__()
        self.sigma_data = sigma_data
        deeper = len(channels) - 1
        self.unet = UNet2DModel(
            sample_size=image_shape[-1],
            in_channels=image_shape[0],
            out_channels=image_shape[0],
            block_out_channels=channels,
            layers_per_block=1,
            down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * deeper),
            up_block_types=(*["AttnUpBlock2D"] * deeper, "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=8 if min(channels) >= 8 else 4,
        )
        del self.unet.up_blocks, self.unet.conv_norm_out, self.unet.conv_out
        self.head = nn.Linear(channels[-1], 1)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Logits (B,) of x (B, channels, size, size) in VE coordinates, at noise levels (B,) ≥ 0; float32 or better."""
        scale = (sigma**2 + self.sigma_data**2).sqrt()
        # diffusers embeds times of the order of 1000; levels below the smallest of the training are taken for it.
        time = 250 * sigma.clamp(min=LOWEST_SIGMA).log() / 4
        embedding = self.unet.time_embedding(self.unet.time_proj(time).to(x.dtype))
        hidden = self.unet.conv_in(x / per_sample(scale, x))
        for block in self.unet.down_blocks:
            hidden, _ = block(hidden_states=hidden, temb=embedding)
        hidden = self.unet.mid_block(hidden, embedding)
        return self.head(nn.functional.silu(hidden).mean((2, 3))).squeeze(1)


def build_ratio_network(
    options: RatioOptions, sample_shape: tuple[int, ...], *, sigma_data: float, seed: int
) -> NoisyDiscriminator | UNetDiscriminator:
    """A discriminator with random weights, a function of the options and the seed alone."""
    if options.ratio_architecture == "mlp":
        network = options.discriminator(steps=1, size=1)
        return build_discriminator(network, sample_shape, sigma_data=sigma_data, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNetDiscriminator(sample_shape, sigma_data=sigma_data, channels=options.ratio_widths)
