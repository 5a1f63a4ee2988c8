"""Crafting the unknown domain: invariants 3, 4 and 9, and that the model is left as it was."""

import copy
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.nn import functional as F

from papers.udim.input_perturbation import (
    clean_pass,
    perturb_inputs,
    restyle_inputs,
    style_gradients,
    worst_case_input_gradient,
)

PROPERTY = settings(deadline=None, max_examples=60)
ENTRIES = st.integers(-10_000, 10_000).map(lambda n: n / 1000)  # no norms near the eps
IMAGES = hnp.arrays(float, (3, 2, 2, 3), elements=ENTRIES).map(torch.as_tensor)


def objective(model, inputs, labels, rho):
    """J = L + ρ |∇L|, from autograd on a plain backward pass."""
    loss = F.cross_entropy(model(inputs), labels)
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    return (loss + rho * torch.cat([g.flatten() for g in gradients]).norm()).item()


def finite_differences(f, inputs, step=1e-5):
    result = torch.zeros_like(inputs)
    for index in range(inputs.numel()):
        offset = torch.zeros_like(inputs)
        offset.view(-1)[index] = step
        result.view(-1)[index] = (f(inputs + offset) - f(inputs - offset)) / (2 * step)
    return result


# --- The direction


@pytest.mark.parametrize("rho", [0.05, 3.0])
def test_input_gradient_matches_finite_differences(net, batch, rho):
    inputs, labels = batch
    expected = finite_differences(lambda x: objective(net, x, labels, rho), inputs)
    got = worst_case_input_gradient(net, inputs, labels, rho)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


def test_sharpness_is_that_of_the_trainable_parameters(net, batch):
    inputs, labels = batch
    everything = worst_case_input_gradient(net, inputs, labels, 3.0)
    net.featurizer[0].weight.requires_grad_(False)
    got = worst_case_input_gradient(net, inputs, labels, 3.0)
    expected = finite_differences(lambda x: objective(net, x, labels, 3.0), inputs)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
    assert (got - everything).abs().max() > 1e-4


def plain_input_gradient(net, inputs, labels):
    x = inputs.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(net(x), labels), x)[0]


def test_input_gradient_at_radius_zero_is_plain(net, batch):
    expected = plain_input_gradient(net, *batch)
    torch.testing.assert_close(worst_case_input_gradient(net, *batch, 0.0), expected, rtol=1e-12, atol=0)
    assert (worst_case_input_gradient(net, *batch, 0.05) - expected).abs().max() > 1e-5


def test_without_trainable_parameters_there_is_no_sharpness(net, batch):
    net.requires_grad_(False)
    expected = plain_input_gradient(net, *batch)
    torch.testing.assert_close(worst_case_input_gradient(net, *batch, 3.0), expected, rtol=1e-12, atol=0)


def test_unused_parameters_do_not_matter(net, batch):
    expected = worst_case_input_gradient(net, *batch, 3.0)
    net.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(worst_case_input_gradient(net, *batch, 3.0), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_model_and_inputs_are_left_as_they_were(batch, rho, training):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).double().train(training)
    inputs, labels = batch
    net[0].weight.grad = torch.ones_like(net[0].weight)
    state = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        got = worst_case_input_gradient(net, inputs, labels, rho)
    assert got.shape == inputs.shape and not got.requires_grad and got.abs().max() > 0
    assert not inputs.requires_grad and inputs.grad is None
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(p.requires_grad for p in net.parameters())
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight)) and net[3].weight.grad is None
    assert net.training == training and net[1].track_running_stats


def test_inputs_that_require_gradients_keep_doing_so(net, batch):
    inputs, labels = batch
    expected = worst_case_input_gradient(net, inputs, labels, 0.05)
    leaf = inputs.clone().requires_grad_()
    got = worst_case_input_gradient(net, leaf, labels, 0.05)
    assert leaf.requires_grad and leaf.grad is None and not got.requires_grad
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf])
def test_bad_radius_of_parameters_is_refused(net, batch, rho):
    with pytest.raises(ValueError, match="rho must be finite and at least 0"):
        worst_case_input_gradient(net, *batch, rho)


