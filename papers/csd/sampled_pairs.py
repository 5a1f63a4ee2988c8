"""Monte-Carlo form of the concrete score loss: a mean over sampled pairs of tokens instead of the sum over all.

A weight w(y, x) that factors needs no sampling, since the double sum collapses to O(V) (see
:mod:`papers.csd.distillation_objectives`). One that does not factor would take O(V²); K pairs drawn from it give an
unbiased estimate of the loss and of its gradient, at the price of noise (the paper's figure 5c).
"""

from __future__ import annotations

import torch
from torch import Tensor

from papers.csd.distillation_objectives import vocabulary_weights
from papers.csd.token_blocks import compute_dtype


def sampled_pair_loss(student_logits: Tensor, teacher_logits: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Mean over K pairs (i, j) of ¼ (d_i - d_j)², d = f - t: unbiased for pairs drawn from w, whatever w is.

    Args:
        student_logits: f [..., V], differentiable; the pairs' entries alone get a gradient.
        teacher_logits: t, the same shape; detached.
        first, second: the tokens i and j of each pair, [..., K] int64.

    Returns:
        [...], float32, or float64 if an input is.

    Raises:
        ValueError: shapes that do not fit, or no pairs.
    """
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"teacher_logits must have the shape of student_logits {tuple(student_logits.shape)}, "
            f"got {tuple(teacher_logits.shape)}"
        )
    if first.shape != second.shape or first.shape[:-1] != student_logits.shape[:-1] or not first.shape[-1]:
        raise ValueError(
            f"first, second must be of one shape {(*student_logits.shape[:-1], 'K')} with K ≥ 1, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    dtype = compute_dtype(student_logits, teacher_logits)
    residual = [
        student_logits.gather(-1, tokens).to(dtype) - teacher_logits.detach().gather(-1, tokens).to(dtype)
        for tokens in (first, second)
    ]
    return (residual[0] - residual[1]).square().mean(-1) / 4


def draw_pairs(
    student_logits: Tensor,
    teacher_logits: Tensor,
    pairs: int,
    *,
    generator: torch.Generator,
    weighting: tuple[str, str] = ("student", "student"),
    temperature: float = 1.0,
    teacher_fraction: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """K independent pairs for every token position, i from w1 and j from w2: two tensors [..., K] int64.

    Args:
        student_logits, teacher_logits: f and t, [..., V].
        pairs: K ≥ 1.
        generator: lives on the logits' device.
        weighting, temperature, teacher_fraction: of the weights, as for ``concrete_score_loss``.

    Raises:
        ValueError: as ``vocabulary_weights``, or fewer than one pair.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    drawn = []
    for name in weighting:
        weights = vocabulary_weights(
            student_logits, teacher_logits, name, temperature=temperature, teacher_fraction=teacher_fraction
        )
        flat = weights.reshape(-1, weights.shape[-1])
        tokens = torch.multinomial(flat, pairs, replacement=True, generator=generator)
        drawn.append(tokens.reshape(*weights.shape[:-1], pairs))
    return drawn[0], drawn[1]
