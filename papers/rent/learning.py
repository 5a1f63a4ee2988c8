"""Training on noisy labels: a warm-up with cross-entropy, an estimate of T, then the method itself.

All members of a training see the same batches, start from the same weights and draw their own random weights from
streams of the same seeds, so that a member's result does not depend on which others are trained beside it. What one
epoch does is a function of the seed, the epoch and the state before it, hence a killed training resumes to the same
result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from papers.rent.corruption import transition_error
from papers.rent.methods import Method
from papers.rent.networks import Learner
from papers.rent.options import TrainOptions
from papers.rent.transition_estimation import dual_transition, estimate_transition_from_anchors
from papers.rent.utilization import CORRECTIONS, StepLosses, Utilization, clean_weight_shares, utilization_losses
from shared.checkpoints import Checkpointer
from shared.data_order import BatchOrder, generator_for
from shared.progress import Progress
from shared.training import gradient_step
from shared.vision.augmentation import random_crop_and_flip
from shared.vision.data import LabeledImages, as_float

# Histograms of importance weights: the last bin holds all that is larger.
WEIGHT_BIN_WIDTH, WEIGHT_BINS = 0.2, 26
_WEIGHT_STREAM, _AUGMENTATION_STREAM = 1, 2
_EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Problem:
    """What is learned from, and what is known about it, on the training's device."""

    train: LabeledImages
    """Training images with their *true* labels, which only measurements look at."""
    noisy_labels: Tensor
    """(N,) int64, the labels that are learned from."""
    test: LabeledImages
    transition: Tensor
    """The true T (C, C)."""

    @property
    def is_clean(self) -> Tensor:
        """(N,) bool, samples whose label is right."""
        return self.noisy_labels == self.train.labels


@dataclass(frozen=True)
class Outcome:
    """What a training of M methods leaves."""

    history: list[dict[str, object]]
    """A row for each method and epoch: method, epoch (from 1), and the metrics of `Training.measure`."""
    weight_counts: list[dict[str, object]]
    """Histograms of the importance weights, in the first epoch after the warm-up and in the last: method, epoch,
    clean, weight (where a bin begins), count. Methods without T have none."""
    transitions: Tensor
    """(M, C, C), as last used; the identity for methods without T."""
    correct: Tensor
    """(M, test images) bool, in the last epoch."""


@dataclass
class EpochLog:
    """What an epoch's training steps of one process showed, batch by batch."""

    indices: list[Tensor] = field(default_factory=list)
    probabilities: list[Tensor] = field(default_factory=list)
    """(b, M, C), softmax outputs in training mode."""
    importance: list[Tensor] = field(default_factory=list)
    """(b, M)."""
    fitted: list[Tensor] = field(default_factory=list)
    """(b, M) bool, predictions that agree with the noisy label."""
    purity: list[Tensor] = field(default_factory=list)
    """(M,), share of the batch's weight that lies on clean samples."""
    fell_back: list[Tensor] = field(default_factory=list)
    """(M,) bool."""

    def add(self, indices: Tensor, logits: Tensor, losses: StepLosses, problem: Problem) -> None:
        logits = logits.detach().float()
        self.indices.append(indices)
        self.probabilities.append(logits.softmax(-1).transpose(0, 1))
        self.importance.append(losses.importance.T)
        self.fitted.append((logits.argmax(-1) == problem.noisy_labels[indices]).T)
        self.purity.append(clean_weight_shares(losses.weights, problem.is_clean[indices]))
        self.fell_back.append(losses.fell_back)