@pytest.mark.parametrize("with_input_gradient", [True, False])
@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_clean_pass_gives_all_of_one_pass(net, batch, rho, with_input_gradient):
    inputs, labels = batch
    loss = F.cross_entropy(net(inputs), labels)
    expected = torch.autograd.grad(loss, list(net.parameters()))
    got = clean_pass(net, inputs, labels, rho, with_input_gradient=with_input_gradient)
    assert got.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert not any(t.requires_grad for t in (got.loss, *got.gradients))
    for g, e in zip(got.gradients, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-15)
    if with_input_gradient:
        torch.testing.assert_close(got.input_gradient, worst_case_input_gradient(net, inputs, labels, rho))
    else:
        assert got.input_gradient is None


def test_clean_pass_lets_batch_norm_see_the_batch_once(batch):
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 3)).double()
    clean_pass(net, *batch, 0.05)
    assert net[0].num_batches_tracked == 1


def test_clean_pass_perturbs_along_the_averaged_gradient(net, batch):
    # Two processes that hold one half of the batch each: e is made of the mean of their gradients.
    inputs, labels = batch
    other = clean_pass(net, inputs[3:], labels[3:], 0.0).gradients

    def average(gradients):
        return [(a + b) / 2 for a, b in zip(gradients, other, strict=True)]

    got = clean_pass(net, inputs[:3], labels[:3], 3.0, average=average)
    whole = clean_pass(net, inputs, labels, 3.0)
    for g, e in zip(got.gradients, whole.gradients, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-14)
    # A mean over 3 samples has twice the gradient per sample that a mean over 6 has.
    torch.testing.assert_close(got.input_gradient / 2, whole.input_gradient[:3], rtol=1e-10, atol=1e-14)


# --- The step


@PROPERTY
@given(inputs=IMAGES, gradients=IMAGES, radius=st.floats(0, 100), scale=st.floats(1e-3, 1e3))
def test_per_sample_moves_every_sample_by_the_radius_whatever_the_scale(inputs, gradients, radius, scale):
    moved = (perturb_inputs(inputs, gradients, radius) - inputs).flatten(1)
    nonzero = gradients.flatten(1).norm(dim=1) > 0
    torch.testing.assert_close(moved.norm(dim=1), radius * nonzero.double(), rtol=1e-9, atol=1e-12)
    cosine = (moved * gradients.flatten(1)).sum(1)
    torch.testing.assert_close(cosine, radius * gradients.flatten(1).norm(dim=1), rtol=1e-9, atol=1e-9)
    rescaled = perturb_inputs(inputs, scale * gradients, radius) - inputs
    torch.testing.assert_close(rescaled.flatten(1), moved, rtol=1e-9, atol=1e-9)


@PROPERTY
@given(inputs=IMAGES, gradients=IMAGES, radius=st.floats(0, 10))
def test_per_sample_does_not_depend_on_other_samples(inputs, gradients, radius):
    together = perturb_inputs(inputs, gradients, radius)
    apart = torch.cat([perturb_inputs(x[None], g[None], radius) for x, g in zip(inputs, gradients, strict=True)])
    torch.testing.assert_close(apart, together, rtol=1e-12, atol=1e-12)


