"""Distillation of one student, and what is measured of it: the recipe that the stages ``tune`` and ``distill`` share.

All runs of a training seed share the teacher, the initial student, the prompts of every step and, in evaluation, the
random numbers of sampling. So runs differ in their loss, its learning rate and their setting alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import NoRepeatNGramLogitsProcessor, PreTrainedTokenizerBase

from papers.csd.context_offset import context_offsets, token_levels
from papers.csd.distillation_objectives import token_divergence
from papers.csd.methods import TokenLoss, logit_loss
from papers.csd.options import DistillOptions
from papers.csd.response_buffer import Example, ResponseBuffer
from papers.csd.runs import LIKELIHOODS, Run
from shared.checkpoints import Checkpointer
from shared.data_order import BatchOrder, generator_for
from shared.errors import InputError
from shared.lm.batches import PromptResponseBatch, append_responses, left_padded, right_padded
from shared.lm.generation import evaluation_mode, sample_responses
from shared.lm.log_probs import response_log_probs, response_logits
from shared.lm.texts import answer_rows, decode_rows, load_causal_lm, load_tokenizer, prompt_rows
from shared.schedules import named_schedule
from shared.training import adamw, train

LOG_EVERY = 10
# Streams of random numbers: each kind of draw has its own.
SOURCE_STREAM, RESPONSE_STREAM, BUFFER_STREAM, TEACHER_STREAM, EVALUATION_STREAM = range(1, 6)


@dataclass(frozen=True)
class DistillationBatch:
    """One micro-batch of a step, its N response tokens in the order of the batch's rows."""

    tokens: PromptResponseBatch
    teacher_logits: Tensor | None
    """(N, V), None where nothing reads them."""
    is_logged: bool
    """Whether this step's divergences are recorded."""


@dataclass(frozen=True)
class Bench:
    """What all runs of a job start from and share; the teacher is frozen."""

    options: DistillOptions
    seed: int
    tokenizer: PreTrainedTokenizerBase
    teacher: nn.Module
    student: Path
    """Folder of the initial student."""
    prompts: list[list[int]]
    """Of the distillation set, as token ids."""
    answers: list[list[int]]

    @property
    def vocabulary_size(self) -> int:
        """V of the tokenizer; rows of an output layer beyond it are padding of the model and cut off."""
        return len(self.tokenizer)

    @property
    def device(self) -> torch.device:
        return next(self.teacher.parameters()).device

    @property
    def token_ids(self) -> dict[str, int]:
        return {"eos_id": self.tokenizer.eos_token_id, "pad_id": self.tokenizer.pad_token_id}

    @cached_property
    def levels(self) -> Tensor:
        return token_levels(self.vocabulary_size).to(self.device)

    @cached_property
    def teacher_answers(self) -> list[list[int]]:
        """One response of the teacher to each prompt of the distillation set; every process samples all of them."""
        rows = []
        for chunk, indices in enumerate(_chunks(np.arange(len(self.prompts)), self.options.evaluation_batch)):
            prompts = left_padded([self.prompts[index] for index in indices], pad_id=self.token_ids["pad_id"])
            generator = generator_for(self.seed, TEACHER_STREAM, chunk, device=self.device)
            responses = sample_responses(
                self.teacher, prompts.to(self.device), self.options.sampling, **self.token_ids, generator=generator
            )
            rows += _rows(*responses)
        return rows

    @cached_property
    def cached_logits(self) -> list[Tensor]:
        """The teacher's logits on the distillation set: for each example (T, V), T the tokens of its response."""
        kept = []
        for indices in _chunks(np.arange(len(self.prompts)), self.options.evaluation_batch):
            batch = self.batch([(self.prompts[index], self.answers[index]) for index in indices])
            kept += self.run_teacher(batch).split(batch.response_lengths.tolist())
        return kept

    def batch(self, examples: Sequence[Example]) -> PromptResponseBatch:
        prompts, answers = zip(*examples, strict=True)
        return right_padded(prompts, answers, pad_id=self.token_ids["pad_id"]).to(self.device)

    def run_teacher(self, batch: PromptResponseBatch) -> Tensor:
        """The teacher's logits at the response tokens of a batch: (N, V)."""
        with torch.no_grad():
            logits, _, mask = response_logits(self.teacher, batch)
            return logits[mask][:, : self.vocabulary_size]


