"""Decide the claims of a paper from its tables."""

from __future__ import annotations

from shared.claims import Verdicts, decide, read_paper, write_verdicts
from shared.results import read_metrics, read_units
from shared.stage import Input, Output, run


def decide_claims(
    *, scale: str, replicates: int = 10_000, seed: int = 0, paper: Input, metrics: Input, units: Input, verdicts: Output
) -> None:
    """Write the verdict on every claim in ``paper`` (a paper.yaml), with ``replicates`` bootstrap replicates a test."""
    described = read_paper(paper)
    claims = decide(described, read_metrics(metrics), read_units(units), replicates=replicates, seed=seed)
    write_verdicts(verdicts, Verdicts(paper=described.id, scale=scale, replicates=replicates, seed=seed, claims=claims))


if __name__ == "__main__":
    run(decide_claims)
