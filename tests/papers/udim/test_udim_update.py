"""The update and its controls: invariants 1, 2, 8 and 10, put together from the parts by hand."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from papers.udim.gradients import loss_gradient
from papers.udim.inconsistency import inconsistency_penalty
from papers.udim.input_perturbation import perturb_inputs, restyle_inputs, style_gradients, worst_case_input_gradient
from papers.udim.sharpness import erm_gradient, sagm_gradient, sam_gradient
from papers.udim.update import UnknownDomainTerm, features_and_logits, udim_update, unknown_domain

RHO = 0.3


def assert_gradients_close(got, expected, **tolerance):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, **({"rtol": 1e-10, "atol": 1e-13} | tolerance))


def clean_and_sam(net, inputs, labels, rho=RHO):
    parameters = list(net.parameters())
    clean = torch.autograd.grad(F.cross_entropy(net(inputs), labels), parameters)
    gradient = loss_gradient(net, inputs, labels)
    return clean, sam_gradient(gradient, parameters, clean, rho=rho)


def penalty_gradient(net, inputs, perturbed, labels, form="squared"):
    h, h_perturbed = net.featurizer(inputs), net.featurizer(perturbed)
    penalty = inconsistency_penalty(h, net.head(h), labels, h_perturbed, net.head(h_perturbed), form, RHO)
    return penalty, torch.autograd.grad(penalty, list(net.parameters()))


@pytest.mark.parametrize("penalty", ["squared", "norm", "cross_entropy"])
def test_without_weight_the_update_is_sam_and_without_radius_erm(net, batch, penalty):
    term = UnknownDomainTerm(weight=0.0, penalty=penalty)
    clean, sam = clean_and_sam(net, *batch)
    got = udim_update(net, net.head, *batch, term=term, rho=RHO)
    assert_gradients_close(got.gradients, sam, rtol=0, atol=1e-12)
    assert got.penalty == 0
    erm = udim_update(net, net.head, *batch, term=term, rho=0.0)
    assert_gradients_close(erm.gradients, clean, rtol=0, atol=1e-12)
    assert max((a - b).abs().max() for a, b in zip(sam, clean, strict=True)) > 1e-3


@pytest.mark.parametrize("form", ["squared", "norm"])
@pytest.mark.parametrize("normalization", ["per_sample", "per_coordinate"])
def test_update_is_sam_plus_the_weighted_gradient_of_the_penalty(net, batch, form, normalization):
    inputs, labels = batch
    direction = worst_case_input_gradient(net, inputs, labels, RHO)
    perturbed = perturb_inputs(inputs, direction, 2.0, normalization)
    penalty, g_u = penalty_gradient(net, inputs, perturbed, labels, form)
    _, sam = clean_and_sam(net, inputs, labels)
    term = UnknownDomainTerm(weight=0.7, radius=2.0, perturbation=normalization, penalty=form)
    got = udim_update(net, net.head, inputs, labels, term=term, rho=RHO)
    assert_gradients_close(got.gradients, [g + 0.7 * u for g, u in zip(sam, g_u, strict=True)])
    assert got.penalty.item() == pytest.approx(penalty.item(), rel=1e-10)
    assert got.loss.item() == pytest.approx(F.cross_entropy(net(inputs), labels).item(), rel=1e-12)
    assert not any(t.requires_grad for t in (*got.gradients, got.loss, got.penalty))


def test_penalty_reaches_the_featurizer(net, batch):
    term = UnknownDomainTerm(weight=1.0)
    with_term, without = (
        udim_update(net, net.head, *batch, term=t, base=erm_gradient).gradients
        for t in (term, UnknownDomainTerm(weight=0.0))
    )
    for (name, _), a, b in zip(net.named_parameters(), with_term, without, strict=True):
        assert (a - b).abs().max() > 1e-6, name


def test_any_base_can_be_extended(net, batch):
    inputs, labels = batch
    parameters = list(net.parameters())
    clean, _ = clean_and_sam(net, inputs, labels)
    base = partial(sagm_gradient, rho=0.1, alpha=0.01)
    expected = base(loss_gradient(net, inputs, labels), parameters, clean)
    perturbed = perturb_inputs(inputs, worst_case_input_gradient(net, inputs, labels, RHO), 1.0)
    _, g_u = penalty_gradient(net, inputs, perturbed, labels)
    got = udim_update(net, net.head, inputs, labels, term=UnknownDomainTerm(), rho=RHO, base=base)
    assert_gradients_close(got.gradients, [g + u for g, u in zip(expected, g_u, strict=True)])


def test_model_is_left_as_it_was(net, batch):
    state = copy.deepcopy(net.state_dict())
    udim_update(net, net.head, *batch, term=UnknownDomainTerm())
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name])
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not net.head._forward_pre_hooks


def test_batch_norm_sees_the_clean_batch_once():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    inputs, labels = torch.randn(6, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 1, 0])
    expected = copy.deepcopy(net)
    expected(inputs)
    udim_update(net, net[3], inputs, labels, term=UnknownDomainTerm(radius=10.0))
    assert net[2].num_batches_tracked == 1
    torch.testing.assert_close(net[2].running_mean, expected[2].running_mean, rtol=0, atol=0)
    torch.testing.assert_close(net[2].running_var, expected[2].running_var, rtol=0, atol=0)


def test_frozen_parameters_get_no_gradient(net, batch):
    net.featurizer[0].requires_grad_(False)
    got = udim_update(net, net.head, *batch, term=UnknownDomainTerm())
    assert [g.shape for g in got.gradients] == [p.shape for p in net.parameters() if p.requires_grad]


def test_update_works_without_grad_mode(net, batch):
    expected = udim_update(net, net.head, *batch, term=UnknownDomainTerm())
    with torch.no_grad():
        got = udim_update(net, net.head, *batch, term=UnknownDomainTerm())
    assert_gradients_close(got.gradients, expected.gradients, rtol=0, atol=0)


# --- Several domains


def test_domains_are_penalised_apart_with_gradients_of_the_losses_taken_together(net, batch):
    inputs, labels = batch
    perturbed = perturb_inputs(inputs, worst_case_input_gradient(net, inputs, labels, RHO), 1.0)
    _, sam = clean_and_sam(net, inputs, labels)
    parts = [penalty_gradient(net, inputs[d], perturbed[d], labels[d]) for d in (slice(0, 2), slice(2, 6))]
    got = udim_update(net, net.head, inputs, labels, term=UnknownDomainTerm(), rho=RHO, domain_sizes=[2, 4])
    assert got.penalty.item() == pytest.approx(sum(p.item() for p, _ in parts), rel=1e-10)
    expected = [g + a + b for g, a, b in zip(sam, parts[0][1], parts[1][1], strict=True)]
    assert_gradients_close(got.gradients, expected)


def test_average_is_applied_to_every_gradient(net, batch):
    # Averaging a batch with itself changes nothing; a halving process halves every gradient the update is made of.
    term = UnknownDomainTerm()
    plain = udim_update(net, net.head, *batch, term=term, rho=RHO)
    halved = udim_update(net, net.head, *batch, term=term, rho=RHO, average=lambda gs: [g / 2 for g in gs])
    assert_gradients_close(halved.gradients, [g / 2 for g in plain.gradients])


def test_criterion_is_that_of_the_base_and_of_the_direction(net, batch):
    inputs, labels = batch
    smoothed = partial(F.cross_entropy, label_smoothing=0.5)
    got = udim_update(net, net.head, inputs, labels, term=UnknownDomainTerm(weight=0.0), rho=RHO, criterion=smoothed)
    parameters = list(net.parameters())
    clean = torch.autograd.grad(smoothed(net(inputs), labels), parameters)
    expected = sam_gradient(loss_gradient(net, inputs, labels, criterion=smoothed), parameters, clean, rho=RHO)
    assert_gradients_close(got.gradients, expected)


# --- Controls


def test_cross_entropy_control_uses_the_same_perturbed_inputs(net, batch):
    inputs, labels = batch
    perturbed = perturb_inputs(inputs, worst_case_input_gradient(net, inputs, labels, RHO), 2.0)
    _, sam = clean_and_sam(net, inputs, labels)
    loss = F.cross_entropy(net(perturbed), labels)
    augmented = torch.autograd.grad(loss, list(net.parameters()))
    term = UnknownDomainTerm(weight=0.7, radius=2.0, penalty="cross_entropy")
    got = udim_update(net, net.head, inputs, labels, term=term, rho=RHO)
    assert_gradients_close(got.gradients, [g + 0.7 * a for g, a in zip(sam, augmented, strict=True)])
    assert got.penalty.item() == pytest.approx(loss.item(), rel=1e-12)


def test_zero_radius_control_leaves_the_gradient_norm_alone(net, batch):
    inputs, labels = batch
    penalty, g_u = penalty_gradient(net, inputs, inputs, labels)
    _, sam = clean_and_sam(net, inputs, labels)
    got = udim_update(net, net.head, inputs, labels, term=UnknownDomainTerm(radius=0.0), rho=RHO)
    assert_gradients_close(got.gradients, [g + u for g, u in zip(sam, g_u, strict=True)])
    assert got.penalty.item() == pytest.approx(penalty.item(), rel=1e-10)


@pytest.mark.parametrize("perturbation", ["per_sample", "per_coordinate"])
def test_random_control_moves_as_far_in_another_direction(net, batch, perturbation):
    inputs, _ = batch
    term = UnknownDomainTerm(radius=2.0, direction="random", perturbation=perturbation)
    a, b, c = (unknown_domain(inputs, None, term, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    dims = (1, 2, 3) if perturbation == "per_sample" else 0
    lengths = torch.linalg.vector_norm(a - inputs, dim=dims)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 2.0))
    generator = torch.Generator().manual_seed(0)
    got = udim_update(net, net.head, *batch, term=term, generator=generator)
    expected, _ = penalty_gradient(net, inputs, a, batch[1])
    assert got.penalty.item() == pytest.approx(expected.item(), rel=1e-10)


def test_style_term_moves_mean_and_contrast_of_channels(net, batch):
    inputs, labels = batch
    direction = worst_case_input_gradient(net, inputs, labels, 0.05)
    expected = restyle_inputs(inputs, *style_gradients(inputs, direction), 10.0)
    term = UnknownDomainTerm(radius=10.0, perturbation="style")
    got = unknown_domain(inputs, direction, term)
    assert torch.equal(got, expected) and (got - inputs).abs().max() > 0.01
    penalty, _ = penalty_gradient(net, inputs, expected, labels)
    assert udim_update(net, net.head, inputs, labels, term=term).penalty.item() == pytest.approx(penalty.item())


@pytest.mark.parametrize(
    ("term", "direction_passes"),
    [
        (UnknownDomainTerm(), 1),
        (UnknownDomainTerm(radius=0.0), 0),
        (UnknownDomainTerm(direction="random"), 0),
        (UnknownDomainTerm(weight=0.0), 0),
    ],
)
def test_only_the_worst_case_costs_a_second_derivative(net, batch, term, direction_passes):
    inputs, labels = batch
    seen = []

    def criterion(logits, targets):
        loss = F.cross_entropy(logits, targets)
        loss.register_hook(lambda gradient: seen.append(gradient.requires_grad or torch.is_grad_enabled()))
        return loss

    udim_update(net, net.head, inputs, labels, term=term, criterion=criterion)
    assert sum(seen) == direction_passes


# --- Parts and bad input


def test_features_are_what_the_head_is_given(net, batch):
    features, logits = features_and_logits(net, net.head, batch[0])
    torch.testing.assert_close(features, net.featurizer(batch[0]))
    torch.testing.assert_close(logits, net(batch[0]))
    assert features.requires_grad and not net.head._forward_pre_hooks


def test_head_must_be_part_of_the_model(net, batch):
    with pytest.raises(ValueError, match="head must be a layer that model calls once per pass, got 0 calls"):
        features_and_logits(net, nn.Linear(4, 3), batch[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight must be finite and at least 0, got -1.0"),
        ({"weight": math.inf}, "weight must"),
        ({"radius": math.nan}, "radius must"),
        ({"direction": "best_case"}, "direction must be one of"),
        ({"perturbation": "per_batch"}, "perturbation must be one of"),
        ({"penalty": "cubed"}, "penalty must be one of"),
    ],
)
def test_bad_terms_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UnknownDomainTerm(**options)


def test_bad_updates_are_refused(net, batch):
    with pytest.raises(ValueError, match="rho must"):
        udim_update(net, net.head, *batch, term=UnknownDomainTerm(), rho=-0.1)
    with pytest.raises(ValueError, match="domain_sizes must"):
        udim_update(net, net.head, *batch, term=UnknownDomainTerm(), domain_sizes=[3, 2])
    with pytest.raises(ValueError, match="input_gradient must be given"):
        unknown_domain(batch[0], None, UnknownDomainTerm())
