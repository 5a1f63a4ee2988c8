"""Training: the discriminators that give the ratio, and the denoisers of all arms.

References and biased samples meet in every batch, π of them references. Arms see the same batches, noise levels and
noise, whether they train side by side or one after another: each training begins with the same state of the random
generator, and draws the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from papers.tiw_dsm.data import Problem
from papers.tiw_dsm.members import Members, build_members
from papers.tiw_dsm.methods import Arm, BatchRatios, Logits, arm_losses
from papers.tiw_dsm.options import TrainOptions
from shared.data_order import generator_for
from shared.diffusion.denoisers import lognormal_sigmas, per_sample
from shared.diffusion.networks import LOWEST_SIGMA, discriminator_loss, discriminator_sigmas
from shared.diffusion.training import build_denoiser, build_discriminator, train_discriminator
from shared.files import write_json
from shared.training import adamw, fit

HELD_OUT_DRAWS = 32
"""Noisy copies of every held-out sample, by which a discriminator's length is chosen."""


@dataclass(frozen=True)
class Length:
    """A candidate for a discriminator's number of steps."""

    discriminator: str
    """``noisy`` or ``clean``."""
    steps: int
    held_out_loss: float
    """Binary cross-entropy on held-out references and biased samples; log 2 is that of a guess."""
    selected: bool


def train_ratio(
    options: TrainOptions,
    problem: Problem,
    steps: Mapping[str, int],
    *,
    seed: int,
    accelerator: Accelerator,
    checkpoints: Path,
) -> Logits:
    """Discriminators of noisy and of clean samples, trained on all references.

    Args:
        options: of the setting.
        problem: its data, on the accelerator's device.
        steps: number of steps of ``noisy`` and ``clean``.
        seed: of initial weights, batches and noise.
        accelerator: of the device.
        checkpoints: folder of the saved states.
    """
    trained = {
        name: _train_discriminator(
            options, name, problem.reference, problem.biased, count, seed, accelerator, checkpoints / f"{name}-{count}"
        )
        for name, count in steps.items()
    }
    return Logits(**trained)


def choose_lengths(
    options: TrainOptions, problem: Problem, *, seed: int, accelerator: Accelerator, checkpoints: Path
) -> list[Length]:
    """Every candidate's loss on held-out samples, for both discriminators; the smallest is selected, for each its own.

    One training goes on from candidate to candidate, on what is not held out. Every loss is written down at once: a job
    that is killed later on has no weights of that moment any more, only the training's last state.
    """
    share = options.ratio.ratio_held_out
    (reference, held_reference), (biased, held_biased) = (
        _split(samples, share, generator_for(seed, 2)) for samples in (problem.reference, problem.biased)
    )
    lengths = []
    for name in ("noisy", "clean"):
        losses = {}
        for steps in options.ratio.ratio_candidates:
            path = checkpoints / f"candidates-{name}" / f"loss-{steps}.json"
            if path.exists():
                losses[steps] = json.loads(path.read_text(encoding="utf-8"))
                continue
            logit = _train_discriminator(
                options,
                name,
                reference,
                biased,
                steps,
                seed,
                accelerator,
                checkpoints / f"candidates-{name}",
                checkpoint_every=options.ratio.ratio_candidates[0],
            )
            losses[steps] = held_out_loss(logit, held_reference, held_biased, noisy=name == "noisy", seed=seed)
            if accelerator.is_main_process:
                write_json(path, losses[steps])
            accelerator.wait_for_everyone()
        best = min(losses, key=losses.get)
        lengths += [Length(name, steps, loss, steps == best) for steps, loss in losses.items()]
    return lengths


@torch.no_grad()
def held_out_loss(logit: nn.Module, reference: Tensor, biased: Tensor, *, noisy: bool, seed: int) -> float:
    """A discriminator's loss, on noisy copies of the samples or on the samples themselves."""
    generator = generator_for(seed, 3)
    losses = []
    for _ in range(HELD_OUT_DRAWS if noisy else 1):
        logits = []
        for samples in (reference, biased):
            count = len(samples)
            level = discriminator_sigmas(count, generator) if noisy else torch.full((count,), LOWEST_SIGMA)
            noise = torch.randn(samples.shape, generator=generator).to(samples)
            logits.append(logit(samples + per_sample(level, samples) * noise, level.to(samples)))
        losses.append(discriminator_loss(*logits).item())
    return float(np.mean(losses))


