"""Training of denoisers and of discriminators of noisy samples."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared.diffusion.denoisers import EdmDenoiser, edm_loss_weight, lognormal_sigmas, per_sample
from shared.diffusion.networks import (
    MlpImage,
    MlpLogit,
    NoisyDiscriminator,
    UNetImage,
    UNetLogit,
    discriminator_loss,
    discriminator_sigmas,
)
from shared.diffusion.options import DenoiserOptions, DiscriminatorOptions
from shared.training import adamw, fit

Objective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""`(denoised (B, ...), clean (B, ...), x (B, ...), sigma (B,)) -> losses (B,)`, where x is clean with noise."""


def build_denoiser(options: DenoiserOptions, sample_shape: tuple[int, ...], *, seed: int) -> EdmDenoiser:
    """The denoiser with random weights, a function of the options and the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if options.architecture == "mlp":
            network: nn.Module = MlpImage(sample_shape, width=options.widths[0], depth=len(options.widths))
        else:
            network = UNetImage(
                sample_shape,
                channels=options.widths,
                layers_per_block=options.layers_per_block,
                attention=options.attention,
            )
        return EdmDenoiser(network, options.sigma_data)


def build_discriminator(
    options: DiscriminatorOptions, sample_shape: tuple[int, ...], *, sigma_data: float, seed: int
) -> NoisyDiscriminator:
    """The discriminator with random weights, a function of the options and the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if options.encoder == "mlp":
            network: nn.Module = MlpLogit(
                sample_shape, width=options.width, depth=options.depth, frequencies=options.frequencies
            )
        else:
            network = UNetLogit(sample_shape, channels=options.channels)
        return NoisyDiscriminator(network, sigma_data=sigma_data)


def score_matching(sigma_data: float) -> Objective:
    """Denoising score matching with EDM's weights: λ(σ) · mean over dimensions of (D − x_0)²."""

    def losses(denoised: Tensor, clean: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return edm_loss_weight(sigma, sigma_data) * (denoised - clean).square().flatten(1).mean(1)

    return losses


def train_denoiser(
    options: DenoiserOptions,
    denoiser: EdmDenoiser,
    *,
    size: int,
    clean_batch: Callable[[np.ndarray], Tensor],
    seed: int,
    accelerator: Accelerator,
    checkpoints: Path,
    objective: Objective | None = None,
    log_every: int = 100,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Trains a denoiser; noise and its levels are drawn from PyTorch's global generator.

    Args:
        options: how.
        denoiser: of `build_denoiser`.
        size: examples in the data set that an epoch counts.
        clean_batch: clean samples (B, ...) for numbers of such examples; it may add others to them.
        seed: of the order of the examples.
        accelerator: of the precision that the options name.
        checkpoints: folder of the saved states.
        objective: losses of a batch; None: `score_matching`.
        log_every: steps between records.

    Returns:
        the trained denoiser in evaluation mode, with the running mean of its weights where the options ask for one; and
        records of step, loss, grad_norm and learning_rate.

    Raises:
        ValueError: a batch size that is not in [1, size].
        FloatingPointError: the loss is not finite.
    """
    losses = objective or score_matching(options.sigma_data)

    def loss_of(model: nn.Module, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        sigma = lognormal_sigmas(len(clean), options.log_sigma_mean, options.log_sigma_std).to(clean)
        x = clean + per_sample(sigma, clean) * torch.randn_like(clean)
        return losses(model(x, sigma), clean, x, sigma).mean(), {}

    training = options.training
    optimizer = adamw(denoiser, training.learning_rate, weight_decay=training.weight_decay)
    if options.ema_decay is not None:
        from shared.t2i.model import RunningMean  # imports diffusers, which takes seconds

        mean = accelerator.prepare_model(RunningMean(denoiser, options.ema_decay), evaluation_mode=True)
        optimizer.register_step_post_hook(lambda *_: accelerator.unwrap_model(mean).update(denoiser))
    model, records = fit(
        loss_of,
        denoiser,
        training,
        size=size,
        make_batch=lambda numbers: clean_batch(numbers).to(accelerator.device),
        seed=seed,
        accelerator=accelerator,
        checkpoints=checkpoints,
        optimizer=optimizer,
        log_every=log_every,
        description="denoiser",
    )
    if options.ema_decay is not None:
        model = accelerator.unwrap_model(mean).model
    return model.eval(), records


def train_discriminator(
    options: DiscriminatorOptions,
    discriminator: NoisyDiscriminator,
    first: Tensor,
    second: Tensor,
    *,
    seed: int,
    accelerator: Accelerator,
    checkpoints: Path,
    sigma: float | None = None,
    log_every: int = 100,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Trains a discriminator on batches that hold as many of the first set as of the second.

    Samples of the second are shuffled, those of the first, which may be few, drawn with replacement. Noise, and its
    levels with log σ uniform, are drawn from PyTorch's global generator.

    Args:
        options: how.
        discriminator: of `build_discriminator`.
        first: (N, ...), whose logits shall be positive.
        second: (N', ...).
        seed: of the order of the second set.
        accelerator: of the precision that the options name.
        checkpoints: folder of the saved states.
        sigma: the only noise level; None: all of them.
        log_every: steps between records.

    Returns:
        the trained discriminator in evaluation mode, without gradients of its weights, and records of step, loss
        (log 2 for a guess), grad_norm and learning_rate.

    Raises:
        ValueError: an empty first set, sets of samples of different shapes, or a batch size outside [1, N'].
        FloatingPointError: the loss is not finite.
    """
    if not len(first) or first.shape[1:] != second.shape[1:]:
        raise ValueError(f"first, second: need samples of one shape, got {tuple(first.shape)}, {tuple(second.shape)}")

    def batch_of(numbers: np.ndarray) -> Tensor:
        drawn = torch.randint(len(first), (len(numbers),))
        return torch.cat([first[drawn], second[torch.tensor(numbers)]]).to(accelerator.device)

    def loss_of(model: nn.Module, clean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        levels = discriminator_sigmas(len(clean)) if sigma is None else torch.full((len(clean),), sigma)
        levels = levels.to(clean)
        logits = model(clean + per_sample(levels, clean) * torch.randn_like(clean), levels)
        return discriminator_loss(*logits.chunk(2)), {}

    model, records = fit(
        loss_of,
        discriminator,
        options.training,
        size=len(second),
        make_batch=batch_of,
        seed=seed,
        accelerator=accelerator,
        checkpoints=checkpoints,
        log_every=log_every,
        description="discriminator",
    )
    return model.eval().requires_grad_(False), records
