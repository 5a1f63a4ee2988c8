"""Acceptance, constants and re-noising: identities of the method, brute force, and Gaussians in closed form."""

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from papers.diffrs.rejection import RejectionConstants, log_acceptance, rejection_log_constants, renoise

finite = st.floats(-30, 30)
INF = math.inf


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- Acceptance


def test_acceptance_known_answers():
    ratio, constant, previous = vector(2, 2, 2, -1), vector(0, 1.5, 0.5, 0.5), vector(3, 0, 1, 1)
    assert log_acceptance(ratio, constant, previous).tolist() == [-1, 0, 0, -2.5]
    assert log_acceptance(ratio, vector(3, 1, 2, 0)).tolist() == [-1, 0, 0, -1]


@given(hnp.arrays(np.float64, (3, 5), elements=finite), finite)
def test_acceptance_is_at_most_one_and_ignores_a_constant(rows, shift):
    """Invariants 2 and 3, but that A = 1 where the ratio of kernels is at *least* M."""
    ratio, constant, previous = torch.tensor(rows)
    log_a = log_acceptance(ratio, constant, previous)
    assert (log_a <= 0).all()
    assert (log_a[ratio - previous >= constant] == 0).all()
    assert (log_a[ratio - previous < constant - 1e-9] < 0).all()
    torch.testing.assert_close(log_acceptance(ratio + shift, constant, previous + shift), log_a, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_acceptance(ratio, constant), log_acceptance(ratio, constant, 0 * previous))


def test_impossible_states_are_never_accepted():
    ratio = vector(-INF, -INF, -INF, 1)
    assert log_acceptance(ratio, vector(0, -INF, 0, 0), vector(0, 0, -INF, -INF)).tolist() == [-INF, -INF, -INF, 0]
    assert log_acceptance(ratio, vector(0)).tolist() == [-INF, -INF, -INF, 0]


def test_acceptance_broadcasts():
    assert log_acceptance(torch.zeros(4, 3), torch.ones(()), torch.zeros(3)).shape == (4, 3)


@pytest.mark.parametrize("position", range(3))
def test_acceptance_refuses_nan(position):
    arguments = [torch.zeros(2), torch.zeros(2), torch.zeros(2)]
    arguments[position] = torch.tensor([0.0, math.nan])
    with pytest.raises(ValueError, match=("log_ratio", "log_constant", "log_ratio_prev")[position]):
        log_acceptance(*arguments)


def test_acceptance_refuses_infinite_differences():
    with pytest.raises(ValueError, match="infinite"):
        log_acceptance(vector(INF), vector(0), vector(INF))


