"""What the discriminator says of data and of samples, with noise of every level: quantiles of the log ratio.

The table has a row for each set, level and quantile: ``source`` (``data``, held out, or the name of a run), ``level``
(0 the noisiest, the last without noise), ``quantile``, ``log_ratio``.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from papers.diffrs.bench import RATIOS, Bench
from shared.data_order import generator_for

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
COLUMNS = ("source", "level", "quantile", "log_ratio")


@torch.no_grad()
def log_ratio_quantiles(bench: Bench, sets: Mapping[str, Tensor]) -> pd.DataFrame:
    """The table of sets (N, ...) of samples without noise, by their names; rows of all sets see the same noise."""
    rows = []
    for source, samples in sets.items():
        clean = samples.to(bench.sigmas)
        for level, sigma in enumerate(bench.sigmas):
            generator = generator_for(bench.seed, RATIOS, level, device=clean.device)
            noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
            parts = (clean + sigma * noise).split(bench.slots)
            values = torch.cat([bench.log_ratio(part, sigma.expand(len(part))) for part in parts]).double()
            found = values.quantile(values.new_tensor(QUANTILES)).tolist()
            rows += [(source, level, *pair) for pair in zip(QUANTILES, found, strict=True)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"level": "int16", "log_ratio": "float32"})