@PROPERTY
@given(inputs=IMAGES, gradients=IMAGES, radius=st.floats(0, 10))
def test_per_coordinate_normalises_over_the_batch(inputs, gradients, radius):
    expected = inputs.clone()
    for index in torch.cartesian_prod(*(torch.arange(n) for n in inputs.shape[1:])).tolist():
        at = (slice(None), *index)
        norm = gradients[at].norm()
        if norm > 0:
            expected[at] += radius * gradients[at] / norm
    got = perturb_inputs(inputs, gradients, radius, "per_coordinate")
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    moved = (got - inputs).square().sum(0)
    torch.testing.assert_close(moved, radius**2 * (gradients != 0).any(0).double(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("normalization", ["per_sample", "per_coordinate"])
def test_no_radius_or_no_gradient_is_no_step(batch, normalization):
    inputs, _ = batch
    for got in (
        perturb_inputs(inputs, torch.randn_like(inputs), 0.0, normalization),
        perturb_inputs(inputs, torch.zeros_like(inputs), 5.0, normalization),
    ):
        assert torch.equal(got, inputs) and got.data_ptr() != inputs.data_ptr()


def test_eps_is_a_floor_of_the_norm():
    x = torch.zeros(1, 2, dtype=torch.float64)
    g = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    assert perturb_inputs(x, g, 2.0, eps=10.0)[0].tolist() == pytest.approx([0.6, 0.8])
    assert perturb_inputs(x, g, 2.0, eps=1.0)[0].tolist() == pytest.approx([1.2, 1.6])
    assert perturb_inputs(x, g, 2.0, "per_coordinate", eps=6.0)[0].tolist() == pytest.approx([1.0, 8 / 6])


@pytest.mark.parametrize("normalization", ["per_sample", "per_coordinate"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_step_keeps_the_dtype_of_inputs_and_does_not_overflow(dtype, normalization):
    x = torch.zeros(2, 200, dtype=dtype)
    g = torch.full((2, 200), 3e4, dtype=dtype)
    got = perturb_inputs(x, g, 1.0, normalization)
    expected = torch.full_like(x, 200**-0.5 if normalization == "per_sample" else 2**-0.5)
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=0)
    assert torch.equal(perturb_inputs(x, torch.zeros_like(g), 1.0, normalization), x)
    assert perturb_inputs(x, g.double(), 1.0).dtype == dtype


def test_step_is_detached():
    x = torch.zeros(2, 3).requires_grad_()
    assert not perturb_inputs(x, x + 1, 1.0).requires_grad


def test_samples_may_be_numbers():
    x, g = torch.zeros(3), torch.tensor([2.0, 0.0, -3.0])
    assert perturb_inputs(x, g, 0.5).tolist() == [0.5, 0.0, -0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 3), -1.0), "radius must be finite and at least 0, got -1.0"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), math.nan), "radius must"),
        ((torch.zeros(2, 3), torch.zeros(3), 1.0), "gradients must have the shape of inputs"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), 1.0, "per_batch"), "normalization must be one of .* got 'per_batch'"),
        ((torch.zeros(2, 3).long(), torch.zeros(2, 3), 1.0), "inputs must be floating"),
        ((torch.tensor(1.0), torch.tensor(1.0), 1.0), "inputs must be floating with a batch dimension"),
    ],
)
def test_bad_steps_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        perturb_inputs(*arguments)


# --- Style


def style(inputs):
    return inputs.mean((2, 3)), inputs.var((2, 3))


