"""Study optima: what generators do, apart from any model: their curves, and where each loss has its optimum."""

from __future__ import annotations

import math

import pandas as pd
import torch

from papers.bpo.bregman_losses import bregman_divergence, bregman_gradient_magnitude
from papers.bpo.options import TabularOptions
from papers.bpo.tabular import optimality_gaps, random_problem
from shared.progress import Progress
from shared.stage import Output, run
from shared.tables import write_table

POWERS = (-0.5, 0.0, 0.5, 1.0, 2.0)


def study_optima(options: TabularOptions, *, seeds: tuple[int, ...], gaps: Output, generators: Output) -> None:
    """Write KL(pi* || pi_hat) of every loss on every problem (columns seed, problem, loss, gap in nats).

    Each seed has problems of its own. ``generators`` receives :func:`generator_curves`.
    """
    parts = []
    with Progress(len(seeds) * options.problems, "problems") as progress:
        for seed in seeds:
            for problem in range(options.problems):
                found = optimality_gaps(random_problem(seed * options.problems + problem))
                table = pd.DataFrame({"loss": list(found), "gap": list(found.values())})
                parts.append(table.assign(seed=seed, problem=problem))
                progress.update()
    write_table(gaps, pd.concat(parts, ignore_index=True))
    write_table(generators, generator_curves())


def generator_curves(*, data_ratio: float = 0.5, extent: float = 20.0, points: int = 401) -> pd.DataFrame:
    """B_h(data_ratio || R) and G_h(R) for R between 1/extent and extent.

    Returns:
        columns generator, lam (0 where the generator has none), ratio, divergence, gradient.
    """
    log_ratio = torch.linspace(-math.log(extent), math.log(extent), points, dtype=torch.float64)
    data = torch.full_like(log_ratio, math.log(data_ratio))
    members = [(name, 0.0) for name in ("logistic", "kliep", "lsif")]
    members += [(name, lam) for name in ("basu", "scaled_basu") for lam in POWERS]
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "generator": generator,
                    "lam": lam,
                    "ratio": log_ratio.exp().numpy(),
                    "divergence": bregman_divergence(data, log_ratio, generator=generator, lam=lam).numpy(),
                    "gradient": bregman_gradient_magnitude(log_ratio, generator=generator, lam=lam).numpy(),
                }
            )
            for generator, lam in members
        ],
        ignore_index=True,
    )


if __name__ == "__main__":
    run(study_optima)
