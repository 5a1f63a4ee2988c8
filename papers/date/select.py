"""Select: the strength of every variant, from the trials on development prompts alone."""

from __future__ import annotations

import pandas as pd

from papers.date.options import SelectOptions
from papers.date.variants import parse_variant, strength_source
from shared.errors import InputError
from shared.stage import Input, Output, run
from shared.tables import read_table, write_table


def best_strengths(trials: pd.DataFrame, criterion: str) -> dict[str, float]:
    """The strength of each tried variant with the highest criterion; of equals, the least."""
    ordered = trials.sort_values("strength", ignore_index=True)
    best = ordered.loc[ordered.groupby("variant")[criterion].idxmax()]
    return dict(zip(best["variant"], best["strength"], strict=True))


def strengths_of(variants: tuple[str, ...], trials: pd.DataFrame, options: SelectOptions) -> dict[str, float]:
    """The strength of each variant but those with a fixed embedding.

    Raises:
        ValueError: a variant whose strength cannot be told from the trials.
    """
    best, found = best_strengths(trials, options.criterion), {}
    unit_lengths = trials.set_index("variant")["step_length"]
    for variant in map(parse_variant, variants):
        source = strength_source(variant, list(best))
        if source is None:
            continue
        if not variant.normalize and variant.name not in best:
            raise ValueError(f"tuned: lacks {variant.name!r}, the length of whose steps is not known")
        found[variant.name] = best[source] if variant.normalize else best[source] / unit_lengths[variant.name]
    return found


def select(options: SelectOptions, *, variants: tuple[str, ...], trials: tuple[Input, ...], strengths: Output) -> None:
    """Write the columns variant, strength."""
    table = pd.concat([read_table(path, ("variant", "strength", options.criterion)) for path in trials])
    try:
        found = strengths_of(variants, table, options)
    except ValueError as error:
        raise InputError(str(error)) from None
    write_table(strengths, pd.DataFrame({"variant": list(found), "strength": list(found.values())}))


if __name__ == "__main__":
    run(select)
