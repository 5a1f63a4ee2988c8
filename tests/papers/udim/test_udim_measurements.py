"""Sharpness, inconsistency and slices on functions with known answers; accuracy on domains."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from udim_cases import CORRUPTIONS, OPTIONS, STYLED, image_set

from papers.udim.gradients import trainable_parameters
from papers.udim.loss_slices import filter_normalised_direction, loss_along, loss_over_plane
from papers.udim.measurements import (
    Batch,
    Probe,
    domain_inconsistency,
    evaluation_mode,
    loss_function,
    measure_accuracy,
    sharpness_curve,
)
from papers.udim.networks import build_network
from papers.udim.tasks import make_tasks

POINT = [torch.tensor([3.0, 4.0], dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64)]


def square(point) -> torch.Tensor:
    return sum(value.square().sum() for value in point)


@pytest.fixture(scope="module")
def task():
    return make_tasks(image_set(), CORRUPTIONS, seed=0)[0]


@pytest.fixture
def model(task):
    return build_network(OPTIONS.network, channels=1, size=8, classes=task.classes, seed=0)


def test_sharpness_of_a_paraboloid():
    # Along the gradient |θ| grows from 5 to 5 + ρ.
    got = sharpness_curve(square, POINT, [0.0, 0.5, 1.0])
    np.testing.assert_allclose(got, [0.0, 5.5**2 - 25, 36 - 25], atol=1e-12)


@given(shift=st.floats(-2, 2), scale=st.floats(0.5, 3), rho=st.floats(0, 1))
def test_inconsistency_of_linear_losses(shift, scale, rho):
    """The gap shift + scale θ₁ is largest at distance ρ on the side of its sign."""

    def unknown(point):
        return square(point) + scale * point[0][0] + shift

    gap = abs(3 * scale + shift)
    assert domain_inconsistency(square, unknown, POINT, rho) == pytest.approx(gap + scale * rho if gap else 0.0)


def test_inconsistency_does_not_depend_on_the_order_and_is_zero_for_one_domain():
    def other(point):
        return point[0].prod()

    assert domain_inconsistency(square, other, POINT, 0.1) == domain_inconsistency(other, square, POINT, 0.1)
    assert domain_inconsistency(square, square, POINT, 0.1) == 0


def test_inconsistency_is_nearly_the_worst_of_many_perturbations(model, task):
    parameters = list(trainable_parameters(model.double()).values())
    generator = torch.Generator().manual_seed(0)
    source, unknown = (
        loss_function(model, Batch(part.images.double() / 255, part.labels))
        for part in (task.validation, task.targets[1].data)
    )
    found = domain_inconsistency(source, unknown, parameters, 0.05)
    with torch.no_grad():
        for _ in range(100):
            noise = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
            length = sum(n.square().sum() for n in noise).sqrt()
            moved = [p + 0.05 * n / length for p, n in zip(parameters, noise, strict=True)]
            assert (unknown(moved) - source(moved)).abs() <= found + 1e-6
        assert found > (unknown(parameters) - source(parameters)).abs()


def test_evaluation_mode_restores_every_layer(model):
    model.train()
    model.featurizer.eval()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert model.training and not model.featurizer.training and model.head.training


def test_the_probe_measures_every_unknown_domain_at_one_level(task, model):
    probe = Probe(OPTIONS, task, torch.device("cpu"))
    assert set(probe.unknown) == {"gaussian_noise", "contrast"}
    assert len(probe.source.labels) == 10
    level3 = next(target for target in task.targets if (target.name, target.level) == ("contrast", 3))
    torch.testing.assert_close(probe.unknown["contrast"].inputs, level3.data.images[:10] / 255.0)
    before = [parameter.clone() for parameter in model.parameters()]
    measured = probe.measure(model)
    table = probe.landscape(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    gaps = table[table["quantity"] == "inconsistency"].set_index("domain")["value"]
    assert measured["inconsistency"] == pytest.approx(gaps.mean()) and set(gaps.index) == set(probe.unknown)
    rises = table[table["quantity"] == "sharpness"].pivot(index="domain", columns="radius", values="value")
    assert list(rises.columns) == list(OPTIONS.radii) and len(rises) == 3
    assert (rises.diff(axis=1).iloc[:, 1:] > 0).all(axis=None)


@pytest.mark.parametrize("options", [CORRUPTIONS, STYLED])
def test_accuracy_of_every_target_and_image(options):
    task = make_tasks(image_set(), options, seed=0)[0]
    channels = task.validation.images.shape[1]
    model = build_network(OPTIONS.network, channels=channels, size=8, classes=task.classes, seed=0)
    probe = Probe(OPTIONS, task, torch.device("cpu"))
    table, images = measure_accuracy(model, probe.normalization, task)
    assert len(table) == 1 + len(task.targets) and table["domain"][0] == "source"
    for row, target in zip(table[1:].itertuples(), task.targets, strict=True):
        with torch.no_grad():
            logits = model.eval()(target.data.images / 255.0)
        assert (row.domain, row.level, row.images) == (target.name, target.level, len(target.data))
        assert row.accuracy == pytest.approx((logits.argmax(1) == target.data.labels).double().mean().item())
        assert row.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, target.data.labels).item(), rel=1e-5)
    unseen = images[images["domain"] != "source"]
    assert unseen["correct"].mean() == pytest.approx(table["accuracy"][1:].mean())
    assert set(unseen["domain"]) == ({"corrupted"} if options is CORRUPTIONS else {task.name})


# --- Slices


def test_filters_move_by_their_own_length(model):
    parameters = list(model.parameters())
    direction = filter_normalised_direction(parameters, torch.Generator().manual_seed(0))
    for parameter, moved in zip(parameters, direction, strict=True):
        assert moved.shape == parameter.shape
        if parameter.ndim == 1:
            assert not moved.any()
        else:
            torch.testing.assert_close(moved.flatten(1).norm(dim=1), parameter.detach().flatten(1).norm(dim=1))
    other = filter_normalised_direction(parameters, torch.Generator().manual_seed(1))
    assert not torch.equal(direction[0], other[0])


def test_slices_of_a_paraboloid():
    first, second = [torch.tensor([1.0, 0.0]), torch.tensor([0.0])], [torch.tensor([0.0, 2.0]), torch.tensor([1.0])]
    steps = [-1.0, 0.0, 2.0]
    np.testing.assert_allclose(loss_along(square, POINT, first, steps), [(3 + s) ** 2 + 16 for s in steps])
    plane = loss_over_plane(square, POINT, (first, second), steps)
    expected = [[(3 + s) ** 2 + (4 + 2 * t) ** 2 + t**2 for t in steps] for s in steps]
    np.testing.assert_allclose(plane, expected)
