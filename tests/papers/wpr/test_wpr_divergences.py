"""f-divergence penalties: expectations, policy gradients, limits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papers.wpr.divergences import f_divergence_penalty

NAMES = ("reverse_kl", "forward_kl", "js", "alpha", "tv", "chi2")


def divergence(name: str, p: torch.Tensor, q: torch.Tensor, alpha: float) -> torch.Tensor:
    """D(p ‖ q) by its definition."""
    mean = (p + q) / 2
    return {
        "reverse_kl": lambda: p * (p / q).log(),
        "forward_kl": lambda: q * (q / p).log(),
        "js": lambda: p * (p / mean).log() + q * (q / mean).log(),
        "alpha": lambda: p * ((q / p) ** alpha - alpha * q / p - (1 - alpha)) / (alpha * (alpha - 1)),
        "tv": lambda: (p - q).abs() / 2,
        "chi2": lambda: (p - q) ** 2 / q,
    }[name]().sum()


def pair(seed: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))


SETTINGS = settings(deadline=None, max_examples=60)
CASES = (st.sampled_from(NAMES), st.integers(0, 10**6), st.integers(2, 9), st.floats(0.05, 0.95))


@SETTINGS
@given(*CASES)
def test_expected_value_form_is_the_divergence(name, seed, size, alpha):
    p, q = (logits.softmax(-1) for logits in pair(seed, size))
    value = f_divergence_penalty(p.log() - q.log(), name, alpha=alpha)
    assert (p * value).sum().item() == pytest.approx(divergence(name, p, q, alpha).item(), rel=1e-9, abs=1e-12)


@SETTINGS
@given(*CASES)
def test_gradient_form_is_the_policy_gradient_of_the_divergence(name, seed, size, alpha):
    logits, other = pair(seed, size)
    q = other.softmax(-1)
    p = logits.softmax(-1)
    form = f_divergence_penalty(p.log() - q.log(), name, alpha=alpha, form="gradient")
    gradient = p * (form - (form * p).sum())
    step = 1e-5
    for i in range(size):
        shift = step * torch.eye(size, dtype=torch.float64)[i]
        values = [divergence(name, (logits + sign * shift).softmax(-1), q, alpha) for sign in (1, -1)]
        slope = (values[0] - values[1]).item() / (2 * step)
        # The total variation has kinks; a step across one is off by the step.
        assert slope == pytest.approx(gradient[i].item(), rel=1e-6, abs=1e-4 if name == "tv" else 1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_equal_distributions_are_not_penalised(name):
    for dtype in (torch.float32, torch.float64):
        for form in ("value", "gradient"):
            assert f_divergence_penalty(torch.zeros(2, 3, dtype=dtype), name, form=form).abs().max() < 1e-7


@pytest.mark.parametrize("name", NAMES)
def test_gradient_form_grows_with_the_ratio(name):
    """F is convex, so that over-weighted tokens are penalised most: the value forms do not have this."""
    penalty = f_divergence_penalty(torch.linspace(-20, 20, 201, dtype=torch.float64), name, form="gradient")
    assert (penalty.diff() >= 0).all()
    assert penalty[0] < 0 < penalty[-1]


def test_known_values_at_ratio_two():
    ratio = torch.tensor(math.log(2.0), dtype=torch.float64)
    expected = {
        "reverse_kl": (math.log(2), math.log(2)),
        "forward_kl": (-math.log(2) / 2, 0.5),
        "js": (math.log(2) - 1.5 * math.log(1.5), math.log(4 / 3)),
        "alpha": (-4 * (2**-0.5 - 0.25 - 0.5), 2 * (1 - 2**-0.5)),
        "tv": (0.25, 0.5),
        "chi2": (0.5, 2.0),
    }
    for name, (value, gradient) in expected.items():
        assert f_divergence_penalty(ratio, name).item() == pytest.approx(value, rel=1e-14)
        assert f_divergence_penalty(ratio, name, form="gradient").item() == pytest.approx(gradient, rel=1e-14)


def test_alpha_divergence_joins_the_two_kls():
    ratio = torch.linspace(-3, 3, 31, dtype=torch.float64)
    for form in ("value", "gradient"):
        for alpha, name in ((1e-7, "reverse_kl"), (1 - 1e-7, "forward_kl")):
            near = f_divergence_penalty(ratio, "alpha", alpha=alpha, form=form)
            limit = f_divergence_penalty(ratio, name, form=form)
            if form == "value":  # its constant is fixed by F(1) = F'(1) = 0, the other by F(x) = x log x, −log x
                x = ratio.exp()
                limit = limit + (1 / x - 1 if name == "reverse_kl" else 1 - 1 / x)
            torch.testing.assert_close(near, limit, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("form", ["value", "gradient"])
@pytest.mark.parametrize("name", NAMES)
def test_any_finite_ratio_is_accurate_in_float32(name, form, alpha):
    """Against float64, whose range holds what float32 cannot; never NaN, infinite only where float32 has to be."""
    ratio = torch.cat([torch.linspace(-300, 300, 1201), torch.logspace(-8, -1, 50), -torch.logspace(-8, -1, 50)])
    exact = f_divergence_penalty(ratio.double(), name, form=form, alpha=alpha)
    penalty = f_divergence_penalty(ratio, name, form=form, alpha=alpha)
    assert penalty.dtype == torch.float32
    assert exact.isfinite().all()
    representable = exact.abs() < 1e36
    torch.testing.assert_close(penalty[representable].double(), exact[representable], rtol=1e-4, atol=2e-6)
    assert not penalty.isnan().any()
    assert torch.equal(penalty.isinf() & (exact.abs() < 1e36), torch.zeros_like(representable))


@pytest.mark.parametrize(
    ("name", "form", "at_zero", "at_infinity"),
    [
        ("reverse_kl", "value", -math.inf, math.inf),
        ("reverse_kl", "gradient", -math.inf, math.inf),
        ("forward_kl", "value", math.inf, 0.0),
        ("forward_kl", "gradient", -math.inf, 1.0),
        ("js", "value", math.inf, math.log(2)),
        ("js", "gradient", -math.inf, math.log(2)),
        ("alpha", "value", math.inf, 2.0),
        ("alpha", "gradient", -math.inf, 2.0),
        ("tv", "value", math.inf, 0.5),
        ("tv", "gradient", -0.5, 0.5),
        ("chi2", "value", math.inf, math.inf),
        ("chi2", "gradient", -2.0, math.inf),
    ],
)
def test_infinite_ratios_give_the_limit(name, form, at_zero, at_infinity):
    penalty = f_divergence_penalty(torch.tensor([-math.inf, math.inf]), name, form=form)
    assert penalty.tolist() == [pytest.approx(at_zero), pytest.approx(at_infinity)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    ratio = torch.linspace(-3, 3, 25).to(dtype)
    for name in NAMES:
        for form in ("value", "gradient"):
            penalty = f_divergence_penalty(ratio, name, form=form)
            assert torch.equal(penalty, f_divergence_penalty(ratio.float(), name, form=form).to(dtype))


@pytest.mark.parametrize(
    ("ratio", "name", "arguments", "message"),
    [
        (torch.zeros(2), "kl", {}, "divergence .* got 'kl'"),
        (torch.zeros(2), "js", {"form": "loss"}, "form .* got 'loss'"),
        (torch.zeros(2), "alpha", {"alpha": 0.0}, "alpha .* got 0.0"),
        (torch.zeros(2), "alpha", {"alpha": 1.0}, "alpha .* got 1.0"),
        (torch.zeros(2), "alpha", {"alpha": math.nan}, "alpha .* got nan"),
        (torch.tensor([0.0, math.nan]), "tv", {}, "log_ratio must not be NaN"),
        (torch.zeros(2, dtype=torch.long), "tv", {}, "log_ratio .* got torch.int64"),
    ],
)
def test_bad_arguments_are_refused(ratio, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        f_divergence_penalty(ratio, name, **arguments)
