"""Metrics of sets of samples: against brute force, POT, closed forms; and the glyphs."""

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from shared.diffusion import metrics
from shared.diffusion.glyphs import SHAPES, draw_glyphs
from shared.diffusion.metrics import (
    coverage,
    energy_distance,
    mode_shares,
    nearest_distances,
    outlier_share,
    precision,
    sliced_wasserstein,
    total_variation,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sliced_wasserstein_against_pot():
    a, b = normal(300, 3), 0.5 * normal(300, 3, seed=1) + 1
    units = torch.randn(3, 40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    units = units / units.norm(dim=0)
    expected = ot.sliced_wasserstein_distance(a.numpy(), b.numpy(), projections=units.numpy(), p=2)
    assert sliced_wasserstein(a, b, directions=40, quantiles=300, seed=5) == pytest.approx(expected, rel=1e-9)


def test_sliced_wasserstein_of_a_shift():
    """In one dimension it is W₂, and a shift moves every quantile; sizes may differ."""
    a = normal(5000, 1)
    assert sliced_wasserstein(a, a + 3) == pytest.approx(3, rel=1e-12)
    assert sliced_wasserstein(a, a.repeat(3, 1)) == pytest.approx(0, abs=1e-12)
    assert sliced_wasserstein(a.view(-1, 1, 1), a.view(-1, 1, 1) - 1) == pytest.approx(1, rel=1e-12)


@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 3))
def test_energy_distance_is_its_definition(n, m, dimension):
    a, b = normal(n, dimension), normal(m, dimension, seed=1)
    distances = cdist(a, b).mean(), cdist(a, a).sum() / (n * (n - 1)), cdist(b, b).sum() / (m * (m - 1))
    assert energy_distance(a, b) == pytest.approx(2 * distances[0] - distances[1] - distances[2], rel=1e-9)


def test_energy_distance_has_no_bias(monkeypatch):
    draws = [energy_distance(normal(30, 2, seed=i), normal(50, 2, seed=1000 + i)) for i in range(200)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / math.sqrt(200)


def test_parts_in_memory_change_nothing(monkeypatch):
    a, b = normal(30, 2), normal(50, 2, seed=1) + 1
    whole = [energy_distance(a, b), nearest_distances(a, b).sum().item(), precision(a, b), coverage(a, b)]
    monkeypatch.setattr(metrics, "_ROWS", 7)
    parts = [energy_distance(a, b), nearest_distances(a, b).sum().item(), precision(a, b), coverage(a, b)]
    assert parts == pytest.approx(whole, rel=1e-12)


def test_modes_and_outliers():
    means = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    samples = torch.tensor([[0.1, 0.0], [0.0, -1.0], [10.5, 0.0], [7.0, 0.0]])
    assert mode_shares(samples, means).tolist() == [0.5, 0.5, 0]
    assert outlier_share(samples, means, radius=0.7) == 0.5
    assert outlier_share(samples, means, radius=3.0) == 0
    assert total_variation(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])) == 0.5


def test_precision_and_coverage_against_brute_force():
    samples, reference, k = normal(40, 2), 0.7 * normal(60, 2, seed=1) + 0.5, 3
    radii = np.sort(cdist(reference, reference), axis=1)[:, k]
    inside = cdist(samples, reference) <= radii
    assert precision(samples, reference, k) == inside.any(1).mean()
    assert coverage(samples, reference, k) == inside.any(0).mean()
    assert 0 < coverage(samples, reference, k) < precision(samples, reference, k) < 1


def test_precision_and_coverage_tell_dropped_modes_from_bad_samples():
    left, right = normal(200, 2), normal(200, 2, seed=1) + 50
    both = torch.cat([left, right])
    assert precision(left, both) == 1
    assert coverage(left, both) == 0.5
    assert precision(both, left) == 0.5
    assert coverage(both, left) == 1
    assert coverage(left[:1].repeat(200, 1), left) < 0.2
    assert nearest_distances(left, both).max() == 0


@pytest.mark.parametrize("metric", [sliced_wasserstein, energy_distance, precision, coverage, nearest_distances])
@pytest.mark.parametrize("bad", [torch.zeros(0, 2), torch.zeros(9, 3), torch.full((9, 2), math.nan)])
def test_metrics_refuse(metric, bad):
    with pytest.raises(ValueError, match="samples"):
        metric(bad, normal(9, 2))


def test_metrics_refuse_sets_too_small():
    with pytest.raises(ValueError, match="a, b"):
        energy_distance(normal(1, 2), normal(3, 2))
    for neighbors in (0, 3):
        with pytest.raises(ValueError, match="neighbors"):
            coverage(normal(3, 2), normal(3, 2), neighbors)


# --- Glyphs


def test_glyphs_are_a_function_of_the_generator():
    shapes = torch.arange(4).repeat(50)
    a, b = (draw_glyphs(shapes, 0.1, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert a.shape == (200, 1, 8, 8)
    assert a.dtype == torch.float32
    clean = draw_glyphs(shapes, 0.0, torch.Generator().manual_seed(3))
    assert clean.min() >= -1
    assert clean.max() <= 1
    assert (a - clean).std().item() == pytest.approx(0.1, rel=0.05)


def test_glyphs_have_their_shapes():
    """On average over positions: disks are full, squares hollow, plus signs bright along the axes, crosses across."""
    mean = {}
    for index, shape in enumerate(SHAPES):
        images = draw_glyphs(torch.full((4000,), index), 0.0, torch.Generator().manual_seed(0))[:, 0]
        mean[shape] = images.mean(0)
        torch.testing.assert_close(mean[shape], mean[shape].T, rtol=0, atol=0.05)
        torch.testing.assert_close(mean[shape], mean[shape].flip(0), rtol=0, atol=0.05)
    middle, corner, side = (slice(3, 5),) * 2, (slice(1, 2),) * 2, (slice(3, 5), slice(1, 2))
    assert mean["disk"][middle].mean() > mean["square"][middle].mean() + 0.5
    assert mean["square"][corner].mean() > mean["disk"][corner].mean()
    assert mean["plus"][side].mean() > mean["plus"][corner].mean() + 0.3
    assert mean["cross"][2, 2] > mean["plus"][2, 2] + 0.1
    assert mean["cross"][side].mean() < mean["plus"][side].mean() - 0.08


def test_glyphs_can_be_told_apart():
    """Nearest neighbours among labelled glyphs: the classes are no guess, and none is trivial copies of another."""
    generator = torch.Generator().manual_seed(1)
    labels, queries = torch.arange(4).repeat(500), torch.arange(4).repeat(50)
    train, test = draw_glyphs(labels, 0.02, generator), draw_glyphs(queries, 0.02, generator)
    nearest = torch.cdist(test.flatten(1), train.flatten(1)).argmin(1)
    assert (labels[nearest] == queries).double().mean() > 0.9


def test_glyphs_refuse():
    with pytest.raises(ValueError, match="shapes"):
        draw_glyphs(torch.tensor([4]), 0.1)
    with pytest.raises(ValueError, match="noise"):
        draw_glyphs(torch.tensor([0]), -0.1)
