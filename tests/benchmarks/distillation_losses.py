"""Time and peak memory of the distillation objectives, forward and backward, against a plain KL loss.

    python -m tests.benchmarks.distillation_losses

The plain KL is what one writes without thinking: two log-softmaxes and ``torch.nn.functional.kl_div``, in the dtype of
the logits. In bfloat16 that rounds log-probabilities to three digits, so the same in float32 is listed beside it; the
objectives always compute in float32. The measurement is that of papers/csd/loss_cost.py, on one thread by default.

Time is the median over rounds, its ratio the median of the ratio within a round. Memory is the peak of what the CPU
allocator handed out on top of the logits, the gradient of the student's logits included.

The plain loss can be several times slower from one case to the next: it allocates five buffers of the logits' size, and
whether malloc reuses them or maps fresh pages (always above 32 MiB) depends on the heap. The smallest ratio of time
counts for little, therefore; the ratio where the plain loss is fast is the strict one.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints a line per start

import torch
import tyro
from torch import Tensor

from papers.csd.distillation_objectives import (
    DEFAULT_SKEW,
    concrete_score_loss,
    direct_logit_loss,
    token_divergence,
)
from papers.csd.loss_cost import Loss, compare, logits_pair, plain_kl

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


def measure(vocabulary: int, dtype: torch.dtype, options: Options) -> None:
    """Print one case: a row per loss."""
    student, teacher = logits_pair(max(1, options.elements // vocabulary), vocabulary, dtype)
    table = compare(losses(dtype), student, teacher, baseline=BASELINE, rounds=options.rounds)
    title = f"{str(dtype).removeprefix('torch.')}, {student.shape[0]} tokens x {vocabulary}"
    print(f"\n{title:<38}{'ms':>9}{'x plain':>9}{'MB':>9}{'x plain':>9}")
    for row in table.itertuples():
        print(
            f"{row.loss:<38}{row.milliseconds:>9.1f}{row.time_ratio:>9.2f}{row.megabytes:>9.1f}{row.memory_ratio:>9.2f}",
            flush=True,
        )


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    for name in options.dtypes:
        for vocabulary in options.vocabularies:
            measure(vocabulary, getattr(torch, name), options)


if __name__ == "__main__":
    main(tyro.cli(Options))
