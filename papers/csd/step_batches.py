"""What a student learns on in each step: the data set's responses, or its own, and plain text beside these."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from papers.csd.bench import BUFFER_STREAM, PLAIN_STREAM, RESPONSE_STREAM, SOURCE_STREAM, Bench
from papers.csd.context_offset import context_offsets
from papers.csd.response_buffer import Example, ResponseBuffer
from papers.csd.runs import LIKELIHOODS, Run
from papers.csd.student_share import AdaptiveShare, Source, choose_source
from shared.data_order import BatchOrder, chunks, generator_for
from shared.lm.batches import PromptResponseBatch, left_padded
from shared.lm.generation import evaluation_mode, response_rows, sample_responses
from shared.lm.supervised import supervised_loss, target_count

LOG_EVERY = 10


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
