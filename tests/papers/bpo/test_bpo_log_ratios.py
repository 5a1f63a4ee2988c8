"""Model ratios: invariants 1, 8 and 12, and f-DPO against derivatives of the f-divergences' own generators."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from papers.bpo.bregman_losses import bregman_ratio_loss
from papers.bpo.log_ratios import DIVERGENCES, log_model_ratio, simpo_log_ratio

PROPERTY = settings(deadline=None, max_examples=50)
LOGPS = st.floats(-60, 0)
EVERY_DIVERGENCE = pytest.mark.parametrize("divergence", DIVERGENCES)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ratio(policy_chosen, policy_rejected, ref_chosen, ref_rejected, *, divergence="reverse_kl", **options):
    options = {"beta": 0.1, "alpha": 0.3 if divergence == "alpha" else None} | options
    return log_model_ratio(policy_chosen, policy_rejected, ref_chosen, ref_rejected, divergence=divergence, **options)


def f(u: torch.Tensor, divergence: str, alpha: float = 0.3) -> torch.Tensor:
    """The generators of the f-divergences, as f-DPO and chi-PO define them."""
    return {
        "reverse_kl": u * u.log(),
        "forward_kl": -u.log(),
        "jensen_shannon": u * u.log() - (u + 1) * ((u + 1) / 2).log(),
        "alpha": (u ** (1 - alpha) - (1 - alpha) * u - alpha) / (alpha * (alpha - 1)),
        "chi_squared": u * u.log() + (u - 1) ** 2 / 2,
    }[divergence]


# --- DPO and f-DPO


@PROPERTY
@given(logps=st.tuples(LOGPS, LOGPS, LOGPS, LOGPS), beta=st.floats(0.01, 2))
def test_reverse_kl_is_dpo(logps, beta):
    policy_chosen, policy_rejected, ref_chosen, ref_rejected = (f64(x) for x in logps)
    margin = beta * ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))
    got = ratio(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=beta)
    torch.testing.assert_close(got, -margin, rtol=0, atol=1e-10)
    torch.testing.assert_close(bregman_ratio_loss(got, generator="logistic"), -F.logsigmoid(margin), rtol=0, atol=1e-10)


def test_ratio_is_rejected_over_chosen():
    # The chosen response gained a factor e^2 on the reference, the rejected one lost e^1: m = 3 beta.
    got = ratio(f64(-8.0), f64(-11.0), f64(-10.0), f64(-10.0), beta=0.5)
    assert got.item() == pytest.approx(-1.5, abs=1e-12)


@EVERY_DIVERGENCE
def test_ratio_is_minus_beta_times_the_difference_of_f_prime(divergence):
    z_chosen, z_rejected = f64(-2.0, -0.1, 0.0, 0.4, 1.7), f64(0.5, -0.1, 2.0, -3.0, 1.6)

    def f_prime(z):
        u = z.exp().requires_grad_()
        return torch.autograd.grad(f(u, divergence).sum(), u)[0]

    ref_chosen, ref_rejected = f64(-9, -8, -7, -6, -5), f64(-1, -2, -3, -4, -5)
    got = ratio(
        ref_chosen + z_chosen, ref_rejected + z_rejected, ref_chosen, ref_rejected, divergence=divergence, beta=0.7
    )
    expected = -0.7 * (f_prime(z_chosen) - f_prime(z_rejected))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@PROPERTY
@given(z=st.tuples(st.floats(-3, 3), st.floats(-3, 3)), divergence=st.sampled_from(DIVERGENCES))
def test_swapping_chosen_and_rejected_negates(z, divergence):
    chosen, rejected = f64(z[0]), f64(z[1])
    ref_chosen, ref_rejected = f64(-0.5), f64(0.25)
    forward = ratio(chosen, rejected, ref_chosen, ref_rejected, divergence=divergence)
    backward = ratio(rejected, chosen, ref_rejected, ref_chosen, divergence=divergence)
    torch.testing.assert_close(forward, -backward, rtol=0, atol=1e-12)


@EVERY_DIVERGENCE
def test_ratio_is_one_at_the_reference(divergence):
    chosen, rejected = f64(-20.0, -3.0), f64(-7.0, -90.0)
    assert torch.equal(ratio(chosen, rejected, chosen, rejected, divergence=divergence), f64(0.0, 0.0))


@PROPERTY
@given(logps=st.tuples(LOGPS, LOGPS, LOGPS, LOGPS), beta=st.floats(0.01, 2))
def test_gradient_of_dpo_is_minus_and_plus_beta(logps, beta):
    inputs = [f64(x).requires_grad_() for x in logps]
    to_chosen, to_rejected = torch.autograd.grad(ratio(*inputs, beta=beta).sum(), inputs[:2])
    assert to_chosen.item() == pytest.approx(-beta)
    assert to_rejected.item() == pytest.approx(beta)


@EVERY_DIVERGENCE
def test_gradients_against_finite_differences(divergence):
    inputs = [f64(-1.0, 0.5).requires_grad_(), f64(0.2, -2.0).requires_grad_(), f64(0.0, 0.3), f64(-0.4, 0.1)]
    assert torch.autograd.gradcheck(lambda *logps: ratio(*logps, divergence=divergence), inputs)


@EVERY_DIVERGENCE
def test_a_likelier_chosen_response_lowers_the_ratio(divergence):
    chosen = torch.linspace(-4, 4, 33, dtype=torch.float64)
    zeros = torch.zeros_like(chosen)
    assert (ratio(chosen, zeros, zeros, zeros, divergence=divergence).diff() < 0).all()
    assert (ratio(zeros, chosen, zeros, zeros, divergence=divergence).diff() > 0).all()


@pytest.mark.parametrize(("alpha", "limit"), [(1e-7, "reverse_kl"), (1 - 1e-7, "forward_kl")])
def test_alpha_runs_from_the_reverse_to_the_forward_kl(alpha, limit):
    logps = f64(-1.0, 0.5), f64(0.2, -2.0), f64(0.0, 0.3), f64(-0.4, 0.1)
    torch.testing.assert_close(
        ratio(*logps, divergence="alpha", alpha=alpha), ratio(*logps, divergence=limit), rtol=0, atol=1e-6
    )


@EVERY_DIVERGENCE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_from_the_reference_nothing_becomes_inf_or_nan(divergence, dtype):
    chosen = torch.tensor([-900.0, -900.0, 900.0, -120.0, 120.0], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([900.0, -900.0, 900.0, 120.0, 119.0], dtype=dtype, requires_grad=True)
    zeros = torch.zeros(5, dtype=dtype)
    got = ratio(chosen, rejected, zeros, zeros, divergence=divergence)
    gradients = torch.autograd.grad(got.sum(), (chosen, rejected))
    assert all(tensor.isfinite().all() for tensor in (got, *gradients))
    assert (got[[0, 3]] > 0).all()
    assert got[1] == got[2] == 0


def test_the_cap_begins_only_where_exp_would_overflow():
    zero = torch.zeros(1)
    got = ratio(torch.tensor([-78.0]), zero, zero, zero, divergence="forward_kl", beta=1.0)
    assert got.item() == pytest.approx(math.exp(78.0), rel=1e-5)


@EVERY_DIVERGENCE
def test_half_precision_is_computed_in_float32_and_rounded_once(divergence):
    generator = torch.Generator().manual_seed(0)
    logps = [torch.randn(64, generator=generator).bfloat16() for _ in range(4)]
    got = ratio(*logps, divergence=divergence)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, ratio(*(x.float() for x in logps), divergence=divergence).bfloat16())


def test_mixed_precisions_are_promoted():
    policy, ref = torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3)
    assert ratio(policy, policy, ref, ref).dtype == torch.float32
    assert ratio(ref, ref, policy, ref.double()).dtype == torch.float64


@pytest.mark.parametrize("shape", [(0,), (1,), (7,)])
def test_shape_is_kept(shape):
    x = torch.zeros(shape)
    assert ratio(x, x, x, x).shape == shape
    assert simpo_log_ratio(x, x, x + 1, x + 1, beta=1.0, gamma=0.0).shape == shape


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"beta": 0.0}, "beta.*0"),
        ({"beta": -0.1}, "beta.*-0.1"),
        ({"beta": math.nan}, "beta.*nan"),
        ({"divergence": "hellinger"}, "divergence.*'hellinger'"),
        ({"divergence": "alpha", "alpha": None}, "alpha.*None"),
        ({"divergence": "alpha", "alpha": 0.0}, "alpha.*0"),
        ({"divergence": "alpha", "alpha": 1.0}, "alpha.*1"),
        ({"divergence": "alpha", "alpha": math.nan}, "alpha.*nan"),
    ],
)
def test_bad_options_are_named(options, match):
    x = f64(0.0)
    with pytest.raises(ValueError, match=match):
        ratio(x, x, x, x, **options)


def test_unequal_shapes_are_named():
    x = torch.zeros(2)
    for position in range(4):
        logps = [x, x, x, x]
        logps[position] = torch.zeros(1)  # would broadcast silently
        with pytest.raises(ValueError, match=r"equal shapes.*\(1,\)"):
            ratio(*logps)


def test_integer_log_probs_are_refused():
    x = torch.zeros(2)
    with pytest.raises(ValueError, match=r"policy_rejected_logps.*int64"):
        ratio(x, x.long(), x, x)
    with pytest.raises(ValueError, match=r"policy_chosen_logps.*int64"):
        simpo_log_ratio(x.long(), x, x + 1, x + 1, beta=1.0, gamma=0.0)


# --- SimPO


def simpo(chosen, rejected, chosen_lengths, rejected_lengths, *, beta=2.0, gamma=1.0):
    return simpo_log_ratio(
        f64(chosen), f64(rejected), f64(chosen_lengths), f64(rejected_lengths), beta=beta, gamma=gamma
    ).item()


def test_simpo_known_value():
    # rewards 2 * -10/5 = -4 and 2 * -30/10 = -6: margin 2 less gamma 1
    assert simpo(-10.0, -30.0, 5, 10) == pytest.approx(-1.0, abs=1e-12)


LENGTHS = st.integers(1, 100)


@PROPERTY
@given(logps=st.tuples(LOGPS, LOGPS), lengths=st.tuples(LENGTHS, LENGTHS), gamma=st.floats(-2, 5))
def test_simpo_depends_on_log_probs_per_token_only(logps, lengths, gamma):
    once = simpo(*logps, *lengths, gamma=gamma)
    twice = simpo(*(2 * x for x in logps), *(2 * n for n in lengths), gamma=gamma)
    assert once == pytest.approx(twice, abs=1e-10)
    assert simpo(*logps, *lengths, gamma=0.0) == pytest.approx(once - gamma, abs=1e-10)
    swapped = simpo(*logps[::-1], *lengths[::-1], gamma=gamma)
    assert once + swapped == pytest.approx(2 * gamma, abs=1e-9)


def test_simpo_gradient_is_beta_over_length():
    chosen, rejected = f64(-10.0).requires_grad_(), f64(-30.0).requires_grad_()
    got = simpo_log_ratio(chosen, rejected, torch.tensor([5]), torch.tensor([10]), beta=2.0, gamma=1.0)
    to_chosen, to_rejected = torch.autograd.grad(got.sum(), (chosen, rejected))
    assert to_chosen.item() == pytest.approx(-2 / 5)
    assert to_rejected.item() == pytest.approx(2 / 10)


def test_simpo_at_length_one_without_gamma_is_dpo_without_reference():
    chosen, rejected, zeros, ones = f64(-3.0, -1.0), f64(-2.0, -9.0), f64(0.0, 0.0), torch.ones(2)
    torch.testing.assert_close(
        simpo_log_ratio(chosen, rejected, ones, ones, beta=0.3, gamma=0.0),
        log_model_ratio(chosen, rejected, zeros, zeros, beta=0.3),
    )


@pytest.mark.parametrize("length_dtype", [torch.int64, torch.int32, torch.float32, torch.bfloat16])
def test_simpo_half_precision_and_length_types(length_dtype):
    chosen, rejected = torch.tensor([-10.0, -7.0]), torch.tensor([-30.0, -2.0])
    lengths = torch.tensor([3, 7], dtype=length_dtype)
    exact = simpo_log_ratio(chosen, rejected, lengths, lengths, beta=2.0, gamma=1.0)
    assert exact.dtype == torch.float32
    half = simpo_log_ratio(chosen.bfloat16(), rejected.bfloat16(), lengths, lengths, beta=2.0, gamma=1.0)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, exact.bfloat16())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"beta": 0.0}, "beta.*0"),
        ({"beta": math.inf}, "beta.*inf"),
        ({"gamma": math.nan}, "gamma.*nan"),
        ({"chosen_lengths": torch.tensor([3, 0])}, "chosen_lengths.*0"),
        ({"rejected_lengths": torch.tensor([-2, 5])}, "rejected_lengths.*-2"),
        ({"rejected_lengths": torch.tensor([5])}, "equal shapes"),
        ({"policy_rejected_logps": torch.zeros(3)}, "equal shapes"),
    ],
)
def test_simpo_bad_input_is_named(change, match):
    arguments = {
        "policy_chosen_logps": torch.zeros(2),
        "policy_rejected_logps": torch.zeros(2),
        "chosen_lengths": torch.tensor([1, 1]),
        "rejected_lengths": torch.tensor([1, 1]),
        "beta": 2.0,
        "gamma": 1.0,
    }
    with pytest.raises(ValueError, match=match):
        simpo_log_ratio(**(arguments | change))
