"""Exact: DiffRS where denoiser, log ratio and answer are known, so that only the sampler itself can err.

In one dimension the data are N(0.3, 0.15²) and the model's samples N(0.1, 0.25²); in two, the data are a ring of eight
Gaussians and the model's samples wider ones of unequal weights.
"""

from __future__ import annotations

import pandas as pd
import torch

from papers.diffrs.bench import Bench
from papers.diffrs.judges import Judge, number_judge, ring_judge
from papers.diffrs.methods import parse_run
from papers.diffrs.noise_schedule import edm_sigmas
from papers.diffrs.options import ExactOptions
from shared.data_order import generator_for
from shared.diffusion.gaussian_mixtures import GaussianMixture, ring
from shared.diffusion.samplers import HEUN
from shared.stage import Output, run
from shared.tables import write_table

REFERENCES = 20_000


def exact(options: ExactOptions, *, seeds: tuple[int, ...], runs: Output) -> None:
    """Make the runs for every seed in both cases: a table with setting, seed, run, nfe, seconds and metrics."""
    rows = []
    for setting, (data, model) in cases().items():
        for seed in seeds:
            bench = Bench(
                denoiser=model.denoise,
                log_ratio=lambda x, sigma, data=data, model=model: (
                    data.log_density(x, sigma) - model.log_density(x, sigma)
                ),
                sigmas=edm_sigmas(options.exact_steps),
                solver=HEUN,
                shape=(data.means.shape[1],),
                seed=seed,
                budget=None,
            )
            judge = judge_of(data, seed)
            for name in options.exact_runs:
                drawn = bench.draw(parse_run(name), options.exact_samples)
                rows.append(
                    {
                        "setting": setting,
                        "seed": seed,
                        "run": name,
                        "nfe": drawn.total_nfe / options.exact_samples,
                        "seconds": drawn.seconds,
                        **judge(drawn.samples),
                    }
                )
    write_table(runs, pd.DataFrame(rows))


def cases() -> dict[str, tuple[GaussianMixture, GaussianMixture]]:
    """Setting to (data, model's samples)."""
    wide = ring(8, 0.2)
    weights = torch.tensor([1.0, 2.0] * 4)
    return {
        "exact-1d": (
            GaussianMixture(torch.tensor([[0.3]]), 0.15, torch.ones(1)),
            GaussianMixture(torch.tensor([[0.1]]), 0.25, torch.ones(1)),
        ),
        "exact-2d": (ring(8, 0.07), GaussianMixture(wide.means, wide.std, weights)),
    }


def judge_of(data: GaussianMixture, seed: int) -> Judge:
    """W₁ of numbers; of two dimensions the metrics of a ring."""
    if data.means.shape[1] == 1:
        return number_judge(float(data.means), data.std)
    references, _ = data.sample(REFERENCES, generator_for(seed, 20))
    return ring_judge(data, references, judged=2000)


if __name__ == "__main__":
    run(exact)
