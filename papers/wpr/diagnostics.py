"""What to log about the transport behind a Wasserstein penalty: is it semantic, and has its iteration converged?

Off-diagonal mass near 0, or a kernel exponent beyond 40, says that the penalty is a reverse KL in disguise (see
`papers.wpr.costs`); a large row-marginal error, that the number of iterations sets the strength of the penalty; a
large floor share, that the floor does. `marginal_errors` is the data of the paper's figure on convergence.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from papers.wpr.costs import nearest_neighbor_costs
from papers.wpr.wasserstein import Transport, check_problem, sinkhorn_scalings


@dataclass(frozen=True)
class TransportDiagnostics:
    """Means over the masked positions of one batch (NaN without any), all in probability unless said otherwise."""

    off_diagonal_mass: float
    """Σ_{i≠j} P_ij: the mass that the plan moves between tokens; 0 for an identity kernel."""
    row_marginal_error: float
    """Σ_i |(P1)_i − p_i|: how far the policy-side marginal is from met (the other one is exact but for the floor)."""
    floor_share: float
    """Share of the sampled tokens whose φ the floor δ decides: u ≤ δ, or a denominator Kv ≤ δ."""
    kernel_exponent: float
    """Median over the support of λ·(cost to the nearest supported token), dimensionless."""
    policy_dust: float
    """Mass of the policy outside of the support."""
    reference_dust: float
    """Mass of the reference outside of the support."""
    support_size: int
    """Number of tokens of the support, without the dust bin."""


@torch.no_grad()
def transport_diagnostics(transport: Transport) -> TransportDiagnostics:
    """Describe a solved `Transport`; costs one more iteration, not another solve."""
    p, q, log_u, log_v = transport.p, transport.q, transport.log_u, transport.log_v
    next_log_u, _ = sinkhorn_scalings(p, q, transport.log_kernel, num_iters=1, floor=transport.floor, log_v=log_v)
    row_marginal = _row_marginal(p, log_u, next_log_u, transport.floor)
    kept = torch.where(row_marginal > 0, log_u + log_v + transport.log_kernel.diagonal(), -math.inf).exp()
    nearest_exponents = nearest_neighbor_costs(-transport.log_kernel)[:-1]
    return TransportDiagnostics(
        off_diagonal_mass=(row_marginal - kept).clamp(min=0).sum(-1).mean().item(),
        row_marginal_error=(row_marginal - p).abs().sum(-1).mean().item(),
        floor_share=_decided_by_floor(transport).double().mean().item(),
        kernel_exponent=nearest_exponents.median().item(),
        policy_dust=p[:, -1].mean().item(),
        reference_dust=q[:, -1].mean().item(),
        support_size=len(transport.support),
    )


@torch.no_grad()
def marginal_errors(
    policy: Tensor, reference: Tensor, cost: Tensor, *, reg: float, num_iters: int = 50, floor: float = 1e-16
) -> Tensor:
    """Row-marginal error Σ_i |(P1)_i − p_i| after each of `num_iters` iterations: (num_iters, ...), float64.

    Arguments and errors as `sinkhorn_potentials`.
    """
    check_problem(policy, reference, cost, reg=reg, num_iters=num_iters, floor=floor)
    p, q, log_kernel = policy.double(), reference.double(), cost.double() / -reg
    log_u, log_v = sinkhorn_scalings(p, q, log_kernel, num_iters=1, floor=floor)
    errors = []
    for _ in range(num_iters):
        next_log_u, log_v = sinkhorn_scalings(p, q, log_kernel, num_iters=1, floor=floor, log_v=log_v)
        errors.append((_row_marginal(p, log_u, next_log_u, floor) - p).abs().sum(-1))
        log_u = next_log_u
    return torch.stack(errors)


def _row_marginal(p: Tensor, log_u: Tensor, next_log_u: Tensor, floor: float) -> Tensor:
    """P1 = u∘(Kv), with Kv = p/u' − δ from the update u' that would follow: no kernel product, no overflow."""
    log_floor = math.log(floor) if floor > 0 else -math.inf
    carried = (p.log() + log_u - next_log_u).exp() - (log_floor + log_u).exp()
    return torch.where(log_u.isinf(), 0, carried).clamp(min=0)


def _decided_by_floor(transport: Transport) -> Tensor:
    """(M,) whether u ≤ δ or the denominator p/u = Kv + δ ≤ 2δ at the sampled token."""
    if transport.floor == 0:
        return torch.zeros_like(transport.sampled, dtype=torch.bool)
    log_u, p = (x.gather(-1, transport.sampled[:, None])[:, 0] for x in (transport.log_u, transport.p))
    log_floor = math.log(transport.floor)
    return (log_u <= log_floor) | (p.log() - log_u <= log_floor + math.log(2))
