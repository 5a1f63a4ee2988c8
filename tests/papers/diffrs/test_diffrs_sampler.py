"""The sampler: limit cases, exact ratios of Gaussians, its accounting, and its errors."""

import math

import pytest
import torch

from papers.diffrs import sampler
from papers.diffrs.noise_schedule import edm_sigmas
from papers.diffrs.rejection import RejectionConstants, rejection_log_constants
from papers.diffrs.sampler import diffrs_sample, warm_up_log_ratios
from shared.diffusion.gaussian_mixtures import GaussianMixture
from shared.diffusion.samplers import EULER, euler_step, integrate

DATA = GaussianMixture(torch.tensor([[0.3]]), 0.15, torch.ones(1))
MODEL = GaussianMixture(torch.tensor([[0.1]]), 0.25, torch.ones(1))
SIGMAS = edm_sigmas(6)
PASS = 2 * 6 - 1
NEUTRAL = RejectionConstants(torch.zeros(7), torch.zeros(7))


def exact_log_ratio(x, sigma):
    return DATA.log_density(x, sigma) - MODEL.log_density(x, sigma)


def no_ratio(x, sigma):
    return torch.zeros(len(x), dtype=x.dtype)


def half_line(x, sigma):
    """Only numbers above the upper mode's centre are possible, at every level."""
    return torch.where(x[:, 0] > 0.5, 0.0, -math.inf)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int, *shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(count, *shape, generator=seeded(seed), dtype=torch.float64)


def constants(sigmas, percentile: float, count: int = 2000) -> RejectionConstants:
    return rejection_log_constants(
        warm_up_log_ratios(MODEL.denoise, exact_log_ratio, sigmas, noise(count, 1, seed=1)), percentile
    )


@pytest.mark.parametrize("batch_size", [None, 3, 1])
def test_without_ratio_it_is_the_base_sampler(batch_size):
    """Invariants 1 and 10: whatever is in flight beside a sample."""
    start = noise(8, 1)
    output = diffrs_sample(
        MODEL.denoise, no_ratio, SIGMAS, NEUTRAL, 8, (1,), initial_noise=start, batch_size=batch_size
    )
    torch.testing.assert_close(output.samples, integrate(MODEL.denoise, start, SIGMAS), rtol=0, atol=1e-9)
    assert output.nfe.tolist() == [PASS] * 8
    assert output.total_nfe == 8 * PASS
    assert not output.pushbacks.any()
    assert output.proposals.tolist() == [8] * 7


def test_request_i_starts_from_initial_noise_i():
    start = noise(5, 1)
    all_at_once = diffrs_sample(MODEL.denoise, no_ratio, SIGMAS, NEUTRAL, 5, (1,), initial_noise=start)
    drawn = [
        diffrs_sample(MODEL.denoise, no_ratio, SIGMAS, NEUTRAL, 5, (1,), generator=seeded(), batch_size=size)
        for size in (None, 2)
    ]
    torch.testing.assert_close(drawn[0].samples, drawn[1].samples, rtol=0, atol=1e-12)
    one = diffrs_sample(MODEL.denoise, no_ratio, SIGMAS, NEUTRAL, 1, (1,), initial_noise=start[3:4])
    torch.testing.assert_close(one.samples[0], all_at_once.samples[3], rtol=0, atol=1e-12)


def test_same_generator_same_bits():
    """Invariant 10."""
    fixed = constants(SIGMAS, 0.9)
    a, b = (
        diffrs_sample(MODEL.denoise, exact_log_ratio, SIGMAS, fixed, 50, (1,), batch_size=20, generator=seeded(3))
        for _ in range(2)
    )
    for first, second in zip(a, b, strict=True):
        assert first == second if isinstance(first, int) else torch.equal(first, second)


def test_exact_ratios_come_closer_to_the_data_and_cost_more():
    """Invariant 11, with known distances (W₁) and evaluations of a run of another implementation."""
    sigmas, count = edm_sigmas(18), 10_000
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    quantiles = 0.3 + 0.15 * torch.special.ndtri(levels)

    def distance(samples):
        return (samples[:, 0].sort().values - quantiles).abs().mean().item()

    assert distance(integrate(MODEL.denoise, noise(count, 1), sigmas)) == pytest.approx(0.202, abs=0.01)
    for percentile, expected, evaluations in ((0.5, 0.087, 37.9), (0.75, 0.048, 39.2), (0.99, 0.022, 41.6)):
        output = diffrs_sample(
            MODEL.denoise, exact_log_ratio, sigmas, constants(sigmas, percentile), count, (1,), generator=seeded()
        )
        assert distance(output.samples) == pytest.approx(expected, abs=0.01)
        assert output.total_nfe / count == pytest.approx(evaluations, abs=0.4)


