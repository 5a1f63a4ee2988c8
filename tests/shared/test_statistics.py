import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shared.statistics import (
    Interval,
    frontier_difference,
    frontier_weights,
    hierarchical_bootstrap,
    minimum_detectable_effect,
    pearson,
    resampled_means,
    seed_bootstrap,
    seed_interval,
    sign_test,
    win_outcomes,
    win_rate,
)

finite = st.floats(-1e3, 1e3)


def slow_resampled_means(groups, replicates, generator):
    """The definition, in plain loops."""
    means = []
    for _ in range(replicates):
        chosen = generator.integers(len(groups), size=len(groups))
        of_seeds = []
        for index in chosen:
            group = groups[index]
            of_seeds.append(group[generator.integers(len(group), size=len(group))].mean())
        means.append(np.mean(of_seeds))
    return np.array(means)


def test_resampling_follows_the_definition():
    generator = np.random.default_rng(3)
    groups = [generator.normal(shift, 1.0, size=units) for shift, units in ((0.0, 5), (1.0, 12), (3.0, 2))]
    fast = resampled_means(groups, replicates=40_000, seed=1)[:, 0]
    slow = slow_resampled_means(groups, 20_000, generator)
    assert fast.std() == pytest.approx(slow.std(), rel=0.03)
    assert stats.ks_2samp(fast, slow).statistic < 0.015


def test_variance_is_that_of_both_levels():
    generator = np.random.default_rng(0)
    groups = [generator.normal(shift, 2.0, size=40) for shift in (0.0, 1.0, 2.0, 5.0)]
    between = np.var([group.mean() for group in groups]) / 4
    within = np.mean([group.var() / 40 for group in groups]) / 4
    means = resampled_means(groups, replicates=60_000, seed=2)
    assert means.var() == pytest.approx(between + within, rel=0.02)


def test_columns_stay_paired():
    generator = np.random.default_rng(0)
    base = [generator.normal(size=30) for _ in range(3)]
    groups = [np.stack([group, group + 1.0], axis=1) for group in base]
    means = resampled_means(groups, replicates=500, seed=0)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 1.0, atol=1e-12)
    np.testing.assert_allclose(means[:, 0], resampled_means(base, replicates=500, seed=0)[:, 0], atol=1e-12)


def test_every_seed_counts_the_same():
    result = hierarchical_bootstrap([np.zeros(1000), np.ones(10)], replicates=2000)
    assert result == Interval(0.5, 0.0, 1.0)


def test_chunks_do_not_lose_draws(monkeypatch):
    monkeypatch.setattr("shared.statistics._CHUNK_ELEMENTS", 64)
    groups = [np.full(20, 2.0), np.full(100, 2.0)]
    np.testing.assert_allclose(resampled_means(groups, replicates=301, seed=0), 2.0)


def test_three_seeds_without_units_give_their_range():
    values = [0.1, 0.5, 0.3]
    for result in (hierarchical_bootstrap([[value] for value in values]), seed_bootstrap(values)):
        assert result.estimate == pytest.approx(0.3)
        assert (result.low, result.high) == pytest.approx((0.1, 0.5))


def test_bootstrap_over_seeds_matches_full_enumeration():
    values = np.array([0.0, 1.0, 4.0, 9.0, 10.0])
    every = np.array([np.mean(draw) for draw in itertools.product(values, repeat=5)])
    expected = np.quantile(every, [0.1, 0.9])
    for result in (
        hierarchical_bootstrap([[value] for value in values], level=0.8, replicates=40_000),
        seed_bootstrap(values, level=0.8, replicates=40_000),
    ):
        assert (result.low, result.high) == pytest.approx(expected, abs=0.15)


def test_coverage_with_many_seeds_is_nominal():
    generator = np.random.default_rng(11)
    covered = 0
    for trial in range(300):
        groups = [generator.normal(generator.normal(0.0, 1.0), 2.0, size=8) for _ in range(40)]
        result = hierarchical_bootstrap(groups, replicates=400, seed=trial)
        covered += result.low <= 0.0 <= result.high
    assert 0.91 <= covered / 300 <= 0.99


