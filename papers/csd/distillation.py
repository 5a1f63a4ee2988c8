"""Distillation of one student, and what is measured of it: the recipe that the stages ``tune`` and ``distill`` share.

All runs of a training seed share the teacher, the initial student, the prompts of every step and, in evaluation, the
random numbers of sampling. So runs differ in their loss, its learning rate and their setting alone. Runs on the
student's own responses add a next-token loss on plain text, as in the paper.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

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
from papers.csd.student_share import AdaptiveShare, Source, choose_source
from shared.checkpoints import Checkpointer
from shared.data_order import BatchOrder, chunks, generator_for
from shared.errors import InputError
from shared.lm.batches import PromptResponseBatch, append_responses, left_padded, right_padded
from shared.lm.generation import evaluation_mode, response_rows, sample_responses
from shared.lm.log_probs import response_log_probs, response_logits
from shared.lm.supervised import supervised_loss, target_count
from shared.lm.texts import answer_rows, decode_rows, load_causal_lm, load_tokenizer, prompt_rows
from shared.schedules import named_schedule
from shared.training import adamw, train

LOG_EVERY = 10
# Streams of random numbers: each kind of draw has its own.
SOURCE_STREAM, RESPONSE_STREAM, BUFFER_STREAM, TEACHER_STREAM, EVALUATION_STREAM, PLAIN_STREAM = range(1, 7)


@dataclass(frozen=True)
class DistillationBatch:
    """One micro-batch of a step, its N response tokens in the order of the batch's rows."""

    tokens: PromptResponseBatch
    teacher_logits: Tensor | None
    """(N, V), None where nothing reads them."""
    plain: PromptResponseBatch | None
    """Plain text, where it is learned from too."""
    student_share: float
    """Share of the steps that learn on the student's own responses, as of this step."""
    is_logged: bool
    """Whether this step's divergences are recorded."""


class Trained(NamedTuple):
    """A student after its training; without one there are no records and no costs."""

    student: nn.Module
    records: list[dict[str, float]]
    """step, loss, grad_norm, learning_rate, and of the step's batch student_share (of steps on own responses) and the
    divergences kl_forward and kl_reverse between teacher and student, in nats per token."""
    seconds: float | None
    """Of the training, since it was last resumed."""
    tokens_written: int | None
    """Tokens that the student sampled during training."""


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
    validation: list[Example]
    """Prompts with a reference response: what an adaptive share of own responses is steered by."""
    texts: list[list[int]]
    """Plain text, two tokens or more each."""

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
        for chunk, indices in enumerate(chunks(np.arange(len(self.prompts)), self.options.evaluation_batch)):
            prompts = left_padded([self.prompts[index] for index in indices], pad_id=self.token_ids["pad_id"])
            generator = generator_for(self.seed, TEACHER_STREAM, chunk, device=self.device)
            responses = sample_responses(
                self.teacher, prompts.to(self.device), self.options.sampling, **self.token_ids, generator=generator
            )
            rows += response_rows(*responses)
        return rows

    @cached_property
    def cached_logits(self) -> list[Tensor]:
        """The teacher's logits on the distillation set: for each example (T, V), T the tokens of its response."""
        kept = []
        for indices in chunks(np.arange(len(self.prompts)), self.options.evaluation_batch):
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
    options: DistillOptions,
    seed: int,
    teacher: Path,
    student: Path,
    examples: pd.DataFrame,
    device: torch.device,
    *,
    validation: pd.DataFrame | None = None,
    texts: Sequence[str] = (),
) -> Bench:
    """Load what the runs share onto a device.

    Args:
        examples: columns prompt, answer.
        validation: columns prompt, references; needed for runs whose share of own responses adapts.
        texts: plain text; needed for runs on own responses, if it has a weight.

    Raises:
        InputError: teacher and student do not share their vocabulary.
    """
    if validation is None:
        validation = pd.DataFrame({"prompt": [], "references": []})
    tokenizer = load_tokenizer(teacher)
    for source in {str(student), options.pretrained_student} - {None}:
        if load_tokenizer(source).get_vocab() != tokenizer.get_vocab():
            raise InputError(f"{source}: the student's vocabulary is not that of the teacher {teacher}")
    frozen = load_causal_lm(teacher, dtype=getattr(torch, options.teacher_weights))
    references = [listed[0] for listed in validation["references"]]
    longest = options.max_prompt_tokens + options.max_answer_tokens
    return Bench(
        options=options,
        seed=seed,
        tokenizer=tokenizer,
        teacher=frozen.to(device).eval().requires_grad_(False),
        student=student,
        prompts=prompt_rows(tokenizer, examples["prompt"].tolist(), max_tokens=options.max_prompt_tokens),
        answers=answer_rows(tokenizer, examples["answer"].tolist(), max_tokens=options.max_answer_tokens),
        validation=list(
            zip(
                prompt_rows(tokenizer, validation["prompt"].tolist(), max_tokens=options.max_prompt_tokens),
                answer_rows(tokenizer, references, max_tokens=options.max_answer_tokens),
                strict=True,
            )
        ),
        texts=[row for row in answer_rows(tokenizer, texts, max_tokens=longest) if len(row) > 1],
    )


