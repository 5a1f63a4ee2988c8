"""Wasserstein policy regularization: the penalty of Na et al., ICLR 2026 (arXiv 2602.01685).

RLHF maximises E[R] − β D(π_θ ‖ π_ref). A KL or f-divergence compares the two next-token distributions index by
index, so that moving mass from "cat" to "kitten" costs as much as moving it to "table". Here D is the entropic
optimal-transport cost D̃ between p = π_θ(·|s) and q = π_ref(·|s), where moving mass from token i to token j costs the
distance C_ij of their embeddings in the frozen reference model:

    D̃(p, q) = min_{P ≥ 0, P1 = p, Pᵀ1 = q}  ⟨P, C⟩ − (1/λ) H(P),      H(P) = −Σ P_ij (log P_ij − 1)        (primal)
            = max_{φ, ψ}  ⟨φ, p⟩ + ⟨ψ, q⟩ − (1/λ) Σ_ij exp(λ (φ_i + ψ_j − C_ij))                             (dual)

The optimal plan is P = diag(u) K diag(v) with K = exp(−λC), φ = (1/λ) log u and ψ = (1/λ) log v, which Sinkhorn's
iteration finds. As φ* is optimal, the envelope theorem gives the policy gradient of D̃ (the paper's Theorem 2)

    ∇_θ D̃ = Σ_i φ*_i ∇_θ π_θ(i|s) = E_{a ∼ π_θ} [φ*_a ∇_θ log π_θ(a|s)],

so PPO only has to subtract β φ*_a, the policy-side potential of the *sampled* token held constant, from its reward.
C comes from `papers.wpr.costs`; this file restricts the problem to the tokens that matter, solves the dual, and picks
the penalty. Throughout, `reg` is 1/λ in the unit of the cost, δ is `floor`; B sequences, T positions, V tokens, M
positions under the mask, n supported tokens.

Two properties of the *finite* iteration matter as much as the theory, and hold exactly without its floor δ.
(i) φ_i = reg·log p_i + h_i with |h_i − h_j| ≤ C_ij for a metric C: an entropy bonus, and a potential that is
1-Lipschitz in the embedding distance. (ii) Where exp(−C/reg) vanishes off the diagonal, N iterations give
φ = reg·(N log p − (N−1) log q): reverse KL with no semantics left. `papers.wpr.diagnostics` tells the regimes apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import BoolTensor, LongTensor, Tensor

from papers.wpr.costs import TokenCost, token_cost_matrix

__all__ = [
    "GAUGES",
    "Transport",
    "check_problem",
    "plan_support",
    "sinkhorn_potentials",
    "sinkhorn_scalings",
    "solve_transport",
    "token_cost_matrix",
    "transport_penalty",
    "wasserstein_penalty",
]

GAUGES = ("none", "support_mean", "policy", "value")


# Support of the plan: the tokens on which all positions are compared, and a dust bin for the rest.


def plan_support(
    policy: Tensor,
    reference: Tensor,
    actions: LongTensor,
    mask: BoolTensor,
    *,
    top_k: int | None = None,
    exclude_ids: Sequence[int] = (),
    include_ids: Sequence[int] = (),
) -> LongTensor:
    """Ascending ids (n,) of the tokens on which all masked positions are compared (see `wasserstein_penalty`)."""
    size = policy.shape[-1]
    if top_k is not None and not 1 <= top_k <= size:
        raise ValueError(f"top_k must be None or in [1, V] = [1, {size}], got {top_k}")
    for name, ids in (("exclude_ids", exclude_ids), ("include_ids", include_ids)):
        if not all(0 <= token < size for token in ids):
            raise ValueError(f"{name} must be in [0, V) = [0, {size}), got {list(ids)}")
    kept = torch.full((size,), top_k is None, device=policy.device)
    if top_k is not None:
        kept[actions[mask]] = True
        for probabilities in (policy, reference):
            for rows, wanted in zip(probabilities, mask, strict=True):  # copies one (T, V) sequence at a time
                kept[rows[wanted].topk(top_k).indices.flatten()] = True
    kept[list(exclude_ids)] = False
    kept[list(include_ids)] = True
    return kept.nonzero()[:, 0]


def _restrict(probabilities: Tensor, mask: BoolTensor, support: LongTensor) -> Tensor:
    """(M, n+1) float64: masked rows on the support, not renormalised, then the mass left over for the dust bin."""
    row, position = mask.nonzero(as_tuple=True)
    kept = probabilities[row[:, None], position[:, None], support].double()
    return torch.cat([kept, (1 - kept.sum(-1, keepdim=True)).clamp(min=0)], dim=-1)


def _cost_on_support(cost: TokenCost, support: LongTensor, size: int) -> Tensor:
    if callable(cost):
        on_support = cost(support)
    elif cost.shape == (size, size):
        on_support = cost[support[:, None], support]
    else:
        raise ValueError(f"cost must have shape (V, V) = ({size}, {size}), got {tuple(cost.shape)}")
    if on_support.shape != (len(support), len(support)):
        raise ValueError(
            f"cost must return shape (n, n) = ({len(support)}, {len(support)}) for a support of n tokens, "
            f"got {tuple(on_support.shape)}"
        )
    _check_cost(on_support, support.shape)
    return on_support


def _log_kernel_with_dust_bin(cost: Tensor, reg: float) -> Tensor:
    """−C/reg (n+1, n+1), float64, with a last token that mass can only stay in: cost 0 to itself, +inf elsewhere."""
    size = len(cost)
    log_kernel = cost.new_full((size + 1, size + 1), -math.inf, dtype=torch.float64)
    log_kernel[:size, :size] = cost.double() / -reg
    log_kernel[size, size] = 0
    return log_kernel


# Sinkhorn iteration on the dual.


@torch.no_grad()
def sinkhorn_potentials(
    policy: Tensor, reference: Tensor, cost: Tensor, *, reg: float, num_iters: int = 10, floor: float = 1e-16
) -> tuple[Tensor, Tensor]:
    """Dual potentials after `num_iters` Sinkhorn iterations from v = 1: u ← p/(Kv + δ), then v ← q/(Kᵀu + δ).

    The number of iterations is part of the method, not only of its accuracy: between parts of the vocabulary that
    the truncated cost does not connect, the potentials drift apart by reg·log(p(G)/q(G)) per iteration.

    Args:
        policy: p, (..., n) probabilities; zeros allowed.
        reference: q, (..., n) probabilities; zeros allowed.
        cost: (n, n) or broadcastable to (..., n, n), ≥ 0, in any unit; +inf forbids the move.
        reg: 1/λ > 0, in the unit of the cost.
        num_iters: number of iterations, at least 1.
        floor: δ ≥ 0; bounds |φ| by −reg·log δ (for δ ≤ 1). With δ = 0 (plain Sinkhorn) φ is −inf where p is 0, and
            +inf where mass has nowhere to go.

    Returns:
        φ = reg·log(u + δ) and ψ = reg·log(v + δ), (..., n) each, in the dtype of `policy`, without gradient. The
        iteration runs in float64 whatever the inputs are.

    Raises:
        ValueError: shapes do not match; reg ≤ 0; num_iters < 1; floor < 0; probabilities that are negative, not
            finite or do not sum to 1 within 1e-3; costs that are NaN or negative.
    """
    check_problem(policy, reference, cost, reg=reg, num_iters=num_iters, floor=floor)
    log_u, log_v = sinkhorn_scalings(
        policy.double(), reference.double(), cost.double() / -reg, num_iters=num_iters, floor=floor
    )
    phi, psi = _potential(log_u, reg, floor), _potential(log_v, reg, floor)
    return phi.to(policy.dtype), psi.to(policy.dtype)


def _potential(log_scaling: Tensor, reg: float, floor: float) -> Tensor:
    """φ = reg·log(u + δ) from log u."""
    return reg * torch.logaddexp(log_scaling, log_scaling.new_tensor(_log(floor)))


@torch.no_grad()
def sinkhorn_scalings(
    p: Tensor, q: Tensor, log_kernel: Tensor, *, num_iters: int, floor: float, log_v: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(log u, log v) after `num_iters` iterations: `sinkhorn_potentials` without its checks, with a warm start.

    The updates are matrix products in the kernel domain: one (M, n) × (n, n) product each when all positions share a
    kernel, and never an (M, n, n) tensor. The floor keeps u and v in [0, 1/δ] and the denominators above δ, which
    float64 holds with room to spare. Without a floor a position can leave the range of float64 (costs of hundreds of
    `reg`); it is then recognised and done again, alone, in the log domain.

    Args:
        p, q: (..., n) float64 marginals.
        log_kernel: −C/reg ≤ 0, (n, n) or broadcastable to (..., n, n), float64.
        log_v: (..., n) to start from; None for v = 1.
    """
    kernel = log_kernel.exp()
    log_v = torch.zeros_like(q) if log_v is None else log_v
    v, in_range = log_v.exp(), torch.ones_like(p[..., 0], dtype=torch.bool)
    for _ in range(num_iters):
        u, u_in_range = _rescale(p, kernel, v, floor)
        v, v_in_range = _rescale(q, kernel.mT, u, floor)
        in_range = in_range & u_in_range & v_in_range
    log_u, log_v_new = u.log(), v.log()
    if not in_range.all():
        redo = ~in_range
        log_kernels = log_kernel if log_kernel.ndim == 2 else log_kernel.expand(*p.shape, p.shape[-1])[redo]
        log_u[redo], log_v_new[redo] = _log_domain_scalings(
            p[redo].log(), q[redo].log(), log_kernels, log_v[redo], num_iters, floor
        )
    return log_u, log_v_new


