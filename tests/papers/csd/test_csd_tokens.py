"""What all objectives share: dtypes, masks, bad input, memory, blocks of tokens."""

import pytest
import torch
from csd_cases import LOSSES, PAIRWISE, drawn_logits, gradient_of, random_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from papers.csd import token_blocks
from papers.csd.distillation_objectives import (
    concrete_score_loss,
    direct_logit_loss,
    masked_token_mean,
    pairwise_concrete_score_loss,
    token_divergence,
    vocabulary_weights,
)

ALL = {**LOSSES, **PAIRWISE}
HALVES = (torch.bfloat16, torch.float16)
each_loss = pytest.mark.parametrize("loss", [pytest.param(loss, id=name) for name, loss in ALL.items()])


# --- Shapes and dtypes


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
def test_dtypes_of_value_and_gradient(loss, dtype):
    f, t = (x.to(dtype) for x in random_logits(2, 3, 5))
    f.requires_grad_()
    values = loss(f, t)
    assert values.shape == (2, 3)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    values.sum().backward()
    assert f.grad.dtype == dtype


@each_loss
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_computed_in_float32(loss, dtype):
    f, t = (10 * x.to(dtype) for x in random_logits(4, 50))
    torch.testing.assert_close(loss(f, t), loss(f.float(), t.float()), rtol=0, atol=0)
    half, single = gradient_of(lambda x: loss(x, t), f), gradient_of(lambda x: loss(x, t.float()), f.float())
    resolution = torch.finfo(dtype)
    torch.testing.assert_close(half.float(), single, rtol=2 * resolution.eps, atol=resolution.tiny)


@each_loss
def test_float32_is_close_to_float64(loss):
    f, t = (x.float().double() for x in random_logits(4, 200))
    torch.testing.assert_close(loss(f.float(), t.float()).double(), loss(f, t), rtol=1e-4, atol=1e-7)


def test_bfloat16_logits_near_minus_100_are_subtracted_in_float32():
    """There bfloat16 has a spacing of 0.5; the residual of two such numbers is exact in float32 only."""
    f, t = (x.bfloat16() for x in (-100 + torch.tensor([[0.5, 9.0, 40.25]]), torch.tensor([[0.0625, -0.25, 0.5]])))
    d = f.double() - t.double()
    expected = (d - d.mean()).square().mean() / 2
    loss = concrete_score_loss(f, t, weighting=("uniform", "uniform"))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@each_loss
def test_teacher_may_be_stored_in_another_dtype(loss):
    f, t = random_logits(3, 6)
    half = t.half()
    torch.testing.assert_close(loss(f.float(), half), loss(f.float(), half.float()), rtol=0, atol=0)
    assert gradient_of(lambda x: loss(x, half), f.float()).dtype == torch.float32
    assert loss(f.float(), t).dtype == torch.float64


def test_small_float16_gradients_survive_until_the_loss_is_scaled():
    f, t = random_logits(1, 1000, scale=0.5)
    half = f.half().requires_grad_()
    (concrete_score_loss(half, t.half(), weighting=("teacher", "teacher")) * 2**-10 * 2**16).sum().backward()
    exact = gradient_of(lambda x: concrete_score_loss(x, t.half(), weighting=("teacher", "teacher")), f.half().float())
    torch.testing.assert_close(half.grad.float() / 2**6, exact, rtol=2e-3, atol=1e-8)


@each_loss
def test_weights_and_teacher_get_no_gradient(loss):
    f, t = (x.requires_grad_() for x in random_logits(2, 5))
    loss(f, t).sum().backward()
    assert t.grad is None and f.grad is not None
    f.grad = None
    assert not loss(f.detach(), t).requires_grad


def test_pair_weights_get_no_gradient():
    f, t = random_logits(2, 4)
    weights = torch.rand(2, 4, 4, dtype=torch.float64, requires_grad=True)
    pairwise_concrete_score_loss(f.requires_grad_(), t, weights).sum().backward()
    assert weights.grad is None


