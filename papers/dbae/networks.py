"""Encoder, decoder and U-Net: small ones for images of a few pixels, and the paper's through diffusers."""

from __future__ import annotations

from typing import ClassVar

import torch
from diffusers import UNet2DModel
from diffusers.models.autoencoders.vae import Encoder
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from papers.dbae.options import NetworkOptions

ImageShape = tuple[int, int, int]
"""(channels, size, size)."""
AT_ONCE = 128
"""Images that go through a network together where nothing is trained: any number fits into memory."""


class ConditionalUNet(nn.Module):
    """diffusers' `UNet2DModel` whose time embedding is added a linear map of z: adaptive group norm, as in DiffAE.

    Args:
        image_shape: of the output.
        options: sizes.
        in_channels: of the input; twice the image's where an endpoint is laid beside it.
        conditional: whether z is told.

    Raises:
        ValueError: an image size that cannot be halved often enough.
    """

    def __init__(self, image_shape: ImageShape, options: NetworkOptions, *, in_channels: int, conditional: bool):
        super().__init__()
        channels, size, _ = image_shape
        check_size(size, len(options.channel_factors))
        widths = tuple(options.base_channels * factor for factor in options.channel_factors)
        sizes = [size >> level for level in range(len(widths))]
        attends = [at in options.attention_sizes for at in sizes]
        resampling = options.architecture == "adm"
        plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if resampling else ("DownBlock2D", "UpBlock2D")
        self.unet = UNet2DModel(
            sample_size=size,
            in_channels=in_channels,
            out_channels=channels,
            block_out_channels=widths,
            layers_per_block=options.layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if attend else plain[0] for attend in attends),
            up_block_types=tuple("AttnUpBlock2D" if attend else plain[1] for attend in reversed(attends)),
            downsample_type="resnet" if resampling else "conv",
            upsample_type="resnet" if resampling else "conv",
            norm_num_groups=options.norm_groups,
            add_attention=any(attends),
            attention_head_dim=options.head_channels,
            dropout=options.dropout,
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity" if conditional else None,
        )
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)
        self.embed = nn.Linear(options.latent_dim, 4 * widths[0]) if conditional else None

    def forward(self, x: Tensor, time: Tensor, z: Tensor | None = None) -> Tensor:
        """(B, C, H, W) of x (B, in_channels, H, W), times (B,) of the order of 1000, and z (B, L)."""
        if len(x) > AT_ONCE and not torch.is_grad_enabled():
            parts = (x.split(AT_ONCE), time.split(AT_ONCE), [None] * len(x) if z is None else z.split(AT_ONCE))
            return torch.cat([self(*part) for part in zip(*parts, strict=False)])
        return self.unet(x, time, class_labels=None if self.embed is None else self.embed(z)).sample


def build_encoder(image_shape: ImageShape, options: NetworkOptions, *, outputs: int) -> nn.Module:
    """Images (B, C, H, W) to (B, outputs)."""
    channels, size, _ = image_shape
    if options.architecture == "small":
        check_size(size, 2)
        width = options.encoder_channels
        return nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(2 * width * (size // 2) ** 2, options.hidden),
            nn.SiLU(),
            nn.Linear(options.hidden, outputs),
        )
    check_size(size, len(options.encoder_factors))
    widths = tuple(options.encoder_channels * factor for factor in options.encoder_factors)
    encoder = Encoder(
        in_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=options.layers_per_block,
        norm_num_groups=options.norm_groups,
        double_z=False,
    )
    # DiffAE's head: the mean over the image, then a linear map.
    encoder.conv_out = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(widths[-1], outputs, 1), nn.Flatten())
    return encoder