def test_reverse_kernel_is_a_martingale_of_the_ratio():
    """Invariant 4, by quadrature: E[L_k(x_k) | x_{k−1}] = L_{k−1}(x_{k−1}) under p's exact reverse kernel."""
    low, high = 0.7, 1.9  # noise levels of x_k and x_{k−1}
    (mean_q, std_q), (mean_p, std_p) = (0.3, 0.15), (0.1, 0.25)

    def log_ratio(x, sigma):
        def log_normal(mean, std):
            variance = std**2 + sigma**2
            return -((x - mean) ** 2) / (2 * variance) - 0.5 * math.log(variance)

        return log_normal(mean_q, std_q) - log_normal(mean_p, std_p)

    for parent in (-2.0, 0.4, 3.0):
        shrink = (std_p**2 + low**2) / (std_p**2 + high**2)
        mean, std = mean_p + shrink * (parent - mean_p), math.sqrt(shrink * (high**2 - low**2))
        x = torch.linspace(mean - 12 * std, mean + 12 * std, 20001, dtype=torch.float64)
        density = torch.exp(-((x - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))
        at_parent = log_ratio(vector(parent), high)
        expected_ratio = torch.trapezoid(density * log_ratio(x, low).exp(), x)
        assert expected_ratio.item() == pytest.approx(at_parent.exp().item(), rel=1e-9)
        # Hence the acceptance rate is 1/M for any M that bounds the ratio of kernels.
        log_m = (log_ratio(x, low) - at_parent).max() + 0.1
        acceptance = log_acceptance(log_ratio(x, low), log_m, at_parent).exp()
        assert torch.trapezoid(density * acceptance, x).item() == pytest.approx(math.exp(-log_m), rel=1e-9)


# --- Constants


def test_constants_known_answer():
    log_ratios = vector(0, 4, 1, 2, 3, 5, 1, 1).view(2, 4)  # differences 3, 1, 0, −1
    constants = rejection_log_constants(log_ratios, 0.5)
    assert isinstance(constants, RejectionConstants)
    assert constants.marginal.tolist() == [1.5, 2]
    assert constants.transition.tolist() == [0, 0.5]
    assert rejection_log_constants(log_ratios, 0.0, floor=None).transition.tolist() == [0, -1]
    assert rejection_log_constants(log_ratios, 0.0).transition.tolist() == [0, 0]
    assert rejection_log_constants(log_ratios, 0.0, floor=2.5).marginal.tolist() == [2.5, 2.5]


@given(hnp.arrays(np.float64, st.tuples(st.integers(2, 5), st.integers(1, 7)), elements=finite), st.randoms())
def test_constants_are_quantiles(rows, random):
    """Invariants 2 and 7."""
    log_ratios = torch.tensor(rows)
    top = rejection_log_constants(log_ratios, 1.0, floor=None)
    torch.testing.assert_close(top.marginal, log_ratios.max(1).values)
    torch.testing.assert_close(top.transition[1:], log_ratios.diff(dim=0).max(1).values)
    low, high = rejection_log_constants(log_ratios, 0.3), rejection_log_constants(log_ratios, 0.8)
    order = list(range(log_ratios.shape[1]))
    random.shuffle(order)
    shuffled = rejection_log_constants(log_ratios[:, order], 0.3)
    shifted = rejection_log_constants(log_ratios + 2.5, 0.3, floor=None)
    plain = rejection_log_constants(log_ratios, 0.3, floor=None)
    for a, b, c in zip(low, high, shuffled, strict=True):
        assert (a >= 0).all()
        assert (a <= b + 1e-12).all()
        torch.testing.assert_close(a, c)
    assert low.transition[0] == high.transition[0] == plain.transition[0] == 0
    torch.testing.assert_close(shifted.marginal, plain.marginal + 2.5)
    torch.testing.assert_close(shifted.transition, plain.transition)


@pytest.mark.parametrize(
    ("log_ratios", "percentile"),
    [
        (torch.zeros(3), 0.5),
        (torch.zeros(3, 0), 0.5),
        (torch.zeros(1, 3), 0.5),
        (torch.tensor([[0.0, math.nan]]), 0.5),
        (torch.tensor([[0.0, -INF]]), 0.5),
        (torch.zeros(2, 2), 1.1),
        (torch.zeros(2, 2), -0.1),
    ],
)
def test_constants_refuse(log_ratios, percentile):
    with pytest.raises(ValueError, match="log_ratios" if percentile == 0.5 else "percentile"):
        rejection_log_constants(log_ratios, percentile)


# --- Re-noising


def test_renoised_variance_and_levels():
    """Invariant 5: of x at level σ the variance grows by σ'² − σ², sample by sample; equal levels change nothing."""
    x, noise = vector(1, -2, 3)[:, None], vector(1, 1, -1)[:, None]
    start, end = vector(1, 2, 3), vector(math.sqrt(5), 2, 5)
    assert renoise(x, noise, start, end).flatten().tolist() == pytest.approx([3, -2, -1])
    assert torch.equal(renoise(x, noise, 2.0, 2.0), x)
    assert torch.equal(renoise(x, noise, start, start), x)
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(200_000, generator=generator, dtype=torch.float64)
    noisy = clean + 0.5 * torch.randn(200_000, generator=generator, dtype=torch.float64)
    again = renoise(noisy, torch.randn(200_000, generator=generator, dtype=torch.float64), 0.5, 1.5)
    assert again.var().item() == pytest.approx(1 + 1.5**2, rel=4 * math.sqrt(2 / 200_000))


@given(st.floats(1e-3, 50), st.floats(1e-3, 50), hnp.arrays(np.float64, (2, 3), elements=finite))
def test_renoising_in_vp_coordinates_is_the_same(first, second, rows):
    low, high = sorted((first, second))
    x, noise = torch.tensor(rows)
    alpha_low, alpha_high = 1 / math.sqrt(1 + low**2), 1 / math.sqrt(1 + high**2)
    vp = renoise(alpha_low * x, noise, alpha_low * low, alpha_high * high, alpha_low, alpha_high)
    torch.testing.assert_close(vp, alpha_high * renoise(x, noise, low, high), rtol=1e-7, atol=1e-7)


def test_renoising_of_images_takes_levels_of_each_sample():
    x = torch.ones(2, 1, 2, 2)
    again = renoise(x, torch.ones_like(x), torch.zeros(2), torch.tensor([1.0, 3.0]))
    assert again[:, 0, 0, 0].tolist() == [2, 4]
    assert again.dtype == x.dtype


def test_renoising_refuses():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="sigma_to"):
        renoise(x, x, 1.0, 0.9)
    with pytest.raises(ValueError, match="sigma_to"):
        renoise(x, x, torch.ones(2), torch.tensor([2.0, 0.5]))
    with pytest.raises(ValueError, match="noise"):
        renoise(x, x[:1], 1.0, 2.0)
    with pytest.raises(ValueError, match="sigma_from"):
        renoise(x, x, torch.ones(2, 1), 2.0)