def open_bench(
    options: DistillOptions, seed: int, teacher: Path, student: Path, examples: pd.DataFrame, device: torch.device
) -> Bench:
    """Load what the runs share onto a device.

    Raises:
        InputError: teacher and student do not share their vocabulary.
    """
    tokenizer = load_tokenizer(teacher)
    for source in {str(student), options.pretrained_student} - {None}:
        if load_tokenizer(source).get_vocab() != tokenizer.get_vocab():
            raise InputError(f"{source}: the student's vocabulary is not that of the teacher {teacher}")
    frozen = load_causal_lm(teacher, dtype=getattr(torch, options.teacher_weights))
    return Bench(
        options=options,
        seed=seed,
        tokenizer=tokenizer,
        teacher=frozen.to(device).eval().requires_grad_(False),
        student=student,
        prompts=prompt_rows(tokenizer, examples["prompt"].tolist(), max_tokens=options.max_prompt_tokens),
        answers=answer_rows(tokenizer, examples["answer"].tolist(), max_tokens=options.max_answer_tokens),
    )


def initial_student(bench: Bench, planned: Run) -> nn.Module:
    """The student that a run starts from."""
    pretrained = bench.options.pretrained_student
    return load_causal_lm(bench.student if pretrained is None or planned.student_fraction else pretrained)


