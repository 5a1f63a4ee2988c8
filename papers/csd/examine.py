"""Examine: what the losses see of a teacher, at the initial student, before any distillation.

Everything is measured on the response tokens of the distillation set's first examples.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from papers.csd.bench import Bench, open_bench
from papers.csd.distillation_objectives import concrete_score_loss
from papers.csd.methods import logit_loss
from papers.csd.options import DistillOptions
from papers.csd.sampled_pairs import draw_pairs, sampled_pair_loss
from shared.data_order import generator_for
from shared.lm.generation import evaluation_mode
from shared.lm.log_probs import response_logits
from shared.lm.texts import load_causal_lm
from shared.stage import Input, Output, run
from shared.tables import read_table, write_table

EXAMPLES = 256
THRESHOLDS = np.logspace(-6, 0, 61)
SHIFTS = np.linspace(-5, 5, 21)
SHIFTED = ("dld-S", "dld-U", "csd-SS", "csd-US", "forward_kl")
PAIRS = (1, 4, 16, 64, 256)
SAMPLED = {"csd-SS": ("student", "student"), "csd-TS": ("teacher", "student"), "csd-US": ("uniform", "student")}
REPEATS = 8
PAIR_STREAM = 20_251_120
DIFFERENTIATED = ("forward_kl", "reverse_kl", "skew_reverse_kl", "dld-S", "csd-SS", "csd-TS", "csd-US", "csd-UU")


def examine(
    options: DistillOptions,
    *,
    seed: int,
    examples: Input,
    teacher: Input,
    student: Input,
    gradients: Output,
    shifts: Output,
    probabilities: Output,
    sampling: Output,
    quantities: Output,
) -> None:
    """Write gradients by the teacher's rank, losses under a shift, probabilities above thresholds, errors of sampled
    pairs, and numbers.

    ``gradients``: seed, method, rank (of the token under the teacher, from 1), gradient (mean magnitude).
    ``shifts``: seed, method, shift (added to the student's logits, in nats), loss.
    ``probabilities``: seed, model, threshold, share (of the vocabulary's probabilities above it).
    ``sampling``: seed, method, pairs (sampled at each position), error (of the gradient, see :func:`gradient_error`).
    ``quantities``: seed, setting, method, metric, value.
    """
    table = read_table(examples, ("prompt", "answer")).head(EXAMPLES)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = open_bench(options, seed, teacher, student, table, device)
    f, t = both_logits(bench)
    methods = {method: loss_gradient(method, f, t) for method in DIFFERENTIATED}
    order = t.argsort(dim=-1, descending=True)
    profiles = [
        pd.DataFrame({"method": method, "rank": np.arange(1, f.shape[-1] + 1), "gradient": by_rank(gradient, order)})
        for method, gradient in methods.items()
    ]
    write_table(gradients, pd.concat(profiles).assign(seed=seed))
    write_table(shifts, pd.DataFrame(shifted_losses(f, t)).assign(seed=seed))
    write_table(probabilities, pd.DataFrame(exceedances({"teacher": t, "student": f})).assign(seed=seed))
    generator = generator_for(seed, PAIR_STREAM, device=f.device)
    errors = [
        {"method": method, "pairs": pairs, "error": gradient_error(f, t, weighting, pairs, generator)}
        for method, weighting in SAMPLED.items()
        for pairs in PAIRS
    ]
    write_table(sampling, pd.DataFrame(errors).assign(seed=seed))
    gap = (methods["csd-SS"] - methods["reverse_kl"]).abs().max() / methods["reverse_kl"].abs().max()
    rows = [
        ("csd-SS", "gradient_gap", gap.item()),
        ("teacher", "share_above_1_percent", (t.softmax(-1) > 0.01).float().mean().item()),
        ("teacher", "offset_spread", t.mean(-1).std().item()),
    ]
    write_table(
        quantities,
        pd.DataFrame(rows, columns=["method", "metric", "value"]).assign(setting="off-policy", seed=seed),
    )


def both_logits(bench: Bench) -> tuple[Tensor, Tensor]:
    """Logits of the initial student and of the teacher at all response tokens, (N, V) in float32."""
    student = load_causal_lm(bench.student).to(bench.device)
    batch = bench.batch(list(zip(bench.prompts, bench.answers, strict=True)))
    with evaluation_mode(student):
        logits, _, mask = response_logits(student, batch)
    return logits[mask][:, : bench.vocabulary_size].float(), bench.run_teacher(batch).float()


def loss_gradient(method: str, f: Tensor, t: Tensor) -> Tensor:
    """Gradient of the summed loss of a method in the student's logits: (N, V)."""
    f = f.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(logit_loss(method)(f, t).sum(), f)
    return gradient


def by_rank(gradient: Tensor, order: Tensor) -> np.ndarray:
    """Mean magnitude over positions (V,), the vocabulary of each position in the given order."""
    return gradient.abs().gather(-1, order).double().mean(0).cpu().numpy()


def shifted_losses(f: Tensor, t: Tensor) -> Iterator[dict[str, object]]:
    """Mean loss of each method where a constant is added to the student's logits."""
    for method in SHIFTED:
        for shift in SHIFTS:
            loss = logit_loss(method)(f + float(shift), t).double().mean().item()
            yield {"method": method, "shift": float(shift), "loss": loss}


def gradient_error(f: Tensor, t: Tensor, weighting: tuple[str, str], pairs: int, generator: torch.Generator) -> float:
    """Root mean square error of the concrete score loss's gradient from sampled pairs, relative to the gradient.

    ‖ĝ - g‖ / ‖g‖ over all positions and tokens, of gradients at single positions, averaged over repetitions in square:
    a step on N positions has a √N times smaller error.
    """
    f = f.clone().requires_grad_()
    (exact,) = torch.autograd.grad(concrete_score_loss(f, t, weighting=weighting).sum(), f)
    squares = []
    for _ in range(REPEATS):
        drawn = draw_pairs(f, t, pairs, generator=generator, weighting=weighting)
        (sampled,) = torch.autograd.grad(sampled_pair_loss(f, t, *drawn).sum(), f)
        squares.append((sampled - exact).double().square().sum() / exact.double().square().sum())
    return torch.stack(squares).mean().sqrt().item()


def exceedances(logits: dict[str, Tensor]) -> Iterator[dict[str, object]]:
    """Share of the probabilities of all positions and tokens that exceed each threshold."""
    for model, values in logits.items():
        ordered = values.double().softmax(-1).flatten().sort().values.cpu().numpy()
        for threshold in THRESHOLDS:
            share = 1 - np.searchsorted(ordered, threshold, side="right") / len(ordered)
            yield {"model": model, "threshold": float(threshold), "share": float(share)}


if __name__ == "__main__":
    run(examine)
