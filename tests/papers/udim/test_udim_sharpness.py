"""Sharpness-aware gradients: invariants 1 and 2, and known answers on quadratics."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from papers.udim.sharpness import (
    erm_gradient,
    gam_gradient,
    global_norm,
    sagm_gradient,
    sam_gradient,
    sam_perturbation,
    sharpness,
)

PROPERTY = settings(deadline=None, max_examples=60)
ENTRIES = st.integers(-10_000, 10_000).map(lambda n: n / 1000)  # no norms near the eps


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@st.composite
def gradient_lists(draw) -> list[torch.Tensor]:
    shapes = draw(st.lists(st.sampled_from([(3,), (2, 2), (1,), ()]), min_size=1, max_size=4))
    return [torch.as_tensor(draw(hnp.arrays(float, shape, elements=ENTRIES)), dtype=torch.float64) for shape in shapes]


class Quadratic:
    """L(θ) = ½ θᵀ A θ over two tensors, with its gradient and the points it was asked at."""

    def __init__(self) -> None:
        root = torch.randn(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        self.matrix = root @ root.T + torch.eye(5, dtype=torch.float64)
        self.points: list[torch.Tensor] = []

    def loss(self, point) -> torch.Tensor:
        theta = torch.cat([p.flatten() for p in point])
        return theta @ self.matrix @ theta / 2

    def gradient(self, point) -> list[torch.Tensor]:
        theta = torch.cat([p.flatten() for p in point])
        self.points.append(theta)
        return self.split(self.matrix @ theta)

    @staticmethod
    def split(vector: torch.Tensor) -> list[torch.Tensor]:
        return [vector[:3], vector[3:].reshape(1, 2)]


@pytest.fixture
def problem():
    quadratic = Quadratic()
    theta = f64(1.0, -2.0, 0.5, 3.0, -0.1)
    return quadratic, Quadratic.split(theta), Quadratic.split(quadratic.matrix @ theta), theta


def flat(tensors) -> torch.Tensor:
    return torch.cat([t.flatten() for t in tensors])


# --- The perturbation


@PROPERTY
@given(gradients=gradient_lists(), rho=st.just(0.0) | st.floats(1e-6, 5))
def test_perturbation_has_length_rho_along_the_gradient(gradients, rho):
    e = sam_perturbation(gradients, rho)
    assert [t.shape for t in e] == [g.shape for g in gradients]
    norm = flat(gradients).norm()
    expected = rho * flat(gradients) / norm if norm > 0 else torch.zeros_like(flat(gradients))
    torch.testing.assert_close(flat(e), expected, rtol=1e-8, atol=0)
    assert flat(e).norm().item() == pytest.approx(rho if norm > 0 else 0, rel=1e-6)


@PROPERTY
@given(gradients=gradient_lists(), rho=st.floats(0.01, 5), data=st.data())
def test_adaptive_perturbation_has_length_rho_relative_to_the_parameters(gradients, rho, data):
    parameters = [
        torch.as_tensor(data.draw(hnp.arrays(float, tuple(g.shape), elements=ENTRIES)), dtype=torch.float64)
        for g in gradients
    ]
    e, p, g = flat(sam_perturbation(gradients, rho, parameters, adaptive=True)), flat(parameters), flat(gradients)
    norm = (p.abs() * g).norm()
    expected = rho * p**2 * g / norm if norm > 0 else torch.zeros_like(p)
    torch.testing.assert_close(e, expected, rtol=1e-6, atol=0)


def test_adaptive_perturbation_at_unit_parameters_is_sam():
    gradients = [f64(1.0, 2.0), f64(-3.0)]
    ones = [f64(1.0, -1.0), f64(-1.0)]
    for adaptive, plain in zip(
        sam_perturbation(gradients, 0.3, ones, adaptive=True), sam_perturbation(gradients, 0.3), strict=True
    ):
        torch.testing.assert_close(adaptive, plain, rtol=1e-12, atol=0)


def test_parameters_are_ignored_unless_adaptive():
    gradients = [f64(1.0, 2.0)]
    torch.testing.assert_close(
        sam_perturbation(gradients, 0.3, [f64(5.0, 7.0)])[0], sam_perturbation(gradients, 0.3)[0], rtol=0, atol=0
    )


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zero_gradient_does_not_move(dtype, adaptive):
    zero = torch.zeros(3, dtype=dtype)
    for e in sam_perturbation([zero, zero], 0.05, [zero + 1, zero], adaptive):
        assert e.dtype == dtype and torch.equal(e, zero)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_half_precision_do_not_overflow(dtype):
    g = torch.full((400,), 6e4, dtype=dtype)  # the sum of squares is 1.4e12
    (e,) = sam_perturbation([g], 2.0)
    assert e.dtype == dtype
    torch.testing.assert_close(e, torch.full((400,), 0.1, dtype=dtype), rtol=1e-2, atol=0)
    (relative,) = sam_perturbation([g], 2.0, [g], adaptive=True)
    torch.testing.assert_close(relative, torch.full((400,), 0.1 * 6e4, dtype=dtype), rtol=1e-2, atol=0)


def test_mixed_precisions_keep_theirs():
    gradients = [torch.tensor([3.0]), f64(4.0), torch.tensor([0.0], dtype=torch.bfloat16)]
    e = sam_perturbation(gradients, 1.0)
    assert [t.dtype for t in e] == [torch.float32, torch.float64, torch.bfloat16]
    assert [t.item() for t in e] == pytest.approx([0.6, 0.8, 0.0])
    assert global_norm(gradients).item() == pytest.approx(5.0)


@pytest.mark.parametrize("adaptive", [False, True])
def test_perturbation_is_detached_and_new(adaptive):
    g = f64(1.0, 2.0).requires_grad_()
    (e,) = sam_perturbation([g], 0.1, [g], adaptive)
    assert not e.requires_grad and e.data_ptr() != g.data_ptr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 0.05), "gradients must hold at least one tensor"),
        (([f64(1.0)], -0.1), "rho must be finite and at least 0, got -0.1"),
        (([f64(1.0)], math.nan), "rho must be"),
        (([f64(1.0)], math.inf), "rho must be"),
        (([f64(1.0)], 0.05, None, True), "parameters must be given"),
        (([f64(1.0)], 0.05, [f64(1.0, 2.0)], True), "parameters must have the shapes"),
        (([f64(1.0)], 0.05, [f64(1.0), f64(1.0)], True), "parameters must have the shapes"),
    ],
)
def test_bad_perturbations_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sam_perturbation(*arguments)


# --- Base rules


def test_erm_is_the_clean_gradient(problem):
    quadratic, parameters, clean, _ = problem
    assert all(a is b for a, b in zip(erm_gradient(quadratic.gradient, parameters, clean), clean, strict=True))
    assert quadratic.points == []


def test_sam_is_the_gradient_at_the_ascent_point(problem):
    quadratic, parameters, clean, theta = problem
    got = flat(sam_gradient(quadratic.gradient, parameters, clean, rho=0.3))
    g = quadratic.matrix @ theta
    torch.testing.assert_close(got, quadratic.matrix @ (theta + 0.3 * g / g.norm()), rtol=1e-12, atol=0)
    adaptive = flat(sam_gradient(quadratic.gradient, parameters, clean, rho=0.3, adaptive=True))
    e = 0.3 * theta**2 * g / (theta.abs() * g).norm()
    torch.testing.assert_close(adaptive, quadratic.matrix @ (theta + e), rtol=1e-12, atol=0)


def test_sagm_averages_the_gradients_here_and_ahead(problem):
    quadratic, parameters, clean, theta = problem
    got = flat(sagm_gradient(quadratic.gradient, parameters, clean, rho=0.3, alpha=0.02))
    g = quadratic.matrix @ theta
    ahead = theta + (0.3 / g.norm() - 0.02) * g
    torch.testing.assert_close(got, (g + quadratic.matrix @ ahead) / 2, rtol=1e-12, atol=0)


def gam(quadratic, parameters, clean, **options):
    options = {"rho": 0.3, "rho_flatness": 0.2} | options
    return flat(gam_gradient(quadratic.gradient, parameters, clean, **options))


def test_gam_follows_its_four_gradients(problem):
    quadratic, parameters, clean, theta = problem
    a = quadratic.matrix
    g0 = a @ theta
    g1 = a @ (theta + 0.3 * g0 / g0.norm())
    theta2 = theta + 0.2 * (g1 - g0) / (g1 - g0).norm()
    g2 = a @ theta2
    g3 = a @ (theta2 + 0.3 * g2 / g2.norm())
    u, m = 0.4 * g1 + 0.6 * g3, g0 + 0.7 * g2
    cosine = (m @ u) / (m.norm() * u.norm())
    expected = u - 0.05 * (m - cosine * m.norm() * u / u.norm())
    got = gam(quadratic, parameters, clean, sharpness_weight=0.6, loss_weight=0.7)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)


def test_gam_correction_is_orthogonal_to_the_gradient(problem):
    quadratic, parameters, clean, _ = problem
    u = gam(quadratic, parameters, clean, orthogonal_weight=0.0)
    correction = gam(quadratic, parameters, clean, orthogonal_weight=1.0) - u
    assert correction.norm() > 1e-3
    assert abs(correction @ u) < 1e-8 * correction.norm() * u.norm()


RULES = [
    partial(sam_gradient, rho=0.0),
    partial(sam_gradient, rho=0.0, adaptive=True),
    partial(sagm_gradient, rho=0.0, alpha=0.0),
    partial(gam_gradient, rho=0.0, rho_flatness=0.0),
]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_erm_at_radius_zero(problem, rule):
    quadratic, parameters, clean, _ = problem
    torch.testing.assert_close(flat(rule(quadratic.gradient, parameters, clean)), flat(clean), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "rule",
    [
        *RULES,
        partial(sam_gradient, rho=1.0),
        partial(sagm_gradient, rho=1.0),
        partial(gam_gradient, rho=1.0, rho_flatness=1.0),
    ],
)
def test_rules_stay_at_a_stationary_point_and_change_nothing(rule):
    quadratic = Quadratic()
    parameters = [p.requires_grad_() for p in Quadratic.split(torch.zeros(5, dtype=torch.float64))]
    clean = [torch.zeros_like(p) for p in parameters]
    got = flat(rule(quadratic.gradient, parameters, clean))
    assert torch.equal(got, torch.zeros(5, dtype=torch.float64))
    assert torch.equal(flat(parameters), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (partial(sam_gradient, rho=-1.0), "rho must"),
        (partial(sagm_gradient, rho=0.1, alpha=-1.0), "alpha must be at least 0, got -1.0"),
        (partial(gam_gradient, rho=0.1, rho_flatness=-0.1), "rho must"),
        (partial(gam_gradient, rho=0.1, rho_flatness=0.1, sharpness_weight=1.1), "sharpness_weight must be in"),
        (partial(gam_gradient, rho=0.1, rho_flatness=0.1, loss_weight=-1.0), "loss_weight must"),
        (partial(gam_gradient, rho=0.1, rho_flatness=0.1, orthogonal_weight=math.nan), "orthogonal_weight must"),
    ],
)
def test_bad_options_of_rules_are_refused(problem, rule, message):
    quadratic, parameters, clean, _ = problem
    with pytest.raises(ValueError, match=message):
        rule(quadratic.gradient, parameters, clean)


# --- Flatness


def test_sharpness_of_a_quadratic(problem):
    quadratic, parameters, _, theta = problem
    g = quadratic.matrix @ theta
    unit = g / g.norm()
    expected = 0.05 * g.norm() + 0.05**2 / 2 * unit @ quadratic.matrix @ unit
    got = sharpness(quadratic.loss, quadratic.gradient, parameters, 0.05)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)
    assert sharpness(quadratic.loss, quadratic.gradient, parameters, 0.0) == 0
