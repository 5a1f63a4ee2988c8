import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papers.rent.weight_sampling import resample_indices, sample_dirichlet_weights

PROPERTY = settings(deadline=None, max_examples=50)
WEIGHTS = torch.tensor([0.0, 3.0, 0.5, 1e-3, 0.0, 2.0, 0.0])
MEAN = (WEIGHTS / WEIGHTS.sum()).double()
weight_lists = st.lists(st.floats(0, 1e6), min_size=1, max_size=12).filter(any)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Resampling


def test_frequencies_are_the_normalised_weights():
    count = 200_000
    frequencies = torch.bincount(resample_indices(WEIGHTS, count, _generator()), minlength=7) / count
    deviation = (MEAN * (1 - MEAN) / count).sqrt()
    drawn = MEAN > 0
    assert ((frequencies - MEAN)[drawn].abs() < 5 * deviation[drawn]).all()
    assert not frequencies[~drawn].any()


@PROPERTY
@given(weight_lists, st.integers(0, 2**32))
def test_zero_weights_are_never_drawn(weights, seed):
    weights = torch.tensor(weights, dtype=torch.float64)
    assert (weights[resample_indices(weights, 50, _generator(seed))] > 0).all()


def test_extreme_uniform_numbers_draw_no_zero_weight(monkeypatch):
    tenths = torch.full((10,), 0.1, dtype=torch.float64)  # sum to 1 - 2^-53
    for value in (0.0, 1 - 2**-53):
        monkeypatch.setattr(torch, "rand", lambda *size, value=value, **_: torch.full(size, value, dtype=torch.float64))
        for weights in (WEIGHTS, torch.tensor([0.0, 0.1, 0.2, 0.3, 0.0]), torch.tensor([0.0, 1e-30, 7.0, 0.0]), tenths):
            index = resample_indices(weights, 1).item()
            assert weights[index] > 0
            assert index == weights.nonzero()[0 if value == 0 else -1].item()


@PROPERTY
@given(weight_lists, st.integers(0, 2**32), st.integers(-60, 60))
def test_scale_changes_nothing(weights, seed, exponent):
    weights = torch.tensor(weights, dtype=torch.float64)
    drawn = resample_indices(weights, 20, _generator(seed))
    assert torch.equal(drawn, resample_indices(weights * 2.0**exponent, 20, _generator(seed)))


@pytest.mark.parametrize(
    ("scale", "dtype"), [(1e-44, torch.float32), (1e38, torch.float32), (1e-323, torch.float64), (1e308, torch.float64)]
)
def test_weights_at_the_limits_of_their_dtype(scale, dtype):
    weights = torch.tensor([1.0, 0.0, 1.0], dtype=dtype) * scale  # the sum overflows, or is denormal
    counts = torch.bincount(resample_indices(weights, 1000, _generator()), minlength=3)
    assert counts[1] == 0 and 400 < counts[0] < 600
    assert sample_dirichlet_weights(weights, 1.0, 4, _generator()).sum(1).tolist() == pytest.approx([1] * 4)


def test_number_of_draws_and_dtype():
    assert resample_indices(WEIGHTS).shape == (7,)
    assert resample_indices(WEIGHTS, 3).shape == (3,)
    assert resample_indices(WEIGHTS, 30).shape == (30,)
    for weights in (WEIGHTS.half(), WEIGHTS.double(), WEIGHTS.long(), WEIGHTS.requires_grad_()):
        assert resample_indices(weights).dtype == torch.int64
    assert resample_indices(torch.tensor([0.3])).tolist() == [0]


def test_generators_give_the_draws():
    first = resample_indices(WEIGHTS, 50, _generator(1))
    assert torch.equal(first, resample_indices(WEIGHTS, 50, _generator(1)))
    assert not torch.equal(first, resample_indices(WEIGHTS, 50, _generator(2)))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with_global = resample_indices(WEIGHTS, 50)
    torch.set_rng_state(state)
    assert torch.equal(with_global, resample_indices(WEIGHTS, 50))


# Dirichlet weights


@pytest.mark.parametrize("concentration", [0.0, 0.1, 1.0, 10.0, 300.0])
def test_moments(concentration):
    count = 40_000
    draws = sample_dirichlet_weights(WEIGHTS.double(), concentration, count, _generator())
    covariance = (MEAN.diag() - torch.outer(MEAN, MEAN)) / (concentration + 1)
    error = (covariance.diagonal() / count).sqrt()
    assert ((draws.mean(0) - MEAN).abs() <= 5 * error).all()
    # Fourth moments: the deviation of a sample covariance of numbers in [0, 1] is at most that of x_i x_j.
    products = (draws - MEAN)[:, :, None] * (draws - MEAN)[:, None, :]
    assert ((products.mean(0) - covariance).abs() <= 5 * products.std(0) / math.sqrt(count) + 1e-12).all()


@PROPERTY
@given(weight_lists, st.floats(0, math.inf), st.integers(0, 2**32))
def test_draws_are_on_the_simplex(weights, concentration, seed):
    weights = torch.tensor(weights, dtype=torch.float64)
    draws = sample_dirichlet_weights(weights, concentration, 3, _generator(seed))
    assert draws.shape == (3, len(weights)) and (draws >= 0).all()
    torch.testing.assert_close(draws.sum(1), torch.ones(3, dtype=torch.float64))
    assert not draws[:, weights == 0].any()


