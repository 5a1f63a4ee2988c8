"""What is logged about a solved transport, against the plans formed explicitly."""

import dataclasses
import math

import pytest
import torch

from papers.wpr.costs import identity_cost
from papers.wpr.diagnostics import marginal_errors, transport_diagnostics
from papers.wpr.wasserstein import sinkhorn_potentials, solve_transport, token_cost_matrix

B, T, V = 2, 4, 9
GENERATOR = torch.Generator().manual_seed(0)
POLICY, REFERENCE = ((2 * torch.randn(B, T, V, generator=GENERATOR, dtype=torch.float64)).softmax(-1) for _ in range(2))
ACTIONS = torch.randint(0, V, (B, T), generator=GENERATOR)
COST = token_cost_matrix(torch.randn(V, 3, generator=GENERATOR, dtype=torch.float64))
MASK = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)


def explicit_plans(transport):
    """(M, n+1, n+1) diag(u) K diag(v)."""
    return (transport.log_u[:, :, None] + transport.log_kernel + transport.log_v[:, None, :]).exp()


@pytest.mark.parametrize("floor", [0.0, 1e-16, 1e-3])
@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("num_iters", [1, 10])
def test_masses_are_those_of_the_plans(floor, top_k, num_iters):
    arguments = {"reg": 0.3, "num_iters": num_iters, "mask": MASK, "floor": floor}
    transport = solve_transport(POLICY, REFERENCE, ACTIONS, COST, top_k=top_k, exclude_ids=[0], **arguments)
    measured = transport_diagnostics(transport)
    plans = explicit_plans(transport)
    off_diagonal = plans.sum((-2, -1)) - plans.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert measured.off_diagonal_mass == pytest.approx(off_diagonal.mean().item(), abs=1e-12)
    assert measured.off_diagonal_mass > 1e-3
    error = (plans.sum(-1) - transport.p).abs().sum(-1).mean().item()
    assert measured.row_marginal_error == pytest.approx(error, abs=1e-12)
    outside = [token for token in range(V) if token not in transport.support]
    assert measured.policy_dust == pytest.approx(POLICY[MASK][:, outside].sum(-1).mean().item(), abs=1e-12)
    assert measured.reference_dust == pytest.approx(REFERENCE[MASK][:, outside].sum(-1).mean().item(), abs=1e-12)
    assert measured.support_size == V - len(outside)
    on_support = COST[transport.support][:, transport.support].clone().fill_diagonal_(math.inf)
    assert measured.kernel_exponent == pytest.approx(on_support.min(-1).values.median().item() / 0.3)


def test_identity_kernel_moves_nothing():
    transport = solve_transport(POLICY, REFERENCE, ACTIONS, identity_cost, reg=0.3, floor=0.0)
    measured = transport_diagnostics(transport)
    assert measured.off_diagonal_mass == pytest.approx(0, abs=1e-13)
    assert measured.kernel_exponent == math.inf
    assert measured.row_marginal_error == pytest.approx((POLICY - REFERENCE).abs().sum(-1).mean().item(), abs=1e-9)


def test_floor_share_counts_both_ends():
    """Identity kernel, so that u = p (p/q)^(N−1) and Kv = q (q/p)^(N−1) until δ interferes."""
    policy = torch.tensor([[0.5, 0.001, 0.499]], dtype=torch.float64).expand(1, 3, 3)
    reference = torch.tensor([[0.001, 0.5, 0.499]], dtype=torch.float64).expand(1, 3, 3)
    arguments = (policy, reference, torch.tensor([[0, 1, 2]]), identity_cost)
    shares = {
        num_iters: transport_diagnostics(solve_transport(*arguments, reg=1.0, num_iters=num_iters)).floor_share
        for num_iters in (2, 20)
    }
    assert shares == {2: 0.0, 20: pytest.approx(2 / 3)}
    only_large = solve_transport(
        policy[:, :1], reference[:, :1], torch.tensor([[0]]), identity_cost, reg=1.0, num_iters=20
    )
    assert transport_diagnostics(only_large).floor_share == 1.0  # a denominator below δ
    only_small = dataclasses.replace(only_large, sampled=torch.tensor([1]))
    assert transport_diagnostics(only_small).floor_share == 1.0  # u below δ
    without_floor = solve_transport(*arguments, reg=1.0, num_iters=20, floor=0.0)
    assert transport_diagnostics(without_floor).floor_share == 0.0


def test_zero_probabilities_and_extreme_costs_stay_finite():
    policy, reference = POLICY.clone(), REFERENCE.clone()
    policy[..., 1], reference[..., 2], policy[..., 3], reference[..., 3] = 0, 0, 0, 0
    policy, reference = (x / x.sum(-1, keepdim=True) for x in (policy, reference))
    for floor in (0.0, 1e-16):
        for cost in (COST, 3000 * COST, identity_cost):
            measured = transport_diagnostics(solve_transport(policy, reference, ACTIONS, cost, reg=1.0, floor=floor))
            assert 0 <= measured.off_diagonal_mass <= 1
            assert 0 <= measured.row_marginal_error <= 2


def test_nothing_under_the_mask_is_nan_not_an_error():
    nothing = torch.zeros(B, T, dtype=torch.bool)
    measured = transport_diagnostics(solve_transport(POLICY, REFERENCE, ACTIONS, COST, reg=1.0, mask=nothing))
    assert math.isnan(measured.row_marginal_error)
    dust_only = solve_transport(POLICY, REFERENCE, ACTIONS, COST, reg=1.0, exclude_ids=range(V))
    assert math.isnan(transport_diagnostics(dust_only).kernel_exponent)
    assert transport_diagnostics(dust_only).policy_dust == pytest.approx(1)


@pytest.mark.parametrize("floor", [0.0, 1e-16])
def test_marginal_errors_are_those_after_each_iteration(floor):
    errors = marginal_errors(POLICY, REFERENCE, COST, reg=0.5, num_iters=40, floor=floor)
    assert errors.shape == (40, B, T)
    for num_iters in (1, 2, 10, 40):
        phi, psi = sinkhorn_potentials(POLICY, REFERENCE, COST, reg=0.5, num_iters=num_iters, floor=0.0)
        plans = ((phi[..., :, None] + psi[..., None, :] - COST) / 0.5).exp()
        expected = (plans.sum(-1) - POLICY).abs().sum(-1)
        torch.testing.assert_close(errors[num_iters - 1], expected, rtol=0, atol=1e-12)
    assert (errors.diff(dim=0) <= 1e-14).all()  # Sinkhorn's error in the first marginal never grows
    assert (errors[-1] < 0.1 * errors[0]).all()


def test_marginal_errors_check_their_arguments():
    with pytest.raises(ValueError, match="policy must sum to 1"):
        marginal_errors(2 * POLICY, REFERENCE, COST, reg=1.0)
    with pytest.raises(ValueError, match=r"num_iters .* got 0"):
        marginal_errors(POLICY, REFERENCE, COST, reg=1.0, num_iters=0)
