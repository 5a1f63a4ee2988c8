"""Training on accelerate: one optimizer step, and a loop of them with schedule, checkpoints and records.

Everything that happens in step t is a function of the seed, t and the state before it: the learning rate
(`shared.schedules`), the batch and random draws (`shared.data_order`). So a training that was killed at any moment and
resumed from its last checkpoint (`shared.checkpoints`) ends with the same bytes as one that ran through.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared.checkpoints import Checkpointer
from shared.data_order import BatchOrder
from shared.progress import Progress
from shared.schedules import Schedule, named_schedule, set_learning_rate
from shared.training_options import TrainingOptions

Batch = TypeVar("Batch")


def adamw(
    model: nn.Module,
    learning_rate: float,
    *,
    weight_decay: float = 0.0,
    embedding_weight_decay: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.AdamW:
    """AdamW with decoupled weight decay on matrices, none on biases and norms.

    `embedding_weight_decay` is that of embedding tables, tied output layers with them; None: as other matrices.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            if embedding_weight_decay is not None and id(parameter) in tables:
                decay = embedding_weight_decay
            groups.setdefault(decay, []).append(parameter)
    # Fused: a third of the time of torch's default on one core, for models of 1e5 weights.
    return torch.optim.AdamW(
        [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()],
        lr=learning_rate,
        betas=betas,
        fused=True,
    )


class StepReport(NamedTuple):
    """What one optimizer step did, averaged over micro-batches and processes."""

    loss: float
    grad_norm: float
    """L2 norm of the gradient before clipping."""
    metrics: dict[str, float]


def gradient_step(
    loss_fn: Callable[[Batch], tuple[Tensor, Mapping[str, Tensor]]],
    micro_batches: Sequence[Batch],
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    step: int,
    weight_of: Callable[[Batch], float] = lambda batch: 1.0,
    max_grad_norm: float | None = None,
) -> StepReport:
    """One optimizer step on the mean loss over micro-batches and processes, weighted by `weight_of`.

    With weights that count what `loss_fn` averages over (tokens, pairs) the result does not depend on how the batch
    was split. `model` and `optimizer` come from `accelerator.prepare`; the accelerator itself must not accumulate.

    Args:
        loss_fn: gives the scalar loss and scalar metrics of one micro-batch.
        step: named in errors.
        max_grad_norm: the gradient is scaled down to this L2 norm; None: never.

    Raises:
        FloatingPointError: the loss or, without a loss scaler, the gradient is not finite; the weights are untouched.
    """
    weights = [float(weight_of(batch)) for batch in micro_batches]
    total = _sum_over_processes(torch.tensor(sum(weights), device=accelerator.device), accelerator).item()
    sums: dict[str, Tensor] = {}
    for index, (batch, weight) in enumerate(zip(micro_batches, weights, strict=True)):
        is_last = index == len(micro_batches) - 1
        with nullcontext() if is_last else accelerator.no_sync(model):
            loss, metrics = loss_fn(batch)
            # Gradients are averaged over processes, hence the factor.
            accelerator.backward(loss * (weight * accelerator.num_processes / total))
        for name, value in {"loss": loss, **metrics}.items():
            sums[name] = sums.get(name, 0.0) + value.detach().float() * weight
    means = _sum_over_processes(torch.stack(list(sums.values())), accelerator) / total
    report = dict(zip(sums, means.tolist(), strict=True))
    if not math.isfinite(report["loss"]):
        raise FloatingPointError(f"step {step}: the loss is {report['loss']}")
    limit = math.inf if max_grad_norm is None else max_grad_norm
    grad_norm = float(accelerator.clip_grad_norm_(model.parameters(), limit))
    if accelerator.scaler is None and not math.isfinite(grad_norm):
        raise FloatingPointError(f"step {step}: the gradient's norm is {grad_norm} at a loss of {report['loss']}")
    optimizer.step()
    optimizer.zero_grad()
    return StepReport(report.pop("loss"), grad_norm, report)


def _sum_over_processes(value: Tensor, accelerator: Accelerator) -> Tensor:
    return accelerator.reduce(value, "sum") if accelerator.num_processes > 1 else value