@pytest.mark.parametrize("concentration", [5e-324, 1e-300, 1e-4, 1e4, 1e300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_concentrations_are_finite(concentration, dtype):
    weights = torch.rand(256, dtype=dtype, generator=_generator())
    draws = sample_dirichlet_weights(weights, concentration, 64, _generator())
    assert draws.dtype == dtype and draws.isfinite().all() and (draws >= 0).all()
    torch.testing.assert_close(draws.sum(1), torch.ones(64, dtype=dtype))
    if concentration < 1e-200:
        assert (draws.amax(1) == 1).all()
    if concentration > 1e200:
        torch.testing.assert_close(draws, (weights / weights.sum()).expand(64, -1), rtol=1e-5, atol=0)


def test_a_mean_of_zero_stays_zero_whatever_is_drawn(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda values, generator=None: values.zero_())
    draws = sample_dirichlet_weights(WEIGHTS, 0.5, 3, _generator())
    assert draws.isfinite().all() and not draws[:, WEIGHTS == 0].any()


def test_small_concentration_is_resampling():
    count = 50_000
    draws = sample_dirichlet_weights(WEIGHTS, 1e-6, count, _generator())
    assert (draws.amax(1) > 0.999).double().mean() > 0.999
    frequencies = torch.bincount(draws.argmax(1), minlength=7) / count
    assert ((frequencies - MEAN).abs() <= 5 * (MEAN * (1 - MEAN) / count).sqrt()).all()


def test_the_two_limits():
    one_hot = sample_dirichlet_weights(WEIGHTS, 0, 20, _generator(4))
    assert torch.equal(one_hot.argmax(1), resample_indices(WEIGHTS, 20, _generator(4)))
    assert torch.equal(one_hot.sort(1).values, torch.eye(7)[-1].expand(20, -1))
    mean = sample_dirichlet_weights(WEIGHTS.double(), math.inf, 3, _generator())
    torch.testing.assert_close(mean, MEAN.expand(3, -1))
    mean[0] = 0  # draws do not share memory
    assert mean[1].any()


def test_the_concentration_is_the_total_whatever_the_scale_of_the_weights():
    draws = sample_dirichlet_weights(WEIGHTS, 2.0, 10, _generator(5))
    torch.testing.assert_close(draws, sample_dirichlet_weights(1000 * WEIGHTS, 2.0, 10, _generator(5)))


@pytest.mark.parametrize("concentration", [0.0, 1.0, math.inf])
def test_dtypes_and_gradients(concentration):
    for weights, dtype in (
        (WEIGHTS.double(), torch.float64),
        (WEIGHTS, torch.float32),
        (WEIGHTS.long(), torch.float32),
    ):
        assert sample_dirichlet_weights(weights, concentration, 2).dtype == dtype
    assert not sample_dirichlet_weights(WEIGHTS.clone().requires_grad_(), concentration).requires_grad
    assert sample_dirichlet_weights(WEIGHTS, concentration).shape == (1, 7)


# What the draws do to a loss


@pytest.mark.parametrize("concentration", [0.0, 1.0, 10.0])
def test_variance_of_the_loss(concentration):
    repeats, draws_per_step = 10_000, 4
    losses = torch.tensor([9.0, 0.1, 2.0, 5.0, 9.0, 0.7, 9.0]).double()
    draws = sample_dirichlet_weights(WEIGHTS.double(), concentration, repeats * draws_per_step, _generator())
    values = (draws @ losses).view(repeats, draws_per_step).mean(1)
    mean = (MEAN * losses).sum()
    variance = ((MEAN * losses**2).sum() - mean**2) / (draws_per_step * (concentration + 1))
    assert values.mean().item() == pytest.approx(mean.item(), abs=5 * math.sqrt(variance / repeats))
    assert values.var().item() == pytest.approx(variance.item(), rel=0.1)


# Bad input


@pytest.mark.parametrize(
    "weights",
    [
        torch.ones(2, 2),
        torch.tensor(1.0),
        torch.ones(0),
        torch.tensor([1.0, -0.1]),
        torch.tensor([1.0, torch.nan]),
        torch.tensor([1.0, torch.inf]),
        torch.zeros(3),
    ],
)
def test_bad_weights(weights):
    with pytest.raises(ValueError, match=r"^weights: "):
        resample_indices(weights)
    for concentration in (0.0, 1.0, math.inf):
        with pytest.raises(ValueError, match=r"^base_weights: "):
            sample_dirichlet_weights(weights, concentration)


def test_bad_numbers():
    for count in (0, -1):
        with pytest.raises(ValueError, match=r"^num_samples: "):
            resample_indices(WEIGHTS, count)
        for concentration in (0.0, 1.0, math.inf):
            with pytest.raises(ValueError, match=r"^num_draws: "):
                sample_dirichlet_weights(WEIGHTS, concentration, count)
    for concentration in (-1e-9, math.nan, -math.inf):
        with pytest.raises(ValueError, match=r"^concentration: "):
            sample_dirichlet_weights(WEIGHTS, concentration)


@PROPERTY
@given(st.integers(0, 2**32))
def test_inputs_are_left_alone(seed):
    weights = torch.rand(9, generator=_generator(seed))
    before = weights.clone()
    resample_indices(weights, generator=_generator(seed))
    sample_dirichlet_weights(weights, 0.5, 3, _generator(seed))
    sample_dirichlet_weights(weights, math.inf, 3)[0] = -1
    assert torch.equal(weights, before)
