"""Pairwise f-PO: divergences between the policy's and the data's preference distributions.

The baseline family of arXiv:2505.19601 (App. B), from Han et al., "f-PO: Generalizing Preference Optimization with
f-divergence Minimization", AISTATS 2025; the reverse KL member is EXO (Ji et al., ICML 2024). A pair has the label
p = (1 - eps, eps) and the model's q = (M, 1 - M), M = sigmoid(m), m = beta (z_w - z_l); the loss is

    D_f = sum_i p_i f(q_i / p_i).

Unlike a Bregman loss, its expectation under noisy labels is not minimised by the optimum of DPO, except for the
forward KL with eps = 0, which is DPO.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon", "jeffreys", "alpha")


def f_po_pair_loss(
    margin: Tensor, *, divergence: str, alpha: float | None = None, label_smoothing: float = 1e-3
) -> Tensor:
    """D_f = sum_i p_i f(q_i / p_i) between label p = (1 - eps, eps) and model q = (sigmoid(m), sigmoid(-m)).

    f(u): forward_kl -log u; reverse_kl u log u; jensen_shannon u log u - (u+1) log((u+1)/2), i.e. twice the
    Jensen-Shannon divergence; jeffreys (u-1) log u; alpha [u^(1-alpha) - (1-alpha) u - alpha] / (alpha (alpha-1)).
    All constants are kept: the loss is 0 where M = 1 - eps.

    Args:
        margin: m, any shape (usually (B,)), floating point, in nats. Half precision is computed in float32.
        divergence: "forward_kl", "reverse_kl", "jensen_shannon", "jeffreys" or "alpha".
        alpha: order of "alpha", in (0, 1) (the paper: 0.1); the others have none.
        label_smoothing: eps in (0, 0.5); 0 is allowed for "forward_kl" only, where the loss is softplus(-m).

    Returns:
        Loss per pair, shape and dtype of `margin`, differentiable; >= 0 up to rounding.

    Raises:
        ValueError: unknown divergence, alpha missing or outside (0, 1) for "alpha", label_smoothing out of range,
            margin not floating point.
    """
    _check_arguments(margin, divergence, alpha, label_smoothing)
    m = margin.to(torch.promote_types(margin.dtype, torch.float32))
    log_q = F.logsigmoid(m), F.logsigmoid(-m)  # never log(1 - sigmoid(m)), which is -inf from m = 17 on in float32
    p = 1 - label_smoothing, label_smoothing
    terms = (
        _term(log_q_i, p_i, divergence, alpha)
        for log_q_i, p_i in zip(log_q, p, strict=True)
        if p_i > 0  # p f(q/p) -> 0 as p -> 0 for the forward KL
    )
    return sum(terms, torch.zeros_like(m)).to(margin.dtype)


def _term(log_q: Tensor, p: float, divergence: str, alpha: float | None) -> Tensor:
    """p f(q/p), less a part linear in q - p, which adds up to zero over the two outcomes."""
    log_u = log_q - math.log(p)
    if divergence == "forward_kl":
        return -p * log_u
    if divergence == "reverse_kl":
        return torch.exp(log_q) * log_u
    if divergence == "jeffreys":
        return p * torch.expm1(log_u) * log_u
    if divergence == "alpha":
        return p * torch.expm1((1 - alpha) * log_u) / (alpha * (alpha - 1))
    # Both parts of the Jensen-Shannon divergence are measured against the mixture (p + q) / 2.
    log_mixture_over_p = -F.logsigmoid(-log_u) - math.log(2)
    return torch.exp(log_q) * (log_u - log_mixture_over_p) - p * log_mixture_over_p


def _check_arguments(margin: Tensor, divergence: str, alpha: float | None, label_smoothing: float) -> None:
    if not margin.is_floating_point():
        raise ValueError(f"margin must be floating point, got {margin.dtype}")
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}, got {divergence!r}")
    if divergence == "alpha" and (alpha is None or not 0 < alpha < 1):
        raise ValueError(f"alpha must lie in (0, 1) for divergence 'alpha', got {alpha}")
    if divergence == "forward_kl":
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must lie in [0, 0.5) for 'forward_kl', got {label_smoothing}")
    elif not 0 < label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in (0, 0.5) for '{divergence}', got {label_smoothing}")