@each_loss
def test_inputs_are_not_modified(loss):
    f, t = (x.float() for x in random_logits(2, 3, 5))
    f_before, t_before = f.clone(), t.clone()
    gradient_of(lambda x: loss(x, t), f)
    loss(f, t)
    assert torch.equal(f, f_before) and torch.equal(t, t_before)


@each_loss
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 3, 2)])
def test_leading_shape_is_free(loss, shape):
    f, t = random_logits(*shape, 5)
    flat = loss(f.reshape(-1, 5), t.reshape(-1, 5))
    torch.testing.assert_close(loss(f, t), flat.reshape(shape), rtol=1e-12, atol=1e-14)
    gradient = gradient_of(lambda x: loss(x, t), f)
    expected = gradient_of(lambda x: loss(x, t.reshape(-1, 5)), f.reshape(-1, 5))
    torch.testing.assert_close(gradient, expected.reshape(f.shape), rtol=1e-12, atol=1e-14)


@each_loss
def test_no_tokens(loss):
    f, t = torch.zeros(2, 0, 5), torch.zeros(2, 0, 5)
    assert loss(f, t).shape == (2, 0)
    assert gradient_of(lambda x: loss(x, t), f).shape == (2, 0, 5)


@each_loss
@pytest.mark.parametrize("elements", [1, 11, 60])
def test_blocks_do_not_show(loss, elements, monkeypatch):
    """Cut into single tokens, into uneven groups, along a slice that is not contiguous, the result is the same."""
    f, t = random_logits(3, 8, 5)
    f, t = f[:, 1:], t[:, 1:]
    values, gradient = loss(f, t), gradient_of(lambda x: loss(x, t), f)
    monkeypatch.setattr(token_blocks, "CPU_ELEMENTS_PER_THREAD", elements)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    torch.testing.assert_close(loss(f, t), values, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient_of(lambda x: loss(x, t), f), gradient, rtol=1e-12, atol=1e-14)


@each_loss
def test_gradient_scales_with_what_comes_in(loss):
    f, t = random_logits(4, 5)
    scale = torch.tensor([0.0, 1.0, -2.0, 1e-3], dtype=torch.float64)
    plain = gradient_of(lambda x: loss(x, t), f)
    scaled = gradient_of(lambda x: scale * loss(x, t), f)
    torch.testing.assert_close(scaled, scale.unsqueeze(-1) * plain, rtol=1e-12, atol=0)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
def test_a_scale_that_all_tokens_share_is_no_less_exact(loss, dtype):
    """A mean over all tokens takes a path of its own; beside a token that gets nothing it is the general one."""
    f, t = (x.to(dtype) for x in random_logits(4, 40))
    wide = torch.promote_types(dtype, torch.float32)
    some = torch.tensor([0.123456789] * 3 + [0.0], dtype=wide)
    shared = gradient_of(lambda x: loss(x, t) * some[0], f)
    general = gradient_of(lambda x: loss(x, t) * some, f)
    torch.testing.assert_close(shared[:3], general[:3], rtol=0 if dtype in HALVES else 1e-6, atol=0)
    assert (general[3] == 0).all() and shared.dtype == dtype


def test_backward_can_be_repeated_but_not_differentiated():
    """A second derivative would hold only the part that comes through the incoming gradient."""
    f, t = random_logits(2, 5)
    f.requires_grad_()
    loss = concrete_score_loss(f, t).square().sum()
    (first,) = torch.autograd.grad(loss, f, retain_graph=True)
    (second,) = torch.autograd.grad(loss, f, create_graph=True)
    torch.testing.assert_close(second.detach(), first, rtol=1e-14, atol=1e-16)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


def test_values_may_be_changed_in_place():
    f, t = random_logits(2, 3, 5)
    f.requires_grad_()
    values = concrete_score_loss(f, t)
    values[0] = 0.0
    values.sum().backward()
    assert (f.grad[0] == 0).all() and (f.grad[1] != 0).all()


# --- Masks (invariant 13)