class Training:
    """One training of several methods side by side, or of a single one."""

    def __init__(
        self, methods: Sequence[Method], problem: Problem, options: TrainOptions, seed: int, accelerator: Accelerator
    ):
        """Members at their start; all processes pass the same arguments."""
        self.methods, self.problem, self.options, self.seed = list(methods), problem, options, seed
        self.accelerator, device = accelerator, accelerator.device
        classes = len(problem.transition)
        estimators = [method.estimator for method in methods]
        learner = Learner(options.classifier, estimators, problem.train.images.shape[1:], classes, seed)
        groups = [
            {"params": list(learner.network.parameters())},
            {"params": list(learner.learned.parameters()), "lr": options.transition_learning_rate},
        ]
        optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=0.0, fused=True)
        self.learner, self.optimizer = accelerator.prepare(learner, optimizer)
        self.order = BatchOrder(len(problem.train), options.batch_size, seed)
        self.warmups = [
            method.warmup_epochs(common=options.warmup_epochs, dual=options.dual_warmup) for method in methods
        ]
        self.transitions = torch.eye(classes, device=device).repeat(len(methods), 1, 1)
        for member, estimator in enumerate(estimators):
            if estimator == "true":
                self.transitions[member] = problem.transition.to(device)

    def run(self, state: Path) -> Outcome:
        """Train to the end, from the last saved state if there is one."""
        checkpointer = Checkpointer(state, self.accelerator, every=self.options.checkpoint_every)
        done, saved = checkpointer.restore()
        history, weight_counts = saved.get("history", []), saved.get("weight_counts", [])
        if done:
            self.transitions = torch.tensor(saved["transitions"], device=self.accelerator.device)
        names = f"{len(self.methods)} methods" if len(self.methods) > 1 else self.methods[0].name
        with Progress(self.options.epochs, names, start=done, enabled=self.accelerator.is_main_process) as progress:
            for epoch in range(done, self.options.epochs):
                log = self.train_epoch(epoch)
                self.estimate(epoch, log)
                measured = self.measure(log)
                history += [
                    {"method": method.name, "epoch": epoch + 1, **{name: values[member].item() for name, values in
                                                                  measured.items()}}
                    for member, method in enumerate(self.methods)
                ]  # fmt: skip
                weight_counts += self.count_weights(epoch, log)
                progress.update({"accuracy": measured["accuracy"].mean().item()})
                checkpointer.save_if_due(
                    epoch + 1,
                    {"history": history, "weight_counts": weight_counts, "transitions": self.transitions.tolist()},
                )
        return Outcome(history, weight_counts, self.transitions.cpu(), self.correct().cpu())

    def train_epoch(self, epoch: int) -> EpochLog:
        """All steps of an epoch, counted from 0."""
        log = EpochLog()
        ce = Utilization("ce")
        utilizations = [
            ce if epoch < warmup else method.utilization
            for method, warmup in zip(self.methods, self.warmups, strict=True)
        ]
        self.learner.train()
        steps = self.order.steps_per_epoch
        for step in range(epoch * steps, (epoch + 1) * steps):
            (rows,) = self.order.micro_batches(
                step, process_index=self.accelerator.process_index, num_processes=self.accelerator.num_processes
            )
            gradient_step(
                lambda indices, step=step: (self.step_loss(indices, utilizations, epoch, step, log), {}),
                [torch.tensor(rows, device=self.accelerator.device)],
                model=self.learner,
                optimizer=self.optimizer,
                accelerator=self.accelerator,
                step=step,
            )
        return log

    def step_loss(
        self, indices: Tensor, utilizations: Sequence[Utilization], epoch: int, step: int, log: EpochLog
    ) -> Tensor:
        """The sum of all members' losses on a batch, and of those that transition matrices are learned by."""
        key = (self.seed, step, self.accelerator.process_index)
        images = as_float(self.problem.train.images[indices])
        if self.options.augment:
            images = random_crop_and_flip(images, generator_for(*key, _AUGMENTATION_STREAM))
        labels = self.problem.noisy_labels[indices]
        logits, matrices = self.learner(images)
        for member, learned in matrices.items():
            self.transitions[member] = learned[0].detach()
        generators = [generator_for(*key, _WEIGHT_STREAM) for _ in self.methods]
        losses = utilization_losses(utilizations, logits, labels, self.transitions, generators)
        log.add(indices, logits, losses, self.problem)
        loss = losses.loss
        modules = self.accelerator.unwrap_model(self.learner).learned
        for member, learned in matrices.items():
            begun = float(epoch >= self.warmups[member])  # a factor of 0: processes must agree on what has a gradient
            loss = loss + begun * modules[str(member)].loss(logits[member], labels, learned)
        return loss

    def estimate(self, epoch: int, log: EpochLog) -> None:
        """T of the members whose warm-up ends with this epoch, from what the network said during it."""
        members = [
            member
            for member, method in enumerate(self.methods)
            if method.estimator in ("forward", "dual_t") and epoch + 1 == self.warmups[member]
        ]
        if not members:
            return
        labels = self.problem.noisy_labels
        seen = self.accelerator.gather(torch.cat(log.indices))
        probabilities = self.accelerator.gather(torch.cat(log.probabilities))
        duals = [member for member in members if self.methods[member].estimator == "dual_t"]
        predicted = self.predictions(self.problem.train.images) if duals else None
        for member in members:
            found = estimate_transition_from_anchors(probabilities[:, member], labels[seen], self.options.top_fraction)
            self.transitions[member] = dual_transition(found, predicted[member], labels) if member in duals else found

    def measure(self, log: EpochLog) -> dict[str, Tensor]:
        """Metrics of an epoch, each (M,).

        accuracy           on the clean test labels, after the epoch
        fit_mislabelled    share of mislabelled training samples predicted as labelled, during the epoch
        purity             share of the batches' weight on samples whose label is right; NaN for the corrections
        transition_error   of T, see `corruption.transition_error`; NaN for methods without T
        fell_back          batches without any importance weight
        """
        mislabelled = ~self.problem.is_clean[torch.cat(log.indices)]
        fitted = (torch.cat(log.fitted) & mislabelled[:, None]).sum(0).float()
        sums = torch.stack([fitted, torch.stack(log.purity).sum(0), torch.stack(log.fell_back).sum(0).float()])
        counts = torch.tensor([mislabelled.sum(), len(log.purity)], device=sums.device)
        sums, counts = (self.accelerator.reduce(values, "sum") for values in (sums, counts))
        error = transition_error(self.transitions, self.problem.transition.to(sums.device))
        without = torch.tensor([method.estimator is None for method in self.methods], device=sums.device)
        return {
            "accuracy": self.correct().float().mean(1),
            "fit_mislabelled": sums[0] / counts[0].clamp(min=1),
            "purity": sums[1] / counts[1],
            "transition_error": error.masked_fill(without, torch.nan),
            "fell_back": sums[2],
        }

    def count_weights(self, epoch: int, log: EpochLog) -> list[dict[str, object]]:
        """Rows of `Outcome.weight_counts`, of the members for which this epoch has some."""
        counted = [
            member
            for member, method in enumerate(self.methods)
            if method.estimator and method.utilization.name not in CORRECTIONS
            if epoch in (self.warmups[member], self.options.epochs - 1)
        ]
        if not counted:
            return []
        importance = torch.cat(log.importance).T
        bins = (importance / WEIGHT_BIN_WIDTH).long().clamp(max=WEIGHT_BINS - 1)
        clean = self.problem.is_clean[torch.cat(log.indices)].long()
        groups = torch.arange(len(self.methods), device=bins.device)[:, None] * 2 + clean
        counts = torch.bincount((groups * WEIGHT_BINS + bins).flatten(), minlength=len(self.methods) * 2 * WEIGHT_BINS)
        counts = self.accelerator.reduce(counts, "sum").view(len(self.methods), 2, WEIGHT_BINS).tolist()
        return [
            {
                "method": self.methods[member].name,
                "epoch": epoch + 1,
                "clean": bool(group),
                "weight": index * WEIGHT_BIN_WIDTH,
                "count": count,
            }
            for member in counted
            for group, of_group in enumerate(counts[member])
            for index, count in enumerate(of_group)
        ]

    def correct(self) -> Tensor:
        """(M, test images) bool, predictions that are right."""
        return self.predictions(self.problem.test.images) == self.problem.test.labels

    @torch.no_grad()
    def predictions(self, images: Tensor) -> Tensor:
        """Most probable classes (M, N) in evaluation mode; the mode is left so."""
        self.learner.eval()
        return torch.cat([self.learner(as_float(part))[0].argmax(-1) for part in images.split(_EVALUATION_BATCH)], 1)