def train_student(
    bench: Bench, planned: Run, learning_rate: float, state: Path
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Distil one student; continues from the state of an interrupted training, to the same result.

    Returns:
        the student, and the records of its training: step, loss, grad_norm, learning_rate, and the divergences
        kl_forward and kl_reverse between teacher and student on the step's batch, in nats per token.
    """
    options = bench.options
    accelerator = Accelerator(mixed_precision=options.mixed_precision)
    order = BatchOrder(len(bench.prompts), options.batch_size, bench.seed)
    steps = max(1, round(options.epochs * order.steps_per_epoch))
    student = initial_student(bench, planned)
    optimizer = adamw(student, learning_rate, weight_decay=options.weight_decay)
    student, optimizer = accelerator.prepare(student, optimizer)
    batches = StepBatches(bench, planned, order, steps, student, accelerator)
    accelerator.register_for_checkpointing(batches.buffer)
    loss = None if planned.method in LIKELIHOODS else token_loss_of(bench, planned)
    records = train(
        lambda batch: step_loss(student, batch, loss, bench.vocabulary_size),
        model=student,
        optimizer=optimizer,
        schedule=named_schedule(options.schedule, steps, warmup_fraction=options.warmup_fraction),
        batches=batches,
        steps=steps,
        accelerator=accelerator,
        weight_of=lambda batch: float(batch.tokens.response_mask.sum()),
        max_grad_norm=options.max_grad_norm,
        checkpointer=Checkpointer(state, accelerator, every=options.checkpoint_every),
        log_every=LOG_EVERY,
        description=f"{planned} at {learning_rate:g}",
    )
    return accelerator.unwrap_model(student), records


def token_loss_of(bench: Bench, planned: Run) -> TokenLoss:
    return logit_loss(planned.method, teacher_fraction=bench.options.teacher_fraction)


def step_loss(
    student: nn.Module, batch: DistillationBatch, loss: TokenLoss | None, vocabulary_size: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean loss over the response tokens of a batch; without ``loss`` the cross-entropy on its responses.

    Returns:
        the loss, and where the step is logged both divergences, in nats per token.
    """
    logits, targets, mask = response_logits(student, batch.tokens)
    selected = logits[mask][:, :vocabulary_size]
    if loss is None:
        value = nn.functional.cross_entropy(selected.float(), targets[mask])
    else:
        value = loss(selected, batch.teacher_logits).mean()
    if not batch.is_logged:
        return value, {}
    with torch.no_grad():
        return value, {
            f"kl_{direction}": token_divergence(selected, batch.teacher_logits, f"{direction}_kl").mean()
            for direction in ("forward", "reverse")
        }


class StepBatches:
    """The micro-batches of a step: from the data set, or from the buffer of the student's own responses.

    Every process holds the same buffer. A step's draws are functions of the seed and the step.
    """

    def __init__(
        self, bench: Bench, planned: Run, order: BatchOrder, steps: int, student: nn.Module, accelerator: Accelerator
    ) -> None:
        self.buffer = ResponseBuffer(bench.options.buffer_sequences)
        self._bench, self._planned, self._order, self._steps = bench, planned, order, steps
        self._student, self._accelerator = student, accelerator

    def __call__(self, step: int) -> list[DistillationBatch]:
        bench, accelerator = self._bench, self._accelerator
        source = np.random.default_rng([bench.seed, step, SOURCE_STREAM])
        is_on_policy = source.random() < self._planned.student_fraction
        if is_on_policy:
            examples, cached = self._own_examples(step), None
        else:
            rows = self._order.indices(step)
            answers = bench.teacher_answers if self._planned.method == "seqkd" else bench.answers
            examples = [(bench.prompts[row], answers[row]) for row in rows]
            is_cached = bench.options.cache_teacher and answers is bench.answers
            cached = [bench.cached_logits[row] for row in rows] if is_cached else None
        mine = np.arange(len(examples))[accelerator.process_index :: accelerator.num_processes]
        parts = np.array_split(mine, bench.options.accumulation)
        return [self._batch(step, examples, cached, part) for part in parts]

    def _own_examples(self, step: int) -> list[Example]:
        """Every ``generate_every`` steps, and first of all, the student answers the step's prompts anew."""
        bench = self._bench
        if step % bench.options.generate_every == 0 or not len(self.buffer):
            process, processes = self._accelerator.process_index, self._accelerator.num_processes
            mine = [bench.prompts[row] for row in self._order.indices(step)[process::processes]]
            generator = generator_for(bench.seed, step, RESPONSE_STREAM, process, device=bench.device)
            responses = sample_responses(
                self._accelerator.unwrap_model(self._student),
                left_padded(mine, pad_id=bench.token_ids["pad_id"]).to(bench.device),
                bench.options.sampling,
                **bench.token_ids,
                generator=generator,
            )
            examples = list(zip(mine, _rows(*responses), strict=True))
            self.buffer.push(gather_object(examples) if processes > 1 else examples)
        return self.buffer.draw(self._order.batch_size, np.random.default_rng([bench.seed, step, BUFFER_STREAM]))

    def _batch(
        self, step: int, examples: list[Example], cached: list[Tensor] | None, part: np.ndarray
    ) -> DistillationBatch:
        bench, planned = self._bench, self._planned
        batch = bench.batch([examples[index] for index in part])
        is_logged = step == 0 or (step + 1) % LOG_EVERY == 0 or step + 1 == self._steps
        if planned.method in LIKELIHOODS and not is_logged:
            return DistillationBatch(batch, None, is_logged)
        logits = bench.run_teacher(batch) if cached is None else torch.cat([cached[index] for index in part])
        if planned.offset:
            offsets = context_offsets(batch, bench.levels, planned.offset)
            logits = logits + offsets[batch.response_mask[:, batch.response_start :]].unsqueeze(-1)
        return DistillationBatch(batch, logits, is_logged)


def sample_suites(bench: Bench, model: nn.Module, prompts: pd.DataFrame, accelerator: Accelerator) -> pd.DataFrame:
    """One response of a model to each prompt for every sampling seed.

    Args:
        prompts: columns suite, prompt_id, prompt.

    Returns:
        columns suite, prompt_id, sampling_seed, response, finished (whether EOS was sampled), tokens (EOS included),
        teacher_nll (nats per token, under the teacher).
    """
    options = bench.options
    rows = prompt_rows(bench.tokenizer, prompts["prompt"].tolist(), max_tokens=options.max_prompt_tokens)
    processors = [NoRepeatNGramLogitsProcessor(options.no_repeat_ngram)] if options.no_repeat_ngram else []
    process, processes = accelerator.process_index, accelerator.num_processes
    parts = []
    for sampling_seed in options.sampling_seeds:
        for chunk, indices in enumerate(_chunks(np.arange(len(rows))[process::processes], options.evaluation_batch)):
            generator = generator_for(bench.seed, EVALUATION_STREAM, sampling_seed, process, chunk, device=bench.device)
            asked = left_padded([rows[index] for index in indices], pad_id=bench.token_ids["pad_id"]).to(bench.device)
            responses, mask = sample_responses(
                model, asked, options.sampling, **bench.token_ids, generator=generator, processors=processors
            )
            with torch.no_grad():
                log_probs = response_log_probs(bench.teacher, append_responses(asked, responses, mask))
            answers = _rows(responses, mask)
            lengths = np.array([len(answer) for answer in answers])
            parts.append(
                prompts.iloc[indices][["suite", "prompt_id"]].assign(
                    sampling_seed=sampling_seed,
                    response=decode_rows(bench.tokenizer, answers),
                    finished=[answer[-1] == bench.token_ids["eos_id"] for answer in answers],
                    tokens=lengths,
                    teacher_nll=-log_probs.double().cpu().numpy() / lengths,
                )
            )
    return _gathered(parts, ["suite", "prompt_id", "sampling_seed"], accelerator)


def measure_fidelity(bench: Bench, model: nn.Module, prompts: pd.DataFrame, accelerator: Accelerator) -> pd.DataFrame:
    """Divergences between teacher and student along the first reference response to each prompt.

    Args:
        prompts: columns suite, prompt_id, prompt, references.

    Returns:
        columns suite, prompt_id, kl_forward (teacher ‖ student) and kl_reverse, nats per token, and reference_nll, the
        student's negative log-likelihood of the reference in nats per token.
    """
    options = bench.options
    asked = prompt_rows(bench.tokenizer, prompts["prompt"].tolist(), max_tokens=options.max_prompt_tokens)
    references = [texts[0] for texts in prompts["references"]]
    answers = answer_rows(bench.tokenizer, references, max_tokens=options.max_answer_tokens)
    mine = np.arange(len(asked))[accelerator.process_index :: accelerator.num_processes]
    parts = []
    with evaluation_mode(model):
        for indices in _chunks(mine, options.evaluation_batch):
            batch = bench.batch([(asked[index], answers[index]) for index in indices])
            logits, targets, mask = response_logits(model, batch)
            student, teacher = logits[mask][:, : bench.vocabulary_size], bench.run_teacher(batch)
            values = {f"kl_{name}": token_divergence(student, teacher, f"{name}_kl") for name in ("forward", "reverse")}
            values["reference_nll"] = nn.functional.cross_entropy(student.float(), targets[mask], reduction="none")
            lengths = batch.response_lengths.tolist()
            parts.append(
                prompts.iloc[indices][["suite", "prompt_id"]].assign(
                    **{
                        name: [tokens.mean().item() for tokens in value.double().split(lengths)]
                        for name, value in values.items()
                    }
                )
            )
    return _gathered(parts, ["suite", "prompt_id"], accelerator)


def _gathered(parts: list[pd.DataFrame], key: list[str], accelerator: Accelerator) -> pd.DataFrame:
    gathered = gather_object(parts) if accelerator.num_processes > 1 else parts
    return pd.concat(gathered).sort_values(key, ignore_index=True)


def _rows(responses: Tensor, mask: Tensor) -> list[list[int]]:
    lengths = mask.sum(dim=1).tolist()
    return [row[:length] for row, length in zip(responses.tolist(), lengths, strict=True)]


def _chunks(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (indices[start : start + size] for start in range(0, len(indices), size))