def test_a_level_widens_the_interval():
    groups = [np.random.default_rng(seed).normal(size=50) for seed in range(5)]
    narrow, wide = (hierarchical_bootstrap(groups, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_a_statistic_of_columns():
    groups = [np.array([[2.0, 4.0], [4.0, 8.0]]), np.array([[3.0, 6.0]])]
    result = hierarchical_bootstrap(groups, statistic=lambda means: means[..., 0] / means[..., 1])
    assert result == Interval(0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="2 columns need a statistic"):
        hierarchical_bootstrap(groups)


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    groups = [np.random.default_rng(seed).normal(size=20) for seed in range(4)]
    first, again, other = (hierarchical_bootstrap(groups, replicates=500, seed=seed) for seed in (1, 1, (1, 2)))
    assert first == again
    assert first != other


def test_one_seed():
    assert hierarchical_bootstrap([[0.4]]) == Interval(0.4, None, None)
    assert seed_bootstrap([0.4]) == Interval(0.4, None, None)
    assert seed_interval([0.4]) == Interval(0.4, None, None)
    assert minimum_detectable_effect([0.4]) is None
    of_units = hierarchical_bootstrap([np.arange(10.0)])
    assert of_units.low < 4.5 < of_units.high


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(st.lists(finite, min_size=1, max_size=6), min_size=2, max_size=5),
    shift=finite,
    scale=st.floats(0.1, 10),
)
def test_intervals_move_with_their_data(groups, shift, scale):
    plain = hierarchical_bootstrap(groups, replicates=200)
    moved = hierarchical_bootstrap([scale * np.array(group) + shift for group in groups], replicates=200)
    for name in ("estimate", "low", "high"):
        assert getattr(moved, name) == pytest.approx(scale * getattr(plain, name) + shift, abs=1e-6)
    values = np.concatenate([np.array(group) for group in groups])
    assert values.min() - 1e-9 <= plain.low <= plain.high <= values.max() + 1e-9


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "groups must hold at least one seed, got none"),
        ([[1.0], []], r"groups\[1\] must be"),
        ([[1.0], [np.nan]], r"groups\[1\] must be finite, got nan"),
        ([[[1.0, 2.0]], [1.0]], "groups must agree in their columns"),
        ([np.zeros((1, 1, 1))], r"groups\[0\] must be"),
    ],
)
def test_bad_groups(groups, message):
    with pytest.raises(ValueError, match=message):
        resampled_means(groups, replicates=10)


def test_bad_numbers():
    with pytest.raises(ValueError, match="replicates must be at least 1, got 0"):
        resampled_means([[1.0]], replicates=0)
    for function in (seed_bootstrap, seed_interval, minimum_detectable_effect):
        with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 95"):
            function([1.0, 2.0], level=95)
        with pytest.raises(ValueError, match="values must be finite, got inf"):
            function([1.0, np.inf])
        with pytest.raises(ValueError, match="values must be a one-dimensional array"):
            function([[1.0, 2.0]])
    with pytest.raises(ValueError, match="power must be"):
        minimum_detectable_effect([1.0, 2.0], power=0.4)


def test_t_interval_is_scipys():
    values = [0.3, 0.9, 0.4, 0.7]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    found = seed_interval(values, level=0.9)
    assert (found.estimate, found.low, found.high) == pytest.approx((np.mean(values), *expected))


@pytest.mark.parametrize("seeds", [3, 6])
def test_the_minimum_detectable_effect_has_its_power(seeds):
    values = np.array([1.0, 2.0, 3.0, 6.0, 2.5, 1.5])[:seeds]
    effect = minimum_detectable_effect(values, power=0.7)
    draws = np.random.default_rng(0).normal(effect, values.std(ddof=1), size=(200_000, seeds))
    assert (stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.7, abs=0.004)


def test_the_minimum_detectable_effect_scales_with_the_spread():
    values = np.array([1.0, 2.0, 3.0, 6.0])
    assert minimum_detectable_effect(10 * values) == pytest.approx(10 * minimum_detectable_effect(values))
    assert minimum_detectable_effect([2.0, 2.0, 2.0]) == 0.0
    assert minimum_detectable_effect([0.0, 1.0]) > minimum_detectable_effect([0.0, 1.0, 0.0, 1.0])


