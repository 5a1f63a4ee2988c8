"""The divergences that concrete score distillation is compared with."""

import itertools
import math

import numpy as np
import pytest
import torch
from csd_cases import drawn_logits, gradient_of, random_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from papers.csd.distillation_objectives import DEFAULT_SKEW, token_divergence

KINDS = tuple(DEFAULT_SKEW)
SKEWED = tuple(kind for kind, skew in DEFAULT_SKEW.items() if skew is not None)


def by_definition(p: np.ndarray, q: np.ndarray, kind: str, skew: float, alpha: float, beta: float) -> float:
    """From probabilities, entry by entry, as the definitions read."""

    def kl(a, b):
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)

    mixture = (1 - skew) * p + skew * q
    order = alpha + beta
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "symmetric_kl": lambda: (1 - skew) * kl(p, q) + skew * kl(q, p),
        "jeffreys": lambda: kl(p, q) + kl(q, p),
        "total_variation": lambda: sum(abs(p - q)) / 2,
        "jensen_shannon": lambda: (1 - skew) * kl(p, mixture) + skew * kl(q, mixture),
        "skew_forward_kl": lambda: kl(p, skew * p + (1 - skew) * q),
        "skew_reverse_kl": lambda: kl(q, (1 - skew) * p + skew * q),
        "alpha_beta": lambda: (
            -sum(p**alpha * q**beta - alpha / order * p**order - beta / order * q**order) / (alpha * beta)
        ),
    }[kind]()


@given(drawn_logits(), st.sampled_from(KINDS), st.floats(0.01, 0.99), st.floats(0.1, 2), st.floats(0.1, 2))
@settings(max_examples=150, deadline=None)
def test_equal_to_the_definition(pair, kind, skew, alpha, beta):
    f, t = pair
    values = token_divergence(f, t, kind, skew=skew, alpha=alpha, beta=beta)
    p, q = (x.softmax(-1).numpy() for x in (t, f))
    expected = [by_definition(*rows, kind, skew, alpha, beta) for rows in zip(p, q, strict=True)]
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)


