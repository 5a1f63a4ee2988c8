"""DBAE and what it is compared with: each one module, encoder, decoder and U-Net together, whose forward is its loss.

One module, because gradients of encoder and decoder are synchronised by DistributedDataParallel only if they are
reached through its forward. Images are (B, C, H, W) in [−1, 1], codes z (B, L). All draws without a generator come from
PyTorch's global one. Encoder and decoder compute in float32 under mixed precision; the U-Net does not.

==============  ====================================================  =========================
method          loss of a pixel                                       from z alone
==============  ====================================================  =========================
ae, beta_vae    (Dec(z) − x_0)² (+ β KL)                              Dec(z)
ddpm            (ε̂(x_t, t) − ε)²                                      nothing: it has no z
diffae          (ε̂(x_t, t, z) − ε)²                                   DDIM from a random x_T
infodiffusion   as diffae, + 0.1 MMD(z, N(0, I))                      the same
diffae_v        (v̂(x_t, t, z) − v)²                                   the same
pdae            weight · (ε_θ(x_t, t) − κ_t G(x_t, t, z) − ε)²        the same
dbae_d, dbae    (D(x_t, t, x_T, z) − x_0)²/c_out², x_T = Dec(z)       the bridge's ODE from Dec(z)
==============  ====================================================  =========================
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from papers.dbae.ddim_chain import (
    add_noise,
    ddim_decode,
    ddim_infer,
    from_noise,
    from_velocity,
    linear_chain,
    pdae_shift,
    pdae_weight,
    velocity,
)
from papers.dbae.diffusion_bridge import (
    BridgeSample,
    BridgeSchedule,
    bridge_marginal,
    bridge_preconditioning,
    karras_time_grid,
    sample_bridge,
)
from papers.dbae.networks import ConditionalUNet, ImageShape, build_decoder, build_encoder, by_parts
from papers.dbae.options import MethodOptions, NetworkOptions

BOUND = 5.0
"""Of the stochastic encoder's mean and log scale."""
FLOOR = 0.01
"""Of its scale."""


def soft_clamp(x: Tensor, bound: float = BOUND) -> Tensor:
    """bound · tanh(x/bound): x near 0, never beyond ± bound."""
    return bound * (x / bound).tanh()


