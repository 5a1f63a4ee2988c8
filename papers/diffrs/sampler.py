"""The sampler: every step of a solver is tested, and rejected samples are pushed back, each at its own pace.

One round of the loop takes every sample in flight one step ahead, wherever it is, in one batch; then all are tested,
those rejected are pushed back level by level until a test accepts them, and finished ones leave their slot to the next
request. So no sample waits for another. Each of `num_samples` requests is returned when *it* is finished: collecting
whatever finishes first would favour samples that are easily accepted.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from papers.diffrs.rejection import RejectionConstants, log_acceptance, renoise
from shared.diffusion.denoisers import Denoiser
from shared.diffusion.samplers import HEUN, Solver, check_sigmas

LogRatio = Callable[[Tensor, Tensor], Tensor]
"""`(x (B, ...), sigma (B,)) -> (B,)`: log of data density over model density at noise levels; 0 is clean."""

STALLED_PASSES = 500
"""After so many passes' worth of rounds in which no request was finished, the sampler gives up."""
STALLED_DRAWS = 2000
"""After so many draws from the prior for one sample, none accepted, the sampler gives up."""


class DiffRSOutput(NamedTuple):
    """Samples and what they cost; K steps, N requests.

    Attributes:
        samples: (N, ...), row i of request i.
        nfe: int64 (N,), the denoiser's evaluations since the request's last restart.
        total_nfe: all evaluations, of one sample each, restarts and discarded work included.
        proposals: int64 (K + 1,), how many states a step (level 0: the prior) proposed for each level.
        pushbacks: int64 (K + 1, K + 1), entry (i, j) how many proposals at level i were rejected and accepted again at
            level j < i; those at (i, 0) have yet to pass the prior's test, and (0, 0) are what that test has replaced.
        restarts: int64 (N,), how often the budget made a request start anew.
    """

    samples: Tensor
    nfe: Tensor
    total_nfe: int
    proposals: Tensor
    pushbacks: Tensor
    restarts: Tensor


@torch.no_grad()
def diffrs_sample(
    denoiser: Denoiser,
    log_ratio: LogRatio,
    sigmas: Tensor,
    constants: RejectionConstants,
    num_samples: int,
    sample_shape: tuple[int, ...],
    *,
    batch_size: int | None = None,
    initial_noise: Tensor | None = None,
    max_nfe: float | None = None,
    generator: torch.Generator | None = None,
    solver: Solver = HEUN,
) -> DiffRSOutput:
    """Samples by diffusion rejection sampling (Na et al., ICML 2024, algorithm 1).

    Args:
        denoiser: D(x (B, ...), sigma (B,)), levels differing within a batch.
        log_ratio: ℓ(x, sigma), the discriminator's logit; also asked at sigma = 0.
        sigmas: (K + 1,), strictly decreasing to 0; the state has its dtype and device.
        constants: of these levels.
        num_samples: N requests.
        sample_shape: of one sample.
        batch_size: samples in flight; None: all.
        initial_noise: (N, *sample_shape) of unit variance, from which request i starts; None: drawn.
        max_nfe: a request that could not end within so many evaluations restarts from noise; None: never.
        generator: on the device of sigmas; None: PyTorch's global one.
        solver: its step and price.

    Raises:
        ValueError: sigmas that do not decrease strictly to 0, constants or noise of another size, max_nfe below that of
            one pass, a log ratio that is NaN or not (B,).
        RuntimeError: a stall, no sample being accepted any more.
    """
    _check(sigmas, constants, num_samples, batch_size, max_nfe, solver)
    if initial_noise is None:
        initial_noise = torch.randn(
            num_samples, *sample_shape, generator=generator, dtype=sigmas.dtype, device=sigmas.device
        )
    elif initial_noise.shape != (num_samples, *sample_shape):
        raise ValueError(f"initial_noise: need shape {(num_samples, *sample_shape)}, got {tuple(initial_noise.shape)}")
    run = _Run(denoiser, log_ratio, sigmas, constants, initial_noise, generator, solver)
    run.fill(num_samples if batch_size is None else min(batch_size, num_samples))
    idle_rounds = 0
    while len(run.request):
        run.test_prior()
        run.advance()
        run.test_steps()
        if max_nfe is not None:
            run.restart_spent(max_nfe)
        idle_rounds = 0 if run.collect() else idle_rounds + 1
        if idle_rounds > STALLED_PASSES * (len(sigmas) - 1):
            level = int(run.pushbacks.sum(1).argmax())
            raise RuntimeError(f"no sample finished in {STALLED_PASSES} passes; most rejections are at level {level}")
    return DiffRSOutput(run.samples, run.sample_nfe, run.total_nfe, run.proposals, run.pushbacks, run.restarts)