def build_decoder(image_shape: ImageShape, options: NetworkOptions) -> nn.Module:
    """z (B, L) to (B, C, H, W), unbounded."""
    channels, size, _ = image_shape
    if options.architecture == "adm":
        return FastGanDecoder(options.latent_dim, channels, size)
    check_size(size, 2)
    width = options.encoder_channels
    return nn.Sequential(
        nn.Linear(options.latent_dim, 2 * width * (size // 2) ** 2),
        nn.Unflatten(1, (2 * width, size // 2, size // 2)),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(2 * width, width, 3, padding=1),
        nn.GroupNorm(8, width),
        nn.SiLU(),
        nn.Conv2d(width, channels, 3, padding=1),
    )


class FastGanDecoder(nn.Module):
    """FastGAN's generator without its tanh (Liu et al., ICLR 2021), the paper's decoder.

    Args:
        latent_dim: L.
        channels: of the image.
        size: of the image, a power of 2 of at least 8.
        width: factor of all channels, 1 for the paper's.

    Raises:
        ValueError: another size.
    """

    CHANNELS: ClassVar = {4: 1024, 8: 512, 16: 256, 32: 128, 64: 128, 128: 64}
    SKIPS: ClassVar = {64: 4, 128: 8}
    """Resolutions whose features are scaled by those of a lower one."""

    def __init__(self, latent_dim: int, channels: int, size: int, width: float = 1.0):
        super().__init__()
        if size not in self.CHANNELS or size < 8:
            raise ValueError(f"size: must be one of 8, 16, 32, 64, 128, got {size}")
        widths = {at: max(4, round(count * width)) for at, count in self.CHANNELS.items() if at <= size}
        self.first = nn.Sequential(
            nn.Unflatten(1, (latent_dim, 1, 1)),
            spectral_norm(nn.ConvTranspose2d(latent_dim, 2 * widths[4], 4, bias=False)),
            nn.BatchNorm2d(2 * widths[4]),
            nn.GLU(dim=1),
        )
        self.blocks = nn.ModuleDict({str(at): _upsampling(widths[at // 2], widths[at]) for at in widths if at > 4})
        self.skips = nn.ModuleDict(
            {str(at): _excitation(widths[low], widths[at]) for at, low in self.SKIPS.items() if at <= size}
        )
        self.last = nn.Conv2d(widths[size], channels, 1)

    def forward(self, z: Tensor) -> Tensor:
        features = {4: self.first(z)}
        for name, block in self.blocks.items():
            at = int(name)
            features[at] = block(features[at // 2])
            if name in self.skips:
                features[at] = features[at] * self.skips[name](features[self.SKIPS[at]])
        return self.last(features[max(features)])


def _upsampling(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        spectral_norm(nn.Conv2d(inputs, 2 * outputs, 3, padding=1, bias=False)),
        nn.BatchNorm2d(2 * outputs),
        nn.GLU(dim=1),
    )


def _excitation(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(4),
        spectral_norm(nn.Conv2d(inputs, outputs, 4, bias=False)),
        nn.SiLU(),
        spectral_norm(nn.Conv2d(outputs, outputs, 1, bias=False)),
        nn.Sigmoid(),
    )


class LatentMlp(nn.Module):
    """DiffAE's network for diffusion of z: every hidden layer sees its input again.

    Args:
        latent_dim: L.
        width: of the hidden layers.
        depth: their number.
    """

    FREQUENCIES = 8

    def __init__(self, latent_dim: int, *, width: int, depth: int):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(2 * self.FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        sizes = [latent_dim, *[width + latent_dim] * (depth - 1)]
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in sizes)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in sizes)
        self.last = nn.Linear(width + latent_dim, latent_dim)

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        """(B, L) of z (B, L) and times (B,) in [0, 1]."""
        phases = time[:, None] * 2.0 ** torch.arange(self.FREQUENCIES, device=z.device)
        condition = self.embed(torch.cat([phases.sin(), phases.cos()], dim=1))
        x = z
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = torch.cat([F.silu(norm(layer(x)) * (1 + condition)), z], dim=1)
        return self.last(x)


@torch.no_grad()
def by_parts(module: nn.Module, inputs: Tensor) -> Tensor:
    """A network's output for a batch of any size, `AT_ONCE` at a time."""
    return torch.cat([module(part) for part in inputs.split(AT_ONCE)])


def check_size(size: int, levels: int) -> None:
    """Raises ValueError unless images of this height and width can be halved levels − 1 times."""
    if size % 2 ** (levels - 1):
        raise ValueError(f"image_size: must be divisible by {2 ** (levels - 1)} for {levels} resolutions, got {size}")