def code_distribution(encoded: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale (B, L) of DBAE's stochastic code from the encoder's (B, 2 L)."""
    mean, log_scale = encoded.chunk(2, dim=1)
    return soft_clamp(mean), soft_clamp(log_scale).exp() + FLOOR


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) ‖ N(0, I)) (B,) in nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def maximum_mean_discrepancy(z: Tensor, prior: Tensor) -> Tensor:
    """Biased MMD² of two sets (B, L), (B', L) with kernel exp(−mean_d (x − y)²/L), as in InfoDiffusion."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-(a[:, None] - b[None]).square().mean(2) / z.shape[1]).exp().mean()

    return kernel(z, z) + kernel(prior, prior) - 2 * kernel(z, prior)


def in_full_precision(module: nn.Module, x: Tensor) -> Tensor:
    """A module's output in float32 under autocast too."""
    with torch.autocast(x.device.type, enabled=False):
        return module(x.float())


def rows(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) as (B, 1, ...) in the dtype and on the device of a batch (B, ...)."""
    return values.to(like).reshape(-1, *[1] * (like.ndim - 1))


class PlainAutoencoder(nn.Module):
    """Encoder and decoder with squared errors; with a divergence of z from N(0, I) it is β-VAE."""

    def __init__(self, shape: ImageShape, network: NetworkOptions, *, kl_weight: float | None):
        super().__init__()
        self.kl_weight = kl_weight
        self.encoder = build_encoder(shape, network, outputs=network.latent_dim * (1 if kl_weight is None else 2))
        self.decoder = build_decoder(shape, network)

    def forward(self, images: Tensor) -> Tensor:
        encoded = in_full_precision(self.encoder, images)
        if self.kl_weight is None:
            return (in_full_precision(self.decoder, encoded) - images).square().mean()
        mean, log_variance = encoded.chunk(2, dim=1)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        error = (in_full_precision(self.decoder, z) - images).square().mean()
        return error + self.kl_weight * gaussian_kl(mean, log_variance).mean()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """z, of β-VAE the mean."""
        encoded = by_parts(self.encoder, images)
        return encoded if self.kl_weight is None else encoded.chunk(2, dim=1)[0]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        return by_parts(self.decoder, z).clamp(-1, 1)


class ChainAutoencoder(nn.Module):
    """A U-Net on DDPM's chain that is told z: DiffAE, DiffAE-v, InfoDiffusion; without z it is DDPM.

    Args:
        shape: of images.
        network: sizes.
        conditional: whether there is an encoder.
        predicts: ``noise``, or ``velocity`` for DiffAE-v.
        mmd_weight: InfoDiffusion's.
        num_times: T.
    """

    def __init__(
        self,
        shape: ImageShape,
        network: NetworkOptions,
        *,
        conditional: bool = True,
        predicts: str = "noise",
        mmd_weight: float = 0.0,
        num_times: int = 1000,
    ):
        super().__init__()
        self.predicts, self.mmd_weight = predicts, mmd_weight
        self.encoder = build_encoder(shape, network, outputs=network.latent_dim) if conditional else None
        self.unet = ConditionalUNet(shape, network, in_channels=shape[0], conditional=conditional)
        self.register_buffer("alphas_cumprod", linear_chain(num_times), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        z = None if self.encoder is None else in_full_precision(self.encoder, images)
        times = torch.randint(len(self.alphas_cumprod), (len(images),), device=images.device)
        noise, level = torch.randn_like(images), self.alphas_cumprod[times]
        x = add_noise(images, noise, level)
        target = noise if self.predicts == "noise" else velocity(images, noise, level)
        loss = (self.unet(x, times, z).float() - target).square().mean()
        return loss + self.mmd_weight * maximum_mean_discrepancy(z, torch.randn_like(z)) if self.mmd_weight else loss

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return by_parts(self.encoder, images)

    def estimate(self, x: Tensor, times: Tensor, z: Tensor | None) -> Tensor:
        """x̂_0, not clipped."""
        output, level = self.unet(x, times, z).float(), self.alphas_cumprod[times]
        return (from_noise if self.predicts == "noise" else from_velocity)(x, output, level)

    def decode(self, z: Tensor | None, x_T: Tensor, num_steps: int) -> Tensor:
        """Images from z (None for DDPM) and x_T, by DDIM."""
        return ddim_decode(lambda x, t: self.estimate(x, t, z), x_T, self.alphas_cumprod, num_steps)

    def infer(self, images: Tensor, z: Tensor | None, num_steps: int) -> Tensor:
        """x_T of images, by DDIM upwards."""
        return ddim_infer(lambda x, t: self.estimate(x, t, z), images, self.alphas_cumprod, num_steps)


class PdaeAutoencoder(nn.Module):
    """PDAE (Zhang et al., NeurIPS 2022): a frozen DDPM, corrected by a network G(x_t, t, z) that is trained with z.

    Args:
        shape: of images.
        network: sizes.
        prior: the trained DDPM; its weights are frozen, and copied into this module's state.
    """

    def __init__(self, shape: ImageShape, network: NetworkOptions, *, prior: ChainAutoencoder):
        super().__init__()
        self.prior = prior.requires_grad_(False)
        self.encoder = build_encoder(shape, network, outputs=network.latent_dim)
        self.unet = ConditionalUNet(shape, network, in_channels=shape[0], conditional=True)
        self.register_buffer("shift", pdae_shift(prior.alphas_cumprod), persistent=False)
        self.register_buffer("weight", pdae_weight(prior.alphas_cumprod), persistent=False)

    @property
    def alphas_cumprod(self) -> Tensor:
        return self.prior.alphas_cumprod

    def forward(self, images: Tensor) -> Tensor:
        z = in_full_precision(self.encoder, images)
        times = torch.randint(len(self.alphas_cumprod), (len(images),), device=images.device)
        noise = torch.randn_like(images)
        x = add_noise(images, noise, self.alphas_cumprod[times])
        with torch.no_grad():
            known = self.prior.unet(x, times).float()
        predicted = known - rows(self.shift[times], images) * self.unet(x, times, z).float()
        return (rows(self.weight[times], images) * (predicted - noise).square()).mean()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return by_parts(self.encoder, images)

    def estimate(self, x: Tensor, times: Tensor, z: Tensor) -> Tensor:
        """x̂_0, not clipped."""
        level = self.alphas_cumprod[times]
        noise = self.prior.unet(x, times).float() - rows((1 - level).sqrt(), x) * self.unet(x, times, z).float()
        return from_noise(x, noise, level)

    decode = ChainAutoencoder.decode
    infer = ChainAutoencoder.infer


class BridgeAutoencoder(nn.Module):
    """DBAE: z = Enc(x_0), x_T = Dec(z), and the bridge between x_0 and x_T. No gradient is stopped.

    Args:
        shape: of images.
        network: sizes.
        options: the bridge; the same for training and sampling.
        stochastic: whether z is drawn; `options.mean_latent` then makes evaluations use its mean.
    """

    def __init__(self, shape: ImageShape, network: NetworkOptions, options: MethodOptions, *, stochastic: bool):
        super().__init__()
        self.options, self.stochastic = options, stochastic
        self.schedule = BridgeSchedule(options.bridge, options.t_max, options.beta_d, options.beta_min)
        self.encoder = build_encoder(shape, network, outputs=network.latent_dim * (2 if stochastic else 1))
        self.decoder = build_decoder(shape, network)
        self.unet = ConditionalUNet(shape, network, in_channels=2 * shape[0], conditional=options.condition_on_z)

    def forward(self, images: Tensor) -> Tensor:
        z = self._draw(in_full_precision(self.encoder, images))
        x_T = in_full_precision(self.decoder, z)
        low, high = self.options.t_min, self.options.t_max
        t = low + (high - low) * torch.rand(len(images), device=images.device)
        a, b, s = (rows(part, images) for part in bridge_marginal(t, self.schedule))
        x = a * x_T + b * images + s * torch.randn_like(images)
        weight = rows(self._preconditioning(t).loss_weight, images)
        return (weight * (self.denoise(x, t, x_T, z) - images).square()).mean()

    def _draw(self, encoded: Tensor) -> Tensor:
        if not self.stochastic:
            return encoded
        mean, scale = code_distribution(encoded)
        return mean if self.options.mean_latent and not self.training else mean + scale * torch.randn_like(mean)

    def _preconditioning(self, t: Tensor):
        options = self.options
        moments = {"sigma_data": options.sigma_data, "sigma_data_end": options.sigma_data_end, "cov_xy": options.cov_xy}
        return bridge_preconditioning(t, self.schedule, **moments)

    def denoise(self, x: Tensor, t: Tensor, x_T: Tensor, z: Tensor | None) -> Tensor:
        """D = c_skip x + c_out F(concat(c_in x, x_T), 250 log t, z): the estimate of x_0. x_T is not scaled."""
        c_skip, c_out, c_in, _ = (rows(part, x) for part in self._preconditioning(t))
        output = self.unet(torch.cat([c_in * x, x_T], dim=1), 250 * t.log(), z).float()
        return c_skip * x + c_out * output

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """z; of the stochastic encoder a draw, unless the options ask for the mean."""
        return self._draw(by_parts(self.encoder, images))

    @torch.no_grad()
    def code_mean(self, images: Tensor) -> Tensor:
        """z without noise."""
        encoded = by_parts(self.encoder, images)
        return code_distribution(encoded)[0] if self.stochastic else encoded

    @torch.no_grad()
    def endpoint(self, z: Tensor) -> Tensor:
        """x_T = Dec(z), without any evaluation of the U-Net."""
        return by_parts(self.decoder, z)

    def decode(
        self,
        z: Tensor,
        x_T: Tensor,
        num_steps: int,
        *,
        order: int = 1,
        churn: float = 0.0,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> BridgeSample:
        """Images from z and its endpoint, along the ODE (churn 0) or partly the SDE; see `sample_bridge`."""
        times = karras_time_grid(num_steps, t_min=self.options.t_min, t_max=self.options.t_max)

        def denoiser(x: Tensor, t: Tensor, end: Tensor) -> Tensor:
            return self.denoise(x, t, end, z)

        return sample_bridge(
            denoiser, x_T, times, self.schedule, order=order, churn=churn, noise=noise, generator=generator
        )


Autoencoder = PlainAutoencoder | ChainAutoencoder | PdaeAutoencoder | BridgeAutoencoder


def build_autoencoder(
    method: str,
    shape: ImageShape,
    network: NetworkOptions,
    options: MethodOptions,
    *,
    seed: int,
    prior: ChainAutoencoder | None = None,
) -> Autoencoder:
    """A method's module with random weights, a function of the options and the seed alone.

    Args:
        method: one of `papers.dbae.options.METHODS`.
        shape: of images.
        network: sizes.
        options: what the losses need to know.
        seed: of the weights.
        prior: PDAE's trained DDPM.

    Raises:
        ValueError: an unknown method, or pdae without prior.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        chain: dict[str, Any] = {"num_times": options.chain_times}
        match method:
            case "ae":
                return PlainAutoencoder(shape, network, kl_weight=None)
            case "beta_vae":
                return PlainAutoencoder(shape, network, kl_weight=options.kl_weight)
            case "ddpm":
                return ChainAutoencoder(shape, network, conditional=False, **chain)
            case "diffae":
                return ChainAutoencoder(shape, network, **chain)
            case "diffae_v":
                return ChainAutoencoder(shape, network, predicts="velocity", **chain)
            case "infodiffusion":
                return ChainAutoencoder(shape, network, mmd_weight=options.mmd_weight, **chain)
            case "pdae":
                if prior is None:
                    raise ValueError("prior: pdae needs a trained ddpm, got None")
                return PdaeAutoencoder(shape, network, prior=prior)
            case "dbae" | "dbae_d":
                return BridgeAutoencoder(shape, network, options, stochastic=method == "dbae")
    raise ValueError(f"method: unknown name {method!r}")
