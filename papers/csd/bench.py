"""What all trainings of a job start from and share: data, teacher, initial student, and streams of random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from papers.csd.context_offset import token_levels
from papers.csd.options import DistillOptions
from papers.csd.response_buffer import Example
from papers.csd.runs import Run
from shared.data_order import chunks, generator_for
from shared.errors import InputError
from shared.lm.batches import PromptResponseBatch, left_padded, right_padded
from shared.lm.generation import response_rows, sample_responses
from shared.lm.log_probs import response_logits
from shared.lm.texts import answer_rows, load_causal_lm, load_tokenizer, prompt_rows

# Each kind of draw has a stream of random numbers of its own.
SOURCE_STREAM, RESPONSE_STREAM, BUFFER_STREAM, TEACHER_STREAM, EVALUATION_STREAM, PLAIN_STREAM = range(1, 7)


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