def _rescale(marginal: Tensor, kernel: Tensor, other: Tensor, floor: float) -> tuple[Tensor, Tensor | bool]:
    """marginal / (kernel · other + floor), and for which positions (...) float64 had the range to compute it.

    Underflow (of the kernel, of `other` or of their product) loses at most n · tiny · max(1, max other) of a
    denominator. That is harmless if it is below the rounding error of that denominator.
    """
    limits = torch.finfo(marginal.dtype)
    unresolved = marginal.shape[-1] * limits.tiny / limits.eps
    denominator = _kernel_product(kernel, other).add_(floor)
    if floor * floor >= unresolved:  # so denominator ≥ floor ≥ unresolved / floor ≥ unresolved · max other
        return marginal / denominator, True
    empty = marginal == 0
    scaling = torch.where(empty, 0, marginal / denominator)
    resolved = denominator >= unresolved * other.amax(-1, keepdim=True).clamp(min=1)
    return scaling, ((resolved & (scaling >= limits.tiny)) | empty).all(-1)


def _kernel_product(kernel: Tensor, vector: Tensor) -> Tensor:
    """K v over (..., n); one product for all positions (of a sequence) that share a kernel."""
    if kernel.ndim == 2:
        return vector @ kernel.mT
    if kernel.shape[-3] == 1:
        return vector @ kernel.squeeze(-3).mT
    return (kernel @ vector[..., None])[..., 0]