@PROPERTY
@given(inputs=IMAGES, step=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_restyling_the_mean_moves_channel_means_and_keeps_the_spread(inputs, step, shift):
    zeros = torch.zeros(3, 2, 1, 1, dtype=torch.float64)
    (mean, variance), (new_mean, new_variance) = (
        style(x) for x in (inputs, restyle_inputs(inputs, zeros + shift, zeros, step))
    )
    torch.testing.assert_close(new_mean, mean + step * shift, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(new_variance, variance, rtol=1e-9, atol=1e-9)


def test_restyling_the_spread_keeps_channel_means(batch):
    inputs, _ = batch
    gradient = torch.linspace(0.1, 0.6, 6, dtype=torch.float64).reshape(6, 1, 1, 1)
    got = restyle_inputs(inputs, torch.zeros_like(gradient), gradient, 10.0)
    (mean, variance), (new_mean, new_variance) = style(inputs), style(got)
    torch.testing.assert_close(new_mean, mean, rtol=1e-9, atol=1e-9)
    sigma = (variance + 1e-5).sqrt()
    torch.testing.assert_close(new_variance, variance * ((sigma + 10 * gradient[..., 0, 0]) / sigma) ** 2)


@PROPERTY
@given(inputs=IMAGES)
def test_restyling_by_nothing_is_the_identity(inputs):
    gradient = torch.ones(3, 2, 1, 1, dtype=torch.float64)
    assert torch.equal(restyle_inputs(inputs, gradient, gradient, 0.0), inputs)
    assert torch.equal(restyle_inputs(inputs, 0 * gradient, 0 * gradient, 10.0), inputs)


@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_restyling_rebuilds_the_image_from_its_content(batch, eps):
    inputs, _ = batch
    mean_gradient, std_gradient = torch.randn(2, 6, 1, 1, 1, dtype=torch.float64)
    mu = inputs.mean((2, 3), keepdim=True)
    sigma = (inputs.var((2, 3), keepdim=True) + eps).sqrt()
    expected = (inputs - mu) / sigma * (sigma + 2 * std_gradient) + mu + 2 * mean_gradient
    torch.testing.assert_close(restyle_inputs(inputs, mean_gradient, std_gradient, 2.0, eps), expected)


def test_style_gradients_match_finite_differences(net, batch):
    inputs, labels = batch
    mu = inputs.mean((2, 3), keepdim=True)
    sigma = (inputs.var((2, 3), keepdim=True) + 1e-5).sqrt()
    z = (inputs - mu) / sigma
    gradients = worst_case_input_gradient(net, inputs, labels, 3.0)
    mean_gradient, std_gradient = style_gradients(inputs, gradients)
    expected_mean = finite_differences(lambda m: objective(net, z * sigma + m, labels, 3.0), mu)
    expected_std = finite_differences(lambda s: objective(net, z * s + mu, labels, 3.0), sigma)
    torch.testing.assert_close(mean_gradient, expected_mean, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(std_gradient, expected_std, rtol=1e-6, atol=1e-9)


def test_style_has_the_inputs_dtype_and_no_graph():
    inputs = torch.rand(2, 1, 3, 3, dtype=torch.bfloat16).requires_grad_()
    gradients = torch.ones(2, 1, 1, 1, requires_grad=True)
    got = restyle_inputs(inputs, gradients, gradients, 1.0)
    assert got.dtype == torch.bfloat16 and not got.requires_grad


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 1, 1)])
def test_images_without_a_spread_are_refused(shape):
    zeros = torch.zeros(3, 2, 1, 1)
    with pytest.raises(ValueError, match="inputs must have shape"):
        restyle_inputs(torch.zeros(shape), zeros, zeros, 1.0)
    with pytest.raises(ValueError, match="inputs must have shape"):
        style_gradients(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize("bad", [(3, 2), (3, 1, 1, 1), (1, 2, 1, 1), (3, 2, 2, 2)])
def test_style_gradients_of_other_shapes_are_refused(bad):
    inputs, good = torch.zeros(3, 2, 2, 2), torch.zeros(3, 2, 1, 1)
    with pytest.raises(ValueError, match="mean_gradient must have shape"):
        restyle_inputs(inputs, torch.zeros(bad), good, 1.0)
    with pytest.raises(ValueError, match="std_gradient must have shape"):
        restyle_inputs(inputs, good, torch.zeros(bad), 1.0)
    with pytest.raises(ValueError, match="gradients must have the shape of inputs"):
        style_gradients(inputs, torch.zeros(3, 2))


@PROPERTY
@given(inputs=IMAGES, gradients=IMAGES)
def test_a_small_step_along_the_gradient_raises_a_linear_objective(inputs, gradients):
    assume(gradients.norm() > 0)
    for normalization in ("per_sample", "per_coordinate"):
        moved = perturb_inputs(inputs, gradients, 0.1, normalization) - inputs
        assert (moved * gradients).sum() > 0
