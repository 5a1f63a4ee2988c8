"""Study: the error of the lookahead estimates against their exact values, on Gaussian mixtures.

``errors``   parquet: dimension, size (n), seed, efr_error (root mean squared error of r̂), score_error (the same of g,
             in parts of the norm of the exact one), means over points and replicates
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from papers.lidar.lookahead_guidance import expected_future_reward, lookahead_score
from papers.lidar.mixtures import LinearReward, graded_reward
from papers.lidar.options import MixtureOptions
from shared.data_order import generator_for
from shared.stage import Output, run
from shared.tables import write_table


def estimate_errors(
    problem: LinearReward, size: int, options: MixtureOptions, generator: torch.Generator
) -> dict[str, float]:
    """Errors of estimates from fresh lookahead sets of one size, at fresh points."""
    efr_squares, score_squares, norms = [], [], []
    for _ in range(options.replicates):
        clean, _ = problem.mixture.sample(options.points, generator)
        points = clean + options.sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        lookahead, _ = problem.mixture.sample(size, generator)
        given = (points, lookahead, lookahead @ problem.slope, 1.0, options.sigma, options.reward_weight)
        exact = (points, options.sigma, options.reward_weight)
        efr_squares.append((expected_future_reward(*given) - problem.expected_future_reward(*exact)).square().mean())
        score = problem.score(*exact)
        score_squares.append((lookahead_score(*given) - score).square().sum(dim=1).mean())
        norms.append(score.square().sum(dim=1).mean())
    return {
        "efr_error": float(np.sqrt(np.mean(efr_squares))),
        "score_error": float(np.sqrt(np.mean(score_squares) / np.mean(norms))),
    }


def study_mixtures(options: MixtureOptions, *, seeds: tuple[int, ...], errors: Output) -> None:
    """Write the table described above."""
    rows = []
    for seed in seeds:
        for dimension in options.dimensions:
            problem = graded_reward(dimension, options.std, seed)
            for size in options.sizes:
                found = estimate_errors(problem, size, options, generator_for(seed, dimension, size))
                rows.append({"dimension": dimension, "size": size, "seed": seed, **found})
    write_table(errors, pd.DataFrame(rows))


if __name__ == "__main__":
    run(study_mixtures)
