"""Pairwise f-PO: invariant 11, and the divergences against their definition in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from papers.bpo.f_po_losses import DIVERGENCES, f_po_pair_loss

PROPERTY = settings(deadline=None, max_examples=50)
EVERY_DIVERGENCE = pytest.mark.parametrize("divergence", DIVERGENCES)
MARGINS = st.floats(-15, 15)
SMOOTHING = st.floats(1e-4, 0.45)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loss(margin: torch.Tensor, divergence: str, **options) -> torch.Tensor:
    options = {"alpha": 0.1 if divergence == "alpha" else None} | options
    return f_po_pair_loss(margin, divergence=divergence, **options)


def f(u: float, divergence: str, alpha: float) -> float:
    return {
        "forward_kl": -math.log(u),
        "reverse_kl": u * math.log(u),
        "jensen_shannon": u * math.log(u) - (u + 1) * math.log((u + 1) / 2),
        "jeffreys": (u - 1) * math.log(u),
        "alpha": (u ** (1 - alpha) - (1 - alpha) * u - alpha) / (alpha * (alpha - 1)),
    }[divergence]


@PROPERTY
@given(m=MARGINS, smoothing=SMOOTHING, alpha=st.floats(0.05, 0.95), divergence=st.sampled_from(DIVERGENCES))
def test_loss_is_the_divergence_by_definition(m, smoothing, alpha, divergence):
    q = 1 / (1 + math.exp(-m)), 1 / (1 + math.exp(m))
    p = 1 - smoothing, smoothing
    expected = sum(p_i * f(q_i / p_i, divergence, alpha) for p_i, q_i in zip(p, q, strict=True))
    got = loss(f64(m), divergence, alpha=alpha, label_smoothing=smoothing).item()
    assert got == pytest.approx(expected, rel=1e-10, abs=1e-10)


@EVERY_DIVERGENCE
def test_default_smoothing_is_one_in_a_thousand(divergence):
    m = f64(-2.0, 0.5, 9.0)
    assert torch.equal(loss(m, divergence), loss(m, divergence, label_smoothing=1e-3))


@PROPERTY
@given(m=st.floats(-500, 500))
def test_forward_kl_without_smoothing_is_dpo(m):
    got = loss(f64(m), "forward_kl", label_smoothing=0.0)
    torch.testing.assert_close(got, -F.logsigmoid(f64(m)), rtol=1e-12, atol=1e-12)


@PROPERTY
@given(m=MARGINS, smoothing=SMOOTHING)
def test_reverse_kl_is_the_pair_loss_of_exo(m, smoothing):
    q, log_q = torch.softmax(f64(m, 0.0), 0), torch.log_softmax(f64(m, 0.0), 0)
    exo = (q * (log_q - f64(1 - smoothing, smoothing).log())).sum().item()
    assert loss(f64(m), "reverse_kl", label_smoothing=smoothing).item() == pytest.approx(exo, abs=1e-10)


@PROPERTY
@given(smoothing=SMOOTHING, divergence=st.sampled_from(DIVERGENCES), offset=st.floats(0.01, 10))
def test_loss_is_zero_exactly_where_the_model_has_the_label(smoothing, divergence, offset):
    optimum = math.log((1 - smoothing) / smoothing)
    m = f64(optimum).requires_grad_()
    at_optimum = loss(m, divergence, label_smoothing=smoothing)
    (slope,) = torch.autograd.grad(at_optimum.sum(), m)
    assert abs(at_optimum.item()) < 1e-12
    assert abs(slope.item()) < 1e-12
    away = loss(f64(optimum - offset, optimum + offset), divergence, label_smoothing=smoothing)
    assert (away > 1e-10).all()


@PROPERTY
@given(m=MARGINS, smoothing=SMOOTHING)
def test_jeffreys_is_the_sum_of_both_kls(m, smoothing):
    values = {name: loss(f64(m), name, label_smoothing=smoothing).item() for name in DIVERGENCES[:4]}
    assert values["jeffreys"] == pytest.approx(values["forward_kl"] + values["reverse_kl"], rel=1e-9, abs=1e-10)
    assert values["jensen_shannon"] <= 2 * math.log(2)


@pytest.mark.parametrize(("alpha", "limit"), [(1e-7, "reverse_kl"), (1 - 1e-7, "forward_kl")])
def test_alpha_runs_from_the_reverse_to_the_forward_kl(alpha, limit):
    m = f64(-3.0, 0.0, 2.0, 8.0)
    torch.testing.assert_close(loss(m, "alpha", alpha=alpha), loss(m, limit), rtol=1e-5, atol=1e-6)


@EVERY_DIVERGENCE
def test_derivatives_against_finite_differences(divergence):
    m = f64(-6.0, -1.0, 0.0, 0.5, 3.0, 9.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, divergence), m)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, divergence), m)


@EVERY_DIVERGENCE
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_extreme_margins_stay_finite(divergence, dtype):
    m = torch.tensor([-500.0, -120.0, -30.0, 30.0, 120.0, 500.0], dtype=dtype, requires_grad=True)
    value = loss(m, divergence)
    (slope,) = torch.autograd.grad(value.sum(), m)
    assert value.dtype == slope.dtype == dtype
    assert value.isfinite().all() and slope.isfinite().all()


@pytest.mark.parametrize(
    ("divergence", "lost", "won"),
    [  # limits m -> -inf and m -> inf, where q = (0, 1) and (1, 0), at eps = 1e-3
        ("reverse_kl", -math.log(1e-3), -math.log(0.999)),
        ("jensen_shannon", None, None),
        ("alpha", (1e-3**0.1 - 1) / (0.1 * -0.9), (0.999**0.1 - 1) / (0.1 * -0.9)),
    ],
)
def test_bounded_divergences_reach_their_limits(divergence, lost, won):
    if divergence == "jensen_shannon":
        lost, won = (
            math.log(2 / (1 + p)) + p * math.log(2 * p / (1 + p)) + (1 - p) * math.log(2) for p in (1e-3, 0.999)
        )
    value = loss(f64(-500.0, 500.0), divergence)
    assert value.tolist() == pytest.approx([lost, won], abs=1e-12)


@EVERY_DIVERGENCE
def test_float32_agrees_with_float64(divergence):
    m = torch.linspace(-20, 20, 161)
    # The absolute term is the rounding of the two outcomes, whose first orders cancel near the optimum.
    torch.testing.assert_close(loss(m, divergence).double(), loss(m.double(), divergence), rtol=1e-5, atol=3e-7)


@EVERY_DIVERGENCE
def test_half_precision_is_computed_in_float32_and_rounded_once(divergence):
    m = torch.linspace(-9, 9, 65).bfloat16()
    assert torch.equal(loss(m, divergence), loss(m.float(), divergence).bfloat16())


@EVERY_DIVERGENCE
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_shape_and_dtype_are_kept(divergence, shape):
    value = loss(torch.zeros(shape, dtype=torch.float16), divergence)
    assert value.shape == shape
    assert value.dtype == torch.float16


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"divergence": "hellinger"}, "divergence.*'hellinger'"),
        ({"divergence": "alpha"}, "alpha.*None"),
        ({"divergence": "alpha", "alpha": 1.0}, "alpha.*1"),
        ({"divergence": "alpha", "alpha": 0.0}, "alpha.*0"),
        ({"divergence": "reverse_kl", "label_smoothing": 0.0}, "label_smoothing.*0"),
        ({"divergence": "jensen_shannon", "label_smoothing": 0.0}, "label_smoothing.*0"),
        ({"divergence": "jeffreys", "label_smoothing": 0.5}, "label_smoothing.*0.5"),
        ({"divergence": "forward_kl", "label_smoothing": 0.5}, "label_smoothing.*0.5"),
        ({"divergence": "forward_kl", "label_smoothing": -1e-3}, "label_smoothing.*-0.001"),
        ({"divergence": "forward_kl", "label_smoothing": math.nan}, "label_smoothing.*nan"),
    ],
)
def test_bad_options_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        f_po_pair_loss(f64(0.0), **options)


def test_integer_margins_are_refused():
    with pytest.raises(ValueError, match=r"margin.*int64"):
        f_po_pair_loss(torch.tensor([1]), divergence="forward_kl")
