"""Time and peak memory of losses, forward and backward, measured against a plain KL loss.

The plain KL is what one writes without thinking: two log-softmaxes and ``torch.nn.functional.kl_div``, in the dtype of
the logits. All losses take turns within every round, in an order drawn anew each round: a loss pays for the state in
which the one before it leaves the heap. Times are meant for one thread: they add up over threads.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from torch.profiler import ProfilerActivity, profile

Loss = Callable[[Tensor, Tensor], Tensor]
"""Student's and teacher's logits (N, V) -> scalar."""


def plain_kl(student_logits: Tensor, teacher_logits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Mean KL(p‖q) over tokens, log-probabilities in ``dtype`` or that of the logits."""
    log_q, log_p = (log_softmax(logits, dim=-1, dtype=dtype) for logits in (student_logits, teacher_logits))
    return kl_div(log_q, log_p, log_target=True, reduction="sum") / student_logits[..., 0].numel()


def logits_pair(tokens: int, vocabulary: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Random logits of a student, which asks for its gradient, and of a teacher that it resembles: (N, V) each."""
    generator = torch.Generator().manual_seed(0)
    teacher = 3 * torch.randn(tokens, vocabulary, generator=generator)
    student = teacher + torch.randn(tokens, vocabulary, generator=generator)
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def seconds(loss: Loss, student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Processor time of one forward and backward pass, which other jobs on the machine disturb less than its length."""
    student_logits.grad = None
    start = time.process_time()
    loss(student_logits, teacher_logits).backward()
    return time.process_time() - start


def peak_bytes(loss: Loss, student_logits: Tensor, teacher_logits: Tensor) -> int:
    """Peak of the CPU allocator in a forward and backward pass, above what was allocated before.

    The gradient of the student's logits, one buffer of their size, is part of it.
    """
    student_logits.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        loss(student_logits, teacher_logits).backward()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


def compare(
    losses: Mapping[str, Loss], student_logits: Tensor, teacher_logits: Tensor, *, baseline: str, rounds: int
) -> pd.DataFrame:
    """Measure losses on one pair of logits, after a round that does not count.

    Returns:
        one row a loss: loss (its name), milliseconds (median over rounds), megabytes (peak), time_ratio (median of the
        ratios to the baseline within a round) and memory_ratio.
    """
    order = random.Random(0)
    times = []
    for _ in range(1 + rounds):
        turns = order.sample(list(losses), len(losses))
        times.append({name: seconds(losses[name], student_logits, teacher_logits) for name in turns})
    table = pd.DataFrame(times[1:], columns=list(losses))
    memory = pd.Series({name: peak_bytes(loss, student_logits, teacher_logits) for name, loss in losses.items()})
    measured = {
        "milliseconds": 1e3 * table.median(),
        "megabytes": memory / 1e6,
        "time_ratio": table.div(table[baseline], axis=0).median(),
        "memory_ratio": memory / memory[baseline],
    }
    return pd.DataFrame(measured).rename_axis("loss").reset_index()