def two_sided_run(**options):
    """Much of what the model proposes is impossible; with the output, how many evaluations there were."""
    model = GaussianMixture(torch.tensor([[-0.5], [0.5]]), 0.2, torch.ones(2))
    calls = []

    def denoiser(x, sigma):
        calls.append(len(x))
        return model.denoise(x, sigma)

    output = diffrs_sample(
        denoiser, half_line, SIGMAS, NEUTRAL, 300, (1,), batch_size=40, generator=seeded(), **options
    )
    return output, sum(calls)


def test_impossible_samples_never_come_out_and_all_work_is_counted():
    """Invariants 6 and 9."""
    output, evaluations = two_sided_run(max_nfe=PASS + 2)
    assert (output.samples > 0.5).all()
    assert ((output.nfe >= PASS) & (output.nfe <= PASS + 2)).all()
    assert output.nfe.sum() < output.total_nfe == evaluations
    assert output.restarts.sum() > 0
    # Fresh starts and what was pushed back to noise are tested there, but for restarts of the latter.
    to_noise = output.pushbacks[:, 0].sum()
    assert 300 + to_noise < output.proposals[0] < 300 + to_noise + output.restarts.sum()


def test_counts_balance():
    """What is accepted at a level, proposed there or pushed back to it, is what a step leads to the next level."""
    output, _ = two_sided_run()
    accepted = output.proposals - output.pushbacks.sum(1)
    pushed_here = output.pushbacks.sum(0)
    assert accepted[-1] == 300
    assert output.proposals[1] == accepted[0]
    assert torch.equal(output.proposals[2:], (accepted + pushed_here)[1:-1])
    assert output.proposals[0] == 300 + pushed_here[0]
    assert not output.pushbacks[1:].triu(1).any()
    assert output.pushbacks[0, 0] > 0
    assert output.pushbacks.tril(-1).any()


def test_budget_restarts_samples():
    tight = constants(SIGMAS, 1.0)
    spent = diffrs_sample(MODEL.denoise, exact_log_ratio, SIGMAS, tight, 400, (1,), max_nfe=PASS, generator=seeded())
    assert spent.nfe.tolist() == [PASS] * 400
    assert spent.restarts.sum() > 0
    assert spent.total_nfe > 400 * PASS
    unlimited, infinite = (
        diffrs_sample(MODEL.denoise, exact_log_ratio, SIGMAS, tight, 100, (1,), max_nfe=limit, generator=seeded())
        for limit in (None, math.inf)
    )
    assert torch.equal(unlimited.samples, infinite.samples)
    assert unlimited.nfe.max() > PASS
    assert unlimited.nfe.sum() == unlimited.total_nfe
    assert not unlimited.restarts.any()


def test_rejected_states_are_tested_by_the_marginal_constants(monkeypatch):
    """A level's ratio of −1 passes no transition from 0, and passes the marginal test where its constant is −1."""

    monkeypatch.setattr(sampler, "STALLED_PASSES", 5)

    def ratio(x, sigma):
        return torch.where(sigma == SIGMAS[3], -1e6, 0.0)

    open_marginal = RejectionConstants(torch.zeros(7), torch.tensor([0, 0, 0, -1e6, 0, 0, 0]))
    with pytest.raises(RuntimeError, match="level 3"):
        diffrs_sample(MODEL.denoise, ratio, SIGMAS, open_marginal, 1, (1,), generator=seeded())
    open_transition = RejectionConstants(torch.tensor([0, 0, 0, -1e6, 0, 0, 0]), torch.zeros(7))
    output = diffrs_sample(MODEL.denoise, ratio, SIGMAS, open_transition, 5, (1,), generator=seeded())
    assert output.nfe.tolist() == [PASS] * 5
    # From level 3 (ratio −1e6) any step is a gain; a constant of 1e6 is what it takes to see it as none.
    late = RejectionConstants(torch.tensor([0, 0, 0, -1e6, 2e6, 0, 0]), torch.zeros(7))
    with pytest.raises(RuntimeError, match="level 4"):
        diffrs_sample(MODEL.denoise, ratio, SIGMAS, late, 1, (1,), generator=seeded())


