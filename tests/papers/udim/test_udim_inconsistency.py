"""Head statistics and the penalty: invariants 5, 6, 7 and 10, against per-sample gradients taken one by one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from papers.udim.inconsistency import FORMS, head_gradient_variance, inconsistency_penalty, summed_over_domains

PROPERTY = settings(deadline=None, max_examples=40)
EVERY_FORM = pytest.mark.parametrize("form", FORMS)


def head_batch(seed: int, batch: int = 6, features: int = 4, classes: int = 3, spread: float = 2.0) -> tuple:
    """(h, z, y, h̃, z̃) with unrelated features and logits."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return spread * torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.randint(classes, (batch,), generator=generator)
    return normal(batch, features), normal(batch, classes), labels, normal(batch, features), normal(batch, classes)


BATCHES = st.builds(
    head_batch,
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 7),
    features=st.integers(1, 5),
    classes=st.integers(2, 4),
    spread=st.sampled_from([0.1, 1.0, 10.0]),
)


def sample_gradients(features: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """[B, C, D] and [B, C], by autograd through a head of zero weights whose bias is replaced by the logits."""
    weights, biases = [], []
    for h, z, y in zip(features, logits, labels, strict=True):
        weight = torch.zeros(len(z), len(h), dtype=h.dtype, requires_grad=True)
        bias = torch.zeros_like(z, requires_grad=True)
        loss = F.cross_entropy((weight @ h + bias + z)[None], y[None])
        for values, gradient in zip((weights, biases), torch.autograd.grad(loss, (weight, bias)), strict=True):
            values.append(gradient)
    return torch.stack(weights), torch.stack(biases)


def brute_force_penalty(features, logits, labels, perturbed_features, perturbed_logits, form, rho):
    source = sample_gradients(features, logits, labels)
    perturbed = sample_gradients(perturbed_features, perturbed_logits, labels)
    if form == "norm":
        gap = [g.var(0, correction=0) - q.var(0, correction=0) for g, q in zip(source, perturbed, strict=True)]
        means = [q.mean(0) for q in perturbed]
        return sum(x.square().sum() for x in gap).sqrt() + rho * sum(x.square().sum() for x in means).sqrt()
    gap, norm = [], 0.0
    for g, q in zip(source, perturbed, strict=True):
        m = g.mean(0)
        gap.append(((g - m).square().mean(0) - (q - m).square().mean(0)).flatten())
        norm = norm + q.flatten(1).square().sum(1).mean() / m.numel()
    # The average over the two sets of the squared distance to their mean is a quarter of the squared gap.
    halves = {"variance": torch.cat(gap).square().mean() / 4, "gradient": norm}
    return halves.get(form, sum(halves.values()))


# --- Variance


@PROPERTY
@given(batch=BATCHES)
def test_variance_matches_separate_gradients(batch):
    h, z, y, *_ = batch
    for got, gradients in zip(head_gradient_variance(h, z, y), sample_gradients(h, z, y), strict=True):
        torch.testing.assert_close(got, gradients.var(0, correction=0), rtol=1e-10, atol=1e-10)
        assert (got >= 0).all()


@PROPERTY
@given(batch=BATCHES)
def test_variance_about_a_center_adds_the_squared_distance_to_the_mean(batch):
    h, z, y, *_ = batch
    gradients = sample_gradients(h, z, y)
    center = tuple(torch.full_like(g[0], 0.3) for g in gradients)
    for got, own, g, c in zip(
        head_gradient_variance(h, z, y, center), head_gradient_variance(h, z, y), gradients, center, strict=True
    ):
        torch.testing.assert_close(got, own + (g.mean(0) - c).square(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(got, (g - c).square().mean(0), rtol=1e-10, atol=1e-10)


def test_variance_of_one_sample_is_zero():
    h, z, y, *_ = head_batch(0, batch=1, spread=5.0)
    for variance in head_gradient_variance(h, z, y):
        torch.testing.assert_close(variance, torch.zeros_like(variance), rtol=0, atol=1e-12)


def test_variance_of_equal_samples_is_not_negative_in_single_precision():
    h, z, y, *_ = (t.float() if t.is_floating_point() else t for t in head_batch(0, batch=1, features=50, spread=5.0))
    for variance in head_gradient_variance(h.expand(7, -1), z.expand(7, -1), y.expand(7)):
        assert (variance >= 0).all() and (variance < 1e-4).all()


def test_variance_has_its_gradient():
    h, z, y, *_ = head_batch(1)
    center = (torch.ones(3, 4, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    inputs = [t.requires_grad_() for t in (h, z, *center)]
    assert torch.autograd.gradcheck(lambda h, z, *_: head_gradient_variance(h, z, y), inputs[:2])
    assert torch.autograd.gradcheck(lambda h, z, *c: head_gradient_variance(h, z, y, c), inputs)


# --- Penalty


@PROPERTY
@given(batch=BATCHES, form=st.sampled_from(FORMS), rho=st.floats(0, 2))
def test_penalty_matches_separate_gradients(batch, form, rho):
    got = inconsistency_penalty(*batch, form=form, rho=rho)
    assert got.shape == ()
    torch.testing.assert_close(got, brute_force_penalty(*batch, form, rho), rtol=1e-9, atol=1e-9)


@EVERY_FORM
def test_penalty_has_its_gradient_in_all_four_arguments(form):
    h, z, y, h_perturbed, z_perturbed = head_batch(2)
    inputs = [t.requires_grad_() for t in (h, z, h_perturbed, z_perturbed)]

    def penalty(h, z, h_perturbed, z_perturbed):
        return inconsistency_penalty(h, z, y, h_perturbed, z_perturbed, form=form, rho=0.3)

    gradients = torch.autograd.grad(penalty(*inputs), inputs, materialize_grads=True)
    used = gradients[2:] if form == "gradient" else gradients  # the size of gradients is one of the perturbed alone
    assert all(g.abs().max() > 1e-4 for g in used), "the source's moments are not held constant"
    if form == "gradient":
        assert not any(g.any() for g in gradients[:2])
        inputs[0], inputs[1] = inputs[0].detach(), inputs[1].detach()
    assert torch.autograd.gradcheck(penalty, inputs)


def test_defaults_are_the_squared_form_and_rho_of_sam():
    batch = head_batch(3)
    assert inconsistency_penalty(*batch) == inconsistency_penalty(*batch, "squared", 7.0)
    assert inconsistency_penalty(*batch, "norm") == inconsistency_penalty(*batch, "norm", 0.05)
    assert inconsistency_penalty(*batch, "norm") != inconsistency_penalty(*batch, "norm", 0.06)


@PROPERTY
@given(batch=BATCHES, rho=st.floats(0, 2))
def test_unperturbed_penalty_is_the_gradient_norm(batch, rho):
    h, z, y, *_ = batch
    gradients = sample_gradients(h, z, y)
    norm = sum(g.flatten(1).square().sum(1).mean() / g[0].numel() for g in gradients)
    torch.testing.assert_close(inconsistency_penalty(h, z, y, h, z), norm, rtol=1e-10, atol=1e-12)
    mean = torch.cat([g.mean(0).flatten() for g in gradients]).norm()
    torch.testing.assert_close(inconsistency_penalty(h, z, y, h, z, "norm", rho), rho * mean, rtol=1e-10, atol=1e-12)


@EVERY_FORM
def test_unperturbed_penalty_has_a_finite_gradient(form):
    h, z, y, *_ = head_batch(4)
    inputs = [t.clone().requires_grad_() for t in (h, z, h, z)]
    penalty = inconsistency_penalty(inputs[0], inputs[1], y, inputs[2], inputs[3], form)
    gradients = torch.autograd.grad(penalty, inputs, materialize_grads=True)
    assert all(g.isfinite().all() for g in gradients)
    for g in gradients[:2]:  # the source acts through the variance gap alone
        torch.testing.assert_close(g, torch.zeros_like(g), rtol=0, atol=0)


@EVERY_FORM
def test_confident_correct_predictions_have_no_penalty(form):
    h, _, y, h_perturbed, _ = head_batch(5)
    z = 1000.0 * F.one_hot(y, 3).double()
    leaves = [t.requires_grad_() for t in (h, z, h_perturbed)]
    penalty = inconsistency_penalty(h, z, y, h_perturbed, z, form)
    assert penalty == 0
    assert all((g == 0).all() for g in torch.autograd.grad(penalty, leaves, materialize_grads=True))


@PROPERTY
@given(batch=BATCHES, form=st.sampled_from(FORMS), data=st.data())
def test_penalty_is_invariant_to_offsets_of_logits_and_to_order(batch, form, data):
    h, z, y, hp, zp = batch
    expected = inconsistency_penalty(*batch, form)
    offset = torch.linspace(-5, 5, len(y), dtype=torch.float64)[:, None]
    samples = torch.tensor(data.draw(st.permutations(range(len(y)))))
    classes = torch.tensor(data.draw(st.permutations(range(z.shape[1]))))
    for got in (
        inconsistency_penalty(h, z + offset, y, hp, zp - offset, form),
        inconsistency_penalty(h[samples], z[samples], y[samples], hp[samples], zp[samples], form),
        inconsistency_penalty(h, z[:, classes], classes.argsort()[y], hp, zp[:, classes], form),
    ):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@PROPERTY
@given(first=BATCHES, second_seed=st.integers(0, 100), form=st.sampled_from(FORMS))
def test_domains_are_compared_each_with_itself_and_summed(first, second_seed, form):
    h, z, *_ = first
    second = head_batch(second_seed, 4, h.shape[1], z.shape[1])
    both = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    expected = inconsistency_penalty(*first, form, 0.2) + inconsistency_penalty(*second, form, 0.2)
    got = summed_over_domains(*both, [len(h), 4], form, 0.2)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    alone = summed_over_domains(*first, [len(h)], form, 0.2)
    torch.testing.assert_close(alone, inconsistency_penalty(*first, form, 0.2), rtol=0, atol=0)


# --- Types and bad input


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@EVERY_FORM
def test_half_precision_is_computed_in_single(dtype, form):
    h, z, y, hp, zp = (t.to(dtype) if t.is_floating_point() else t for t in head_batch(6))
    singles = [t.float() if t.is_floating_point() else t for t in (h, z, y, hp, zp)]
    got = inconsistency_penalty(h, z, y, hp, zp, form)
    assert got.dtype == torch.float32
    assert got == inconsistency_penalty(*singles, form)
    assert all(v.dtype == torch.float32 for v in head_gradient_variance(h, z, y))
    assert head_gradient_variance(h, z.double(), y)[0].dtype == torch.float64
    large = torch.full((2, 3), 300.0, dtype=dtype)  # the square overflows float16
    assert inconsistency_penalty(large, z[:2], y[:2], large, zp[:2], form).isfinite()


def test_bad_batches_are_refused():
    h, z, y, *_ = head_batch(7)
    for arguments, name in (
        ((h[0], z, y), "features"),
        ((h, z[0], y), "logits"),
        ((h, z, F.one_hot(y, 3)), "labels"),
        ((h, z, y[0]), "labels"),
        ((h[:5], z, y), "features"),
        ((h, z[:5], y), "logits"),
        ((h[:0], z[:0], y[:0]), "labels"),
        ((h.long(), z, y), "features must be floating"),
        ((h, z.long(), y), "logits must be floating"),
    ):
        with pytest.raises(ValueError, match=name):
            head_gradient_variance(*arguments)


def test_centers_of_other_shapes_are_refused():
    h, z, y, *_ = head_batch(7)
    weight, bias = torch.zeros(3, 4), torch.zeros(3)
    with pytest.raises(ValueError, match=r"center\[0\] must have shape \(3, 4\), got \(4, 3\)"):
        head_gradient_variance(h, z, y, (weight.T, bias))
    with pytest.raises(ValueError, match=r"center\[1\] must have shape"):
        head_gradient_variance(h, z, y, (weight, bias[:1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: torch.zeros(6, 5)}, "perturbed_features must have the source's shape"),
        ({4: torch.zeros(6, 2)}, "perturbed_logits must have the source's shape"),
        ({3: torch.zeros(5, 4), 4: torch.zeros(5, 3)}, "perturbed_features must have the source's shape"),
        ({5: "cubed"}, "form must be one of .* got 'cubed'"),
        ({6: -0.1}, "rho must be finite and at least 0, got -0.1"),
        ({6: math.nan}, "rho must"),
    ],
)
def test_bad_penalties_are_refused(change, message):
    arguments = [*head_batch(8), "norm", 0.05]
    for index, value in change.items():
        arguments[index] = value
    with pytest.raises(ValueError, match=message):
        inconsistency_penalty(*arguments)


@pytest.mark.parametrize("sizes", [[], [6, 0], [3, 2], [7], [7, -1]])
def test_bad_domain_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="domain_sizes must be at least 1 each and sum to B = 6"):
        summed_over_domains(*head_batch(9), sizes)
