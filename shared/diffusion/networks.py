"""Small networks over noisy samples: an MLP for vectors and small images, diffusers' U-Net, and a discriminator."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from shared.diffusion.noise_levels import importance_sampled_vp_time, vp_to_sigma

_NOISE_FEATURES = 8
"""Frequencies at which the noise level is told to an MLP."""


class NoiseMlp(nn.Module):
    """An MLP with SiLU over a vector and a number.

    Args:
        inputs: size of the vector.
        outputs: size of the result.
        width: of the hidden layers.
        depth: their number.
        frequencies: sines and cosines of π f x are further inputs for every f; without them, small MLPs are blind to
            fine structure.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int, depth: int, frequencies: Sequence[float] = ()):
        super().__init__()
        self.register_buffer("frequencies", math.pi * torch.tensor(frequencies), persistent=False)
        self.register_buffer("levels", 2.0 ** torch.arange(_NOISE_FEATURES).sub(2), persistent=False)
        sizes = [inputs * (1 + 2 * len(frequencies)) + 1 + 2 * _NOISE_FEATURES, *[width] * depth]
        layers: list[nn.Module] = []
        for size, next_size in pairwise(sizes):
            layers += [nn.Linear(size, next_size), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))

    def features(self, x: Tensor, number: Tensor) -> Tensor:
        """What the first layer sees (B, ...) of x (B, inputs) and numbers (B,) of order 1."""
        waves = (x[:, :, None] * self.frequencies).flatten(1)
        phases = number[:, None] * self.levels
        return torch.cat([x, *_waves(waves), number[:, None], *_waves(phases)], dim=1)

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        """(B, outputs) of x (B, inputs) and numbers (B,) of order 1."""
        return self.layers(self.features(x, number))


def _waves(phases: Tensor) -> tuple[Tensor, Tensor]:
    return phases.sin(), phases.cos()


class MlpImage(nn.Module):
    """An MLP as the network of `shared.diffusion.denoisers.EdmDenoiser`, for samples of any shape.

    Args:
        sample_shape: of one sample.
        width: of the hidden layers.
        depth: their number.
    """

    def __init__(self, sample_shape: tuple[int, ...], *, width: int, depth: int):
        super().__init__()
        size = math.prod(sample_shape)
        self.mlp = NoiseMlp(size, size, width=width, depth=depth)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.mlp(x.flatten(1), noise).view_as(x)


class UNetImage(nn.Module):
    """diffusers' `UNet2DModel` as the network of `shared.diffusion.denoisers.EdmDenoiser`, for square images.

    Args:
        image_shape: (channels, size, size).
        channels: at each resolution, multiples of 4.
        layers_per_block: residual blocks per resolution.
        attention: whether all resolutions but the first attend.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        channels: Sequence[int],
        layers_per_block: int = 1,
        attention: bool = False,
    ):
        super().__init__()
        from diffusers import UNet2DModel  # takes seconds to import, and MLPs do without

        deeper = len(channels) - 1
        kind = "Attn" if attention else ""
        self.unet = UNet2DModel(
            sample_size=image_shape[-1],
            in_channels=image_shape[0],
            out_channels=image_shape[0],
            block_out_channels=tuple(channels),
            layers_per_block=layers_per_block,
            down_block_types=("DownBlock2D", *[f"{kind}DownBlock2D"] * deeper),
            up_block_types=(*[f"{kind}UpBlock2D"] * deeper, "UpBlock2D"),
            add_attention=attention,
            norm_num_groups=4,
            attention_head_dim=8 if attention else None,
        )

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        # diffusers embeds times of the order of 1000.
        return self.unet(x, 250 * noise).sample


class MlpLogit(nn.Module):
    """An MLP as the network of `NoisyDiscriminator`, for samples of any shape.

    Args:
        sample_shape: of one sample.
        width: of the hidden layers.
        depth: their number.
        frequencies: as in `NoiseMlp`.
    """

    def __init__(self, sample_shape: tuple[int, ...], *, width: int, depth: int, frequencies: Sequence[float] = ()):
        super().__init__()
        self.mlp = NoiseMlp(math.prod(sample_shape), 1, width=width, depth=depth, frequencies=frequencies)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.mlp(x.flatten(1), noise).squeeze(1)


class UNetLogit(nn.Module):
    """The contracting half of diffusers' `UNet2DModel` as the network of `NoisyDiscriminator`, for square images.

    Args:
        image_shape: (channels, size, size).
        channels: at each resolution, multiples of 4.
        layers_per_block: residual blocks per resolution.
    """

    def __init__(self, image_shape: tuple[int, int, int], *, channels: Sequence[int], layers_per_block: int = 1):
        super().__init__()
        # Its expanding half is not kept.
        unet = UNetImage(image_shape, channels=channels, layers_per_block=layers_per_block).unet
        self.time_proj, self.time_embedding, self.conv_in = unet.time_proj, unet.time_embedding, unet.conv_in
        self.down_blocks, self.mid_block = unet.down_blocks, unet.mid_block
        self.norm = nn.GroupNorm(4, channels[-1])
        self.head = nn.Linear(channels[-1], 1)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        embedding = self.time_embedding(self.time_proj(250 * noise).to(x.dtype))
        hidden = self.conv_in(x)
        for block in self.down_blocks:
            hidden, _ = block(hidden, embedding)
        hidden = nn.functional.silu(self.norm(self.mid_block(hidden, embedding)))
        return self.head(hidden.mean((2, 3))).squeeze(1)


class NoisyDiscriminator(nn.Module):
    """Logit (B,) of noisy samples being of the first of two sets, in VE coordinates, for all noise levels down to 0.

    Trained on balanced batches (`discriminator_loss`), it is the log ratio of the two sets' densities with noise.

    Args:
        network: `(x scaled to unit variance (B, ...), ¼ log σ (B,)) -> (B,)`.
        sigma_data: standard deviation of the data.
    """

    def __init__(self, network: nn.Module, *, sigma_data: float):
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Logits (B,), in the dtype of the weights, of x (B, ...) at noise levels (B,) ≥ 0."""
        dtype = next(self.parameters()).dtype
        scale = (sigma**2 + self.sigma_data**2).sqrt().reshape(-1, *[1] * (x.ndim - 1))
        # Levels below the smallest of the training, 0 among them, are taken for it.
        level = sigma.clamp(min=LOWEST_SIGMA).log() / 4
        return self.network((x / scale).to(dtype), level.to(dtype))


LOWEST_SIGMA = vp_to_sigma(torch.tensor(1e-5, dtype=torch.float64)).item()
"""Smallest noise level at which discriminators are trained, 0.0010."""


def discriminator_sigmas(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Noise levels (count,) in [0.0010, 152.2] of a discriminator's examples: log σ is uniform."""
    return vp_to_sigma(importance_sampled_vp_time(torch.rand(count, generator=generator)))


def discriminator_loss(first: Tensor, second: Tensor) -> Tensor:
    """Binary cross-entropy, a scalar, of the logits of samples of the first set (B,) and the second (B',).

    Both sets count half, whatever B and B'; log 2 is the loss of a guess.
    """
    return (nn.functional.softplus(-first).mean() + nn.functional.softplus(second).mean()) / 2