def _split(samples: Tensor, held_out: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    count = max(1, round(held_out * len(samples)))
    order = torch.randperm(len(samples), generator=generator)
    return samples[order[count:]], samples[order[:count]]


def _train_discriminator(
    options: TrainOptions,
    name: str,
    reference: Tensor,
    biased: Tensor,
    steps: int,
    seed: int,
    accelerator: Accelerator,
    checkpoints: Path,
    checkpoint_every: int = 1000,
) -> nn.Module:
    accelerator = _another(accelerator)
    set_seed(seed, device_specific=True)
    settings = options.ratio.discriminator(steps, len(biased), checkpoint_every)
    model, _ = train_discriminator(
        settings,
        build_discriminator(settings, tuple(biased.shape[1:]), sigma_data=options.denoiser.sigma_data, seed=seed),
        reference,
        biased,
        seed=seed,
        accelerator=accelerator,
        checkpoints=checkpoints,
        sigma=LOWEST_SIGMA if name == "clean" else None,
    )
    # Logits are computed in full precision, whatever the training's.
    return accelerator.unwrap_model(model, keep_fp32_wrapper=False)


def train_arms(
    options: TrainOptions,
    arms: Sequence[Arm],
    problem: Problem,
    logits: Mapping[str, Logits],
    *,
    seed: int,
    accelerator: Accelerator,
    checkpoints: Path,
) -> Members:
    """Denoisers of arms, side by side, from the same initial weights.

    Args:
        options: of the setting.
        arms: several only where the denoiser is an MLP.
        problem: the data, on the accelerator's device.
        logits: of every ratio that the arms use, by its name.
        seed: of initial weights, batches and noise.
        accelerator: of the device and precision.
        checkpoints: folder of the saved states.

    Returns:
        member i is the denoiser of arm i: the running mean of its weights where the options ask for one.
    """
    accelerator = _another(accelerator)
    set_seed(seed, device_specific=True)
    denoiser = build_denoiser(options.denoiser, problem.sample_shape, seed=seed)
    kinds = list(dict.fromkeys(arm.method.data for arm in arms))
    members = build_members(denoiser, [kinds.index(arm.method.data) for arm in arms])
    training = options.denoiser.training
    optimizer = adamw(members, training.learning_rate, weight_decay=training.weight_decay)
    mean = _follow(members, optimizer, options, accelerator)

    def loss_of(model: Members, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        clean = torch.stack([batch[kind] for kind in kinds])
        sigma = lognormal_sigmas(clean.shape[1], options.denoiser.log_sigma_mean, options.denoiser.log_sigma_std)
        sigma = sigma.to(clean)
        x = clean + per_sample(sigma, clean[0]) * torch.randn_like(clean[0])
        of_kind = {
            kind: (clean[index], BatchRatios(logits, clean[index], x[index], sigma, options.ref_fraction))
            for index, kind in enumerate(kinds)
        }
        total = torch.zeros((), device=clean.device)
        for arm, denoised in zip(arms, model(x, sigma).unbind(), strict=True):
            samples, ratios = of_kind[arm.method.data]
            losses = arm_losses(arm, ratios, denoised, samples, sigma, sigma_data=options.denoiser.sigma_data)
            total = total + losses.mean()
        return total, {}

    model, _ = fit(
        loss_of,
        members,
        training,
        size=len(problem.biased),
        make_batch=lambda numbers: make_batch(options, problem, numbers),
        seed=seed,
        accelerator=accelerator,
        checkpoints=checkpoints,
        optimizer=optimizer,
        log_every=500,
        description=f"{len(arms)} arms" if len(arms) > 1 else arms[0].name,
    )
    trained = accelerator.unwrap_model(model) if mean is None else mean.model
    return trained.eval().requires_grad_(False)


def _another(accelerator: Accelerator) -> Accelerator:
    """One for a single training: its saved states hold what it has prepared, and nothing of other trainings."""
    return Accelerator(mixed_precision=accelerator.mixed_precision, cpu=accelerator.device.type == "cpu")


def make_batch(options: TrainOptions, problem: Problem, numbers: np.ndarray) -> dict[str, Tensor]:
    """A batch (B, ...) of every kind of data, B the biased samples of the given numbers and their share of references.

    The same random numbers are drawn whatever an arm is trained on.
    """
    device = problem.biased.device
    # Under accelerate each process has a share of the biased samples, and takes that share of the references.
    references = max(1, round(options.references_per_batch * len(numbers) / options.denoiser.training.batch_size))
    size = references + len(numbers)
    drawn = torch.rand(2, size)
    few, many = (
        samples[(share * len(samples)).long().to(device)]
        for share, samples in zip(drawn, (problem.reference, problem.unbiased), strict=True)
    )
    biased = problem.biased[torch.tensor(numbers, device=device)]
    batch = {"observed": torch.cat([few[:references], biased]), "references": few, "unbiased": many}
    if not options.mirror:
        return batch
    mirrored = (torch.rand(size) < 0.5).to(device)[:, None, None, None]
    return {kind: torch.where(mirrored, clean.flip(-1), clean) for kind, clean in batch.items()}


def _follow(
    members: nn.Module, optimizer: torch.optim.Optimizer, options: TrainOptions, accelerator: Accelerator
) -> nn.Module | None:
    """A running mean of the weights that every step of the optimizer updates, saved with accelerate's states."""
    if options.denoiser.ema_decay is None:
        return None
    from shared.t2i.model import RunningMean  # imports diffusers, which takes seconds

    mean = accelerator.prepare_model(RunningMean(members, options.denoiser.ema_decay), evaluation_mode=True)
    optimizer.register_step_post_hook(lambda *_: accelerator.unwrap_model(mean).update(members))
    return accelerator.unwrap_model(mean)
