"""BPO losses: invariants 2 to 7, 9 and 10 of the method, in float64 unless a test is about another precision."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papers.bpo.bregman_losses import (
    GENERATORS,
    bregman_divergence,
    bregman_gradient_magnitude,
    bregman_ratio_loss,
    scale_matching_dpo,
)

MEMBERS = [
    {"generator": "logistic"},
    {"generator": "kliep"},
    {"generator": "lsif"},
    {"generator": "basu", "lam": -0.9},
    {"generator": "basu", "lam": -0.5},
    {"generator": "basu", "lam": 2.0},
    {"generator": "scaled_basu", "lam": -2.5},
    {"generator": "scaled_basu", "lam": -0.5, "scale": 2.0},
    {"generator": "scaled_basu", "lam": 0.7},
    {"generator": "scaled_basu", "lam": 1.2, "scale": 9.41},
]
EVERY_MEMBER = pytest.mark.parametrize("member", MEMBERS, ids=lambda m: "-".join(map(str, m.values())))
PROPERTY = settings(deadline=None, max_examples=50)
LOG_RATIOS = st.floats(-5, 5)
POWERS = st.floats(-3, 3)
PROBABILITIES = st.floats(0.02, 0.98)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loss_and_slope(u: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor]:
    u = u.clone().requires_grad_()
    loss = bregman_ratio_loss(u, **options)
    (slope,) = torch.autograd.grad(loss.sum(), u)
    return loss.detach(), slope


def h(ratio: torch.Tensor, generator: str, lam: float = 0.0, scale: float = 4.0) -> torch.Tensor:
    """The generator as the paper prints it."""
    if generator == "logistic":
        return (ratio * ratio.log() - (1 + ratio) * torch.log(1 + ratio)) / 2
    if generator == "kliep":
        return ratio * ratio.log() - ratio
    if generator == "lsif":
        return (ratio - 1) ** 2
    if generator == "basu":
        return (ratio ** (1 + lam) - ratio) / lam
    return (ratio ** (1 + lam) - ratio) / (scale * lam * (1 + lam))


def h_prime(ratio: torch.Tensor, **member) -> torch.Tensor:
    ratio = ratio.detach().requires_grad_()
    return torch.autograd.grad(h(ratio, **member).sum(), ratio)[0]


def divergence(a: torch.Tensor, b: torch.Tensor, **member) -> torch.Tensor:
    """Pointwise Bregman divergence B_h(a || b)."""
    return h(a, **member) - h(b, **member) - h_prime(b, **member) * (a - b)


# --- values


@EVERY_MEMBER
def test_loss_is_equation_10_up_to_its_constant(member):
    u = torch.linspace(-3, 3, 61, dtype=torch.float64)
    ratio = u.exp()
    expected = h_prime(ratio, **member) * ratio - h(ratio, **member) - h_prime(1 / ratio, **member)
    difference = bregman_ratio_loss(u, **member) - expected
    torch.testing.assert_close(difference, difference[:1].expand_as(difference), rtol=0, atol=1e-10)


@EVERY_MEMBER
def test_loss_is_zero_at_ratio_one_except_logistic(member):
    expected = math.log(2) if member["generator"] == "logistic" else 0.0
    assert bregman_ratio_loss(f64(0.0), **member).item() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("ratio", "member", "expected"),
    [
        (2.0, {"generator": "logistic"}, math.log(3)),
        (math.e, {"generator": "kliep"}, math.e),  # R + log R - 1
        (2.0, {"generator": "lsif"}, 4.0),  # R^2 - 2/R + 1
        (2.0, {"generator": "basu", "lam": 2.0}, 8.125),  # R^3 - 1.5 R^-2 + 1/2
        (2.0, {"generator": "scaled_basu", "lam": 1.0}, 0.5),  # (R^2/2 - 1/R + 1/2) / 4
        (2.0, {"generator": "scaled_basu", "lam": 1.0, "scale": 1.0}, 2.0),
        (4.0, {"generator": "scaled_basu", "lam": -0.5}, 1.0),  # sqrt(R) - 1
    ],
)
def test_known_values(ratio, member, expected):
    assert bregman_ratio_loss(f64(math.log(ratio)), **member).item() == pytest.approx(expected, abs=1e-12)


def test_defaults_are_sba_at_lam_0_with_scale_4_unclipped():
    u = f64(-9.0, 0.3, 9.0)
    expected = (u.exp() - 1 + u) / 4
    torch.testing.assert_close(bregman_ratio_loss(u), expected, rtol=0, atol=1e-10)


def test_logistic_is_softplus_to_full_precision():
    u = f64(-500, -120, -25, -1, 0, 1, 25, 120, 500)
    expected = torch.logaddexp(u, torch.zeros_like(u))
    torch.testing.assert_close(bregman_ratio_loss(u, generator="logistic"), expected, rtol=1e-14, atol=0)


@PROPERTY
@given(u=LOG_RATIOS, lam=POWERS)
def test_sba_is_symmetric_about_minus_one_half(u, lam):
    left = bregman_ratio_loss(f64(u), lam=lam).item()
    right = bregman_ratio_loss(f64(u), lam=-1 - lam).item()
    assert left == pytest.approx(right, rel=1e-10, abs=1e-10)


@PROPERTY
@given(u=LOG_RATIOS)
def test_sba_at_minus_one_half_is_the_exponential_loss(u):
    assert bregman_ratio_loss(f64(u), lam=-0.5).item() == pytest.approx(math.exp(u / 2) - 1, abs=1e-10)


@PROPERTY
@given(u=LOG_RATIOS, lam=st.floats(-0.95, 3), scale=st.floats(0.1, 20))
def test_family_relations(u, lam, scale):
    def value(generator, lam=0.0):
        return bregman_ratio_loss(f64(u), generator=generator, lam=lam, scale=scale).item()

    assert value("kliep") == pytest.approx(value("basu", 0.0), rel=1e-10, abs=1e-10)
    assert value("lsif") == pytest.approx(value("basu", 1.0), rel=1e-10, abs=1e-10)
    assert value("scaled_basu", lam) * scale * (1 + lam) == pytest.approx(value("basu", lam), rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("centre", [0.0, -1.0])
@pytest.mark.parametrize("step", [1e-7, -1e-7, 1e-12, -1e-19, 1e-30, -1e-300, 5e-324])
def test_loss_and_slope_are_continuous_at_lam_0_and_minus_1(dtype, centre, step):
    u = torch.linspace(-3, 3, 101, dtype=dtype)
    # The far side of a step is where the closed form of the table divides 0 by 0.
    (loss, slope), (limit, limit_slope) = (loss_and_slope(u, lam=lam) for lam in (centre + step, centre))
    exact, exact_slope = (u.double().exp() - 1 + u.double()) / 4, (u.double().exp() + 1) / 4
    tolerance = 1e-6 if dtype == torch.float64 else 5e-6  # rounding alone is 2e-6 in float32
    assert (loss - limit).abs().max() < tolerance
    assert (loss.double() - exact).abs().max() < tolerance
    assert (slope - limit_slope).abs().max() < 5e-6
    assert (slope.double() - exact_slope).abs().max() < 5e-6


# --- gradients


@EVERY_MEMBER
def test_slope_is_ratio_times_gradient_magnitude(member):
    u = torch.linspace(-6, 6, 49, dtype=torch.float64)
    _, slope = loss_and_slope(u, **member)
    magnitude = bregman_gradient_magnitude(u, **member)
    torch.testing.assert_close(slope, u.exp() * magnitude, rtol=1e-10, atol=0)
    assert (magnitude > 0).all()


@EVERY_MEMBER
def test_gradient_magnitude_is_proposition_4(member):
    u = torch.linspace(-3, 3, 25, dtype=torch.float64)
    ratio = u.exp()

    def h_second(x):
        x = x.detach().requires_grad_()
        (first,) = torch.autograd.grad(h(x, **member).sum(), x, create_graph=True)
        return torch.autograd.grad(first.sum(), x)[0]

    expected = ratio * h_second(ratio) + h_second(1 / ratio) / ratio**2
    torch.testing.assert_close(bregman_gradient_magnitude(u, **member), expected, rtol=1e-9, atol=1e-10)


@PROPERTY
@given(u=LOG_RATIOS, lam=st.floats(-0.95, 3), scale=st.floats(0.1, 20))
def test_gradient_magnitudes_are_the_closed_forms_of_the_table(u, lam, scale):
    ratio = math.exp(u)
    power_sum = ratio**lam + ratio ** (-lam - 1)
    expected = {
        "logistic": 1 / (1 + ratio),
        "kliep": 1 + 1 / ratio,
        "lsif": 2 * (ratio + ratio**-2),
        "basu": (1 + lam) * power_sum,
        "scaled_basu": power_sum / scale,
    }
    assert set(expected) == set(GENERATORS)
    for generator, value in expected.items():
        got = bregman_gradient_magnitude(f64(u), generator=generator, lam=lam, scale=scale).item()
        assert got == pytest.approx(value, rel=1e-10)


@EVERY_MEMBER
def test_first_and_second_derivatives_against_finite_differences(member):
    u = f64(-4.0, -1.01, -0.99, 0.0, 1e-9, 0.6, 1.3, 3.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: bregman_ratio_loss(x, **member), u)
    assert torch.autograd.gradgradcheck(lambda x: bregman_ratio_loss(x, **member), u)


@PROPERTY
@given(lam=POWERS)
def test_scale_4_gives_the_gradient_of_dpo_at_ratio_one(lam):
    assert bregman_gradient_magnitude(f64(0.0), generator="scaled_basu", lam=lam).item() == 0.5
    assert bregman_gradient_magnitude(f64(0.0), generator="logistic").item() == 0.5


@PROPERTY
@given(initial=LOG_RATIOS, lam=POWERS)
def test_matched_scale_gives_the_gradient_of_dpo_where_training_starts(initial, lam):
    scale = scale_matching_dpo(initial, lam)
    matched = bregman_gradient_magnitude(f64(initial), generator="scaled_basu", lam=lam, scale=scale)
    dpo = bregman_gradient_magnitude(f64(initial), generator="logistic")
    assert matched.item() == pytest.approx(dpo.item(), rel=1e-10)
    assert scale_matching_dpo(0.0, lam) == 4.0
    assert scale_matching_dpo(initial, -0.5) == pytest.approx(4 * math.cosh(initial / 2), rel=1e-10)


@pytest.mark.parametrize(("gamma", "expected"), [(3.0, 9.410), (1.6, 5.350), (1.0, 4.511)])
def test_matched_scale_of_simpo(gamma, expected):
    assert scale_matching_dpo(gamma, -0.5) == pytest.approx(expected, abs=5e-4)


# --- optimality


@PROPERTY
@given(p=PROBABILITIES, index=st.integers(0, len(MEMBERS) - 1), clipped=st.booleans())
def test_expected_loss_of_a_pair_is_minimal_exactly_at_the_data_ratio(p, index, clipped):
    optimum = math.log(p / (1 - p))  # margin; |optimum| < 3.9 < -log(0.01)
    options = MEMBERS[index] | ({"ratio_min": 0.01} if clipped else {})

    def slope_of_expectation(m: float) -> float:
        (observed, swapped) = loss_and_slope(f64(-m, m), **options)[1].tolist()
        return -p * observed + (1 - p) * swapped

    size = max(p, 1 - p) * loss_and_slope(f64(abs(optimum)), **options)[1].item()
    assert abs(slope_of_expectation(optimum)) < 1e-10 * max(1.0, size)
    assert slope_of_expectation(optimum - 0.1) < 0 < slope_of_expectation(optimum + 0.1)


@EVERY_MEMBER
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_expected_loss_is_the_bregman_divergence_up_to_a_constant(member, p):
    u = torch.linspace(-2, 2, 41, dtype=torch.float64)
    ratio, data_ratio = u.exp(), f64((1 - p) / p)
    intractable = p * divergence(data_ratio, ratio, **member)
    intractable += (1 - p) * divergence(1 / data_ratio, 1 / ratio, **member)
    tractable = p * bregman_ratio_loss(u, **member) + (1 - p) * bregman_ratio_loss(-u, **member)
    difference = intractable - tractable
    torch.testing.assert_close(difference, difference[:1].expand_as(difference), rtol=0, atol=1e-9)


@EVERY_MEMBER
def test_divergence_is_that_of_the_printed_generator(member):
    a, b = torch.meshgrid(f64(-3.0, -0.4, 1.1, 2.5), f64(-2.0, -0.5, 1.0, 3.0), indexing="ij")
    expected = h(a.exp(), **member) - h(b.exp(), **member) - h_prime(b.exp(), **member) * (a.exp() - b.exp())
    torch.testing.assert_close(bregman_divergence(a, b, **member), expected)


@PROPERTY
@given(a=LOG_RATIOS, b=LOG_RATIOS, lam=st.sampled_from([-1.0, 0.0]))
def test_divergence_has_its_limits_where_the_printed_generator_has_none(a, b, lam):
    exact, near = (
        bregman_divergence(f64(a), f64(b), generator="scaled_basu", lam=power).item() for power in (lam, lam + 1e-6)
    )
    assert exact >= -1e-12
    assert exact == pytest.approx(near, rel=1e-4, abs=1e-4)


@PROPERTY
@given(lam=st.floats(-1, 0), m=st.floats(-8, 8))
def test_loss_is_convex_in_the_margin_between_lam_minus_1_and_0(lam, m):
    assert curvature_in_margin(m, lam) >= 0


@PROPERTY
@given(lam=st.floats(0.05, 3), beyond=st.floats(0.01, 5))
def test_loss_turns_concave_at_the_known_margin_for_positive_lam(lam, beyond):
    turning_point = math.log((1 + lam) / lam) / (1 + 2 * lam)
    assert curvature_in_margin(turning_point + beyond, lam) < 0 < curvature_in_margin(turning_point - beyond, lam)


def curvature_in_margin(m: float, lam: float) -> float:
    margin = f64(m).requires_grad_()
    (slope,) = torch.autograd.grad(bregman_ratio_loss(-margin, lam=lam).sum(), margin, create_graph=True)
    return torch.autograd.grad(slope.sum(), margin)[0].item()


# --- clipping


@EVERY_MEMBER
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_clipped_pairs_have_constant_loss_and_exactly_zero_gradient(member, dtype):
    low, high = 0.01, 30.0
    bounds = torch.tensor([math.log(low), math.log(high)], dtype=torch.float64)
    at_low, at_high = bregman_ratio_loss(bounds, **member).to(dtype)
    below = torch.tensor([-500.0, -120.0, -4.7, -math.inf], dtype=dtype)
    above = torch.tensor([500.0, 120.0, 3.5, math.inf], dtype=dtype)
    for u, at_bound in ((below, at_low), (above, at_high)):
        loss, slope = loss_and_slope(u, ratio_min=low, ratio_max=high, **member)
        torch.testing.assert_close(loss, at_bound.expand_as(loss))
        assert torch.equal(slope, torch.zeros_like(u))


@EVERY_MEMBER
def test_clipping_leaves_pairs_inside_alone(member):
    u = torch.linspace(-4.6, 3.4, 33, dtype=torch.float64)
    plain, clipped = loss_and_slope(u, **member), loss_and_slope(u, ratio_min=0.01, ratio_max=30.0, **member)
    assert all(torch.equal(a, b) for a, b in zip(plain, clipped, strict=True))


def test_each_bound_works_alone():
    u = f64(-10.0, 10.0)
    _, slope = loss_and_slope(u, ratio_min=0.01)
    assert slope[0] == 0 and slope[1] > 0
    _, slope = loss_and_slope(u, ratio_max=30.0)
    assert slope[0] > 0 and slope[1] == 0


# --- precision


@pytest.mark.parametrize("u", [-120.0, 120.0])
def test_float32_is_finite_and_accurate_where_the_ratio_itself_overflows(u):
    loss, slope = loss_and_slope(torch.tensor([u]), lam=-0.5)
    assert loss.item() == pytest.approx(math.exp(u / 2) - 1, rel=1e-5, abs=0)
    assert slope.item() == pytest.approx(math.exp(u / 2) / 2, rel=1e-5, abs=0)
    # The magnitude is dl/dR, here R^(-1/2) / 2: computed through R = exp(120) it would be 0 or nan.
    magnitude = bregman_gradient_magnitude(torch.tensor([u]), generator="scaled_basu", lam=-0.5)
    assert magnitude.item() == pytest.approx(math.exp(-u / 2) / 2, rel=1e-5, abs=0)


@EVERY_MEMBER
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("u", [-500.0, -120.0, 120.0, 500.0])
def test_nothing_becomes_nan_at_extreme_ratios(member, dtype, u):
    for result in loss_and_slope(torch.tensor([u], dtype=dtype), **member):
        assert not result.isnan().any()


@EVERY_MEMBER
def test_float32_agrees_with_float64(member):
    u = torch.linspace(-8, 8, 65)
    for single, double in zip(loss_and_slope(u, **member), loss_and_slope(u.double(), **member), strict=True):
        torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=1e-7)


@EVERY_MEMBER
def test_half_precision_is_computed_in_float32_and_rounded_once(member):
    u = torch.linspace(-4, 4, 65).bfloat16()
    loss, slope = loss_and_slope(u, **member)
    assert loss.dtype == slope.dtype == torch.bfloat16
    exact_loss, exact_slope = loss_and_slope(u.float(), **member)
    assert torch.equal(loss, exact_loss.bfloat16())
    assert torch.equal(slope, exact_slope.bfloat16())
    magnitude = bregman_gradient_magnitude(u, **member)
    assert torch.equal(magnitude, bregman_gradient_magnitude(u.float(), **member).bfloat16())


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3)])
def test_shape_and_dtype_are_kept(generator, shape):
    for dtype in (torch.float64, torch.float32, torch.float16):
        u = torch.zeros(shape, dtype=dtype)
        for result in (bregman_ratio_loss(u, generator=generator), bregman_gradient_magnitude(u, generator=generator)):
            assert result.shape == shape
            assert result.dtype == dtype


def test_nan_is_not_hidden():
    assert bregman_ratio_loss(f64(math.nan), ratio_min=0.01, ratio_max=30.0).isnan().all()


def test_every_pair_is_computed_on_its_own():
    u = f64(-2.0, 0.4, 700.0)
    torch.testing.assert_close(bregman_ratio_loss(u)[:2], bregman_ratio_loss(u[:2]), rtol=0, atol=0)
    torch.testing.assert_close(loss_and_slope(u)[1][:2], loss_and_slope(u[:2])[1], rtol=0, atol=0)


# --- bad input


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"generator": "dpo"}, "generator.*'dpo'"),
        ({"lam": math.nan}, "lam must be finite.*nan"),
        ({"lam": math.inf}, "lam must be finite.*inf"),
        ({"generator": "basu", "lam": -1.0}, "lam.*-1"),
        ({"generator": "basu", "lam": -2.0}, "lam.*-2"),
        ({"scale": 0.0}, "scale.*0"),
        ({"scale": -4.0}, "scale.*-4"),
        ({"scale": math.nan}, "scale.*nan"),
    ],
)
def test_bad_options_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        bregman_ratio_loss(f64(0.0), **options)
    with pytest.raises(ValueError, match=match):
        bregman_gradient_magnitude(f64(0.0), **({"generator": "scaled_basu"} | options))


@pytest.mark.parametrize(
    ("bounds", "match"),
    [
        ({"ratio_min": 0.0}, "ratio_min.*0"),
        ({"ratio_min": -0.01}, "ratio_min.*-0.01"),
        ({"ratio_max": 0.0}, "ratio_max.*0"),
        ({"ratio_max": math.inf}, "ratio_max.*inf"),
        ({"ratio_min": math.nan}, "ratio_min.*nan"),
        ({"ratio_min": 2.0, "ratio_max": 2.0}, "ratio_min must be below ratio_max"),
        ({"ratio_min": 3.0, "ratio_max": 2.0}, "ratio_min must be below ratio_max"),
    ],
)
def test_bad_bounds_are_named(bounds, match):
    with pytest.raises(ValueError, match=match):
        bregman_ratio_loss(f64(0.0), **bounds)


def test_integer_ratios_are_refused():
    with pytest.raises(ValueError, match=r"log_ratio.*int64"):
        bregman_ratio_loss(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"log_ratio.*int64"):
        bregman_gradient_magnitude(torch.tensor([1]), generator="kliep")


@pytest.mark.parametrize("arguments", [(math.inf, 0.0), (0.0, math.nan)])
def test_matched_scale_refuses_what_is_not_finite(arguments):
    with pytest.raises(ValueError, match="must be finite"):
        scale_matching_dpo(*arguments)
