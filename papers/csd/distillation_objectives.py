"""Concrete score distillation and the objectives it is compared with, per token, on logits.

Yeongmin Kim, Donghyeok Shin, Mina Kang, Byeonghu Na, Il-Chul Moon. "Distillation of Large Language Models via Concrete
Score Matching", ICLR 2026, arXiv 2509.25837.

Symbols: f and t are the student's and the teacher's logits over a vocabulary of V entries at one position,
q = softmax f and p = softmax t, and d = f - t is the logit residual. w is a weight on the vocabulary that sums to 1 and
is a constant to the gradient; E_w[d] = Σ_k w_k d_k.

The concrete score of q at token y is the vector of ratios q(x)/q(y); its logarithm f[x] - f[y] needs no normaliser.
Matching it to the teacher's at every pair (y, x), weighted by w(y, x), is the paper's Eq. 8. With a separable weight
the double sum collapses to O(V), and with w1 = w2 it is what remains of the direct logit loss (the squared residual)
once a constant per position, which no distribution can see, is free.

A reading aid: for w1 = w2 = q the gradient is q_k (d_k - E_q[d]), which is the gradient of KL(q‖p). The default
weighting and the reverse KL are therefore one and the same training algorithm; every other weighting is not.

Every loss takes logits [..., V] and returns one value per token [...]. Half precision is computed in float32 and
returned as float32, float64 stays float64, and the gradient has the dtype of the student's logits. The teacher and the
weights are detached. Logits should be finite, cropped to the tokenizer's size: a vocabulary row at -inf makes its token
nan, which ``masked_token_mean`` keeps out of both loss and gradient where the token is masked.
"""

import math
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from papers.csd.token_blocks import by_autograd, compute_dtype, token_loss

WEIGHTINGS = ("student", "teacher", "uniform", "mixture")
CENTERINGS = ("none", "mean", "min", "max", "standardize", "range")
DEFAULT_SKEW = {  # by kind of divergence; None where it has no skew
    "forward_kl": None,
    "reverse_kl": None,
    "symmetric_kl": 0.9,
    "jeffreys": None,
    "total_variation": None,
    "jensen_shannon": 0.9,
    "skew_forward_kl": 0.1,
    "skew_reverse_kl": 0.1,
    "alpha_beta": None,
}


def vocabulary_weights(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weighting: str,
    *,
    temperature: float = 1.0,
    teacher_fraction: float = 0.5,
) -> Tensor:
    """Weight w on the vocabulary, the factor of a separable pair weight w(y, x) = w1(y) w2(x).

    Args:
        student_logits: f [..., V].
        teacher_logits: t, the same shape.
        weighting: "student" softmax(f/τ), "teacher" softmax(t/τ), "uniform" 1/V, or "mixture" α softmax(t/τ) +
            (1 - α) softmax(f/τ).
        temperature: τ > 0. It acts here alone and never on the residual; τ -> ∞ is "uniform".
        teacher_fraction: α in [0, 1], read by "mixture".

    Returns:
        [..., V], detached, non-negative, sums to 1; float32, or float64 if an input is.

    Raises:
        ValueError: shapes that differ, an unknown weighting, τ or α out of range.
    """
    _check_logits(student_logits, teacher_logits)
    _check_weighting(weighting, temperature, teacher_fraction)
    dtype = compute_dtype(student_logits, teacher_logits)
    student, teacher = student_logits.detach().to(dtype), teacher_logits.detach().to(dtype)
    return _weights(student, teacher, weighting, temperature, teacher_fraction)