def _log_domain_scalings(
    log_p: Tensor, log_q: Tensor, log_kernel: Tensor, log_v: Tensor, num_iters: int, floor: float
) -> tuple[Tensor, Tensor]:
    """The same iteration on (M, n) logarithms: exact at any range, far slower."""

    def rescale(log_marginal: Tensor, log_kernel: Tensor, log_other: Tensor) -> Tensor:
        log_denominator = torch.logaddexp(_log_kernel_product(log_kernel, log_other), log_floor)
        # 0/0 is 0 here: a token without mass never sends any.
        return torch.where(log_marginal == -math.inf, -math.inf, log_marginal - log_denominator)

    log_floor = log_v.new_tensor(_log(floor))
    for _ in range(num_iters):
        log_u = rescale(log_p, log_kernel, log_v)
        log_v = rescale(log_q, log_kernel.mT, log_u)
    return log_u, log_v


def _log_kernel_product(log_kernel: Tensor, log_vector: Tensor, block_elements: int = 2**24) -> Tensor:
    """log(K v) over (M, n), in blocks of output columns that bound the (M, ·, n) intermediate."""
    columns = max(1, block_elements // max(1, log_vector.numel()))
    blocks = []
    for block in log_kernel.split(columns, dim=-2):
        # A forbidden move carries nothing, not even from an infinite scaling (−inf + inf would be NaN).
        terms = torch.where(block == -math.inf, -math.inf, block + log_vector[:, None, :])
        blocks.append(terms.logsumexp(-1))
    return torch.cat(blocks, dim=-1)


def _log(floor: float) -> float:
    return math.log(floor) if floor > 0 else -math.inf


# The penalty.


@torch.no_grad()
def wasserstein_penalty(
    policy: Tensor,
    reference: Tensor,
    actions: LongTensor,
    cost: TokenCost,
    *,
    reg: float,
    num_iters: int = 10,
    top_k: int | None = None,
    mask: BoolTensor | None = None,
    exclude_ids: Sequence[int] = (),
    include_ids: Sequence[int] = (),
    gauge: str = "none",
    floor: float = 1e-16,
) -> Tensor:
    """Potential φ*_{a_t} of the sampled token, to be subtracted (times β) from the reward at t (Theorem 2).

    Args:
        policy: π_θ(·|s_t), (B, T, V) probabilities at temperature 1.
        reference: π_ref(·|s_t), (B, T, V) probabilities.
        actions: a_t, (B, T) sampled token ids in [0, V) (anything outside the mask).
        cost: (V, V) tensor, or a function from the ascending support (n,) to its (n, n) cost.
        reg: 1/λ > 0, in the unit of the cost.
        num_iters: Sinkhorn iterations.
        top_k: the plan's support is the union over the masked positions of the top_k tokens of both distributions
            and the actions; None takes the whole vocabulary. With top_k, results depend on which positions share a
            call, as they share its support; with None they do not.
        mask: (B, T) bool, True where the penalty is wanted; None for everywhere.
        exclude_ids: token ids removed from the support (padding).
        include_ids: token ids then added to it (end of sequence).
        gauge: the constant per position. (φ + c, ψ − c) are equally optimal, and c has no influence on the gradient
            at this position, but it enters the returns of earlier ones. "none": as the iteration leaves it;
            "support_mean": φ − mean of φ over support and dust bin; "policy": φ − ⟨φ, p⟩; "value": φ + ⟨ψ, q⟩ − reg,
            whose expectation under the policy is D̃(p, q).
        floor: δ of `sinkhorn_potentials`.

    Returns:
        (B, T) in the dtype of `policy`, without gradient; exactly 0 outside the mask.

    Raises:
        ValueError: shapes, dtypes, ids or `top_k` out of range, unknown gauge, or as `sinkhorn_potentials`.
    """
    if gauge not in GAUGES:
        raise ValueError(f"gauge must be one of {GAUGES}, got {gauge!r}")
    transport = solve_transport(
        policy,
        reference,
        actions,
        cost,
        reg=reg,
        num_iters=num_iters,
        top_k=top_k,
        mask=mask,
        exclude_ids=exclude_ids,
        include_ids=include_ids,
        floor=floor,
    )
    return transport_penalty(transport, gauge=gauge).to(policy.dtype)


@dataclass(frozen=True, eq=False)
class Transport:
    """Dual solutions at the M masked positions, in row-major order; the dust bin is the last of the n+1 columns."""

    mask: BoolTensor
    """(B, T) which positions were solved."""
    support: LongTensor
    """(n,) ascending token ids."""
    sampled: LongTensor
    """(M,) column of the sampled token; n, the dust bin, for a token outside the support."""
    p: Tensor
    """(M, n+1) policy on the support, and its left-over mass."""
    q: Tensor
    """(M, n+1) reference on the support, and its left-over mass."""
    log_kernel: Tensor
    """(n+1, n+1) −C/reg, common to all positions."""
    log_u: Tensor
    """(M, n+1)."""
    log_v: Tensor
    """(M, n+1)."""
    reg: float
    floor: float

    @property
    def phi(self) -> Tensor:
        """(M, n+1) policy-side potentials."""
        return _potential(self.log_u, self.reg, self.floor)

    @property
    def psi(self) -> Tensor:
        """(M, n+1) reference-side potentials."""
        return _potential(self.log_v, self.reg, self.floor)


@torch.no_grad()
def solve_transport(
    policy: Tensor,
    reference: Tensor,
    actions: LongTensor,
    cost: TokenCost,
    *,
    reg: float,
    num_iters: int = 10,
    top_k: int | None = None,
    mask: BoolTensor | None = None,
    exclude_ids: Sequence[int] = (),
    include_ids: Sequence[int] = (),
    floor: float = 1e-16,
) -> Transport:
    """Solve the dual at every masked position; arguments and errors as `wasserstein_penalty`.

    One solve serves both `transport_penalty` and `papers.wpr.diagnostics.transport_diagnostics`.
    """
    _check_iteration(reg, num_iters, floor)
    mask = _check_batch(policy, reference, actions, mask)
    support = plan_support(
        policy,
        reference,
        actions,
        mask,
        top_k=top_k,
        exclude_ids=exclude_ids,
        include_ids=include_ids,
    )
    log_kernel = _log_kernel_with_dust_bin(_cost_on_support(cost, support, policy.shape[-1]), reg)
    p, q = (_restrict(probabilities, mask, support) for probabilities in (policy, reference))
    column = support.new_full((policy.shape[-1],), len(support))
    column[support] = torch.arange(len(support), device=support.device)
    log_u, log_v = sinkhorn_scalings(p, q, log_kernel, num_iters=num_iters, floor=floor)
    return Transport(mask, support, column[actions[mask]], p, q, log_kernel, log_u, log_v, reg, floor)


@torch.no_grad()
def transport_penalty(transport: Transport, *, gauge: str = "none") -> Tensor:
    """Potential (B, T) of the sampled tokens in a `gauge` of `wasserstein_penalty`, 0 outside the mask, float64."""
    phi = transport.phi
    sampled = phi.gather(-1, transport.sampled[:, None])[:, 0]
    if gauge == "support_mean":
        sampled = sampled - phi.mean(-1)
        if not sampled.isfinite().all():
            raise ValueError("gauge 'support_mean' needs floor > 0 when supported tokens have zero probability")
    elif gauge == "policy":
        sampled = sampled - _expectation(transport.p, phi)
    elif gauge == "value":
        sampled = sampled + _expectation(transport.q, transport.psi) - transport.reg
    elif gauge != "none":
        raise ValueError(f"gauge must be one of {GAUGES}, got {gauge!r}")
    return torch.zeros_like(transport.mask, dtype=phi.dtype).masked_scatter(transport.mask, sampled)


def _expectation(probabilities: Tensor, values: Tensor) -> Tensor:
    """⟨values, probabilities⟩ over the last axis with 0 · (±inf) = 0."""
    return torch.where(probabilities > 0, probabilities * values, 0).sum(-1)


# Checks of arguments.


def check_problem(policy: Tensor, reference: Tensor, cost: Tensor, *, reg: float, num_iters: int, floor: float) -> None:
    """Raise the ValueErrors of `sinkhorn_potentials`."""
    _check_iteration(reg, num_iters, floor)
    if policy.ndim < 1 or policy.shape != reference.shape or policy.shape[-1] == 0:
        raise ValueError(
            "policy and reference must have one shape (..., n) with n > 0, "
            f"got {tuple(policy.shape)} and {tuple(reference.shape)}"
        )
    _check_cost(cost, policy.shape)
    _check_probabilities("policy", policy)
    _check_probabilities("reference", reference)


def _check_iteration(reg: float, num_iters: int, floor: float) -> None:
    if not (reg > 0 and math.isfinite(reg)):
        raise ValueError(f"reg must be positive and finite, got {reg}")
    if num_iters < 1:
        raise ValueError(f"num_iters must be at least 1, got {num_iters}")
    if not (floor >= 0 and math.isfinite(floor)):
        raise ValueError(f"floor must be non-negative and finite, got {floor}")


def _check_cost(cost: Tensor, shape: torch.Size) -> None:
    wanted = (*shape, shape[-1])
    if (
        cost.ndim < 2
        or cost.shape[-2:] != wanted[-2:]
        or cost.ndim > len(wanted)
        or any(have not in (1, want) for have, want in zip(cost.shape[-3::-1], wanted[-3::-1], strict=False))
    ):
        raise ValueError(f"cost must broadcast to shape {wanted}, got {tuple(cost.shape)}")
    if not (cost >= 0).all():
        raise ValueError("cost must be non-negative or +inf, got a negative or NaN entry")


def _check_probabilities(name: str, probabilities: Tensor, mask: Tensor | None = None) -> None:
    """`probabilities` (..., n) at the positions of `mask` (...) are distributions."""
    if not probabilities.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {probabilities.dtype}")
    # Half precision rounds each entry by up to eps/2, and the sum with them.
    tolerance = max(1e-3, torch.finfo(probabilities.dtype).eps)
    totals = probabilities.sum(-1, dtype=torch.promote_types(probabilities.dtype, torch.float32))
    smallest = probabilities.amin(-1)
    if mask is not None:
        totals, smallest = totals[mask], smallest[mask]
    if not totals.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    if (smallest < 0).any():
        raise ValueError(f"{name} must be non-negative, got {smallest.min().item():.3g}")
    error = (totals - 1).abs()
    if (error > tolerance).any():
        raise ValueError(f"{name} must sum to 1 within {tolerance:.3g}, got an error of {error.max().item():.3g}")


def _check_batch(policy: Tensor, reference: Tensor, actions: LongTensor, mask: BoolTensor | None) -> BoolTensor:
    """Check the arguments of shape (B, T, ...) of `wasserstein_penalty`; the mask, all True by default."""
    if policy.ndim != 3 or policy.shape != reference.shape:
        raise ValueError(
            "policy and reference must have one shape (B, T, V), "
            f"got {tuple(policy.shape)} and {tuple(reference.shape)}"
        )
    if actions.shape != policy.shape[:2]:
        raise ValueError(f"actions must have shape (B, T) = {tuple(policy.shape[:2])}, got {tuple(actions.shape)}")
    if actions.dtype != torch.long:
        raise ValueError(f"actions must be int64 token ids, got {actions.dtype}")
    if mask is None:
        mask = torch.ones_like(actions, dtype=torch.bool)
    if mask.shape != actions.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be bool of shape (B, T) = {tuple(actions.shape)}, got {mask.dtype} {tuple(mask.shape)}"
        )
    chosen = actions[mask]
    if ((chosen < 0) | (chosen >= policy.shape[-1])).any():
        raise ValueError(
            f"actions must be in [0, V) = [0, {policy.shape[-1]}) on the mask, "
            f"got values from {chosen.min().item()} to {chosen.max().item()}"
        )
    _check_probabilities("policy", policy, mask)
    _check_probabilities("reference", reference, mask)
    return mask
