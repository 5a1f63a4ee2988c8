"""Bregman preference optimization: preference learning as density-ratio estimation.

Kim, Bae, Na, Moon, "Preference Optimization by Estimating the Ratio of the Data Distribution", NeurIPS 2025,
arXiv:2505.19601.

The optimal policy of DPO is fixed by a ratio (Prop. 1): for all pairs R_theta = R_data, where

    R_theta = exp(-m),   m = beta (z_w - z_l),   z = log pi_theta(y|x) - log pi_ref(y|x),
    R_data  = p(y_w < y_l | x) / p(y_w > y_l | x).

R is *rejected over chosen*: training lowers it, and R = 1 where the policy equals the reference. Matching R_theta
to R_data in the Bregman divergence of a strictly convex h gives, up to a constant, the loss of one observed pair
(Eq. 10, Theorem 3)

    l_h(R) = h'(R) R - h(R) - h'(1/R),        dl/dR = G_h(R) = R h''(R) + h''(1/R) / R^2 > 0   (Prop. 4),

so every h has the same optimum and the same gradient direction per pair; only the weight G_h differs.

    generator    h(R), with a = lam            l_h(R), up to a constant        G_h(R)
    logistic     [R log R - (1+R) log(1+R)]/2  log(1+R), the loss of DPO       1/(1+R)
    kliep        R log R - R                   R + log R                       1 + 1/R
    lsif         (R-1)^2                       R^2 - 2/R                       2 (R + R^-2)
    basu         (R^(1+a) - R)/a               R^(1+a) - (1+a)/a R^-a          (1+a) (R^a + R^(-a-1))
    scaled_basu  (R^(1+a) - R)/(s a (1+a))     [R^(1+a)/(1+a) - R^-a/a]/s      (R^a + R^(-a-1))/s

Everything is computed from log R: a power of R is exp(a log R), never exp(log R)**a, which overflows in float32
beyond |log R| = 88 even where the power does not.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

GENERATORS = ("logistic", "kliep", "lsif", "basu", "scaled_basu")


def bregman_ratio_loss(
    log_ratio: Tensor,
    *,
    generator: str = "scaled_basu",
    lam: float = 0.0,
    scale: float = 4.0,
    ratio_min: float | None = None,
    ratio_max: float | None = None,
) -> Tensor:
    """Per-pair loss l_h(R) of BPO (Eq. 10), with the additive constant fixed by l_h(1) = 0.

    `logistic` alone keeps its constant, log(1 + R), so that it *is* the loss of DPO. In this convention the power
    members are continuous through lam = 0 and lam = -1, where the table's closed forms divide by zero.

    Outside -1 < lam < 0 (so for `kliep` and `lsif`, too) the loss of a single observed pair is unbounded below as
    R -> 0; `ratio_min` bounds it (App. C.2). log R is clamped before the loss, so that a clipped pair has exactly
    zero gradient.

    Args:
        log_ratio: log R, any shape (usually (B,)), floating point, in nats. Half precision is computed in float32.
        generator: "logistic", "kliep", "lsif", "basu" or "scaled_basu".
        lam: power of "basu" (lam > -1) and "scaled_basu" (any finite value); the others have none.
        scale: s > 0 of "scaled_basu"; 4 gives DPO's gradient at R = 1 for every lam.
        ratio_min, ratio_max: bounds on R itself, in (0, inf); None switches a bound off.

    Returns:
        Loss per pair, shape and dtype of `log_ratio`, differentiable. A value beyond the dtype's range is +-inf.

    Raises:
        ValueError: unknown generator, lam not finite, lam <= -1 for "basu", scale not in (0, inf), a ratio bound not
            in (0, inf), ratio_min >= ratio_max, log_ratio not floating point.
    """
    _check_generator(log_ratio, generator, lam, scale)
    u = _clamp_log_ratio(_at_least_float32(log_ratio), ratio_min, ratio_max)
    if generator == "logistic":
        loss = -F.logsigmoid(-u)  # softplus(u); torch's softplus drops exp(-u) beyond u = 20
    else:
        power, weight = _power_and_weight(generator, lam, scale)
        loss = weight * (_box_cox(u, 1 + power) + _box_cox(u, -power))
    return loss.to(log_ratio.dtype)


def bregman_gradient_magnitude(log_ratio: Tensor, *, generator: str, lam: float = 0.0, scale: float = 4.0) -> Tensor:
    """G_h(R) = dl_h/dR = R h''(R) + h''(1/R) / R^2 > 0 at R = exp(log_ratio) (Prop. 4); no clipping.

    The weight of a pair in the gradient with respect to the margin m = -log R is R G_h(R) = -dl/dm.

    Args:
        log_ratio: log R, any shape, floating point, in nats. Half precision is computed in float32.
        generator, lam, scale: as in `bregman_ratio_loss`.

    Returns:
        G_h(R), shape and dtype of `log_ratio`.

    Raises:
        ValueError: unknown generator, lam not finite, lam <= -1 for "basu", scale not in (0, inf), log_ratio not
            floating point.
    """
    _check_generator(log_ratio, generator, lam, scale)
    u = _at_least_float32(log_ratio)
    if generator == "logistic":
        magnitude = torch.sigmoid(-u)
    else:
        power, weight = _power_and_weight(generator, lam, scale)
        magnitude = weight * (torch.exp(power * u) + torch.exp(-(1 + power) * u))
    return magnitude.to(log_ratio.dtype)


def bregman_divergence(
    data_log_ratio: Tensor, log_ratio: Tensor, *, generator: str, lam: float = 0.0, scale: float = 4.0
) -> Tensor:
    """B_h(R_data || R) = h(R_data) - h(R) - h'(R) (R_data - R) >= 0, which training lowers in expectation (Eq. 9).

    Args:
        data_log_ratio: log R_data, floating point, in nats.
        log_ratio: log R, of a shape that broadcasts with it. Use float64: the three terms cancel where R = R_data.
        generator, lam, scale: as in `bregman_ratio_loss`; at lam = 0 and lam = -1 the limits.

    Returns:
        B_h, of the broadcast shape; 0 where R = R_data.

    Raises:
        ValueError: as `bregman_gradient_magnitude`.
    """
    _check_generator(log_ratio, generator, lam, scale)
    a, b = data_log_ratio, log_ratio
    data_ratio = a.exp()
    if generator == "logistic":
        # (1 + R_data)/2 times the KL divergence between Bernoulli distributions of mean R_data/(1+R_data), R/(1+R).
        return (
            (1 + data_ratio)
            * (
                torch.sigmoid(a) * (F.logsigmoid(a) - F.logsigmoid(b))
                + torch.sigmoid(-a) * (F.logsigmoid(-a) - F.logsigmoid(-b))
            )
            / 2
        )
    power, weight = _power_and_weight(generator, lam, scale)
    # With h''(R) = weight R^(power-1): the integral of (R_data - r) h''(r) from R to R_data.
    return weight * (
        data_ratio * (_box_cox(a, power) - _box_cox(b, power)) - (_box_cox(a, 1 + power) - _box_cox(b, 1 + power))
    )


def scale_matching_dpo(initial_log_ratio: float, lam: float) -> float:
    """Scale s at which the gradient of SBA equals that of DPO at R0: s = (R0^lam + R0^(-lam-1)) (1 + R0).

    At R0 = 1, where a policy starts under DPO's ratio, s = 4 for every lam. SimPO starts near R0 = exp(gamma), to
    which the paper adjusts the scale without printing a formula; there, at lam = -1/2, s = 4 cosh(gamma / 2).

    Args:
        initial_log_ratio: log R0 at the start of training, finite, in nats.
        lam: power of "scaled_basu", finite.

    Returns:
        s > 0.

    Raises:
        ValueError: an argument is not finite.
    """
    for name, value in (("initial_log_ratio", initial_log_ratio), ("lam", lam)):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    u = initial_log_ratio
    return (math.exp(lam * u) + math.exp(-(lam + 1) * u)) * (1 + math.exp(u))


def _power_and_weight(generator: str, lam: float, scale: float) -> tuple[float, float]:
    """(a, c) with l_h = c [e_(1+a) + e_(-a)] and G_h = c (R^a + R^(-a-1)), for all but the logistic generator."""
    if generator == "kliep":
        return 0.0, 1.0
    if generator == "lsif":
        return 1.0, 2.0
    if generator == "basu":
        return lam, 1 + lam
    return lam, 1 / scale


def _box_cox(log_ratio: Tensor, power: float) -> Tensor:
    """e_a(u) = (R^a - 1) / a with u = log R, and its limit u at a = 0; derivative exp(a u)."""
    if abs(power) < 1e-20:  # a u would underflow in float32, and e_a(u) - u = a u^2 / 2 is below rounding
        return log_ratio
    exponent = power * log_ratio
    # Where R^a is near 1 the subtraction needs expm1. Where R^a is small, expm1's derivative expm1 + 1 loses the
    # digits that exp's keeps. expm1's argument is masked, lest the branch not taken add a gradient of 0 * inf.
    near = exponent.abs() < 1
    difference = torch.where(near, torch.expm1(torch.where(near, exponent, 0)), torch.exp(exponent) - 1)
    return difference / power


def _clamp_log_ratio(log_ratio: Tensor, ratio_min: float | None, ratio_max: float | None) -> Tensor:
    for name, bound in (("ratio_min", ratio_min), ("ratio_max", ratio_max)):
        if bound is not None and not 0 < bound < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {bound}")
    if ratio_min is not None and ratio_max is not None and ratio_min >= ratio_max:
        raise ValueError(f"ratio_min must be below ratio_max, got {ratio_min} and {ratio_max}")
    if ratio_min is not None:
        log_ratio = log_ratio.clamp(min=math.log(ratio_min))
    if ratio_max is not None:
        log_ratio = log_ratio.clamp(max=math.log(ratio_max))
    return log_ratio


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _check_generator(log_ratio: Tensor, generator: str, lam: float, scale: float) -> None:
    if not log_ratio.is_floating_point():
        raise ValueError(f"log_ratio must be floating point, got {log_ratio.dtype}")
    if generator not in GENERATORS:
        raise ValueError(f"generator must be one of {', '.join(GENERATORS)}, got {generator!r}")
    if not math.isfinite(lam):
        raise ValueError(f"lam must be finite, got {lam}")
    if generator == "basu" and lam <= -1:
        raise ValueError(f"lam must exceed -1 for generator 'basu', got {lam}")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
