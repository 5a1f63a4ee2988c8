"""Study the mixture in the plane: base model, SDG and STG under three ways to say what is unsafe."""

from __future__ import annotations

import pandas as pd

from papers.stg.options import ToyOptions
from papers.stg.toy_mixture import UNSAFE_VALUES, measure_points, sample_points
from shared.progress import Progress
from shared.stage import Output, run
from shared.tables import write_table


def study_toy(options: ToyOptions, *, seeds: tuple[int, ...], quality: Output, points: Output) -> None:
    """Write ``quality`` (value, run, seed, and the shares of `measure_points`) and some of the ``points``.

    Points (value, run, x, y) are those of the first seed, for the base model and the largest scale.
    """
    runs = [("base", 0.0), *((method, scale) for method in ("sdg", "stg") for scale in options.scales)]
    rows, shown = [], []
    with Progress(len(UNSAFE_VALUES) * len(runs) * len(seeds), "sampling the mixture") as progress:
        for value in UNSAFE_VALUES:
            for method, scale in runs:
                name = method if method == "base" else f"{method}:{scale:g}"
                for seed in seeds:
                    found = sample_points(
                        method,
                        UNSAFE_VALUES[value],
                        scale,
                        count=options.samples,
                        seed=seed,
                        num_steps=options.steps,
                    )
                    shares = measure_points(found)._asdict()
                    rows.append({"value": value, "run": name, "seed": seed, **shares})
                    if seed == seeds[0] and scale in (0.0, max(options.scales)):
                        x, y = found[: options.shown].float().numpy().round(3).T
                        shown.append(pd.DataFrame({"value": value, "run": name, "x": x, "y": y}))
                    progress.update()
    write_table(quality, pd.DataFrame(rows))
    write_table(points, pd.concat(shown, ignore_index=True))


if __name__ == "__main__":
    run(study_toy)
