"""The Sinkhorn dual and its penalty: identities of optimal transport, limit cases, brute force."""

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from papers.wpr import wasserstein
from papers.wpr.costs import EmbeddingCost, identity_cost, neighbor_radii
from papers.wpr.wasserstein import (
    plan_support,
    sinkhorn_potentials,
    sinkhorn_scalings,
    solve_transport,
    token_cost_matrix,
    transport_penalty,
    wasserstein_penalty,
)


def distributions(*shape: int, seed: int, spread: float = 1.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(*shape, generator=generator, dtype=torch.float64)).softmax(-1)


def metric_cost(size: int, *, seed: int = 0, width: int = 3, num_neighbors: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(size, width, generator=generator, dtype=torch.float64)
    return token_cost_matrix(points, num_neighbors=num_neighbors)


def any_cost(size: int, *, seed: int, forbidden: float = 0.0) -> torch.Tensor:
    """Not symmetric, so that no transposition goes unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(size, size, generator=generator, dtype=torch.float64)
    cost[torch.rand(size, size, generator=generator) < forbidden] = math.inf
    return cost.fill_diagonal_(0)


def plan(phi: torch.Tensor, psi: torch.Tensor, cost: torch.Tensor, reg: float) -> torch.Tensor:
    return ((phi[..., :, None] + psi[..., None, :] - cost) / reg).exp()


def literal_iteration(p, q, cost, *, reg, num_iters, floor):
    """The update formulas in the kernel domain, one position at a time, in numpy."""
    kernel = np.exp(-cost.double().numpy() / reg)
    potentials = []
    for a, b in zip(p.double().numpy(), q.double().numpy(), strict=True):
        v = np.ones_like(b)
        for _ in range(num_iters):
            u = a / (kernel @ v + floor)
            v = b / (kernel.T @ u + floor)
        potentials.append((reg * np.log(u + floor), reg * np.log(v + floor)))
    return tuple(torch.tensor(np.array(column)) for column in zip(*potentials, strict=True))


def log_domain_iteration(p, q, cost, *, reg, num_iters):
    """The same without floor, by log-sum-exp."""
    log_kernel = -cost.numpy() / reg
    potentials = []
    with np.errstate(divide="ignore"):
        for log_a, log_b in zip(np.log(p.numpy()), np.log(q.numpy()), strict=True):
            log_v = np.zeros_like(log_b)
            for _ in range(num_iters):
                log_u = log_a - logsumexp(log_kernel + log_v, axis=1)
                log_v = log_b - logsumexp(log_kernel.T + log_u, axis=1)
            potentials.append((reg * log_u, reg * log_v))
    return tuple(torch.tensor(np.array(column)) for column in zip(*potentials, strict=True))


# The converged solution is the entropic optimal transport.

P, Q, COST, REG = distributions(6, seed=1), distributions(6, seed=2), metric_cost(6), 0.5
CONVERGED = {"reg": REG, "num_iters": 400, "floor": 0.0}


def test_converged_plan_has_both_marginals_and_is_that_of_pot():
    transport = plan(*sinkhorn_potentials(P, Q, COST, **CONVERGED), COST, REG)
    torch.testing.assert_close(transport.sum(-1), P, rtol=0, atol=1e-8)
    torch.testing.assert_close(transport.sum(-2), Q, rtol=0, atol=1e-8)
    theirs = ot.bregman.sinkhorn_log(P.numpy(), Q.numpy(), COST.numpy(), REG, numItermax=5000, stopThr=1e-14)
    torch.testing.assert_close(transport, torch.tensor(theirs), rtol=0, atol=1e-6)


def test_transport_cost_approaches_the_unregularised_one_from_above():
    exact = ot.emd2(P.numpy(), Q.numpy(), COST.numpy())
    gaps = []
    for reg in (1.0, 0.3, 0.1, 0.03):
        phi, psi = sinkhorn_potentials(P, Q, COST, reg=reg, num_iters=2000, floor=0.0)
        gaps.append((plan(phi, psi, COST, reg) * COST).sum().item() - exact)
    assert all(gap >= -1e-9 for gap in gaps)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-2


@pytest.mark.parametrize("num_iters", [1, 2, 7])
def test_reference_marginal_is_exact_after_any_iteration(num_iters):
    p, q = distributions(4, 9, seed=3), distributions(4, 9, seed=4)
    cost = metric_cost(9, num_neighbors=2)
    phi, psi = sinkhorn_potentials(p, q, cost, reg=0.2, num_iters=num_iters, floor=0.0)
    torch.testing.assert_close(plan(phi, psi, cost, 0.2).sum(-2), q, rtol=0, atol=1e-10)


def regularised_cost(phi, psi, p, q, cost, reg):
    """The dual objective, equal to D̃ at the optimum."""
    return (phi * p).sum(-1) + (psi * q).sum(-1) - reg * plan(phi, psi, cost, reg).sum((-2, -1))


def test_strong_duality():
    phi, psi = sinkhorn_potentials(P, Q, COST, **CONVERGED)
    transport = plan(phi, psi, COST, REG)
    primal = (transport * COST).sum() + REG * (transport * (transport.log() - 1)).sum()
    torch.testing.assert_close(regularised_cost(phi, psi, P, Q, COST, REG), primal, rtol=0, atol=1e-9)


def test_potential_is_the_policy_gradient_by_finite_differences():
    logits = P.log()
    phi, _ = sinkhorn_potentials(P, Q, COST, **CONVERGED)
    gradient = P * (phi - (phi * P).sum())

    def value(shifted: torch.Tensor) -> torch.Tensor:
        p = shifted.softmax(-1)
        return regularised_cost(*sinkhorn_potentials(p, Q, COST, **CONVERGED), p, Q, COST, REG)

    step = 1e-4
    for i in range(6):
        shift = step * torch.eye(6, dtype=torch.float64)[i]
        slope = (8 * (value(logits + shift) - value(logits - shift)) - value(logits + 2 * shift)) / (12 * step)
        slope = slope + value(logits - 2 * shift) / (12 * step)
        assert slope.item() == pytest.approx(gradient[i].item(), rel=1e-6)


def test_potential_is_the_policy_gradient_by_differentiating_the_iteration():
    logits = P.log().requires_grad_()
    p = logits.softmax(-1)
    kernel = (-COST / REG).exp()
    v = torch.ones_like(Q)
    for _ in range(300):
        u = p / (kernel @ v)
        v = Q / (kernel.T @ u)
    transport = u[:, None] * kernel * v
    ((transport * COST).sum() + REG * (transport * (transport.log() - 1)).sum()).backward()
    phi, _ = sinkhorn_potentials(P, Q, COST, reg=REG, num_iters=300, floor=0.0)
    torch.testing.assert_close(logits.grad, P * (phi - (phi * P).sum()), rtol=0, atol=1e-10)


def test_equal_distributions_have_equal_potentials():
    # Converges slowly, as most mass stays where it is.
    phi, psi = sinkhorn_potentials(P, P, COST, reg=1.0, num_iters=1000, floor=0.0)
    torch.testing.assert_close(phi - psi, (phi - psi)[0].expand(6), rtol=0, atol=1e-9)


# The finite iteration, whatever it has converged to.


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 8),
    seed=st.integers(0, 10**6),
    num_iters=st.integers(1, 15),
    reg=st.floats(0.02, 5.0),
    spread=st.floats(0.0, 8.0),
    floor=st.sampled_from([1e-16, 1e-8, 1e-3]),
    zeros=st.booleans(),
    forbidden=st.sampled_from([0.0, 0.5]),
)
def test_iteration_follows_the_formulas(size, seed, num_iters, reg, spread, floor, zeros, forbidden):
    p, q = (distributions(3, size, seed=seed + i, spread=spread) for i in range(2))
    if zeros and size > 2:
        p[:, 0], q[:, 1], q[0, 0] = 0, 0, 0
        p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    cost = 3 * any_cost(size, seed=seed, forbidden=forbidden)
    ours = sinkhorn_potentials(p, q, cost, reg=reg, num_iters=num_iters, floor=floor)
    expected = literal_iteration(p, q, cost, reg=reg, num_iters=num_iters, floor=floor)
    for potential, literal in zip(ours, expected, strict=True):
        assert potential.isfinite().all()
        torch.testing.assert_close(potential, literal, rtol=1e-11, atol=1e-11 * reg)


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(2, 8),
    seed=st.integers(0, 10**6),
    num_iters=st.integers(1, 12),
    exponent=st.floats(1.0, 3000.0),
    spread=st.floats(0.1, 40.0),
)
def test_plain_sinkhorn_is_exact_at_any_range(size, seed, num_iters, exponent, spread):
    """No floor, and costs of up to thousands of reg: exp(−C/reg) alone cannot even be represented."""
    p, q = (distributions(3, size, seed=seed + i, spread=spread) for i in range(2))
    cost = exponent * any_cost(size, seed=seed)
    ours = sinkhorn_potentials(p, q, cost, reg=1.0, num_iters=num_iters, floor=0.0)
    expected = log_domain_iteration(p, q, cost, reg=1.0, num_iters=num_iters)
    for potential, exact in zip(ours, expected, strict=True):
        torch.testing.assert_close(potential, exact, rtol=1e-10, atol=1e-9)


def test_only_positions_out_of_range_leave_the_kernel_domain(monkeypatch):
    p, q = distributions(5, 7, seed=0, spread=1.0), distributions(5, 7, seed=1, spread=1.0)
    p[2], q[2] = distributions(7, seed=2, spread=60.0), distributions(7, seed=3, spread=60.0)
    cost = 2000 * metric_cost(7)  # the identity, so that u and v are powers of p and q
    alone = [sinkhorn_potentials(a, b, cost, reg=1.0, floor=0.0) for a, b in zip(p, q, strict=True)]
    redone = []
    slow = wasserstein._log_domain_scalings

    def recorded(log_p, *args):
        redone.append(len(log_p))
        return slow(log_p, *args)

    monkeypatch.setattr(wasserstein, "_log_domain_scalings", recorded)
    together = sinkhorn_potentials(p, q, cost, reg=1.0, floor=0.0)
    assert redone == [1]
    for i in range(2):
        torch.testing.assert_close(together[i], torch.stack([each[i] for each in alone]), rtol=1e-12, atol=1e-12)


def test_scaling_that_underflows_is_recognised():
    """Token 0 may only send to token 1, whose v of 1e20 makes u₀ = 1e-327, while all denominators stay in range."""
    p, q = torch.tensor([[[1e-307, 1e-25, 1.0]], [[0.0, 1e-5, 1.0]]], dtype=torch.float64)
    cost = identity_cost(torch.arange(3)).double()
    cost[0, 1] = 0
    phi, _ = sinkhorn_potentials(p, q, cost, reg=1.0, num_iters=2, floor=0.0)
    assert phi[0, 0].item() == pytest.approx(-327 * math.log(10))


def test_tokens_without_mass_stay_in_the_kernel_domain(monkeypatch):
    """As the dust bin of a full support."""
    monkeypatch.setattr(wasserstein, "_log_domain_scalings", None)
    p, q = (torch.tensor([[a, 1 - a, 0.0]], dtype=torch.float64) for a in (0.3, 0.6))
    phi, psi = sinkhorn_potentials(p, q, identity_cost(torch.arange(3)), reg=1.0, floor=0.0)
    assert phi[0, 2] == psi[0, 2] == -math.inf
    assert phi[0, :2].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("exponent", [0.5, 100.0, 800.0])
def test_low_precision_input_gives_the_float64_result_rounded(dtype, exponent, monkeypatch):
    """With the default floor no position may need the slow path either, at any cost."""
    monkeypatch.setattr(wasserstein, "_log_domain_scalings", None)
    p, q = distributions(4, 50, seed=0, spread=6.0).to(dtype), distributions(4, 50, seed=1, spread=6.0).to(dtype)
    cost = metric_cost(50).float()
    cost = exponent * cost / cost[cost > 0].min()
    for num_iters in (1, 10, 50):
        ours = sinkhorn_potentials(p, q, cost, reg=1.0, num_iters=num_iters)
        expected = literal_iteration(p, q, cost, reg=1.0, num_iters=num_iters, floor=1e-16)
        for potential, exact in zip(ours, expected, strict=True):
            assert potential.dtype == dtype
            assert potential.isfinite().all()
            torch.testing.assert_close(potential, exact.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 9), st.integers(0, 10**6), st.integers(1, 12), st.floats(0.01, 10.0))
def test_potential_without_its_entropy_part_is_lipschitz(size, seed, num_iters, reg):
    p, q = distributions(2, size, seed=seed), distributions(2, size, seed=seed + 1)
    cost = metric_cost(size, seed=seed)
    phi, _ = sinkhorn_potentials(p, q, cost, reg=reg, num_iters=num_iters, floor=0.0)
    height = phi - reg * p.log()
    assert ((height[..., :, None] - height[..., None, :]).abs() <= cost + 1e-9).all()


def test_synonyms_at_distance_zero_are_priced_alike():
    points = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points[4] = points[1]
    phi, _ = sinkhorn_potentials(P, Q, token_cost_matrix(points), reg=0.2, num_iters=5, floor=0.0)
    height = phi - 0.2 * P.log()
    assert height[1].item() == pytest.approx(height[4].item(), abs=1e-12)


@pytest.mark.parametrize("num_iters", [1, 2, 10, 60])
@pytest.mark.parametrize("cost", [identity_cost(torch.arange(6)), 1e6 * COST], ids=["infinite", "finite"])
def test_identity_kernel_gives_reverse_kl(num_iters, cost):
    phi, _ = sinkhorn_potentials(P, Q, cost, reg=0.7, num_iters=num_iters, floor=0.0)
    log_ratio = P.log() - Q.log()
    torch.testing.assert_close(phi, 0.7 * ((num_iters - 1) * log_ratio + P.log()), rtol=0, atol=1e-10)


def test_disconnected_components_drift_by_their_log_ratio_per_iteration():
    cost = torch.full((6, 6), math.inf, dtype=torch.float64)
    cost[:2, :2], cost[2:, 2:] = COST[:2, :2], COST[2:, 2:]
    before, after = (sinkhorn_potentials(P, Q, cost, reg=0.5, num_iters=n, floor=0.0)[0] for n in (200, 201))
    for block in (slice(0, 2), slice(2, 6)):
        drift = 0.5 * (P[block].sum() / Q[block].sum()).log()
        torch.testing.assert_close((after - before)[block], drift.expand_as(P[block]), rtol=0, atol=1e-9)


def test_large_reg_gives_the_independent_plan():
    reg = 1e4
    phi, psi = sinkhorn_potentials(P, Q, COST, reg=reg, num_iters=20, floor=0.0)
    torch.testing.assert_close(plan(phi, psi, COST, reg), P[:, None] * Q, rtol=0, atol=1e-4)
    remainder = phi - reg * P.log() - COST @ Q
    torch.testing.assert_close(remainder, remainder[0].expand(6), rtol=0, atol=1e-4)


def test_permuting_the_vocabulary_permutes_the_potentials():
    permutation = torch.tensor([3, 0, 5, 1, 4, 2])
    ours = sinkhorn_potentials(P, Q, COST, reg=REG)
    permuted = sinkhorn_potentials(P[permutation], Q[permutation], COST[permutation[:, None], permutation], reg=REG)
    for potential, other in zip(ours, permuted, strict=True):
        torch.testing.assert_close(potential[permutation], other, rtol=0, atol=1e-12)


def test_asymmetric_costs_send_mass_from_policy_to_reference():
    cost = torch.tensor([[0.0, 1.0], [5.0, 0.0]], dtype=torch.float64)
    p, q = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    phi, psi = sinkhorn_potentials(p, q, cost, reg=0.1, num_iters=1, floor=0.0)
    # u₀ = 1/(1 + e^−10), v₁ = 1/(e^−10 u₀): all mass goes from 0 to 1 at cost 1.
    u = 1 / (1 + math.exp(-10))
    assert phi.tolist() == [pytest.approx(0.1 * math.log(u)), -math.inf]
    assert psi.tolist() == [-math.inf, pytest.approx(1 - 0.1 * math.log(u))]


# Zero probabilities without a floor: limits, never NaN.


def test_mass_without_a_destination_has_infinite_potential():
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0]], dtype=torch.float64)
    q = torch.tensor([[0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
    phi, psi = sinkhorn_potentials(p, q, identity_cost(torch.arange(4)), reg=1.0, num_iters=3, floor=0.0)
    assert phi.tolist() == [[pytest.approx(math.log(0.5)), math.inf, -math.inf, -math.inf]]
    assert psi.tolist() == [[pytest.approx(0.0, abs=1e-15), -math.inf, math.inf, -math.inf]]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0.001, 2.0), st.sampled_from([0.0, 1e-300, 1e-16]))
def test_zero_probabilities_and_forbidden_moves_never_give_nan(seed, num_iters, reg, floor):
    generator = torch.Generator().manual_seed(seed)
    p, q = (distributions(4, 6, seed=seed + i) for i in range(2))
    for x in (p, q):
        x[torch.rand(4, 6, generator=generator) < 0.4] = 0
        x[:, 0] += 1 - x.sum(-1)
    cost = 3 * any_cost(6, seed=seed, forbidden=0.5)
    phi, psi = sinkhorn_potentials(p, q, cost, reg=reg, num_iters=num_iters, floor=floor)
    assert not phi.isnan().any()
    assert not psi.isnan().any()
    assert ((phi == phi.new_tensor(reg * math.log(floor) if floor else -math.inf)) | (p > 0)).all()
    if floor:
        assert phi.isfinite().all()
        assert psi.isfinite().all()


# Shapes and dtypes.


@pytest.mark.parametrize(
    "batch_of_cost", [(), (1,), (3,), (1, 1), (2, 1), (1, 3), (2, 3)], ids=lambda shape: f"cost{shape}"
)
@pytest.mark.parametrize("floor", [1e-16, 0.0])
def test_costs_may_differ_between_positions(batch_of_cost, floor):
    """Also on the slow path, which costs of 2000 reg need when there is no floor."""
    p, q = distributions(2, 3, 5, seed=5, spread=20.0), distributions(2, 3, 5, seed=6, spread=20.0)
    count = math.prod(batch_of_cost)
    cost = 2000 * torch.stack([any_cost(5, seed=i) for i in range(count)]).reshape(*batch_of_cost, 5, 5)
    phi, psi = sinkhorn_potentials(p, q, cost, reg=1.0, num_iters=4, floor=floor)
    assert phi.shape == psi.shape == (2, 3, 5)
    costs = cost.expand(2, 3, 5, 5)
    for b in range(2):
        for t in range(3):
            one = sinkhorn_potentials(p[b, t], q[b, t], costs[b, t], reg=1.0, num_iters=4, floor=floor)
            assert one[0].shape == (5,)
            torch.testing.assert_close(phi[b, t], one[0], rtol=1e-12, atol=1e-10)
            torch.testing.assert_close(psi[b, t], one[1], rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(("scale", "spread"), [(1, 2.0), (5000, 200.0)], ids=["in range", "out of range"])
def test_warm_start_continues_the_iteration(scale, spread):
    p, q = distributions(2, 6, seed=1, spread=spread), distributions(2, 6, seed=2, spread=spread)
    for floor in (0.0, 1e-16):
        _, log_v = sinkhorn_scalings(p, q, -scale * COST, num_iters=3, floor=floor)
        continued = sinkhorn_scalings(p, q, -scale * COST, num_iters=4, floor=floor, log_v=log_v)
        at_once = sinkhorn_scalings(p, q, -scale * COST, num_iters=7, floor=floor)
        for scaling, expected in zip(continued, at_once, strict=True):
            if floor:  # nothing far below the floor reaches the potentials
                scaling, expected = scaling.clamp(min=-100), expected.clamp(min=-100)
            torch.testing.assert_close(scaling, expected, rtol=1e-11, atol=1e-11)


def test_empty_batches():
    phi, psi = sinkhorn_potentials(torch.zeros(0, 6), torch.zeros(0, 6), COST, reg=1.0)
    assert phi.shape == psi.shape == (0, 6)


def test_potentials_carry_no_gradient():
    p, q, cost = (x.clone().requires_grad_() for x in (P, Q, COST))
    assert not any(x.requires_grad for x in sinkhorn_potentials(p, q, cost, reg=1.0))


def test_slow_path_in_blocks(monkeypatch):
    log_kernel, log_v = -COST, distributions(4, 6, seed=0).log()
    expected = (log_kernel + log_v[:, None, :]).logsumexp(-1)
    for block_elements in (1, 50, 10**6):
        blocked = wasserstein._log_kernel_product(log_kernel, log_v, block_elements)
        torch.testing.assert_close(blocked, expected, rtol=0, atol=1e-15)


HALF = torch.tensor([0.5, 0.5])
FREE = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("p", "q", "cost", "arguments", "message"),
    [
        (HALF, torch.ones(3) / 3, FREE, {}, r"policy and reference .* got \(2,\) and \(3,\)"),
        (HALF, HALF.expand(1, 2), FREE, {}, "policy and reference"),
        (torch.tensor(1.0), torch.tensor(1.0), FREE, {}, "policy and reference"),
        (torch.zeros(3, 0), torch.zeros(3, 0), torch.zeros(0, 0), {}, "policy and reference"),
        (HALF, HALF, torch.zeros(3, 3), {}, r"cost .* \(2, 2\), got \(3, 3\)"),
        (HALF, HALF, torch.zeros(2), {}, r"cost .* got \(2,\)"),
        (HALF, HALF, torch.zeros(1, 2, 2), {}, r"cost .* got \(1, 2, 2\)"),
        (HALF.expand(3, 2), HALF.expand(3, 2), torch.zeros(2, 2, 2), {}, r"cost .* \(3, 2, 2\), got \(2, 2, 2\)"),
        (HALF, HALF, FREE, {"reg": 0.0}, "reg .* got 0.0"),
        (HALF, HALF, FREE, {"reg": -1.0}, "reg .* got -1.0"),
        (HALF, HALF, FREE, {"reg": math.nan}, "reg .* got nan"),
        (HALF, HALF, FREE, {"reg": math.inf}, "reg .* got inf"),
        (HALF, HALF, FREE, {"num_iters": 0}, "num_iters .* got 0"),
        (HALF, HALF, FREE, {"floor": -1e-16}, "floor .* got -1e-16"),
        (HALF, HALF, FREE, {"floor": math.nan}, "floor .* got nan"),
        (torch.tensor([1.5, -0.5]), HALF, FREE, {}, "policy must be non-negative, got -0.5"),
        (HALF, torch.tensor([1.5, -0.5]), FREE, {}, "reference must be non-negative"),
        (torch.tensor([math.nan, 1.0]), HALF, FREE, {}, "policy must be finite"),
        (HALF, torch.tensor([math.inf, 0.0]), FREE, {}, "reference must be finite"),
        (torch.tensor([0.5, 0.502]), HALF, FREE, {}, "policy must sum to 1 within 0.001, got an error of 0.002"),
        (HALF, torch.tensor([0.5, 0.498]), FREE, {}, "reference must sum to 1"),
        (torch.tensor([0, 1]), torch.tensor([0, 1]), FREE, {}, "policy must be floating point, got torch.int64"),
        (HALF, HALF, torch.tensor([[0.0, -1.0], [0.0, 0.0]]), {}, "cost must be non-negative"),
        (HALF, HALF, torch.tensor([[0.0, math.nan], [0.0, 0.0]]), {}, "cost must be non-negative"),
    ],
)
def test_bad_transport_problems_are_refused(p, q, cost, arguments, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn_potentials(p, q, cost, **{"reg": 1.0, **arguments})


def test_rounding_of_the_probabilities_is_not_refused():
    sinkhorn_potentials(torch.tensor([0.5, 0.5009]), HALF, FREE, reg=1.0)
    p = distributions(64, 7, seed=0).bfloat16()
    assert (p.float().sum(-1) - 1).abs().max() > 1e-3
    sinkhorn_potentials(p, p, torch.zeros(7, 7), reg=1.0)


# The penalty.

B, T, V = 3, 5, 12
POLICY, REFERENCE = distributions(B, T, V, seed=7, spread=2.5), distributions(B, T, V, seed=8, spread=2.5)
ACTIONS = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(9))
TOKEN_COST = metric_cost(V, num_neighbors=4)
MASK = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
SOLVER = {"reg": 0.2, "num_iters": 6}


def with_dust_bin(support: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    def extend(probabilities):
        kept = probabilities[..., support]
        return torch.cat([kept, (1 - kept.sum(-1, keepdim=True)).clamp(min=0)], -1)

    cost = torch.full((len(support) + 1,) * 2, math.inf, dtype=torch.float64)
    cost[:-1, :-1] = TOKEN_COST[support][:, support]
    cost[-1, -1] = 0
    return extend(POLICY), extend(REFERENCE), cost


def expected_penalty(support: list[int], mask: torch.Tensor, gauge: str = "none") -> torch.Tensor:
    """From `sinkhorn_potentials` on the dust-extended problem, one position at a time."""
    p, q, cost = with_dust_bin(support)
    penalty = torch.zeros(B, T, dtype=torch.float64)
    for b, t in mask.nonzero().tolist():
        phi, psi = sinkhorn_potentials(p[b, t], q[b, t], cost, **SOLVER)
        action = ACTIONS[b, t].item()
        shift = {
            "none": 0,
            "support_mean": -phi.mean(),
            "policy": -(phi * p[b, t]).sum(),
            "value": (psi * q[b, t]).sum() - SOLVER["reg"],
        }[gauge]
        penalty[b, t] = phi[support.index(action) if action in support else -1] + shift
    return penalty


@pytest.mark.parametrize("gauge", ["none", "support_mean", "policy", "value"])
def test_penalty_is_the_potential_of_the_sampled_token(gauge):
    support = [0, 1, 2, 5, 6, 8, 9, 11]
    excluded = [token for token in range(V) if token not in support]
    assert any(token in ACTIONS for token in excluded)  # some take the dust bin's potential
    penalty = wasserstein_penalty(
        POLICY, REFERENCE, ACTIONS, TOKEN_COST, mask=MASK, exclude_ids=excluded, gauge=gauge, **SOLVER
    )
    torch.testing.assert_close(penalty, expected_penalty(support, MASK, gauge), rtol=0, atol=1e-12)
    assert (penalty[~MASK] == 0).all()


@pytest.mark.parametrize("top_k", [1, 3])
def test_support_is_the_union_over_masked_positions(top_k):
    size = 200
    policy, reference = distributions(B, T, size, seed=1), distributions(B, T, size, seed=2)
    actions = torch.randint(0, size, (B, T), generator=torch.Generator().manual_seed(3))
    expected = set(actions[MASK].tolist())
    for probabilities in (policy, reference):
        for row in probabilities[MASK].tolist():
            expected |= set(sorted(range(size), key=row.__getitem__)[-top_k:])
    excluded, included = [actions[MASK][0].item(), 5, 7], [7, 11]
    expected = sorted((expected - set(excluded)) | set(included))
    supports = []

    def cost(support):
        supports.append(support.tolist())
        return torch.ones(len(support), len(support))

    wasserstein_penalty(
        policy,
        reference,
        actions,
        cost,
        reg=1.0,
        top_k=top_k,
        mask=MASK,
        exclude_ids=excluded,
        include_ids=included,
    )
    assert supports == [expected]


def test_penalty_on_a_top_k_support():
    two = torch.zeros_like(MASK)
    two[0, 1] = two[1, 2] = True
    support = plan_support(POLICY, REFERENCE, ACTIONS, two, top_k=1).tolist()
    assert len(support) < V
    penalty = wasserstein_penalty(POLICY, REFERENCE, ACTIONS, TOKEN_COST, top_k=1, mask=two, **SOLVER)
    torch.testing.assert_close(penalty, expected_penalty(support, two), rtol=0, atol=1e-12)


def test_top_k_of_the_vocabulary_is_full_support():
    arguments = (POLICY, REFERENCE, ACTIONS, TOKEN_COST)
    full = wasserstein_penalty(*arguments, mask=MASK, **SOLVER)
    assert torch.equal(wasserstein_penalty(*arguments, mask=MASK, top_k=V, **SOLVER), full)
    torch.testing.assert_close(full, expected_penalty(list(range(V)), MASK), rtol=0, atol=1e-12)


def test_positions_outside_the_mask_are_not_looked_at():
    clean = wasserstein_penalty(POLICY, REFERENCE, ACTIONS, TOKEN_COST, mask=MASK, top_k=3, **SOLVER)
    policy, reference, actions = POLICY.clone(), REFERENCE.clone(), ACTIONS.clone()
    policy[~MASK], reference[~MASK], actions[~MASK] = math.nan, -1, -100
    dirty = wasserstein_penalty(policy, reference, actions, TOKEN_COST, mask=MASK, top_k=3, **SOLVER)
    assert torch.equal(clean, dirty)


def test_no_mask_is_everywhere():
    everywhere = wasserstein_penalty(POLICY, REFERENCE, ACTIONS, TOKEN_COST, **SOLVER)
    masked = wasserstein_penalty(POLICY, REFERENCE, ACTIONS, TOKEN_COST, mask=MASK, **SOLVER)
    assert (everywhere != 0).all()
    torch.testing.assert_close(torch.where(MASK, everywhere, 0), masked, rtol=0, atol=1e-13)


def test_batching_is_irrelevant_with_full_support():
    together = wasserstein_penalty(POLICY, REFERENCE, ACTIONS, TOKEN_COST, mask=MASK, **SOLVER)
    for b in range(B):
        one = slice(b, b + 1)
        alone = wasserstein_penalty(POLICY[one], REFERENCE[one], ACTIONS[one], TOKEN_COST, mask=MASK[one], **SOLVER)
        torch.testing.assert_close(alone, together[one], rtol=0, atol=1e-13)


def test_permuting_the_vocabulary_leaves_the_penalty():
    permutation = torch.randperm(V, generator=torch.Generator().manual_seed(3))
    renamed = torch.empty_like(permutation)
    renamed[permutation] = torch.arange(V)
    for top_k in (None, 2):
        penalty = wasserstein_penalty(POLICY, REFERENCE, ACTIONS, TOKEN_COST, top_k=top_k, **SOLVER)
        permuted = wasserstein_penalty(
            POLICY[..., permutation],
            REFERENCE[..., permutation],
            renamed[ACTIONS],
            TOKEN_COST[permutation[:, None], permutation],
            top_k=top_k,
            **SOLVER,
        )
        torch.testing.assert_close(permuted, penalty, rtol=0, atol=1e-12)


def test_gauges_differ_by_a_constant_per_position_and_center_as_they_say():
    policy, reference = POLICY[:1, :1].expand(1, V, V), REFERENCE[:1, :1].expand(1, V, V)
    actions = torch.arange(V)[None]  # every token at the same state
    cost = metric_cost(V)
    by_gauge = {
        gauge: wasserstein_penalty(policy, reference, actions, cost, reg=0.3, num_iters=500, gauge=gauge)[0]
        for gauge in ("none", "support_mean", "policy", "value")
    }
    for penalty in by_gauge.values():
        torch.testing.assert_close(penalty - penalty[0], by_gauge["none"] - by_gauge["none"][0], rtol=0, atol=1e-12)
    p, q = policy[0, 0], reference[0, 0]
    assert (p * by_gauge["policy"]).sum().item() == pytest.approx(0, abs=1e-12)
    best = torch.tensor(ot.bregman.sinkhorn_log(p.numpy(), q.numpy(), cost.numpy(), 0.3, numItermax=5000))
    regularised = (best * cost).sum() + 0.3 * (best * (best.log() - 1)).sum()
    assert (p * by_gauge["value"]).sum().item() == pytest.approx(regularised.item(), abs=1e-8)


def test_on_demand_cost_gives_the_penalty_of_the_matrix():
    points = torch.randn(V, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    on_demand = EmbeddingCost(points, neighbor_radii(points, 3))
    dense = token_cost_matrix(points, num_neighbors=3)
    arguments = {"top_k": 2, "mask": MASK, **SOLVER}
    assert torch.equal(
        wasserstein_penalty(POLICY, REFERENCE, ACTIONS, on_demand, **arguments),
        wasserstein_penalty(POLICY, REFERENCE, ACTIONS, dense, **arguments),
    )


def test_identity_control_is_reverse_kl_with_an_entropy_bonus():
    num_iters, reg = 4, 0.3
    penalty = wasserstein_penalty(POLICY, REFERENCE, ACTIONS, identity_cost, reg=reg, num_iters=num_iters, floor=0.0)
    log_p, log_q = (x.gather(-1, ACTIONS[..., None])[..., 0].log() for x in (POLICY, REFERENCE))
    torch.testing.assert_close(penalty, reg * (num_iters * log_p - (num_iters - 1) * log_q), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_penalty_keeps_the_dtype_and_has_no_gradient(dtype):
    policy, reference = POLICY.to(dtype).requires_grad_(), REFERENCE.to(dtype).requires_grad_()
    penalty = wasserstein_penalty(policy, reference, ACTIONS, 300 * TOKEN_COST.float(), top_k=4, reg=1.0)
    assert penalty.dtype == dtype
    assert not penalty.requires_grad
    assert penalty.isfinite().all()


def test_penalty_in_float32_is_that_in_float64():
    in_float32 = wasserstein_penalty(
        POLICY.float(), REFERENCE.float(), ACTIONS, 300 * TOKEN_COST.float(), top_k=4, mask=MASK, reg=1.0
    )
    in_float64 = wasserstein_penalty(POLICY, REFERENCE, ACTIONS, 300 * TOKEN_COST, top_k=4, mask=MASK, reg=1.0)
    torch.testing.assert_close(in_float32.double(), in_float64, rtol=1e-5, atol=1e-5)


def test_nothing_under_the_mask():
    nothing = torch.zeros(B, T, dtype=torch.bool)
    for top_k in (None, 2):
        for include in ((), (1,)):
            penalty = wasserstein_penalty(
                POLICY, REFERENCE, ACTIONS, TOKEN_COST, top_k=top_k, mask=nothing, include_ids=include, **SOLVER
            )
            assert (penalty == 0).all()


def test_everything_excluded_leaves_the_dust_bin():
    penalty = wasserstein_penalty(POLICY, REFERENCE, ACTIONS, TOKEN_COST, exclude_ids=range(V), floor=0.0, **SOLVER)
    torch.testing.assert_close(penalty, torch.zeros_like(penalty), rtol=0, atol=1e-12)  # all mass stays: log 1


def test_one_solve_serves_all_gauges():
    transport = solve_transport(POLICY, REFERENCE, ACTIONS, TOKEN_COST, mask=MASK, top_k=3, **SOLVER)
    for gauge in ("none", "support_mean", "policy", "value"):
        penalty = wasserstein_penalty(POLICY, REFERENCE, ACTIONS, TOKEN_COST, mask=MASK, top_k=3, gauge=gauge, **SOLVER)
        assert torch.equal(transport_penalty(transport, gauge=gauge), penalty)
    with pytest.raises(ValueError, match=r"gauge .* got 'median'"):
        transport_penalty(transport, gauge="median")


def test_mean_over_an_infinite_potential_is_refused():
    policy = torch.tensor([[[0.0, 0.4, 0.6]]], dtype=torch.float64)
    arguments = (policy, policy.flip(-1), torch.tensor([[1]]), torch.ones(3, 3))
    for gauge in ("none", "policy", "value"):
        assert wasserstein_penalty(*arguments, reg=1.0, floor=0.0, gauge=gauge).isfinite().all()
    with pytest.raises(ValueError, match="'support_mean' needs floor > 0"):
        wasserstein_penalty(*arguments, reg=1.0, floor=0.0, gauge="support_mean")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": POLICY[0]}, r"policy and reference .* got \(5, 12\)"),
        ({"reference": REFERENCE[:, :4]}, r"policy and reference .* got \(3, 5, 12\) and \(3, 4, 12\)"),
        ({"policy": 2 * POLICY}, "policy must sum to 1"),
        ({"reference": REFERENCE - 1}, "reference must be non-negative"),
        ({"actions": ACTIONS[:, :4]}, r"actions .*\(3, 5\), got \(3, 4\)"),
        ({"actions": ACTIONS.double()}, "actions must be int64 token ids, got torch.float64"),
        ({"actions": ACTIONS + V}, rf"actions must be in \[0, V\) = \[0, {V}\)"),
        ({"actions": ACTIONS - V}, "actions must be in"),
        ({"mask": MASK[:2]}, r"mask .*\(3, 5\), got torch.bool \(2, 5\)"),
        ({"mask": MASK.long()}, "mask must be bool"),
        ({"cost": TOKEN_COST[:-1, :-1]}, r"cost .*\(12, 12\), got \(11, 11\)"),
        ({"cost": lambda support: TOKEN_COST[:2, :2]}, r"cost must return .*\(12, 12\).* got \(2, 2\)"),
        ({"cost": lambda support: -TOKEN_COST}, "cost must be non-negative"),
        ({"top_k": 0}, "top_k .* got 0"),
        ({"top_k": V + 1}, "top_k .* got 13"),
        ({"exclude_ids": [V]}, r"exclude_ids .* got \[12\]"),
        ({"include_ids": [-1]}, r"include_ids .* got \[-1\]"),
        ({"gauge": "mean"}, "gauge .* got 'mean'"),
        ({"reg": 0}, "reg .* got 0"),
        ({"num_iters": 0}, "num_iters .* got 0"),
        ({"floor": -1}, "floor .* got -1"),
    ],
)
def test_bad_penalty_arguments_are_refused(changes, message):
    arguments = {"policy": POLICY, "reference": REFERENCE, "actions": ACTIONS, "cost": TOKEN_COST, "reg": 1.0}
    with pytest.raises(ValueError, match=message):
        wasserstein_penalty(**{**arguments, **changes})
