"""Joint training of a relation module and of the selector, and what a trained pair is worth.

One step: the selector draws a selection for every document, texts are built, one forward pass of the relation module
gives its loss; the same pass's path logits, detached, are the selector's rewards. Each network has an optimizer of its
own. All methods see the same bags in the same order and start from the same weights of the relation module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from papers.reic.codred import Bag
from papers.reic.documents import PathReader, PathText
from papers.reic.methods import LEARNED, Run
from papers.reic.options import TrainOptions
from papers.reic.picking import Embed, Heuristic, Shown, TextMaker, pad_embeddings
from papers.reic.policy_gradient import reinforce_loss, relation_reward
from papers.reic.selector import SentenceSelector, uniform_picks
from shared.checkpoints import Checkpointer
from shared.data_order import BatchOrder, chunks, generator_for
from shared.progress import Progress
from shared.schedules import named_schedule, set_learning_rate
from shared.training import gradient_step

_PICK_STREAM, _SUBSAMPLE_STREAM, _SHUFFLE_STREAM, _INTRA_STREAM, _EVALUATION_STREAM = range(1, 6)
_EVALUATION_BAGS, _INTRA_GROUP = 64, 8


class BagTexts(Dataset):
    """The texts of bags, read when they are asked for."""

    def __init__(self, bags: Sequence[Bag], reader: PathReader, *, keep: bool):
        """Bags with what reads their paths; ``keep`` texts in memory once they are read."""
        self.bags, self.reader, self.keep = list(bags), reader, keep
        self._kept: dict[int, list[PathText]] = {}

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, index: int) -> list[PathText]:
        if index in self._kept:
            return self._kept[index]
        texts = [self.reader(path) for path in self.bags[index].paths]
        if self.keep:
            self._kept[index] = texts
        return texts


class Remembered:
    """Embeddings, kept in memory once they are computed."""

    def __init__(self, embed: Embed):
        self._embed = embed
        self._kept: dict[int, tuple[object, Tensor]] = {}

    def __call__(self, documents):
        """As those of the source; the documents are kept with them, so that their identity names them."""
        new = {id(each): each for each in documents if id(each) not in self._kept}
        if new:
            vectors = self._embed(list(new.values()))
            self._kept |= {key: (new[key], vector) for key, vector in zip(new, vectors, strict=True)}
        return [self._kept[id(each)][1] for each in documents]


@dataclass(frozen=True)
class Problem:
    """What is learned from, and what it is evaluated on."""

    relations: Sequence[str]
    train: BagTexts
    dev: BagTexts
    tokenizer: PreTrainedTokenizerBase
    embed: Embed
    dim: int
    """D of the embeddings."""
    intra: Sequence[tuple[list[int], list[int], int]] = ()
    """Intra-document examples: ids of two windows, class."""
    triggers: frozenset[str] = frozenset()
    """Words that an oracle fills up with."""


@dataclass(frozen=True)
class Evaluation:
    """Predictions on all dev bags, and what they were made from."""

    scores: np.ndarray
    """(bags, R - 1), logits of every relation but n/a."""
    best: np.ndarray
    """(bags,) class with the largest logit."""
    shown: list[tuple[Shown, Shown]]
    """Of every path, bags one after the other."""


@dataclass
class _Outcome:
    """What a micro-batch gives the selector's step."""

    log_probs: Tensor
    rewards: Tensor
    weights: Tensor


