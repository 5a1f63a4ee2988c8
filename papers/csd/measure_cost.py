"""Measure cost: time and peak memory of each kind of loss over the size of the vocabulary, on this machine's CPU."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from papers.csd.loss_cost import Loss, compare, logits_pair, plain_kl
from papers.csd.methods import TokenLoss, logit_loss
from papers.csd.options import CostOptions
from shared.stage import Output, run
from shared.tables import write_table

BASELINE = "plain_kl"
METHODS = (
    "csd-SS",
    "csd-TS",
    "csd-UU",
    "dld-S",
    "forward_kl",
    "reverse_kl",
    "skew_reverse_kl",
    "jensen_shannon",
    "alpha_beta",
)


def measure_cost(options: CostOptions, *, costs: Output) -> None:
    """Write the columns vocabulary, tokens, and those of :func:`papers.csd.loss_cost.compare`.

    A method's loss is the mean over tokens, ``plain_kl`` what the ratios refer to; float32, one thread.
    """
    torch.set_num_threads(1)
    losses: dict[str, Loss] = {BASELINE: plain_kl} | {method: mean_of(logit_loss(method)) for method in METHODS}
    parts = []
    for vocabulary in options.vocabularies:
        tokens = max(1, options.elements // vocabulary)
        measured = compare(losses, *logits_pair(tokens, vocabulary), baseline=BASELINE, rounds=options.rounds)
        parts.append(measured.assign(vocabulary=vocabulary, tokens=tokens))
    write_table(costs, pd.concat(parts, ignore_index=True))


def mean_of(loss: TokenLoss) -> Loss:
    def mean(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return loss(student_logits, teacher_logits).mean()

    return mean


if __name__ == "__main__":
    run(measure_cost)