def concrete_score_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    weighting: tuple[str, str] = ("student", "student"),
    temperature: float = 1.0,
    teacher_fraction: float = 0.5,
) -> Tensor:
    """Concrete score loss L = ¼ Σ_i Σ_j w1_i w2_j (d_i - d_j)², in O(V) (Eq. 8 and Theorem 3).

    The scale is half the paper's, so that the gradient is ½ [w1_k (d_k - E_w2[d]) + w2_k (d_k - E_w1[d])]. The value
    returned is L itself, ≥ 0 and zero exactly where f = t + constant.

    Args:
        student_logits: f [..., V], differentiable once.
        teacher_logits: t, the same shape.
        weighting: names of w1 and w2, see ``vocabulary_weights``; their order does not matter.
        temperature: τ > 0 of the weights.
        teacher_fraction: α in [0, 1] of the weight "mixture".

    Returns:
        [...], float32, or float64 if an input is.

    Raises:
        ValueError: shapes that differ, a weighting that is not a pair of known names, τ or α out of range.
    """
    _check_logits(student_logits, teacher_logits)
    if isinstance(weighting, str) or len(weighting) != 2:
        raise ValueError(f"weighting must be a pair of names, got {weighting!r}")
    for name in weighting:
        _check_weighting(name, temperature, teacher_fraction)
    loss = partial(
        _concrete_score, weighting=tuple(weighting), temperature=temperature, teacher_fraction=teacher_fraction
    )
    return token_loss(loss, student_logits, teacher_logits)


def pairwise_concrete_score_loss(student_logits: Tensor, teacher_logits: Tensor, pair_weights: Tensor) -> Tensor:
    """Concrete score loss for any joint weight: ¼ Σ_i Σ_j W_ij (d_i - d_j)² (Eq. 8 at half its scale), in O(V²).

    Args:
        student_logits: f [..., V], differentiable once.
        teacher_logits: t, the same shape.
        pair_weights: W [..., V, V], a constant; its leading dimensions may broadcast to those of the logits.

    Returns:
        [...], float32, or float64 if an input is.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check_logits(student_logits, teacher_logits)
    shape = (*student_logits.shape, student_logits.shape[-1])
    try:
        fits = pair_weights.shape[-2:] == shape[-2:] and torch.broadcast_shapes(pair_weights.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"pair_weights must be of shape {shape}, got {tuple(pair_weights.shape)}")
    return token_loss(by_autograd(_pairwise_concrete_score), student_logits, teacher_logits, pair_weights.expand(shape))


def direct_logit_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    weighting: str = "student",
    centering: str = "none",
    temperature: float = 1.0,
) -> Tensor:
    """Direct logit distillation ½ Σ_k w_k (c(f)_k - c(t)_k)².

    Without centering it also punishes a constant that no distribution can see: min over shifts C of the loss at f + C
    is ``concrete_score_loss`` with w1 = w2 = w.

    Args:
        student_logits: f [..., V], differentiable once.
        teacher_logits: t, the same shape.
        weighting: name of w, see ``vocabulary_weights`` ("mixture" at its default fraction); always taken from the
            logits before centering.
        centering: c, applied to both: "none", "mean" x - mean, "min" x - min, "max" x - max, "standardize"
            (x - mean) / (std + 1e-9) with the unbiased std, "range" 2 (x - min) / (max - min + 1e-9) - 1. The gradient
            flows through the student's own statistics.
        temperature: τ > 0 of the weights.

    Returns:
        [...], float32, or float64 if an input is.

    Raises:
        ValueError: shapes that differ, an unknown name, τ out of range, "standardize" with V = 1.
    """
    _check_logits(student_logits, teacher_logits)
    _check_weighting(weighting, temperature)
    _check_name("centering", centering, CENTERINGS)
    if centering == "standardize" and student_logits.shape[-1] < 2:
        raise ValueError("centering 'standardize' needs a vocabulary of at least 2, got 1")
    loss = partial(_direct_logit, weighting=weighting, centering=centering, temperature=temperature)
    return token_loss(by_autograd(loss), student_logits, teacher_logits)


def token_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    kind: str,
    *,
    skew: float | None = None,
    alpha: float = 0.2,
    beta: float = 0.7,
) -> Tensor:
    """Divergence between the teacher's p = softmax t and the student's q = softmax f, true values (≥ 0).

    Args:
        student_logits: f [..., V], differentiable once.
        teacher_logits: t, the same shape.
        kind: with λ = ``skew``,
            "forward_kl" KL(p‖q); "reverse_kl" KL(q‖p); "jeffreys" their sum;
            "symmetric_kl" (1-λ) KL(p‖q) + λ KL(q‖p), λ = 0.9;
            "total_variation" ½ Σ |p - q|;
            "jensen_shannon" (1-λ) KL(p‖m) + λ KL(q‖m), m = (1-λ) p + λ q, λ = 0.9 (GKD);
            "skew_forward_kl" KL(p ‖ λp + (1-λ)q) and "skew_reverse_kl" KL(q ‖ (1-λ)p + λq), λ = 0.1 (DistiLLM);
            "alpha_beta" -1/(αβ) Σ [p^α q^β - α/(α+β) p^(α+β) - β/(α+β) q^(α+β)] (ABKD).
        skew: λ in [0, 1] for the kinds above that have one; None takes the default given there.
        alpha, beta: of "alpha_beta"; neither they nor their sum may be zero.

    Returns:
        [...] in nats ("total_variation": in [0, 1]), float32, or float64 if an input is.

    Raises:
        ValueError: shapes that differ, an unknown kind, λ out of range, unusable α and β.
    """
    _check_logits(student_logits, teacher_logits)
    _check_name("kind", kind, DEFAULT_SKEW)
    if skew is None:
        skew = DEFAULT_SKEW[kind]
    else:
        _check_fraction("skew", skew)
    if kind == "alpha_beta" and not (math.isfinite(alpha + beta) and alpha * beta * (alpha + beta) != 0):
        raise ValueError(f"alpha, beta and alpha + beta must be finite and not zero, got {alpha} and {beta}")
    divergence = by_autograd(
        partial(_divergence, kind=kind, skew=skew, alpha=alpha, beta=beta),
        minimum=0.0,
        maximum=1.0 if kind == "total_variation" else math.inf,
    )
    return token_loss(divergence, student_logits, teacher_logits)


def masked_token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` over the True positions of the whole batch: one global token mean, not a mean of means.

    Args:
        values: any shape, floating.
        mask: the same shape, bool or 0/1; True where a response token (end of sequence included) is predicted.

    Returns:
        Scalar, float32, or float64 if ``values`` is. Masked values, even nan, reach neither it nor the gradient.

    Raises:
        ValueError: shapes that differ, values that are not floating, a mask that is not 0/1, or one without a True.
    """
    if not values.is_floating_point():
        raise ValueError(f"values must be floating, got {values.dtype}")
    if mask.shape != values.shape:
        raise ValueError(f"mask must have the shape of values {tuple(values.shape)}, got {tuple(mask.shape)}")
    selected = mask.bool()
    if mask.dtype != torch.bool and not torch.equal(selected.to(mask.dtype), mask):
        raise ValueError("mask must be bool or hold only 0 and 1, got other values")
    count = selected.sum()
    if count == 0:
        raise ValueError("mask must have at least one True position, got none")
    # torch.where, not a product: 0 * nan is nan.
    return torch.where(selected, values.to(compute_dtype(values)), 0.0).sum() / count


