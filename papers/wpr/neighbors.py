"""Neighbours: distance of every token to its nearest and to its k-th nearest other token, once for all trainings.

With the vocabulary of a real model these are 10^10 distances; the trainings read them from here.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from accelerate import PartialState

from papers.wpr.options import WassersteinOptions
from papers.wpr.penalties import neighbor_distances
from shared.errors import InputError
from shared.lm.texts import load_causal_lm
from shared.stage import Input, Output, run
from shared.tables import write_table


def find_neighbors(options: WassersteinOptions, *, supervised: Input, distances: Output) -> None:
    """Write the columns token_id, nearest, radius, in the metric of the options, not normalised.

    Raises:
        InputError: the options truncate nothing.
    """
    if options.neighbors is None:
        raise InputError("neighbors: expected a number of neighbours to truncate costs to, got none")
    embeddings = load_causal_lm(supervised).get_input_embeddings().weight.to(PartialState().device)
    found = neighbor_distances(embeddings, options)
    write_table(
        distances,
        pd.DataFrame(
            {
                "token_id": np.arange(len(embeddings)),
                "nearest": found.nearest.cpu().numpy(),
                "radius": found.radii.cpu().numpy(),
            }
        ),
    )


if __name__ == "__main__":
    run(find_neighbors)