def test_win_rate_counts_ties_half():
    method, baseline = [1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 5.0, 1.0]
    assert win_outcomes(method, baseline).tolist() == [1.0, 0.5, 0.0, 1.0]
    assert win_rate(method, baseline) == 0.625
    with pytest.raises(ValueError, match=r"baseline must have the shape of method, \(1,\), got \(2,\)"):
        win_rate([1.0], [1.0, 2.0])


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=20))
def test_win_rates_of_both_sides_sum_to_one(pairs):
    first, second = np.array(pairs).T
    assert win_rate(first, second) + win_rate(second, first) == pytest.approx(1.0)


def test_sign_test_known_answers():
    three = sign_test([0.1, 0.2, 0.3])
    assert (three.positive, three.nonzero, three.p_value) == (3, 3, pytest.approx(0.25))
    assert sign_test([1, 1, 1, 1, 1], alternative="greater").p_value == pytest.approx(1 / 32)
    assert sign_test([1, 1, 1], alternative="less").p_value == pytest.approx(1.0)
    mixed = sign_test([1.0, -1.0, 0.0, 2.0])
    assert (mixed.positive, mixed.nonzero) == (2, 3)
    assert sign_test([0.0, 0.0]).p_value == 1.0
    with pytest.raises(ValueError, match="alternative must be"):
        sign_test([1.0], alternative="bigger")


def test_pearson():
    generator = np.random.default_rng(0)
    x = generator.normal(size=400)
    y = 0.8 * x + 0.6 * generator.normal(size=400)
    found = pearson(x, y, replicates=2000)
    assert found.estimate == pytest.approx(np.corrcoef(x, y)[0, 1])
    fisher = stats.pearsonr(x, y).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(fisher), abs=0.02)
    assert pearson(x, -2 * x + 1, replicates=100).estimate == pytest.approx(-1.0)
    with pytest.raises(ValueError, match=r"y must not be constant, got 2.0"):
        pearson([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    with pytest.raises(ValueError, match="at least 3 pairs, got 2"):
        pearson([1.0, 2.0], [2.0, 3.0])
    with pytest.raises(ValueError, match="y must have the shape of x"):
        pearson([1.0, 2.0, 3.0], [2.0, 3.0])


@given(
    curve=st.lists(st.tuples(st.integers(-50, 50), finite), min_size=2, max_size=8, unique_by=lambda point: point[0]),
    x=st.floats(-60, 60),
)
def test_frontier_is_linear_interpolation(curve, x):
    curve_x, curve_y = np.array(curve, dtype=float).T
    order = np.argsort(curve_x)
    expected = np.interp(x, curve_x[order], curve_y[order])
    weights = frontier_weights(x, curve_x, outside="nearest")
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1.0)
    assert (weights > 0).sum() <= 2
    assert weights @ curve_y == pytest.approx(expected, abs=1e-9)
    assert frontier_difference(x, 7.0, curve_x, curve_y, outside="nearest") == pytest.approx(7.0 - expected, abs=1e-9)


def test_frontier_is_exact_at_its_points():
    assert frontier_weights(3.0, [5.0, 3.0, 1.0]).tolist() == [0.0, 1.0, 0.0]
    assert frontier_difference(2.0, 10.0, [3.0, 1.0], [8.0, 4.0]) == 4.0


def test_bad_frontiers():
    with pytest.raises(ValueError, match=r"x must be within the curve's range \[1, 3\], got 3.5"):
        frontier_weights(3.5, [1.0, 3.0])
    with pytest.raises(ValueError, match="got nan"):
        frontier_weights(float("nan"), [1.0, 3.0], outside="nearest")
    for points in ([1.0], [1.0, 1.0, 2.0]):
        with pytest.raises(ValueError, match="curve_x must hold at least 2 distinct points"):
            frontier_weights(1.0, points)
    with pytest.raises(ValueError, match="outside must be"):
        frontier_weights(1.0, [0.0, 1.0], outside="extrapolate")
    with pytest.raises(ValueError, match="curve_y must have the shape of curve_x"):
        frontier_difference(1.0, 1.0, [0.0, 1.0], [0.0, 1.0, 2.0])