def _weights(
    student: Tensor, teacher: Tensor, weighting: str, temperature: float, teacher_fraction: float = 0.5
) -> Tensor:
    match weighting:
        case "student":
            return _tempered(student, temperature)
        case "teacher":
            return _tempered(teacher, temperature)
        case "uniform":
            return torch.full_like(student, 1 / student.shape[-1])
        case "mixture":
            return _tempered(student, temperature).lerp_(_tempered(teacher, temperature), teacher_fraction)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return softmax(logits if temperature == 1 else logits / temperature, dim=-1)


def _concrete_score(
    student: Tensor,
    teacher: Tensor,
    *,
    weighting: tuple[str, str],
    temperature: float,
    teacher_fraction: float,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Value and gradient of L, from the residual centred with w1, c = d - E_w1[d], and w̄ = (w1 + w2) / 2.

    L = ¼ [Var_w1[d] + Var_w2[d] + (E_w1[d] - E_w2[d])²] = ½ E_w̄[c²] and ∂L/∂f_k = w̄_k c_k - w1_k E_w̄[c], where
    E_w̄[c] is zero for w1 = w2. Squaring after centring keeps the digits that an offset of the logits takes. All
    steps after the residual are in place: what they write would otherwise fall out of the cache.
    """
    first, second = weighting
    w1 = _weights(student, teacher, first, temperature, teacher_fraction)
    centred = student - teacher
    centred -= (w1 * centred).sum(-1, keepdim=True)
    if first == second:
        gradient = w1.mul_(centred)
    else:
        w2 = _weights(student, teacher, second, temperature, teacher_fraction)
        gradient = w2.lerp_(w1, 0.5).mul_(centred)
    value = centred.mul_(gradient).sum(-1) / 2
    if first != second and needs_gradient:
        gradient.addcmul_(w1, gradient.sum(-1, keepdim=True), value=-1)
    return value, gradient


def _pairwise_concrete_score(student: Tensor, teacher: Tensor, pair_weights: Tensor) -> Tensor:
    residual = student - teacher
    differences = residual.unsqueeze(-1) - residual.unsqueeze(-2)
    return (pair_weights * differences.square()).sum((-2, -1)) / 4


def _direct_logit(student: Tensor, teacher: Tensor, *, weighting: str, centering: str, temperature: float) -> Tensor:
    weights = _weights(student.detach(), teacher, weighting, temperature)
    residual = _centered(student, centering) - _centered(teacher, centering)
    return (weights * residual.square()).sum(-1) / 2


def _centered(logits: Tensor, centering: str) -> Tensor:
    match centering:
        case "none":
            return logits
        case "mean":
            return logits - logits.mean(-1, keepdim=True)
        case "min":
            return logits - logits.amin(-1, keepdim=True)
        case "max":
            return logits - logits.amax(-1, keepdim=True)
        case "standardize":
            return (logits - logits.mean(-1, keepdim=True)) / (logits.std(-1, keepdim=True) + 1e-9)
        case "range":
            low, high = logits.amin(-1, keepdim=True), logits.amax(-1, keepdim=True)
            return 2 * (logits - low) / (high - low + 1e-9) - 1


def _divergence(
    student: Tensor, teacher: Tensor, *, kind: str, skew: float | None, alpha: float, beta: float
) -> Tensor:
    log_p, log_q = log_softmax(teacher, dim=-1), log_softmax(student, dim=-1)
    match kind:
        case "forward_kl":
            return _kl(log_p, log_q)
        case "reverse_kl":
            return _kl(log_q, log_p)
        case "symmetric_kl":
            return (1 - skew) * _kl(log_p, log_q) + skew * _kl(log_q, log_p)
        case "jeffreys":
            return ((log_q.exp() - log_p.exp()) * (log_q - log_p)).sum(-1)
        case "total_variation":
            return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2
        case "jensen_shannon":
            log_m = _log_mixture(log_p, log_q, skew)
            return (1 - skew) * _kl(log_p, log_m) + skew * _kl(log_q, log_m)
        case "skew_forward_kl":
            return _kl(log_p, _log_mixture(log_q, log_p, skew))
        case "skew_reverse_kl":
            return _kl(log_q, _log_mixture(log_p, log_q, skew))
        case "alpha_beta":
            order = alpha + beta
            terms = (
                (alpha * log_p + beta * log_q).exp()
                - (alpha / order) * (order * log_p).exp()
                - (beta / order) * (order * log_q).exp()
            )
            return -terms.sum(-1) / (alpha * beta)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a‖b) in nats."""
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def _log_mixture(log_a: Tensor, log_b: Tensor, fraction: float) -> Tensor:
    """log((1 - λ) a + λ b), finite where a and b underflow."""
    if fraction in (0, 1):
        return log_b if fraction else log_a
    return torch.logaddexp(log_a + math.log1p(-fraction), log_b + math.log(fraction))


def _check_logits(student_logits: Tensor, teacher_logits: Tensor) -> None:
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        if not logits.is_floating_point():
            raise ValueError(f"{name} must be floating, got {logits.dtype}")
    if student_logits.ndim == 0 or student_logits.shape[-1] == 0:
        raise ValueError(f"student_logits must be [..., V] with V ≥ 1, got shape {tuple(student_logits.shape)}")
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"teacher_logits must have the shape of student_logits {tuple(student_logits.shape)}, "
            f"got {tuple(teacher_logits.shape)}"
        )


def _check_weighting(weighting: str, temperature: float, teacher_fraction: float = 0.5) -> None:
    _check_name("weighting", weighting, WEIGHTINGS)
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be finite and > 0, got {temperature}")
    _check_fraction("teacher_fraction", teacher_fraction)


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def _check_name(argument: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ValueError(f"{argument} must be one of {', '.join(known)}, got {name!r}")
