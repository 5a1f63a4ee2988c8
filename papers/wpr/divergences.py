"""f-divergence penalties: the baselines of Wasserstein policy regularization (arXiv 2602.01685).

With x = π_θ(a)/π_ref(a), every f-divergence is D = Σ_a π_ref(a) F(x_a) = E_{a ∼ π_θ}[F(x)/x] for a convex F, up to a
term linear in x, which does not change D. That gives two per-token penalties for the same PPO:

- "value", F(x)/x, has the expectation D, and is what the paper's baselines subtract from the reward. But PPO holds
  the penalty constant, and the gradient it then follows, E[F(x)/x · ∇ log π_θ], is not ∇D (but for reverse KL).
- "gradient", F′(x), has E[F′(x) ∇ log π_θ] = ∇D: the envelope form, as the Wasserstein potential is.

| name       | D                        | F(x)/x                                       | F′(x), with F′(1) = 0 |
|------------|--------------------------|----------------------------------------------|-----------------------|
| reverse_kl | KL(π_θ ‖ π_ref)          | log x                                        | log x                 |
| forward_kl | KL(π_ref ‖ π_θ)          | −log(x)/x                                    | 1 − 1/x               |
| js         | 2·JS(π_θ, π_ref)         | log x − (1 + 1/x) log((1 + x)/2)             | log(2x/(1 + x))       |
| alpha      | Σ π_θ f_α(π_ref/π_θ)     | (x^−α − α/x − (1 − α))/(α(α − 1))            | (1 − x^−α)/α          |
| tv         | ½ Σ abs(π_θ − π_ref)     | ½ abs(1 − 1/x)                               | ½ sign(x − 1)         |
| chi2       | Σ (π_θ − π_ref)²/π_ref   | (x − 1)²/x                                   | 2(x − 1)              |

f_α(t) = (t^α − αt − (1 − α))/(α(α − 1)) tends to reverse KL for α → 0 and to forward KL for α → 1.
All are functions of ℓ = log x, so that nothing is divided by a small probability.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

FORMS = ("value", "gradient")


def f_divergence_penalty(log_ratio: Tensor, divergence: str, *, alpha: float = 0.5, form: str = "value") -> Tensor:
    """Per-token penalty of an f-divergence, to be subtracted (times β) from the reward.

    Args:
        log_ratio: log π_θ(a) − log π_ref(a), any shape, floats; infinities give the limit.
        divergence: "reverse_kl", "forward_kl", "js", "alpha", "tv" or "chi2".
        alpha: α in (0, 1) of "alpha".
        form: "value", whose mean over a ∼ π_θ is D, or "gradient", whose policy gradient is that of D.

    Returns:
        Like `log_ratio`. Where the penalty exceeds the range of its dtype, ±inf.

    Raises:
        ValueError: unknown divergence or form, α outside of (0, 1), NaN or non-float `log_ratio`.
    """
    if divergence not in _PENALTIES:
        raise ValueError(f"divergence must be one of {tuple(_PENALTIES)}, got {divergence!r}")
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}")
    if not log_ratio.is_floating_point():
        raise ValueError(f"log_ratio must be floating point, got {log_ratio.dtype}")
    if log_ratio.isnan().any():
        raise ValueError("log_ratio must not be NaN")
    ratio = log_ratio.to(torch.promote_types(log_ratio.dtype, torch.float32))
    value, gradient = _PENALTIES[divergence]
    penalty = (value if form == "value" else gradient)(ratio, alpha)
    return penalty.to(log_ratio.dtype)


def _log_ratio(ratio: Tensor, _: float) -> Tensor:
    return ratio


def _forward_kl(ratio: Tensor, _: float) -> Tensor:
    return -_finite(ratio) * (-ratio).exp()


def _forward_kl_gradient(ratio: Tensor, _: float) -> Tensor:
    return -(-ratio).expm1()


def _js(ratio: Tensor, _: float) -> Tensor:
    # log((1 + x)/2) = softplus(ℓ) − log 2, and softplus(ℓ) = −log σ(−ℓ), exact at any ℓ unlike F.softplus.
    ratio = _finite(ratio)
    return math.log(2) + logsigmoid(ratio) - (-ratio).exp() * (-logsigmoid(-ratio) - math.log(2))


def _js_gradient(ratio: Tensor, _: float) -> Tensor:
    return math.log(2) + logsigmoid(ratio)


def _alpha(ratio: Tensor, alpha: float) -> Tensor:
    # Near x = 1 the terms cancel to second order, which expm1 resolves; for small x both powers may overflow, and
    # their difference with them, unless 1/x is factored out.
    near, small = ratio.clamp(min=-1), ratio.clamp(max=-1)
    resolved = (-alpha * near).expm1() - alpha * (-near).expm1()
    factored = (-small).exp() * (((1 - alpha) * small).exp() - alpha) - (1 - alpha)
    return torch.where(ratio > -1, resolved, factored) / (alpha * (alpha - 1))


def _alpha_gradient(ratio: Tensor, alpha: float) -> Tensor:
    return -(-alpha * ratio).expm1() / alpha


def _tv(ratio: Tensor, _: float) -> Tensor:
    return (-ratio).expm1().abs() / 2


def _tv_gradient(ratio: Tensor, _: float) -> Tensor:
    return ratio.sign() / 2


def _chi2(ratio: Tensor, _: float) -> Tensor:
    return 4 * (ratio / 2).sinh().square()


def _chi2_gradient(ratio: Tensor, _: float) -> Tensor:
    return 2 * ratio.expm1()


def _finite(ratio: Tensor) -> Tensor:
    """The ratio with ±inf as the largest numbers, for products whose other factor decides the limit (0 · inf)."""
    return ratio.nan_to_num()


_PENALTIES: dict[str, tuple[Callable[[Tensor, float], Tensor], Callable[[Tensor, float], Tensor]]] = {
    "reverse_kl": (_log_ratio, _log_ratio),
    "forward_kl": (_forward_kl, _forward_kl_gradient),
    "js": (_js, _js_gradient),
    "alpha": (_alpha, _alpha_gradient),
    "tv": (_tv, _tv_gradient),
    "chi2": (_chi2, _chi2_gradient),
}