@each_loss
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_positions_change_neither_loss_nor_gradient(loss, bad, dtype):
    f, t = (x.to(dtype) for x in random_logits(3, 4, 5))
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1]], dtype=torch.bool)
    expected = masked_token_mean(loss(f, t), mask)
    expected_gradient = gradient_of(lambda x: masked_token_mean(loss(x, t), mask), f)

    spoiled_f, spoiled_t = f.clone(), t.clone()
    spoiled_f[0, 2], spoiled_t[1, 0] = bad, bad
    spoiled_f[2, 1, 3], spoiled_t[2, 1, 3], spoiled_t[2, 2, 0] = bad, bad, bad
    assert torch.equal(masked_token_mean(loss(spoiled_f, spoiled_t), mask), expected)
    gradient = gradient_of(lambda x: masked_token_mean(loss(x, spoiled_t), mask), spoiled_f)
    assert torch.equal(gradient, expected_gradient)
    assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).any()


@each_loss
def test_nan_that_is_not_masked_shows(loss):
    f, t = random_logits(2, 5)
    f[0, 1] = float("nan")
    values = loss(f, t)
    assert values[0].isnan() and values[1].isfinite()
    gradient = gradient_of(lambda x: loss(x, t), f)
    assert gradient[0].isnan().any() and gradient[1].isfinite().all()


@given(drawn_logits(), st.data())
@settings(max_examples=50, deadline=None)
def test_masked_mean_is_one_mean_over_tokens(pair, data):
    values = pair[0]
    mask = torch.tensor(
        data.draw(st.lists(st.booleans(), min_size=values.numel(), max_size=values.numel()).filter(any))
    ).reshape(values.shape)
    expected = sum(values[mask].tolist()) / int(mask.sum())
    for form in (mask, mask.long(), mask.double()):
        assert masked_token_mean(values, form).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert masked_token_mean(torch.ones_like(values), mask) == 1


def test_masked_mean_in_half_precision_is_float32():
    values = torch.full((1, 4096), 1.0, dtype=torch.bfloat16)
    mean = masked_token_mean(values, torch.ones_like(values, dtype=torch.bool))
    assert mean.dtype == torch.float32 and mean == 1 and mean.shape == ()


# --- Memory


def peak_bytes(compute) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        compute()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


@pytest.mark.parametrize("loss", [pytest.param(loss, id=name) for name, loss in LOSSES.items()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_one_buffer_and_the_gradient(loss, dtype, monkeypatch):
    """At a vocabulary of 128 000, blocks of single tokens: two tensors of the logits' size, and blocks."""
    monkeypatch.setattr(token_blocks, "CPU_ELEMENTS_PER_THREAD", 128_000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    f, t = (torch.full((1, 16, 128_000), value, dtype=dtype) for value in (0.5, 0.25))
    f.requires_grad_()
    block = 4 * f.shape[-1]
    assert peak_bytes(lambda: loss(f, t).sum().backward()) < 2 * f.nbytes + 6 * block
    with torch.no_grad():
        assert peak_bytes(lambda: loss(f, t)) < 10 * block
    assert f.grad.isfinite().all()


def test_logits_of_a_large_vocabulary_agree_with_the_definition():
    f, t = (x.bfloat16() for x in random_logits(2, 128_000))
    p, q = (x.double().softmax(-1) for x in (t, f))
    d = f.double() - t.double()
    expected = (q * (d - (q * d).sum(-1, keepdim=True)) ** 2).sum(-1) / 2
    torch.testing.assert_close(concrete_score_loss(f, t).double(), expected, rtol=1e-4, atol=0)
    kl = (p * (p.log() - q.log())).sum(-1)
    torch.testing.assert_close(token_divergence(f, t, "forward_kl").double(), kl, rtol=1e-4, atol=0)


# --- Bad input


PAIR = tuple(x.float() for x in random_logits(2, 3, 4))


@each_loss
@pytest.mark.parametrize(
    ("student", "teacher", "named"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), r"teacher_logits .*\(2, 3, 4\), got \(2, 3, 5\)"),
        (torch.zeros(2, 3, 4), torch.zeros(3, 4), "teacher_logits"),
        (torch.zeros(2, 1, 4), torch.zeros(2, 3, 4), "teacher_logits"),
        (torch.zeros(2, 0), torch.zeros(2, 0), "student_logits"),
        (torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3), "student_logits must be floating"),
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long), "teacher_logits must be floating"),
    ],
)
def test_logits_that_do_not_fit(loss, student, teacher, named):
    with pytest.raises(ValueError, match=named):
        loss(student, teacher)


