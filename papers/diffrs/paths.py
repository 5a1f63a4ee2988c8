"""Requests of DiffRS followed step by step: what was tested, what was rejected, and what it would have become.

One request alone is in flight, without a budget, so that the calls of the log ratio are its states in their order. A
state is *rejected* if the next one tested is at a noisier level. The table has a row for each state tested, and one for
the sample that the base sampler makes of each rejected one:

``request``, ``order`` (of the tests of a request), ``level`` (0 the noisiest), ``x``, ``y``, ``log_ratio``, ``kind``
(``accepted``, ``rejected``, or ``without``: the end without this rejection).
"""

from __future__ import annotations

from itertools import pairwise

import pandas as pd
import torch
from torch import Tensor

from papers.diffrs.bench import NOISE, TESTS, Bench
from papers.diffrs.sampler import diffrs_sample
from shared.data_order import generator_for

COLUMNS = ("request", "order", "level", "x", "y", "log_ratio", "kind")


def follow_requests(bench: Bench, count: int, percentile: float = 0.75) -> pd.DataFrame:
    """The table of the first `count` requests, of samples (N, 2)."""
    if not count:
        return pd.DataFrame(columns=list(COLUMNS))
    noise = bench.noise(NOISE, count)
    tables = [follow(bench, start, percentile, number).assign(request=number) for number, start in enumerate(noise)]
    return pd.concat(tables, ignore_index=True)[list(COLUMNS)]


def follow(bench: Bench, start: Tensor, percentile: float, number: int) -> pd.DataFrame:
    """The table of one request from first noise (D,), without its number."""
    states: list[tuple[Tensor, float, float]] = []

    def recorded(x: Tensor, sigma: Tensor) -> Tensor:
        values = bench.log_ratio(x, sigma)
        states.append((x[0].clone(), float(sigma[0]), float(values[0])))
        return values

    diffrs_sample(
        bench.denoiser,
        recorded,
        bench.sigmas,
        bench.constants(percentile),
        1,
        bench.shape,
        initial_noise=start[None],
        generator=generator_for(bench.seed, TESTS, number, device=bench.sigmas.device),
        solver=bench.solver,
    )
    rows = []
    for order, ((x, sigma, value), following) in enumerate(zip(states, [*states[1:], None], strict=True)):
        rejected = following is not None and following[1] >= sigma
        level = int((bench.sigmas - sigma).abs().argmin())
        rows.append((order, level, *x.tolist(), value, "rejected" if rejected else "accepted"))
        if rejected and level > 0:
            rows.append((order, level, *_finished(bench, x, level).tolist(), value, "without"))
    return pd.DataFrame(rows, columns=list(COLUMNS[1:]))


@torch.no_grad()
def _finished(bench: Bench, x: Tensor, level: int) -> Tensor:
    """The sample that the base sampler makes of a state (D,) at a level."""
    x = x[None]
    for sigma, sigma_next in pairwise(bench.sigmas[level:]):
        x = bench.solver.step(bench.denoiser, x, sigma[None], sigma_next[None])
    return x[0]
