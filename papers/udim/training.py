"""Training on the sources of a task: any base with any term, and the step that is kept.

The rule of selection is the same for all methods, *training-domain validation* (DomainBed): the step with the best
accuracy on held-out images of the sources; of several best ones the last. A method with a term trains as its base in
the warm-up, then continues from the best step of the warm-up, weights and optimiser state, with its term.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from papers.udim.fishr import domain_variances, fishr_penalty, smoothed_variances
from papers.udim.gradients import Average, frozen_running_statistics, trainable_parameters
from papers.udim.measurements import Probe
from papers.udim.methods import TERMS, Hyperparameters, Run
from papers.udim.networks import Normalization, augmented, build_network, set_training_mode
from papers.udim.options import TrainOptions
from papers.udim.sharpness import BaseRule, erm_gradient, gam_gradient, sagm_gradient, sam_gradient
from papers.udim.tasks import Task
from papers.udim.update import UnknownDomainTerm, Update, features_and_logits, udim_update
from shared.checkpoints import Checkpointer
from shared.data_order import BatchOrder, generator_for
from shared.progress import Progress
from shared.schedules import named_schedule, set_learning_rate
from shared.vision.evaluation import accuracy, predict_logits
from shared.vision.models import Classifier

_AUGMENTATION, _DIRECTION = range(2)  # streams of random numbers
_ORDERS_PER_SEED = 1000  # more than there are domains
_NO_TERM = UnknownDomainTerm(weight=0.0)


class Trained(NamedTuple):
    """Result of `train_run`."""

    selected: Classifier
    """At the selected step."""
    last: Classifier
    """After the last step."""
    selected_step: int
    validation_accuracy: float
    """At the selected step, in [0, 1]."""
    validation_loss: float
    curve: list[dict[str, float]]
    """A record for each evaluation: step, train_loss, penalty, validation_accuracy, validation_loss, and those of
    `Probe.measure`."""
    seconds: float
    """Spent on training steps, without evaluation and what an interrupted process did."""


@dataclass
class _State:
    """A network with its optimiser, both prepared; the head's statistics for Fishr."""

    model: Classifier
    optimizer: torch.optim.Optimizer
    fishr: nn.Module

    def apply(self, gradients: list[Tensor]) -> None:
        """One step of the optimiser."""
        for parameter, gradient in zip(trainable_parameters(self.model).values(), gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    def copy_from(self, other: _State) -> None:
        for mine, theirs in ((self.model, other.model), (self.fishr, other.fishr)):
            mine.load_state_dict(theirs.state_dict())
        # The optimiser would share the other's tensors.
        self.optimizer.load_state_dict(copy.deepcopy(other.optimizer.state_dict()))


class SourceBatch(NamedTuple):
    """One process's share of a step."""

    inputs: Tensor
    """(B, channels, H, W), the domains one after another."""
    labels: Tensor
    """(B,)."""
    domain_sizes: list[int]
    generator: torch.Generator
    """Of random directions."""
    average: Average


StepUpdate = Callable[[_State, SourceBatch], Update]


class _DomainVariances(nn.Module):
    """Fishr's moving average, as a buffer, so that it is saved with the weights."""

    def __init__(self, domains: int, head: nn.Linear) -> None:
        super().__init__()
        size = head.weight.numel() + head.bias.numel()
        self.register_buffer("average", torch.zeros(domains, size))


def train_run(
    options: TrainOptions,
    task: Task,
    run: Run,
    settings: Hyperparameters,
    *,
    seed: int,
    accelerator: Accelerator,
    probe: Probe,
    state: Path,
) -> Trained:
    """Train one run on one task; an interrupted training continues from its last saved state, to the same result.

    Args:
        options: the same for all runs.
        task: sources and validation images.
        run: base and term.
        settings: hyperparameters in force.
        seed: of weights, order of images and random directions; runs of one seed see the same batches.
        accelerator: of one or several processes, each with its share of every domain's batch.
        probe: measures unknown domains for the curve; nothing depends on it.
        state: folder of saved states.

    Raises:
        ValueError: a batch larger than a source domain; Fishr with one source.
        FloatingPointError: the loss or the penalty is not finite.
    """
    accelerator.free_memory()  # a saved state holds all that was prepared: this run's networks alone
    current, best = (_new_state(options, task, settings, seed, accelerator) for _ in range(2))
    warmup = round(options.warmup_fraction * options.steps) if run.term else 0
    update, warmup_update = (make_update(each, settings, len(task.sources)) for each in (run, Run(run.base)))
    batches = SourceBatches(options, task, seed, accelerator)
    schedule = named_schedule(options.schedule, options.steps)
    checkpointer = Checkpointer(state, accelerator, every=options.checkpoint_every)
    done, record = checkpointer.restore()
    record = record or {"curve": [], "selected": [0, -1.0, math.inf], "seconds": 0.0}
    with Progress(options.steps, f"{run.method} {task.name}", start=done, enabled=accelerator.is_main_process) as bar:
        for step in range(done, options.steps):
            if step == warmup > 0:
                current.copy_from(best)
            started = time.perf_counter()
            set_learning_rate(current.optimizer, schedule(step))
            set_training_mode(current.model, options.network)
            result = (warmup_update if step < warmup else update)(current, batches(step))
            _check_finite(result, step)
            current.apply(result.gradients)
            record["seconds"] += time.perf_counter() - started
            if (step + 1) % options.evaluate_every == 0 or step + 1 in (warmup, options.steps):
                _evaluate(current, best, task, probe, result, step + 1, record)
            checkpointer.save_if_due(step + 1, record)
            bar.update({"loss": result.loss.item(), "penalty": result.penalty.item()})
    step, validation_accuracy, validation_loss = record["selected"]
    return Trained(
        best.model, current.model, step, validation_accuracy, validation_loss, record["curve"], record["seconds"]
    )


def make_update(run: Run, settings: Hyperparameters, domains: int) -> StepUpdate:
    """The update of a run after its warm-up.

    Raises:
        ValueError: Fishr with one source domain.
    """
    base = base_rule(run.base, settings.rho)
    if run.term == "fishr":
        if domains < 2:
            raise ValueError(f"run {run.method}: needs at least 2 source domains, got {domains}")
        return partial(_fishr_update, base=base, weight=settings.weight, rho=settings.rho)
    term = _NO_TERM
    if run.term is not None:
        term = UnknownDomainTerm(settings.weight, settings.data_radius, **TERMS[run.term])
    return partial(_term_update, base=base, term=term, rho=settings.rho)


def base_rule(name: str, rho: float) -> BaseRule:
    """A base of `papers.udim.methods.BASES` with its radius."""
    return {
        "erm": erm_gradient,
        "sam": partial(sam_gradient, rho=rho),
        "asam": partial(sam_gradient, rho=rho, adaptive=True),
        "sagm": partial(sagm_gradient, rho=rho),
        "gam": partial(gam_gradient, rho=rho, rho_flatness=rho),
    }[name]


def _term_update(current: _State, batch: SourceBatch, *, base: BaseRule, term: UnknownDomainTerm, rho: float) -> Update:
    return udim_update(
        current.model,
        current.model.head,
        batch.inputs,
        batch.labels,
        term=term,
        rho=rho,
        base=base,
        domain_sizes=batch.domain_sizes,
        average=batch.average,
        generator=batch.generator,
    )


def _fishr_update(current: _State, batch: SourceBatch, *, base: BaseRule, weight: float, rho: float) -> Update:
    """The base's gradient plus `weight` times that of Fishr's penalty on the moving average of the variances."""
    update = _term_update(current, batch, base=base, term=_NO_TERM, rho=rho)
    with frozen_running_statistics(current.model):
        features, logits = features_and_logits(current.model, current.model.head, batch.inputs)
    variances = domain_variances(features, logits, batch.labels, batch.domain_sizes)
    penalised, average = smoothed_variances(variances, current.fishr.average)
    current.fishr.average.copy_(average)
    penalty = fishr_penalty(penalised)
    parameters = list(trainable_parameters(current.model).values())
    gradients = batch.average(list(torch.autograd.grad(penalty, parameters, materialize_grads=True)))
    total = [g + weight * f for g, f in zip(update.gradients, gradients, strict=True)]
    return Update(total, update.loss, penalty.detach())


class SourceBatches:
    """The batches of a task's sources, as functions of the seed and the step."""

    def __init__(self, options: TrainOptions, task: Task, seed: int, accelerator: Accelerator) -> None:
        """Images are kept on the accelerator's device.

        Raises:
            ValueError: a batch larger than a source domain.
        """
        device = accelerator.device
        self._normalization = Normalization(options.inputs, task.validation.images.shape[1]).to(device)
        self._sources = [(source.images.to(device), source.labels.to(device)) for source in task.sources]
        self._orders = [
            BatchOrder(len(source), options.batch_size, _ORDERS_PER_SEED * seed + number)
            for number, source in enumerate(task.sources)
        ]
        self._options, self._seed, self._accelerator = options, seed, accelerator

    def __call__(self, step: int) -> SourceBatch:
        """This process's share of every domain's batch."""
        process, processes = self._accelerator.process_index, self._accelerator.num_processes
        parts = []
        for order, (images, labels) in zip(self._orders, self._sources, strict=True):
            rows = torch.from_numpy(order.indices(step)[process::processes].copy()).to(images.device)
            parts.append((images[rows], labels[rows]))
        images, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        key = (self._seed, step, process)
        changed = augmented(images, self._options.inputs, generator_for(*key, _AUGMENTATION))
        return SourceBatch(
            inputs=self._normalization(changed),
            labels=labels,
            domain_sizes=[len(part) for _, part in parts],
            generator=generator_for(*key, _DIRECTION, device=images.device),
            average=partial(_mean_over_processes, self._accelerator),
        )


def _mean_over_processes(accelerator: Accelerator, gradients: list[Tensor]) -> list[Tensor]:
    """The perturbation of SAM is then the same on every process."""
    if accelerator.num_processes == 1:
        return gradients
    mean = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
    parts = mean.split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]