def initial_student(bench: Bench, planned: Run) -> nn.Module:
    """The student that a run starts from."""
    pretrained = bench.options.pretrained_student
    return load_causal_lm(bench.student if pretrained is None or planned.is_on_policy else pretrained)


def train_student(bench: Bench, planned: Run, learning_rate: float, state: Path) -> Trained:
    """Distil one student; continues from the state of an interrupted training, to the same result.

    Raises:
        InputError: the run needs validation examples or plain text, and the bench has none.
    """
    options = bench.options
    if planned.student_fraction is None and not bench.validation:
        raise InputError(f"run {str(planned)!r}: its share of own responses adapts to validation examples; none given")
    if planned.is_on_policy and options.plain_text_weight and not bench.texts:
        raise InputError(f"run {str(planned)!r}: plain text has a weight of {options.plain_text_weight:g}; none given")
    accelerator = Accelerator(mixed_precision=options.mixed_precision)
    order = BatchOrder(len(bench.prompts), options.batch_size, bench.seed)
    steps = max(1, round(options.epochs * order.steps_per_epoch))
    student = initial_student(bench, planned)
    optimizer = adamw(student, learning_rate, weight_decay=options.weight_decay)
    student, optimizer = accelerator.prepare(student, optimizer)
    batches = StepBatches(bench, planned, order, steps, student, accelerator)
    accelerator.register_for_checkpointing(batches.buffer, batches.share)
    loss = None if planned.method in LIKELIHOODS else token_loss_of(bench, planned)
    started = time.perf_counter()
    records = train(
        lambda batch: step_loss(student, batch, loss, bench.vocabulary_size, options.plain_text_weight),
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
    seconds = time.perf_counter() - started
    return Trained(accelerator.unwrap_model(student), records, seconds, batches.buffer.tokens_written)


def token_loss_of(bench: Bench, planned: Run) -> TokenLoss:
    return logit_loss(planned.method, teacher_fraction=bench.options.teacher_fraction)


def step_loss(
    student: nn.Module,
    batch: DistillationBatch,
    loss: TokenLoss | None,
    vocabulary_size: int,
    plain_text_weight: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean loss over the response tokens of a batch; without ``loss`` the cross-entropy on its responses.

    Plain text, where the batch has some, adds its mean next-token loss times ``plain_text_weight``.

    Returns:
        the loss, and where the step is logged the share of own responses and both divergences, in nats per token.
    """
    logits, targets, mask = response_logits(student, batch.tokens)
    selected = logits[mask][:, :vocabulary_size]
    if loss is None:
        value = nn.functional.cross_entropy(selected.float(), targets[mask])
    else:
        value = loss(selected, batch.teacher_logits).mean()
    if batch.plain is not None:
        value = value + plain_text_weight * supervised_loss(student, batch.plain)
    if not batch.is_logged:
        return value, {}
    with torch.no_grad():
        return value, {"student_share": value.new_tensor(batch.student_share)} | {
            f"kl_{direction}": token_divergence(selected, batch.teacher_logits, f"{direction}_kl").mean()
            for direction in ("forward", "reverse")
        }


class StepBatches:
    """The micro-batches of a step: from the data set, or from the buffer of the student's own responses.

    Every process holds the same buffer and the same share of own responses. A step's draws are functions of the seed
    and the step.
    """

    def __init__(
        self, bench: Bench, planned: Run, order: BatchOrder, steps: int, student: nn.Module, accelerator: Accelerator
    ) -> None:
        self.buffer = ResponseBuffer(bench.options.buffer_sequences)
        self.share = AdaptiveShare(bench.options.share_margin)
        self._bench, self._planned, self._order, self._steps = bench, planned, order, steps
        self._student, self._accelerator = student, accelerator
        # Taken before the training starts, so that what runs share is no part of the time of the first.
        self._answers = bench.teacher_answers if planned.method == "seqkd" else bench.answers
        uses_cache = bench.options.cache_teacher and self._answers is bench.answers and planned.student_fraction != 1.0
        self._cached_logits = bench.cached_logits if uses_cache else None

    def __call__(self, step: int) -> list[DistillationBatch]:
        bench, accelerator = self._bench, self._accelerator
        source = self._source(step)
        if source == "data":
            rows = self._order.indices(step)
            examples = [(bench.prompts[row], self._answers[row]) for row in rows]
            cached = None if self._cached_logits is None else [self._cached_logits[row] for row in rows]
        else:
            if source == "fresh":
                self._write_responses(step)
            rng = np.random.default_rng([bench.seed, step, BUFFER_STREAM])
            examples, cached = self.buffer.draw(self._order.batch_size, rng), None
        mine = np.arange(len(examples))[accelerator.process_index :: accelerator.num_processes]
        parts = np.array_split(mine, bench.options.accumulation)
        return [self._batch(step, examples, cached, part) for part in parts]

    def _source(self, step: int) -> Source:
        """Where the step's examples come from; a share that adapts is looked at anew after every epoch."""
        draw = np.random.default_rng([self._bench.seed, step, SOURCE_STREAM]).random()
        fraction = self._planned.student_fraction
        if fraction is None:
            if step % self._order.steps_per_epoch == 0:
                self.share.observe(self._validation_loss())
            return choose_source(
                draw, self.share.value, progress=step / self._steps, buffer_is_full=self.buffer.is_full
            )
        if draw >= fraction:
            return "data"
        return "replay" if step % self._bench.options.generate_every and len(self.buffer) else "fresh"

    def _validation_loss(self) -> float:
        """Negative log-likelihood of the validation responses under the student, in nats per token."""
        bench, accelerator = self._bench, self._accelerator
        sums = torch.zeros(2, dtype=torch.float64, device=bench.device)
        mine = np.arange(len(bench.validation))[accelerator.process_index :: accelerator.num_processes]
        student = accelerator.unwrap_model(self._student)
        with evaluation_mode(student):
            for indices in chunks(mine, bench.options.evaluation_batch):
                batch = bench.batch([bench.validation[index] for index in indices])
                count = target_count(batch)
                sums += torch.tensor([supervised_loss(student, batch).item() * count, count]).to(sums)
        total, count = (accelerator.reduce(sums, "sum") if accelerator.num_processes > 1 else sums).tolist()
        return total / count

    def _write_responses(self, step: int) -> None:
        """The student answers the step's prompts, into the buffer."""
        bench = self._bench
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
        examples = list(zip(mine, response_rows(*responses), strict=True))
        self.buffer.push(gather_object(examples) if processes > 1 else examples)

    def _plain_text(self, step: int, part: np.ndarray) -> PromptResponseBatch | None:
        """As many plain texts as the part has examples, drawn anew in every step; None where they are not learned."""
        bench = self._bench
        if not (self._planned.is_on_policy and bench.options.plain_text_weight):
            return None
        drawn = np.random.default_rng([bench.seed, step, PLAIN_STREAM]).integers(
            len(bench.texts), size=self._order.batch_size
        )
        # Nothing precedes the first token, so it takes the place of a prompt.
        return bench.batch([(bench.texts[row][:1], bench.texts[row][1:]) for row in drawn[part]])

    def _batch(
        self, step: int, examples: list[Example], cached: list[Tensor] | None, part: np.ndarray
    ) -> DistillationBatch:
        bench, planned = self._bench, self._planned
        batch = bench.batch([examples[index] for index in part])
        is_logged = step == 0 or (step + 1) % LOG_EVERY == 0 or step + 1 == self._steps
        logits = None
        if planned.method not in LIKELIHOODS or is_logged:
            logits = bench.run_teacher(batch) if cached is None else torch.cat([cached[index] for index in part])
        if logits is not None and planned.offset:
            offsets = context_offsets(batch, bench.levels, planned.offset)
            logits = logits + offsets[batch.response_mask[:, batch.response_start :]].unsqueeze(-1)
        share = self.share.value if planned.student_fraction is None else planned.student_fraction
        return DistillationBatch(batch, logits, self._plain_text(step, part), share, is_logged)


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
        for chunk, indices in enumerate(chunks(np.arange(len(rows))[process::processes], options.evaluation_batch)):
            generator = generator_for(bench.seed, EVALUATION_STREAM, sampling_seed, process, chunk, device=bench.device)
            asked = left_padded([rows[index] for index in indices], pad_id=bench.token_ids["pad_id"]).to(bench.device)
            responses, mask = sample_responses(
                model, asked, options.sampling, **bench.token_ids, generator=generator, processors=processors
            )
            with torch.no_grad():
                log_probs = response_log_probs(bench.teacher, append_responses(asked, responses, mask))
            answers = response_rows(responses, mask)
            lengths = np.array([len(answer) for answer in answers])
            parts.append(
                prompts.iloc[indices][["suite", "prompt_id"]].assign(
                    sampling_seed=sampling_seed,
                    response=decode_rows(bench.tokenizer, answers),
                    finished=[answer[-1] == bench.token_ids["eos_id"] for answer in answers],
                    tokens=lengths,
                    teacher_nll=(-log_probs.double().cpu().numpy() / lengths).astype(np.float32),
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
        for indices in chunks(mine, options.evaluation_batch):
            batch = bench.batch([(asked[index], answers[index]) for index in indices])
            logits, targets, mask = response_logits(model, batch)
            student, teacher = logits[mask][:, : bench.vocabulary_size], bench.run_teacher(batch)
            values = {f"kl_{name}": token_divergence(student, teacher, f"{name}_kl") for name in ("forward", "reverse")}
            values["reference_nll"] = nn.functional.cross_entropy(student.float(), targets[mask], reduction="none")
            lengths = batch.response_lengths.tolist()
            parts.append(
                prompts.iloc[indices][["suite", "prompt_id"]].assign(
                    **{
                        name: torch.stack([tokens.mean() for tokens in value.float().split(lengths)]).cpu().numpy()
                        for name, value in values.items()
                    }
                )
            )
    return _gathered(parts, ["suite", "prompt_id"], accelerator)


def _gathered(parts: list[pd.DataFrame], key: list[str], accelerator: Accelerator) -> pd.DataFrame:
    gathered = gather_object(parts) if accelerator.num_processes > 1 else parts
    return pd.concat(gathered).sort_values(key, ignore_index=True)