@dataclass
class _Log:
    """Sums since the last row of the history."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, **values: float | Sequence[float] | None) -> None:
        for name, value in values.items():
            numbers = [value] if isinstance(value, int | float) else list(value or [])
            self.sums[name] = self.sums.get(name, 0.0) + sum(numbers)
            self.counts[name] = self.counts.get(name, 0) + len(numbers)

    def row(self) -> dict[str, float]:
        """Means, and an empty log from here on."""
        means = {name: total / self.counts[name] for name, total in self.sums.items() if self.counts[name]}
        self.sums, self.counts = {}, {}
        return means


class Training:
    """One run."""

    def __init__(
        self,
        run: Run,
        problem: Problem,
        options: TrainOptions,
        seed: int,
        accelerator: Accelerator,
        module: nn.Module,
        selector: SentenceSelector | None,
        heuristic: Heuristic | None,
    ):
        """Networks at their start; all processes pass the same.

        Args:
            run: what is run.
            problem: its data.
            options: of the training, the run's own among them.
            seed: of the order of the data and of all draws.
            accelerator: of the precision that the options name.
            module: the relation module.
            selector: of the learned methods.
            heuristic: of the others.
        """
        self.run_, self.problem, self.options, self.seed = run, problem, options, seed
        self.accelerator, self.heuristic = accelerator, heuristic
        self.maker = TextMaker(options.inputs, problem.tokenizer)
        optimizer = torch.optim.AdamW(module.parameters(), lr=options.learning_rate, weight_decay=0.0, fused=True)
        self.module, self.optimizer = accelerator.prepare(module, optimizer)
        self.learns = run.method in LEARNED and run.method != "reic_frozen"
        self.selector = selector
        if selector is not None:
            slow = torch.optim.AdamW(
                selector.parameters(), lr=options.selector_learning_rate, weight_decay=options.selector_weight_decay
            )
            self.selector, self.selector_optimizer = accelerator.prepare(selector, slow)
        self.order = BatchOrder(len(problem.train), options.batch_size, seed)

    def run(self, state: Path) -> list[dict[str, float]]:
        """Train to the end, from the last saved state if there is one; returns the history.

        Its rows hold step, and means since the row before: loss, reward (margin or threshold, as the options say),
        recall of the gold evidence in what was shown, and while the selector learns its surprise (-log pi per pick, on
        average the policy's entropy) and its gradient's norm before clipping.
        """
        checkpointer = Checkpointer(state, self.accelerator, every=self.options.checkpoint_every)
        done, saved = checkpointer.restore()
        history: list[dict[str, float]] = saved.get("history", [])
        options, log = self.options, _Log(**saved.get("log", {}))
        schedule = named_schedule("linear", options.steps, warmup_fraction=options.warmup_fraction)
        slow_schedule = named_schedule(
            options.selector_schedule, options.steps,
            warmup_fraction=0.1 if options.selector_schedule == "linear" else 0.0,
        )  # fmt: skip
        self.module.train()
        with Progress(options.steps, self.run_.name, start=done, enabled=self.accelerator.is_main_process) as progress:
            for step, bags in self._batches(done):
                set_learning_rate(self.optimizer, schedule(step))
                if self.selector is not None:
                    set_learning_rate(self.selector_optimizer, slow_schedule(step))
                self.step(step, bags, log)
                if (step + 1) % options.log_every == 0 or step + 1 == options.steps:
                    history.append({"step": step + 1, **log.row()})
                    progress.update({"loss": history[-1]["loss"], "reward": history[-1]["reward"]})
                checkpointer.save_if_due(step + 1, {"history": history, "log": dataclasses.asdict(log)})
        return history

    def _batches(self, done: int) -> Iterator[tuple[int, list[tuple[int, list[PathText]]]]]:
        """Steps from ``done`` on, each with this process's bags and their numbers."""
        process = {
            "process_index": self.accelerator.process_index,
            "num_processes": self.accelerator.num_processes,
        }
        rows = [self.order.micro_batches(step, **process)[0].tolist() for step in range(done, self.options.steps)]
        loader = DataLoader(
            self.problem.train,
            batch_sampler=rows,
            num_workers=self.options.workers,
            collate_fn=list,
            generator=torch.Generator(),  # of its own: a draw from the global one would make a resumed run differ
        )
        for step, numbers, texts in zip(range(done, self.options.steps), rows, loader, strict=True):
            yield step, list(zip(numbers, texts, strict=True))

    def step(self, step: int, bags: Sequence[tuple[int, list[PathText]]], log: _Log) -> None:
        """One step of both optimizers."""
        options, outcomes = self.options, []
        learns = self.learns and step >= self._uniform_steps
        if self.selector is not None:
            self.selector.train(learns)

        def relation_loss(part: np.ndarray) -> tuple[Tensor, dict[str, Tensor]]:
            loss, outcome = self._relation_loss([bags[index] for index in part], step, log)
            outcomes.append(outcome)
            return loss, {}

        report = gradient_step(
            relation_loss,
            np.array_split(np.arange(len(bags)), options.accumulation),
            model=self.module,
            optimizer=self.optimizer,
            accelerator=self.accelerator,
            step=step,
            max_grad_norm=options.max_grad_norm,
        )
        log.add(loss=report.loss)
        if learns:

            def selector_loss(parts: list[_Outcome]) -> tuple[Tensor, dict[str, Tensor]]:
                losses = [
                    reinforce_loss(part.log_probs, part.rewards, baseline=options.baseline, weights=part.weights)
                    for part in parts
                ]
                return torch.stack(losses).sum() / len(losses), {}

            report = gradient_step(
                selector_loss,
                [outcomes],
                model=self.selector,
                optimizer=self.selector_optimizer,
                accelerator=self.accelerator,
                step=step,
                max_grad_norm=options.max_grad_norm,
            )
            log.add(selector_grad_norm=report.grad_norm)

    @property
    def _uniform_steps(self) -> int:
        return round(self.options.uniform_fraction * self.options.steps) if self.run_.method in LEARNED else 0

    def _relation_loss(
        self, bags: Sequence[tuple[int, list[PathText]]], step: int, log: _Log
    ) -> tuple[Tensor, _Outcome]:
        """Loss of a micro-batch, and what its selections earned."""
        options, device = self.options, self.accelerator.device
        key = (self.seed, step, self.accelerator.process_index)
        generator = generator_for(*key, bags[0][0], _PICK_STREAM)
        numbers = [number for number, _ in bags]
        groups = [self._subsample(number, texts, step) for number, texts in bags]
        shown, log_probs = self._show(groups, options.inputs.picks, generator, step)
        texts = [text for group in groups for text in group]
        path_labels = torch.tensor([text.path.label for text in texts])
        bag_labels = torch.tensor([max(self.problem.train.bags[number].labels, default=0) for number in numbers])
        bag_of = [index for index, group in enumerate(groups) for _ in group]
        batch = self.maker.batch([(head.ids, tail.ids) for head, tail in shown], bag_of).to(device)
        path_logits, bag_logits = self.module(batch)
        path_labels, bag_labels = path_labels.to(device), bag_labels.to(device)
        unwrapped = self.accelerator.unwrap_model(self.module)
        loss = unwrapped.loss(path_logits, bag_logits, path_labels, bag_labels)
        loss = loss + self._intra_loss(key)
        rewards = relation_reward(path_logits, path_labels, kind=options.reward, threshold=options.threshold)
        log.add(reward=rewards.tolist(), recall=_recalls(texts, shown))
        if log_probs is not None:
            log.add(surprise=(-log_probs.detach().mean()).item())
        if self.run_.method == "reic_shuffled":
            permutation = torch.randperm(len(rewards), generator=generator_for(*key, _SHUFFLE_STREAM))
            rewards = rewards[permutation.to(device)]
        weights = torch.where(path_labels > 0, options.positive_weight, 1.0)
        return loss, _Outcome(log_probs, rewards, weights)

    def _subsample(self, number: int, texts: list[PathText], step: int) -> list[PathText]:
        """At most `most_paths` of a bag's paths, those with its relation first among equals."""
        most = self.options.inputs.most_paths
        if len(texts) <= most:
            return texts
        order = torch.randperm(len(texts), generator=generator_for(self.seed, step, number, _SUBSAMPLE_STREAM))
        chosen = order[:most].tolist()
        positive = [index for index, text in enumerate(texts) if text.path.label]
        if positive and not set(positive) & set(chosen):  # else the bag's label would be wrong
            chosen[-1] = positive[int(order[0]) % len(positive)]
        return [texts[index] for index in sorted(chosen)]

    def _intra_loss(self, key: tuple[int, ...]) -> Tensor | float:
        """Loss of a group of intra-document examples, in a share of the steps that all processes agree on."""
        seed, step, process = key
        examples = self.problem.intra
        if not examples or not self.options.intra_document_share:
            return 0.0
        if torch.rand((), generator=generator_for(seed, step, _INTRA_STREAM)) >= self.options.intra_document_share:
            return 0.0
        generator = generator_for(seed, step, process, _INTRA_STREAM)
        rows = torch.randint(len(examples), (_INTRA_GROUP,), generator=generator).tolist()
        batch = self.maker.batch([examples[row][:2] for row in rows], list(range(len(rows))))
        labels = torch.tensor([examples[row][2] for row in rows]).to(self.accelerator.device)
        path_logits, _ = self.module(batch.to(self.accelerator.device))
        return self.accelerator.unwrap_model(self.module).path_loss(path_logits, labels)

    def _show(
        self,
        groups: Sequence[Sequence[PathText]],
        count: int,
        generator: torch.Generator,
        step: int | None,
    ) -> tuple[list[tuple[Shown, Shown]], Tensor | None]:
        """What is shown of every path, and log pi of the picks (P, 2 K) while the selector learns.

        Args:
            groups: texts of bags.
            count: K.
            generator: of the draws.
            step: of the training; None in evaluation.
        """
        if self.selector is None:
            return self.heuristic(groups, count, generator), None
        texts = [text for group in groups for text in group]
        documents = [document for text in texts for document in text.documents]
        target, sentences, lengths = pad_embeddings(self.problem.embed(documents), self.accelerator.device)
        log_probs = None
        if step is not None and step < self._uniform_steps:
            indices = uniform_picks(lengths.cpu(), count, generator)
        else:
            greedy = step is None and not self.options.sampled_evaluation
            exploration = self.options.exploration if step is not None or self.options.sampled_evaluation else 0.0
            with torch.set_grad_enabled(step is not None and self.learns):
                indices, log_probs = self.selector(
                    target, sentences, lengths, count, greedy=greedy, exploration=exploration,
                    generator=_on(self.accelerator.device, generator),
                )  # fmt: skip
            log_probs = log_probs.view(len(texts), -1)
        rows = iter(indices.tolist())
        shown = [
            tuple(
                self.maker.of_picks(document, next(rows), side, count) for side, document in enumerate(text.documents)
            )
            for text in texts
        ]
        return shown, log_probs

    @torch.no_grad()
    def evaluate(self, count: int | None = None) -> Evaluation:
        """Predictions on the dev bags with K picks per document, those of the training by default."""
        count = self.options.inputs.picks if count is None else count
        self.module.eval()
        if self.selector is not None:
            self.selector.train(self.options.sampled_evaluation)
        scores, best, shown = [], [], []
        for rows in chunks(np.arange(len(self.problem.dev)), _EVALUATION_BAGS):
            groups = [self.problem.dev[int(row)] for row in rows]
            generator = generator_for(self.seed, int(rows[0]), _EVALUATION_STREAM)
            found, _ = self._show(groups, count, generator, None)
            bag_of = [index for index, group in enumerate(groups) for _ in group]
            batch = self.maker.batch([(head.ids, tail.ids) for head, tail in found], bag_of)
            _, logits = self.module(batch.to(self.accelerator.device))
            scores.append(logits[:, 1:].float().cpu().numpy())
            best.append(logits.argmax(1).cpu().numpy())
            shown += found
        self.module.train()
        return Evaluation(np.concatenate(scores), np.concatenate(best), shown)


def _recalls(texts: Sequence[PathText], shown: Sequence[tuple[Shown, Shown]]) -> list[float]:
    """Evidence recall of every document that has evidence."""
    return [
        recall
        for text, sides in zip(texts, shown, strict=True)
        for document, side in zip(text.documents, sides, strict=True)
        if (recall := side.recall(document)) is not None
    ]


def _on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """The generator, or one on the device that starts from it."""
    if generator.device.type == device.type:
        return generator
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