def _new_state(
    options: TrainOptions, task: Task, settings: Hyperparameters, seed: int, accelerator: Accelerator
) -> _State:
    channels, size = task.validation.images.shape[1:3]
    model = build_network(options.network, channels=channels, size=size, classes=task.classes, seed=seed)
    fishr = _DomainVariances(len(task.sources), model.head)
    # Not wrapped for data parallelism: gradients are averaged by hand.
    model, fishr = (accelerator.prepare_model(module, evaluation_mode=True) for module in (model, fishr))
    groups = {"params": list(trainable_parameters(model).values()), "weight_decay": options.weight_decay}
    if options.optimizer == "adam":
        optimizer = torch.optim.Adam([groups], lr=settings.learning_rate, fused=True)
    else:
        optimizer = torch.optim.SGD([groups], lr=settings.learning_rate, momentum=0.9)
    return _State(model, accelerator.prepare_optimizer(optimizer), fishr)


def _evaluate(
    current: _State, best: _State, task: Task, probe: Probe, update: Update, step: int, record: dict[str, Any]
) -> None:
    """Add to the curve, and keep the step if it is no worse than the best so far."""
    logits = predict_logits(nn.Sequential(probe.normalization, current.model), task.validation.images)
    validation_accuracy = accuracy(logits, task.validation.labels)
    validation_loss = F.cross_entropy(logits, task.validation.labels).item()
    record["curve"].append(
        {
            "step": step,
            "train_loss": update.loss.item(),
            "penalty": update.penalty.item(),
            "validation_accuracy": validation_accuracy,
            "validation_loss": validation_loss,
            **probe.measure(current.model),
        }
    )
    if validation_accuracy >= record["selected"][1]:
        record["selected"] = [step, validation_accuracy, validation_loss]
        best.copy_from(current)


def _check_finite(update: Update, step: int) -> None:
    for name, value in (("loss", update.loss), ("penalty", update.penalty)):
        if not math.isfinite(value.item()):
            raise FloatingPointError(f"step {step}: the {name} is {value.item()}")
