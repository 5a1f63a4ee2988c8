"""Model ratios R_theta that a Bregman loss matches to the ratio of the preference data.

Kim, Bae, Na, Moon, NeurIPS 2025, arXiv:2505.19601, Sec. 3.4 and App. B: any preference loss of the form
log(1 + R) gives a model of the ratio R = p(y_w < y_l | x) / p(y_w > y_l | x), which can be plugged into any
generator h; the logistic one gives the original loss back. With z = log pi_theta(y|x) - log pi_ref(y|x):

    f-DPO (Wang et al., ICLR 2024)     log R = -beta [f'(exp z_w) - f'(exp z_l)];   DPO is the reverse KL, f'(u) = log u
    SimPO (Meng et al., NeurIPS 2024)  log R = -[beta log pi(y_w)/|y_w| - beta log pi(y_l)/|y_l| - gamma]

R is rejected over chosen: swapping the two negates log R (for SimPO: up to gamma).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

DIVERGENCES = ("reverse_kl", "forward_kl", "jensen_shannon", "alpha", "chi_squared")


def log_model_ratio(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    divergence: str = "reverse_kl",
    alpha: float | None = None,
) -> Tensor:
    """log R_theta of DPO and of f-DPO: -beta [f'(exp z_w) - f'(exp z_l)].

    f'(u), up to constants that cancel: reverse_kl log u (DPO, log R = -m); forward_kl -1/u; jensen_shannon
    log(u / (1+u)); alpha -u^-alpha / alpha; chi_squared u + log u (the mixed divergence of chi-PO).

    Args:
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps: log pi(y|x) in nats, summed
            over response tokens, EOS included; four equal shapes (B,). Half precision is computed in float32.
        beta: strength of the divergence penalty, > 0 (usually 0.01 to 0.5).
        divergence: "reverse_kl", "forward_kl", "jensen_shannon", "alpha" or "chi_squared".
        alpha: order of "alpha", in (0, 1); the others have none. TRL's coefficient is 1 - alpha.

    Returns:
        log R in nats, shape (B,), the inputs' (promoted) dtype, differentiable. An exponential that would overflow
        is capped, with zero gradient beyond (z below -78 for forward_kl, above 78 for chi_squared in float32).

    Raises:
        ValueError: beta not in (0, inf), unequal shapes, inputs not floating point, unknown divergence, alpha missing
            or outside (0, 1) for "alpha".
    """
    logps = {
        "policy_chosen_logps": policy_chosen_logps,
        "policy_rejected_logps": policy_rejected_logps,
        "ref_chosen_logps": ref_chosen_logps,
        "ref_rejected_logps": ref_rejected_logps,
    }
    _check_beta(beta)
    _check_equal_shapes(logps)
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}, got {divergence!r}")
    if divergence == "alpha" and (alpha is None or not 0 < alpha < 1):
        raise ValueError(f"alpha must lie in (0, 1) for divergence 'alpha', got {alpha}")
    dtype = _floating_dtype(logps)
    chosen, rejected, ref_chosen, ref_rejected = (
        value.to(torch.promote_types(dtype, torch.float32)) for value in logps.values()
    )
    z_chosen, z_rejected = chosen - ref_chosen, rejected - ref_rejected
    slope_chosen = _f_prime(z_chosen, divergence, alpha)
    slope_rejected = _f_prime(z_rejected, divergence, alpha)
    return (-beta * (slope_chosen - slope_rejected)).to(dtype)


def simpo_log_ratio(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
    gamma: float,
) -> Tensor:
    """log R_theta of SimPO: -[beta (log pi(y_w)/|y_w| - log pi(y_l)/|y_l|) - gamma]; no reference model.

    Args:
        policy_chosen_logps, policy_rejected_logps: log pi(y|x) in nats, *summed* over response tokens, EOS included;
            shape (B,). Half precision is computed in float32.
        chosen_lengths, rejected_lengths: |y|, the number of response tokens, EOS included; shape (B,), > 0.
        beta: reward scale, > 0 (usually 2 to 10).
        gamma: target margin in nats, finite; the full one, beta times SimPO's `gamma_beta_ratio`.

    Returns:
        log R in nats, shape (B,), the log-probs' (promoted) dtype, differentiable.

    Raises:
        ValueError: beta not in (0, inf), gamma not finite, unequal shapes, log-probs not floating point, a length
            that is not positive.
    """
    logps = {"policy_chosen_logps": policy_chosen_logps, "policy_rejected_logps": policy_rejected_logps}
    lengths = {"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths}
    _check_beta(beta)
    if not math.isfinite(gamma):
        raise ValueError(f"gamma must be finite, got {gamma}")
    _check_equal_shapes(logps | lengths)
    for name, length in lengths.items():
        if not bool((length > 0).all()):
            raise ValueError(f"{name} must be positive, got a smallest length of {length.min().item()}")
    dtype = _floating_dtype(logps)
    chosen, rejected = (value.to(torch.promote_types(dtype, torch.float32)) for value in logps.values())
    margin = beta * (chosen / chosen_lengths - rejected / rejected_lengths) - gamma
    return (-margin).to(dtype)


def _f_prime(z: Tensor, divergence: str, alpha: float | None) -> Tensor:
    """f'(u) at u = exp(z), up to an additive constant."""
    if divergence == "forward_kl":
        return -_capped_exp(-z)
    if divergence == "jensen_shannon":
        return F.logsigmoid(z)
    if divergence == "alpha":
        return -_capped_exp(-alpha * z) / alpha
    if divergence == "chi_squared":
        return _capped_exp(z) + z
    return z


def _capped_exp(exponent: Tensor) -> Tensor:
    """exp, kept a factor e^10 below the dtype's largest number, so that a difference of two is never inf - inf."""
    return torch.exp(exponent.clamp(max=math.log(torch.finfo(exponent.dtype).max) - 10))


def _check_beta(beta: float) -> None:
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be positive and finite, got {beta}")


def _check_equal_shapes(tensors: dict[str, Tensor]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"inputs must have equal shapes, got {shapes}")


def _floating_dtype(logps: dict[str, Tensor]) -> torch.dtype:
    for name, value in logps.items():
        if not value.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {value.dtype}")
    first, *others = (value.dtype for value in logps.values())
    for other in others:
        first = torch.promote_types(first, other)
    return first