def test_scalar_logits():
    with pytest.raises(ValueError, match="student_logits"):
        concrete_score_loss(torch.tensor(1.0), torch.tensor(1.0))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_temperature_out_of_range(temperature):
    for call in (
        lambda: vocabulary_weights(*PAIR, "student", temperature=temperature),
        lambda: concrete_score_loss(*PAIR, temperature=temperature),
        lambda: direct_logit_loss(*PAIR, temperature=temperature),
    ):
        with pytest.raises(ValueError, match="temperature must be finite and > 0"):
            call()


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_fractions_out_of_range(fraction):
    for call, named in (
        (lambda: vocabulary_weights(*PAIR, "mixture", teacher_fraction=fraction), "teacher_fraction"),
        (lambda: concrete_score_loss(*PAIR, teacher_fraction=fraction), "teacher_fraction"),
        (lambda: token_divergence(*PAIR, "jensen_shannon", skew=fraction), "skew"),
        (lambda: token_divergence(*PAIR, "forward_kl", skew=fraction), "skew"),
    ):
        with pytest.raises(ValueError, match=rf"{named} must be in \[0, 1\], got"):
            call()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: vocabulary_weights(*PAIR, "teachers"), "weighting must be one of .*'teachers'"),
        (lambda: concrete_score_loss(*PAIR, weighting=("student", "x")), "weighting must be one of .*'x'"),
        (lambda: concrete_score_loss(*PAIR, weighting="student"), "weighting must be a pair"),
        (lambda: concrete_score_loss(*PAIR, weighting=("student",)), "weighting must be a pair"),
        (lambda: direct_logit_loss(*PAIR, weighting="x"), "weighting must be one of"),
        (lambda: direct_logit_loss(*PAIR, centering="median"), "centering must be one of .*'median'"),
        (lambda: direct_logit_loss(torch.zeros(2, 1), torch.zeros(2, 1), centering="standardize"), "at least 2"),
        (lambda: token_divergence(*PAIR, "kl"), "kind must be one of .*'kl'"),
        (lambda: token_divergence(*PAIR, "alpha_beta", alpha=0.0), "alpha, beta"),
        (lambda: token_divergence(*PAIR, "alpha_beta", beta=0.0), "alpha, beta"),
        (lambda: token_divergence(*PAIR, "alpha_beta", alpha=0.5, beta=-0.5), "alpha, beta"),
        (lambda: token_divergence(*PAIR, "alpha_beta", alpha=float("nan")), "alpha, beta"),
        (lambda: pairwise_concrete_score_loss(*PAIR, torch.ones(2, 3, 4)), "pair_weights"),
        (lambda: pairwise_concrete_score_loss(*PAIR, torch.ones(2, 3, 1, 4)), "pair_weights"),
        (lambda: pairwise_concrete_score_loss(*PAIR, torch.ones(5, 2, 3, 4, 4)), "pair_weights"),
        (lambda: pairwise_concrete_score_loss(*PAIR, torch.ones(3, 3, 4, 4)), "pair_weights"),
        (lambda: pairwise_concrete_score_loss(*PAIR, torch.ones(4)), "pair_weights"),
        (lambda: masked_token_mean(torch.ones(2, 3), torch.ones(3, dtype=torch.bool)), "mask must have the shape"),
        (lambda: masked_token_mean(torch.ones(2), torch.zeros(2, dtype=torch.bool)), "at least one True"),
        (lambda: masked_token_mean(torch.ones(2), torch.tensor([0.5, 1.0])), "only 0 and 1"),
        (lambda: masked_token_mean(torch.ones(2), torch.tensor([2, 1])), "only 0 and 1"),
        (lambda: masked_token_mean(torch.ones(2, dtype=torch.long), torch.ones(2)), "values must be floating"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named) as raised:
        call()
    assert "\n" not in str(raised.value)
