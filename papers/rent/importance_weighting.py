"""What a transition matrix T is used for: importance weights, and the losses that correct predictions by T.

HeeSun Bae, Seungjae Shin, Byeonghu Na, Il-Chul Moon. "Dirichlet-based Per-Sample Weighting by Transition Matrix for
Noisy Label Learning", ICLR 2024, arXiv 2403.02690. T[j, k] = P(noisy k | true j), see `papers.rent.transition_matrix`.

A classifier's logits give p_i = softmax(logits_i), its belief in the *true* class of sample i. Its belief in the label
y~_i that was observed is therefore q_i = Σ_j T[j, y~_i] p_ij, and

    w_i = p_{i, y~_i} / q_i                                                                 (importance weight)

turns an expectation under noisy labels into one under true labels: Σ_k q_ik (w_ik f_k) = Σ_k p_ik f_k for any f.
Reweighting (RW), the Dirichlet family (DWS) and RENT all start from w; they differ in what they do with it
(`papers.rent.utilization`). The weight is a constant to the gradient.

Half-precision logits are computed in float32. Logits (B, C), labels integers (B,), T (C, C) or (B, C, C).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from papers.rent.transition_matrix import check_labels, check_transition

MAXIMUM_CONDITION_NUMBER = 1e6


@torch.no_grad()
def transition_importance_weights(
    logits: Tensor, noisy_labels: Tensor, transition: Tensor, eps: float = 1e-12
) -> Tensor:
    """Importance weights w_i = p_{i, y~_i} / (Σ_j T[j, y~_i] p_ij + eps) of a batch.

    Args:
        logits: (B, C) floats of the classifier of *true* labels; none NaN or +inf.
        noisy_labels: (B,) integers in [0, C), as observed.
        transition: (C, C), or (B, C, C) for noise that depends on the sample; rows sum to one.
        eps: >= 0, in the denominator only.

    Returns:
        (B,) in the logits' dtype, detached, finite and >= 0.

    Raises:
        ValueError: shapes or dtypes, labels outside [0, C), logits that have no softmax, a negative or infinite eps,
            entries of T below 0 or rows that do not sum to 1 within 1e-4.
    """
    _check_batch(logits, noisy_labels, "noisy_labels")
    check_transition(transition, logits.shape[1], len(logits))
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps: need a finite number >= 0, got {eps}")
    labels = noisy_labels.long()
    posterior = _at_least_float32(logits).softmax(1)
    if posterior.isnan().any():
        raise ValueError("logits: need numbers with a softmax in every row, got NaN or infinity")
    belief_in_label = posterior.gather(1, labels[:, None]).squeeze(1)
    probability_of_label = (posterior * _label_columns(transition.to(posterior), labels)).sum(1)
    weights = belief_in_label / (probability_of_label + eps)
    # Finite in the logits' own dtype too, and 0/0, which only eps = 0 makes possible, is no evidence for the label.
    return weights.to(logits.dtype).nan_to_num(nan=0.0)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Σ_i weights_i · CE(logits_i, labels_i), a scalar; nothing is divided by B or by the sum of the weights.

    Args:
        logits: (B, C) floats.
        labels: (B,) integers in [0, C).
        weights: (B,), constants to the gradient.

    Raises:
        ValueError: shapes or dtypes, or labels outside [0, C).
    """
    _check_batch(logits, labels)
    if weights.shape != labels.shape:
        raise ValueError(f"weights: need shape {tuple(labels.shape)}, got {tuple(weights.shape)}")
    losses = F.cross_entropy(_at_least_float32(logits), labels.long(), reduction="none")
    return (weights.detach().to(losses) * losses).sum()


def forward_corrected_cross_entropy(logits: Tensor, labels: Tensor, transition: Tensor) -> Tensor:
    """Forward loss (FL): mean of −log q_i = −log Σ_j T[j, y~_i] p_ij, with the gradient through q.

    In the log domain, −logsumexp_j(log p_ij + log T[j, y~_i]): finite with a finite gradient for large logits, also
    where entries of T are 0 (which get no gradient themselves). Infinite only where T rules the label out.

    Args:
        logits: (B, C) floats.
        labels: (B,) noisy labels, integers in [0, C).
        transition: (C, C) or (B, C, C), rows sum to one; it may require a gradient.

    Raises:
        ValueError: as `transition_importance_weights`.
    """
    _check_batch(logits, labels)
    check_transition(transition, logits.shape[1], len(logits))
    log_posterior = _at_least_float32(logits).log_softmax(1)
    columns = _label_columns(transition.to(log_posterior), labels.long())
    possible = columns > 0
    # log(1) in the place of log(0): autograd would turn the latter's 0 · inf into NaN even where it is masked out.
    log_columns = torch.where(possible, columns, 1.0).log().masked_fill(~possible, -math.inf)
    return -(log_posterior + log_columns).logsumexp(1).mean()


def backward_corrected_cross_entropy(logits: Tensor, labels: Tensor, transition: Tensor) -> Tensor:
    """Backward loss: mean of Σ_k (T⁻¹)[y~_i, k] · (−log p_ik).

    Its expectation over the noisy label is the cross-entropy with the true one. T⁻¹ has negative entries, so the loss
    is unbounded below and training may diverge.

    Args:
        logits: (B, C) floats.
        labels: (B,) noisy labels, integers in [0, C).
        transition: (C, C) or (B, C, C), rows sum to one, condition number at most 1e6.

    Raises:
        ValueError: as `transition_importance_weights`, or T is singular or nearly so.
    """
    _check_batch(logits, labels)
    check_transition(transition, logits.shape[1], len(logits))
    matrix = transition.detach().double()
    condition = torch.linalg.cond(matrix).max().item()
    if not condition <= MAXIMUM_CONDITION_NUMBER:
        raise ValueError(f"transition: cannot be inverted, its condition number is {condition:.3g} (at most 1e6)")
    log_posterior = _at_least_float32(logits).log_softmax(1)
    inverse = torch.linalg.inv(matrix).to(log_posterior)
    # Rows of the inverse are the columns of its transpose.
    return -(_label_columns(inverse.mT, labels.long()) * log_posterior).sum(1).mean()


def _label_columns(matrix: Tensor, labels: Tensor) -> Tensor:
    """matrix[:, labels_i] as row i of (B, C), for a matrix (C, C) or one per sample (B, C, C)."""
    if matrix.ndim == 2:
        return matrix.T[labels]
    return matrix[torch.arange(len(labels), device=labels.device), :, labels]


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check_batch(logits: Tensor, labels: Tensor, name: str = "labels") -> None:
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits: need shape (B, C) of at least one sample and class, got {tuple(logits.shape)}")
    if not logits.is_floating_point():
        raise ValueError(f"logits: need floats, got {logits.dtype}")
    check_labels(labels, logits.shape[1], name)
    if len(labels) != len(logits):
        raise ValueError(f"{name}: need {len(logits)}, one per row of the logits, got {len(labels)}")
