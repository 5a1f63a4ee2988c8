"""Time and peak memory of the distillation objectives, forward and backward, against a plain KL loss.

    python -m tests.benchmarks.distillation_losses

The plain KL is what one writes without thinking: two log-softmaxes and ``torch.nn.functional.kl_div``, in the dtype of
the logits. In bfloat16 that rounds log-probabilities to three digits, so the same in float32 is listed beside it; the
objectives always compute in float32. All losses of a case take turns within every round, on one thread, in an order
drawn anew each round: a loss pays for the state in which the one before it leaves the heap.

Time is the median over rounds, its ratio the median of the ratio within a round. Memory is the peak of what the CPU
allocator handed out on top of the logits, the gradient of the student's logits included.

The plain loss can be several times slower from one case to the next: it allocates five buffers of the logits' size, and
whether malloc reuses them or maps fresh pages (always above 32 MiB) depends on the heap. The smallest ratio of time
counts for little, therefore; the ratio where the plain loss is fast is the strict one.
"""

import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints a line per start

import torch
import tyro
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from torch.profiler import ProfilerActivity, profile

from papers.csd.distillation_objectives import (
    DEFAULT_SKEW,
    concrete_score_loss,
    direct_logit_loss,
    token_divergence,
)

Loss = Callable[[Tensor, Tensor], Tensor]
BASELINE = "plain KL"


@dataclass(frozen=True)
class Options:
    """What to measure."""

    vocabularies: tuple[int, ...] = (32_000, 50_257, 128_000)
    elements: int = 2**22
    """Tokens per case times vocabulary."""
    rounds: int = 15
    threads: int = 1
    dtypes: tuple[str, ...] = ("float32", "bfloat16")


def plain_kl(student_logits: Tensor, teacher_logits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    log_q, log_p = (log_softmax(logits, dim=-1, dtype=dtype) for logits in (student_logits, teacher_logits))
    return kl_div(log_q, log_p, log_target=True, reduction="sum") / student_logits[..., 0].numel()


def losses(dtype: torch.dtype) -> dict[str, Loss]:
    """Name -> scalar loss of the student's and the teacher's logits."""
    table: dict[str, Callable[[Tensor, Tensor], Tensor]] = {BASELINE: plain_kl}
    if dtype != torch.float32:
        table["plain KL, in float32"] = partial(plain_kl, dtype=torch.float32)
    per_token = {
        f"concrete score ({first}, {second})": partial(concrete_score_loss, weighting=(first, second))
        for first, second in (
            ("student", "student"),
            ("uniform", "uniform"),
            ("uniform", "student"),
            ("teacher", "student"),
            ("mixture", "mixture"),
        )
    }
    per_token["direct logit (student)"] = direct_logit_loss
    per_token |= {kind: partial(token_divergence, kind=kind) for kind in DEFAULT_SKEW}
    return table | {name: lambda f, t, loss=loss: loss(f, t).mean() for name, loss in per_token.items()}


def logits_pair(tokens: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    teacher = 3 * torch.randn(tokens, vocabulary, generator=generator)
    student = teacher + torch.randn(tokens, vocabulary, generator=generator)
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def seconds(loss: Loss, student_logits: Tensor, teacher_logits: Tensor) -> float:
    student_logits.grad = None
    start = time.perf_counter()
    loss(student_logits, teacher_logits).backward()
    return time.perf_counter() - start


def peak_bytes(loss: Loss, student_logits: Tensor, teacher_logits: Tensor) -> int:
    """Peak of the CPU allocator during forward and backward, above what was allocated before."""
    student_logits.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        loss(student_logits, teacher_logits).backward()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


def measure(vocabulary: int, dtype: torch.dtype, options: Options) -> None:
    """Print one case: a row per loss."""
    student, teacher = logits_pair(max(1, options.elements // vocabulary), vocabulary, dtype)
    table = losses(dtype)
    order = random.Random(0)
    rounds = []
    for _ in range(1 + options.rounds):
        turns = order.sample(list(table), len(table))
        rounds.append({name: seconds(table[name], student, teacher) for name in turns})
    del rounds[0]  # warm-up
    memory = {name: peak_bytes(loss, student, teacher) for name, loss in table.items()}
    title = f"{str(dtype).removeprefix('torch.')}, {student.shape[0]} tokens x {vocabulary}"
    print(f"\n{title:<38}{'ms':>9}{'x plain':>9}{'MB':>9}{'x plain':>9}")
    for name in table:
        milliseconds = 1e3 * statistics.median(times[name] for times in rounds)
        slower = statistics.median(times[name] / times[BASELINE] for times in rounds)
        larger = memory[name] / memory[BASELINE]
        print(f"{name:<38}{milliseconds:>9.1f}{slower:>9.2f}{memory[name] / 1e6:>9.1f}{larger:>9.2f}", flush=True)


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    for name in options.dtypes:
        for vocabulary in options.vocabularies:
            measure(vocabulary, getattr(torch, name), options)


if __name__ == "__main__":
    main(tyro.cli(Options))
