"""Distillation of one student, and what is measured of it: the recipe that the stages ``tune`` and ``distill`` share.

All runs of a training seed share the teacher, the initial student, the prompts of every step and, in evaluation, the
random numbers of sampling. So runs differ in their loss, its learning rate and their setting alone. Runs on the
student's own responses add a next-token loss on plain text, as in the paper.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import NoRepeatNGramLogitsProcessor

from papers.csd.bench import EVALUATION_STREAM, Bench, initial_student
from papers.csd.distillation_objectives import token_divergence
from papers.csd.methods import TokenLoss, logit_loss
from papers.csd.runs import LIKELIHOODS, Run
from papers.csd.step_batches import LOG_EVERY, DistillationBatch, StepBatches
from shared.checkpoints import Checkpointer
from shared.data_order import BatchOrder, chunks, generator_for
from shared.errors import InputError
from shared.lm.batches import append_responses, left_padded
from shared.lm.generation import evaluation_mode, response_rows, sample_responses
from shared.lm.log_probs import response_log_probs, response_logits
from shared.lm.supervised import supervised_loss
from shared.lm.texts import answer_rows, decode_rows, prompt_rows
from shared.schedules import named_schedule
from shared.training import adamw, train


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