@given(drawn_logits(), st.sampled_from(KINDS), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
@settings(max_examples=100, deadline=None)
def test_never_negative_and_zero_at_the_teacher(pair, kind, dtype):
    f, t = (x.to(dtype) for x in pair)
    values = token_divergence(f, t, kind)
    assert (values >= 0).all()
    if kind == "total_variation":
        assert (values <= 1).all()
    assert token_divergence(t, t, kind).max() <= 1e-5


@pytest.mark.parametrize("trained", [False, True])
def test_rounding_in_float32_stays_within_the_range(trained):
    _, t = random_logits(200, 50)
    f = t + 1e-6 * torch.randn(200, 50, generator=torch.Generator().manual_seed(1))
    for kind in KINDS:
        assert (token_divergence(f.float().requires_grad_(trained), t.float(), kind) >= 0).all()
    f, t = random_logits(200, 40, scale=1.0)
    f[:, 20:], t[:, :20] = -60, -60
    disjoint = token_divergence(f.float().requires_grad_(trained), t.float(), "total_variation")
    assert (disjoint <= 1).all() and (disjoint > 0.999).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_by_finite_differences(kind):
    f, t = random_logits(2, 5)
    assert torch.autograd.gradcheck(lambda x: token_divergence(x, t, kind), f.requires_grad_())


def test_gradients_in_closed_form():
    f, t = random_logits(3, 7)
    p, q = t.softmax(-1), f.softmax(-1)
    forward = gradient_of(lambda x: token_divergence(x, t, "forward_kl"), f)
    torch.testing.assert_close(forward, q - p, rtol=1e-9, atol=1e-14)
    ratio = f.log_softmax(-1) - t.log_softmax(-1)
    reverse = gradient_of(lambda x: token_divergence(x, t, "reverse_kl"), f)
    expected = q * (ratio - (q * ratio).sum(-1, keepdim=True))
    torch.testing.assert_close(reverse, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_shift_and_permutation_invariant(kind):
    """Invariants 1 and 11, for the divergences."""
    f, t = random_logits(3, 9)
    values, gradient = token_divergence(f, t, kind), gradient_of(lambda x: token_divergence(x, t, kind), f)
    torch.testing.assert_close(token_divergence(f + 40, t - 30, kind), values, rtol=1e-9, atol=0)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(token_divergence(f[:, order], t[:, order], kind), values, rtol=1e-9, atol=0)
    permuted = gradient_of(lambda x: token_divergence(x, t[:, order], kind), f[:, order])
    torch.testing.assert_close(permuted, gradient[:, order], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("kind", "default"), [("symmetric_kl", 0.9), ("jensen_shannon", 0.9)])
def test_default_skew_of_gkd(kind, default):
    f, t = random_logits(3, 9)
    torch.testing.assert_close(token_divergence(f, t, kind), token_divergence(f, t, kind, skew=default))
    assert (token_divergence(f, t, kind) != token_divergence(f, t, kind, skew=0.1)).all()


@pytest.mark.parametrize("kind", ["skew_forward_kl", "skew_reverse_kl"])
def test_default_skew_of_distillm(kind):
    f, t = random_logits(3, 9)
    torch.testing.assert_close(token_divergence(f, t, kind), token_divergence(f, t, kind, skew=0.1))
    assert (token_divergence(f, t, kind) != token_divergence(f, t, kind, skew=0.9)).all()


def test_default_orders_of_alpha_beta():
    f, t = random_logits(3, 9)
    explicit = token_divergence(f, t, "alpha_beta", alpha=0.2, beta=0.7)
    torch.testing.assert_close(token_divergence(f, t, "alpha_beta"), explicit)


def test_jensen_shannon_limit_and_symmetry():
    """Invariant 12."""
    f, t = random_logits(4, 6, scale=1.0)
    small = 1e-6
    limit = token_divergence(f, t, "jensen_shannon", skew=small) / small
    torch.testing.assert_close(limit, token_divergence(f, t, "reverse_kl"), rtol=1e-4, atol=0)
    for skew in (0.0, 0.3, 0.9):
        swapped = token_divergence(t, f, "jensen_shannon", skew=1 - skew)
        torch.testing.assert_close(token_divergence(f, t, "jensen_shannon", skew=skew), swapped, rtol=1e-9, atol=1e-15)
    for skew in (0.0, 1.0):
        assert token_divergence(f, t, "jensen_shannon", skew=skew).abs().max() < 1e-15


def test_skewed_divergences_at_their_ends():
    """Invariant 12."""
    f, t = random_logits(4, 6)
    for skewed, plain in (("skew_forward_kl", "forward_kl"), ("skew_reverse_kl", "reverse_kl")):
        assert token_divergence(f, t, skewed, skew=1.0).abs().max() < 1e-15
        torch.testing.assert_close(
            token_divergence(f, t, skewed, skew=0.0), token_divergence(f, t, plain), rtol=1e-9, atol=0
        )
        at_zero = gradient_of(lambda x, k=skewed: token_divergence(x, t, k, skew=0.0), f)
        torch.testing.assert_close(at_zero, gradient_of(lambda x, k=plain: token_divergence(x, t, k), f))


def test_gradient_flows_through_the_student_inside_the_mixture():
    f, t = random_logits(3, 6)
    log_p, frozen = t.log_softmax(-1), f.softmax(-1)

    def with_frozen_mixture(x):
        log_q = x.log_softmax(-1)
        return (log_q.exp() * (log_q - (0.9 * log_p.exp() + 0.1 * frozen).log())).sum(-1)

    full = gradient_of(lambda x: token_divergence(x, t, "skew_reverse_kl"), f)
    assert (full - gradient_of(with_frozen_mixture, f)).abs().max() > 1e-3


def test_alpha_beta_tends_to_the_forward_kl():
    """Invariant 12."""
    f, t = random_logits(4, 6, scale=1.0)
    near = token_divergence(f, t, "alpha_beta", alpha=1.0, beta=1e-4)
    torch.testing.assert_close(near, token_divergence(f, t, "forward_kl"), rtol=1e-3, atol=0)


def test_alpha_beta_with_a_negative_order_is_still_a_divergence():
    f, t = random_logits(50, 6, scale=1.0)
    for alpha, beta in itertools.product((-0.5, 1.7), (-0.4, 1.2)):
        assert (token_divergence(f, t, "alpha_beta", alpha=alpha, beta=beta) > 0).all()


def test_reverse_kl_as_an_integral_along_the_geometric_path():
    """KL(q‖p) = ∫ s Var_{r_s}[d] ds with r_s ∝ p e^{sd}: an identity that shares no formula with the code."""
    f, t = random_logits(6)
    d = f - t

    def integrand(s):
        r = (t + s * d).softmax(-1)
        return (s * (r * (d - (r * d).sum()) ** 2).sum()).item()

    expected = quad(integrand, 0, 1)[0]
    assert token_divergence(f, t, "reverse_kl").item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_finite_where_probabilities_underflow(kind):
    f = torch.tensor([[0.0, 300.0, -400.0]])
    t = torch.tensor([[300.0, 0.0, -500.0]])
    values, gradient = token_divergence(f, t, kind), gradient_of(lambda x: token_divergence(x, t, kind), f)
    assert values.isfinite().all() and gradient.isfinite().all()
    if kind in ("forward_kl", "reverse_kl"):
        assert values.item() == pytest.approx(300.0)


def test_skew_is_not_read_by_the_kinds_without_one():
    f, t = random_logits(3, 6)
    for kind in set(KINDS) - set(SKEWED):
        assert torch.equal(token_divergence(f, t, kind, skew=0.5), token_divergence(f, t, kind))