def train(
    loss_fn: Callable[[Batch], tuple[Tensor, Mapping[str, Tensor]]],
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    batches: Callable[[int], Sequence[Batch]],
    steps: int,
    accelerator: Accelerator,
    weight_of: Callable[[Batch], float] = lambda batch: 1.0,
    max_grad_norm: float | None = None,
    checkpointer: Checkpointer | None = None,
    log_every: int = 10,
    on_record: Callable[[Mapping[str, float]], None] = lambda record: None,
    description: str = "train",
) -> list[dict[str, float]]:
    """Trains for `steps` optimizer steps, continuing from the checkpointer's state if there is one.

    Args:
        schedule: factor of the learning rate for every step.
        batches: the micro-batches of this process in a step, on its device.
        log_every: a record is kept of the first step, every `log_every`-th and the last.
        on_record: called with each record, in the main process.
        description: of the progress bar.
        others: as in `gradient_step`.

    Returns:
        the records: step (from 1), loss, grad_norm, learning_rate (of the first parameter group) and the metrics;
        those from before an interruption included.

    Raises:
        FloatingPointError: as `gradient_step`.
    """
    done, saved = checkpointer.restore() if checkpointer else (0, {})
    records: list[dict[str, float]] = saved.get("records", [])
    model.train()
    with Progress(steps, description, start=done, enabled=accelerator.is_main_process) as progress:
        for step in range(done, steps):
            set_learning_rate(optimizer, schedule(step))
            report = gradient_step(
                loss_fn,
                batches(step),
                model=model,
                optimizer=optimizer,
                accelerator=accelerator,
                step=step,
                weight_of=weight_of,
                max_grad_norm=max_grad_norm,
            )
            record = {
                "step": step + 1,
                "loss": report.loss,
                "grad_norm": report.grad_norm,
                "learning_rate": optimizer.param_groups[0]["lr"],
                **report.metrics,
            }
            progress.update({name: value for name, value in record.items() if name != "step"})
            if step == 0 or (step + 1) % log_every == 0 or step + 1 == steps:
                records.append(record)
                if accelerator.is_main_process:
                    on_record(record)
            if checkpointer:
                checkpointer.save_if_due(step + 1, {"records": records})
    return records


def fit(
    loss_fn: Callable[[nn.Module, Batch], tuple[Tensor, Mapping[str, Tensor]]],
    model: nn.Module,
    options: TrainingOptions,
    *,
    size: int,
    make_batch: Callable[[np.ndarray], Batch],
    seed: int,
    accelerator: Accelerator,
    checkpoints: Path,
    optimizer: torch.optim.Optimizer | None = None,
    weight_of: Callable[[Batch], float] = lambda batch: 1.0,
    log_every: int = 10,
    description: str = "train",
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Trains a model on a data set in shuffled batches, continuing from its last checkpoint if there is one.

    Args:
        loss_fn: gives the scalar loss and scalar metrics of the model, as `accelerator.prepare` returns it, on a batch.
        model: what to train; every process passes the same weights.
        options: how.
        size: examples in the data set.
        make_batch: the batch of some examples, given by their numbers, on the accelerator's device.
        seed: of the order of the examples.
        accelerator: of the precision that the options name.
        checkpoints: folder of the saved states.
        optimizer: of the model's parameters; None: AdamW as the options say.
        others: as in `train`.

    Returns:
        the prepared model, trained, and the records of `train`.

    Raises:
        ValueError: a batch size that is not in [1, size].
        FloatingPointError: as `gradient_step`.
    """
    if optimizer is None:
        optimizer = adamw(
            model,
            options.learning_rate,
            weight_decay=options.weight_decay,
            embedding_weight_decay=options.embedding_weight_decay,
        )
    model, optimizer = accelerator.prepare(model, optimizer)
    order = BatchOrder(size, options.batch_size, seed)
    steps = max(1, round(options.epochs * order.steps_per_epoch))

    def batches(step: int) -> list[Batch]:
        parts = order.micro_batches(
            step,
            accumulation=options.accumulation,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )
        return [make_batch(part) for part in parts]

    records = train(
        lambda batch: loss_fn(model, batch),
        model=model,
        optimizer=optimizer,
        schedule=named_schedule(options.schedule, steps, warmup_fraction=options.warmup_fraction),
        batches=batches,
        steps=steps,
        accelerator=accelerator,
        weight_of=weight_of,
        max_grad_norm=options.max_grad_norm,
        checkpointer=Checkpointer(checkpoints, accelerator, every=options.checkpoint_every),
        log_every=log_every,
        description=description,
    )
    return model, records