@torch.no_grad()
def warm_up_log_ratios(
    denoiser: Denoiser, log_ratio: LogRatio, sigmas: Tensor, noise: Tensor, *, solver: Solver = HEUN
) -> Tensor:
    """ℓ_k(x_k) along runs of the base sampler without rejection: (K + 1, N), for `rejection_log_constants`.

    Args:
        denoiser: D(x, σ).
        log_ratio: ℓ(x, σ).
        sigmas: (K + 1,), strictly decreasing to 0.
        noise: (N, ...), unit variance.
        solver: of the base sampler.

    Raises:
        ValueError: sigmas that do not decrease strictly to 0.
    """
    check_sigmas(sigmas)
    x = noise.to(sigmas) * sigmas[0]
    rows = [log_ratio(x, sigmas[0].expand(len(x)))]
    for sigma, sigma_next in pairwise(sigmas):
        x = solver.step(denoiser, x, sigma.expand(len(x)), sigma_next.expand(len(x)))
        rows.append(log_ratio(x, sigma_next.expand(len(x))))
    return torch.stack(rows)


class _Run:
    """Samples in flight, S slots, and the counts and results of all N requests."""

    def __init__(
        self,
        denoiser: Denoiser,
        log_ratio: LogRatio,
        sigmas: Tensor,
        constants: RejectionConstants,
        initial_noise: Tensor,
        generator: torch.Generator | None,
        solver: Solver,
    ):
        self._denoiser, self._log_ratio_fn, self._sigmas = denoiser, log_ratio, sigmas
        self._constants = RejectionConstants(*(values.to(sigmas) for values in constants))
        self._initial_noise, self._generator, self._solver = initial_noise, generator, solver
        self._last = len(sigmas) - 1

        def counts(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=sigmas.device)

        self.samples = torch.empty(initial_noise.shape, dtype=sigmas.dtype, device=sigmas.device)
        self.sample_nfe, self.restarts = counts(len(initial_noise)), counts(len(initial_noise))
        self.total_nfe, self._requested = 0, 0
        self.proposals, self.pushbacks = counts(self._last + 1), counts(self._last + 1, self._last + 1)
        self.request, self._level, self._nfe = counts(0), counts(0), counts(0)
        self._x, self._log_ratio = self.samples[:0], sigmas[:0]

    def fill(self, slots: int) -> None:
        """Append slots with the next requests, as many as there are."""
        new = torch.arange(self._requested, min(self._requested + slots, len(self.samples)), device=self.samples.device)
        self._requested += len(new)
        self.request = torch.cat([self.request, new])
        self._x = torch.cat([self._x, self._sigmas[0] * self._initial_noise[new].to(self.samples)])
        self._log_ratio = torch.cat([self._log_ratio, self._sigmas.new_zeros(len(new))])
        self._level, self._nfe = (torch.cat([old, torch.zeros_like(new)]) for old in (self._level, self._nfe))

    def test_prior(self) -> None:
        """Redraw samples at level 0, fresh or pushed back, until all are accepted."""
        rows = (self._level == 0).nonzero().squeeze(1)
        for _ in range(STALLED_DRAWS):
            if not len(rows):
                return
            self.proposals[0] += len(rows)
            self._log_ratio[rows] = self._evaluate_log_ratio(rows)
            rows = rows[~self._accepts(rows, self._constants.marginal)]
            self.pushbacks[0, 0] += len(rows)
            self._x[rows] = self._sigmas[0] * self._noise(rows)
        raise RuntimeError(f"level 0: no draw from the prior was accepted in {STALLED_DRAWS}")

    def advance(self) -> None:
        """One step of the solver for every sample, from its level to the next."""
        start, self._level = self._level, self._level + 1
        self._x = self._solver.step(self._denoiser, self._x, self._sigmas[start], self._sigmas[self._level])
        cost = self._solver.remaining(self._last - start) - self._solver.remaining(self._last - self._level)
        self._nfe += cost
        self.total_nfe += int(cost.sum())

    def test_steps(self) -> None:
        """Test every step, and push rejected samples back until the marginal test accepts them or level 0 is reached.

        Rejected, a sample is not redrawn from its parent: a deterministic solver would propose the same again.
        """
        everyone = torch.arange(len(self.request), device=self.request.device)
        previous, self._log_ratio = self._log_ratio, self._evaluate_log_ratio(everyone)
        self.proposals += self._level.bincount(minlength=self._last + 1)
        rejected = rows = everyone[~self._accepts(everyone, self._constants.transition, previous)]
        origin = self._level[rejected]
        while len(rows):
            level = self._level[rows]
            self._x[rows] = renoise(self._x[rows], self._noise(rows), self._sigmas[level], self._sigmas[level - 1])
            self._level[rows] = level - 1
            rows = rows[level > 1]
            self._log_ratio[rows] = self._evaluate_log_ratio(rows)
            rows = rows[~self._accepts(rows, self._constants.marginal)]
        cells = origin * (self._last + 1) + self._level[rejected]
        self.pushbacks += cells.bincount(minlength=self.pushbacks.numel()).view_as(self.pushbacks)

    def restart_spent(self, max_nfe: float) -> None:
        """Start those requests anew that cannot end within their budget."""
        spent = self._nfe + self._solver.remaining(self._last - self._level) > max_nfe
        rows = spent.nonzero().squeeze(1)
        self._x[rows] = self._sigmas[0] * self._noise(rows)
        self._level[rows] = 0
        self._nfe[rows] = 0
        self.restarts[self.request[rows]] += 1

    def collect(self) -> int:
        """Hand over finished samples, give their slots to the next requests, and say how many were finished."""
        finished = self._level == self._last
        done = self.request[finished]
        if len(done):
            self.samples[done] = self._x[finished]
            self.sample_nfe[done] = self._nfe[finished]
            self.request, self._level, self._nfe, self._x, self._log_ratio = (
                values[~finished] for values in (self.request, self._level, self._nfe, self._x, self._log_ratio)
            )
            self.fill(len(done))
        return len(done)

    def _evaluate_log_ratio(self, rows: Tensor) -> Tensor:
        if not len(rows):
            return self._sigmas[:0]
        values = self._log_ratio_fn(self._x[rows], self._sigmas[self._level[rows]])
        if values.shape != rows.shape:
            raise ValueError(f"log_ratio: must return shape {tuple(rows.shape)}, got {tuple(values.shape)}")
        return values.to(self._sigmas)

    def _accepts(self, rows: Tensor, constants: Tensor, previous: Tensor | None = None) -> Tensor:
        """bool: which rows, with their log ratios up to date, pass a test with a fresh uniform number each."""
        log_a = log_acceptance(
            self._log_ratio[rows], constants[self._level[rows]], None if previous is None else previous[rows]
        )
        uniform = torch.rand(len(rows), generator=self._generator, dtype=log_a.dtype, device=log_a.device)
        return uniform.clamp(min=torch.finfo(log_a.dtype).tiny).log() <= log_a

    def _noise(self, rows: Tensor) -> Tensor:
        shape = (len(rows), *self._x.shape[1:])
        return torch.randn(shape, generator=self._generator, dtype=self._x.dtype, device=self._x.device)


def _check(
    sigmas: Tensor,
    constants: RejectionConstants,
    num_samples: int,
    batch_size: int | None,
    max_nfe: float | None,
    solver: Solver,
) -> None:
    check_sigmas(sigmas)
    for name, values in constants._asdict().items():
        if values.shape != sigmas.shape:
            raise ValueError(f"constants: need {len(sigmas)} for {name}, got shape {tuple(values.shape)}")
    if num_samples < 1:
        raise ValueError(f"num_samples: need at least 1, got {num_samples}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: need at least 1, got {batch_size}")
    least = solver.remaining(len(sigmas) - 1)
    if max_nfe is not None and (math.isnan(max_nfe) or max_nfe < least):
        raise ValueError(f"max_nfe: one pass needs {least} evaluations, got {max_nfe}")
