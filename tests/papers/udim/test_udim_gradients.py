"""Gradients by `torch.autograd.grad`: known answers, and that the model is left alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from papers.udim.gradients import frozen_running_statistics, loss_gradient, trainable_parameters


def test_gradient_is_that_of_the_loss_at_the_point(net, batch):
    inputs, labels = batch
    start = copy.deepcopy(net.state_dict())
    moved = copy.deepcopy(net)
    with torch.no_grad():
        for p in moved.parameters():
            p.add_(0.1)
    F.cross_entropy(moved(inputs), labels).backward()
    point = [p.detach() + 0.1 for p in net.parameters()]
    got = loss_gradient(net, inputs, labels)(point)
    assert not any(p.requires_grad for p in point)
    for g, p in zip(got, moved.parameters(), strict=True):
        torch.testing.assert_close(g, p.grad, rtol=1e-12, atol=1e-15)
    for name, value in net.state_dict().items():
        assert torch.equal(value, start[name])
    assert all(p.grad is None for p in net.parameters())


def test_gradient_leaves_out_frozen_parameters_and_is_zero_for_unused_ones(net, batch):
    net.head.weight.requires_grad_(False)
    net.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    parameters = trainable_parameters(net)
    assert "head.weight" not in parameters and "head.bias" in parameters
    got = dict(zip(parameters, loss_gradient(net, *batch)(list(parameters.values())), strict=True))
    assert torch.equal(got["unused"], torch.zeros(2, dtype=torch.float64))
    assert got["head.bias"].abs().sum() > 0


def test_gradient_uses_its_criterion_and_average_even_without_grad_mode(net, batch):
    point = list(net.parameters())
    plain = loss_gradient(net, *batch)(point)
    with torch.no_grad():
        doubled = loss_gradient(
            net,
            *batch,
            criterion=lambda logits, labels: 2 * F.cross_entropy(logits, labels),
            average=lambda gradients: [g / 8 for g in gradients],
        )(point)
    for a, b in zip(plain, doubled, strict=True):
        torch.testing.assert_close(b, a / 4, rtol=1e-12, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_frozen_statistics_change_neither_buffers_nor_outputs(training):
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False)).train(training)
    x = torch.randn(4, 2, 3, 3) + 1
    before = copy.deepcopy(net.state_dict())
    with frozen_running_statistics(net):
        frozen = net(x)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert [layer.track_running_stats for layer in net] == [True, False]
    torch.testing.assert_close(net(x), frozen, rtol=0, atol=0)
    assert (net[0].num_batches_tracked == training).item()


def test_frozen_statistics_are_thawed_after_an_error():
    net = nn.BatchNorm1d(2)
    with pytest.raises(RuntimeError), frozen_running_statistics(net):
        raise RuntimeError
    assert net.track_running_stats
