"""Training of any of the methods, with an average of its weights and copies of it along the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from papers.dbae.image_data import ImageData
from papers.dbae.options import FitOptions
from shared.data_order import BatchOrder
from shared.training import fit


class Trained(NamedTuple):
    """A method after training."""

    average: nn.Module
    """With the averaged weights, in evaluation mode."""
    snapshots: dict[int, Path]
    """Averaged weights after some of the steps, the last among them."""
    records: list[dict[str, float]]
    """Of `shared.training.train`."""


def snapshot_steps(options: FitOptions, size: int, *, is_long: bool = False) -> list[int]:
    """Optimizer steps after which weights are kept, ascending; the last one ends the training.

    Args:
        options: how a method is trained.
        size: training images.
        is_long: whether it is trained longer than the others.
    """
    per_epoch = BatchOrder(size, options.training.batch_size, 0).steps_per_epoch
    steps = max(1, round(_epochs(options, is_long) * per_epoch))
    return sorted({max(1, round(share * steps)) for share in (*options.curve, 1.0)})


def _epochs(options: FitOptions, is_long: bool) -> float:
    return options.training.epochs * (options.long_factor if is_long else 1.0)


def train_autoencoder(
    model: nn.Module,
    data: ImageData,
    options: FitOptions,
    *,
    is_long: bool,
    seed: int,
    state: Path,
    log_every: int = 50,
) -> Trained:
    """Trains a method's module by its own loss.

    Args:
        model: of `build_autoencoder`.
        data: training images.
        options: how.
        is_long: whether it is trained `long_factor` times as long.
        seed: of the order of the images; noise is drawn from PyTorch's global generator.
        state: folder of saved states and of snapshots.
        log_every: steps between records.

    Raises:
        ValueError: images that are not finite in [−1, 1], or a batch size that is not in [1, images].
        FloatingPointError: the loss is not finite.
    """
    check_images(data)
    state.mkdir(parents=True, exist_ok=True)
    training = replace(options.training, epochs=_epochs(options, is_long))
    marks = snapshot_steps(options, len(data), is_long=is_long)
    accelerator = Accelerator(mixed_precision=training.mixed_precision)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kind = torch.optim.RAdam if options.optimizer == "radam" else torch.optim.Adam
    settings = {} if options.optimizer == "radam" else {"fused": True}
    optimizer = kind(trained, lr=training.learning_rate, **settings)
    model.to(accelerator.device)
    average = EMAModel(trained, decay=options.average_decay, foreach=True)
    accelerator.register_for_checkpointing(average)
    snapshots = {step: state / f"snapshot-{step}.safetensors" for step in marks}

    def follow(*_: object) -> None:
        average.step(trained)
        if average.optimization_step in snapshots and accelerator.is_main_process:
            write_average(snapshots[average.optimization_step], model, average, trained)

    optimizer.register_step_post_hook(follow)

    def batch(numbers: np.ndarray) -> Tensor:
        images = data.scaled(numbers).to(accelerator.device)
        if not options.flip:
            return images
        mirrored = (torch.rand(len(images), device=images.device) < 0.5)[:, None, None, None]
        return torch.where(mirrored, images.flip(3), images)

    prepared, records = fit(
        lambda module, images: (module(images), {}),
        model,
        training,
        size=len(data),
        make_batch=batch,
        seed=seed,
        accelerator=accelerator,
        checkpoints=state / "checkpoints",
        optimizer=optimizer,
        log_every=log_every,
    )
    accelerator.wait_for_everyone()
    plain = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    average.copy_to(trained)
    return Trained(plain.eval(), snapshots, records)


def write_average(path: Path, model: nn.Module, average: EMAModel, parameters: list[nn.Parameter]) -> None:
    """Write the state of a model with its averaged weights; buffers are the live ones."""
    average.store(parameters)
    average.copy_to(parameters)
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}, path)
    average.restore(parameters)


def load_average(model: nn.Module, path: Path) -> None:
    """Put the weights that `write_average` wrote into a model of the same options."""
    device = next(model.parameters()).device
    model.load_state_dict({name: value.to(device) for name, value in load_file(path).items()})


def check_images(data: ImageData) -> None:
    """Raises ValueError unless images are square, finite and in [−1, 1] (or uint8)."""
    images = data.images
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images: need (N, C, size, size), got {tuple(images.shape)}")
    if images.dtype != torch.uint8 and not ((images >= -1) & (images <= 1)).all():
        raise ValueError("images: need finite numbers in [-1, 1]")
