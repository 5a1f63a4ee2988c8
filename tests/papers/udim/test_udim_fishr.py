"""Fishr, the baseline that matches gradient variances between source domains."""

import pytest
import torch
from torch.nn import functional as F

from papers.udim.fishr import domain_variances, fishr_penalty, smoothed_variances
from papers.udim.inconsistency import head_gradient_variance


def domains():
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    z = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    return h, z, torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])


def test_domain_variances_are_those_of_each_domain():
    h, z, y = domains()
    got = domain_variances(h, z, y, [4, 5])
    assert got.shape == (2, 15)
    for row, part in zip(got, (slice(0, 4), slice(4, 9)), strict=True):
        weight, bias = head_gradient_variance(h[part], z[part], y[part])
        torch.testing.assert_close(row, torch.cat([weight.flatten(), bias]))


def test_penalty_is_the_spread_between_domains():
    variances = torch.tensor([[1.0, 5.0], [3.0, 5.0], [5.0, 2.0]], dtype=torch.float64)
    # Distances to the average (3, 4): (4 + 1), (0 + 1), (4 + 4), averaged over two coordinates and three domains.
    assert fishr_penalty(variances).item() == pytest.approx(14 / 6)
    assert fishr_penalty(variances[:1].expand(4, -1)) == 0


def test_penalty_of_equal_domains_vanishes_and_has_a_gradient_otherwise():
    h, z, y = domains()
    twice = [torch.cat([t, t]) for t in (h, z, y)]
    assert fishr_penalty(domain_variances(*twice, [9, 9])) == 0
    logits = z.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: fishr_penalty(domain_variances(h, z, y, [4, 5])), logits)


def test_smoothing_is_an_exponential_average_with_an_undamped_gradient():
    steps = torch.randn(4, 2, 3, dtype=torch.float64)
    state, expected = None, torch.zeros(2, 3, dtype=torch.float64)
    for step in steps:
        v = step.clone().requires_grad_()
        penalised, state = smoothed_variances(v, state, decay=0.9)
        expected = 0.9 * expected + 0.1 * step
        assert not state.requires_grad
        torch.testing.assert_close(state, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(penalised, expected / 0.1, rtol=1e-12, atol=0)
        (gradient,) = torch.autograd.grad(penalised.sum(), v)
        assert torch.equal(gradient, torch.ones_like(v))


def test_no_decay_is_no_smoothing():
    v = torch.randn(2, 3)
    penalised, state = smoothed_variances(v, torch.randn(2, 3), decay=0.0)
    assert torch.equal(penalised, v) and torch.equal(state, v)


def test_bad_arguments_are_refused():
    h, z, y = domains()
    with pytest.raises(ValueError, match="domain_sizes must sum to B = 9, got"):
        domain_variances(h, z, y, [4, 4])
    with pytest.raises(ValueError, match="domain_sizes must sum"):
        domain_variances(h, z, y, [])
    with pytest.raises(ValueError, match="labels must"):
        domain_variances(h, z, y, [9, 0])
    for decay in (-0.1, 1.0):
        with pytest.raises(ValueError, match="decay must be in"):
            smoothed_variances(F.relu(z), None, decay)
    for variances in (torch.zeros(1, 3), torch.zeros(3)):
        with pytest.raises(ValueError, match="variances must have shape"):
            fishr_penalty(variances)