def test_a_shifted_ratio_with_its_own_constants_samples_the_same():
    """Invariant 2."""

    def shifted(x, sigma):
        return exact_log_ratio(x, sigma) + 3.0

    outputs = []
    for ratio in (exact_log_ratio, shifted):
        warm_up = warm_up_log_ratios(MODEL.denoise, ratio, SIGMAS, noise(500, 1))
        fixed = rejection_log_constants(warm_up, 0.9, floor=None)
        outputs.append(diffrs_sample(MODEL.denoise, ratio, SIGMAS, fixed, 100, (1,), generator=seeded()))
    torch.testing.assert_close(outputs[0].samples, outputs[1].samples, rtol=0, atol=1e-9)
    assert outputs[0].pushbacks.sum() > 0


def test_other_solvers_count_their_own_price():
    start = noise(6, 1)
    output = diffrs_sample(MODEL.denoise, no_ratio, SIGMAS, NEUTRAL, 6, (1,), initial_noise=start, solver=EULER)
    torch.testing.assert_close(
        output.samples, integrate(MODEL.denoise, start, SIGMAS, step=euler_step), rtol=0, atol=1e-9
    )
    assert output.nfe.tolist() == [6] * 6
    assert output.total_nfe == 36


def test_warm_up_records_every_level():
    start = noise(4, 1)
    recorded = warm_up_log_ratios(MODEL.denoise, exact_log_ratio, SIGMAS, start)
    assert recorded.shape == (7, 4)
    torch.testing.assert_close(recorded[0], exact_log_ratio(SIGMAS[0] * start, SIGMAS[0]))
    torch.testing.assert_close(recorded[-1], exact_log_ratio(integrate(MODEL.denoise, start, SIGMAS), 0.0))
    halfway = integrate_to(3, start)
    torch.testing.assert_close(recorded[3], exact_log_ratio(halfway, SIGMAS[3]))


def integrate_to(level: int, start: torch.Tensor) -> torch.Tensor:
    x = SIGMAS[0] * start
    for k in range(level):
        slope = (x - MODEL.denoise(x, SIGMAS[k])) / SIGMAS[k]
        predicted = x + (SIGMAS[k + 1] - SIGMAS[k]) * slope
        second = (predicted - MODEL.denoise(predicted, SIGMAS[k + 1])) / SIGMAS[k + 1]
        x = x + (SIGMAS[k + 1] - SIGMAS[k]) * (slope + second) / 2
    return x


def test_state_has_the_dtype_of_the_levels():
    seen = set()

    def denoiser(x, sigma):
        seen.update({x.dtype, sigma.dtype})
        return 0 * x

    output = diffrs_sample(denoiser, no_ratio, SIGMAS.float(), NEUTRAL, 3, (1, 2, 2), initial_noise=noise(3, 1, 2, 2))
    assert output.samples.shape == (3, 1, 2, 2)
    assert seen == {torch.float32} == {output.samples.dtype}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigmas": SIGMAS[:-1]}, "sigmas"),
        ({"sigmas": SIGMAS.flip(0)}, "sigmas"),
        ({"constants": RejectionConstants(torch.zeros(6), torch.zeros(7))}, "transition"),
        ({"constants": RejectionConstants(torch.zeros(7), torch.zeros(6))}, "marginal"),
        ({"max_nfe": PASS - 1}, "max_nfe"),
        ({"num_samples": 0}, "num_samples"),
        ({"batch_size": 0}, "batch_size"),
        ({"initial_noise": torch.zeros(3, 1)}, "initial_noise"),
        ({"log_ratio": lambda x, sigma: x}, "log_ratio"),
        ({"log_ratio": lambda x, sigma: no_ratio(x, sigma) + math.nan}, "log_ratio"),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = dict(
        denoiser=MODEL.denoise,
        log_ratio=no_ratio,
        sigmas=SIGMAS,
        constants=NEUTRAL,
        num_samples=2,
        sample_shape=(1,),
    )
    with pytest.raises(ValueError, match=message):
        diffrs_sample(**arguments | changes)


def test_stall_at_the_prior_is_named(monkeypatch):
    monkeypatch.setattr(sampler, "STALLED_DRAWS", 50)
    with pytest.raises(RuntimeError, match="level 0"):
        diffrs_sample(MODEL.denoise, lambda x, s: no_ratio(x, s) - math.inf, SIGMAS, NEUTRAL, 2, (1,))
