"""From measurements to tables and figures."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from papers.implicit_negatives import figures
from papers.implicit_negatives.evaluate import TRADE_OFF, evaluate
from papers.implicit_negatives.gates import gate_runs
from papers.implicit_negatives.options import CONCEPT, SETS, Scale
from papers.implicit_negatives.runs import parse_run
from shared.claims import decide, read_paper
from shared.options import read_scale
from shared.results import read_metrics, read_units
from shared.tables import write_table

PAPER = Path(__file__).resolve().parents[3] / "papers" / "implicit_negatives"
SEEDS, PROMPTS = (0, 1, 2), 4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Tables of all runs of `small` with random values, as the stages write them."""
    folder = tmp_path_factory.mktemp("tables")
    settings = read_scale(PAPER / "config.yaml", "small", Scale)
    rng = np.random.default_rng(0)
    for seed in SEEDS:
        write_samples(folder, "", seed, settings.runs, rng)
        write_samples(folder, "loose_", seed, map(parse_run, settings.control.runs), rng)
        write_samples(folder, "gate_", seed, map(parse_run, gate_runs(settings.models)), rng)
        write_samples(folder, "loose_gate_", seed, map(parse_run, gate_runs(settings.control.models)), rng)
        curves = [
            pd.DataFrame({"model": model, "kind": kind, "step": range(20), "loss": rng.random(20) + 0.1})
            for model in settings.models
            for kind in ("concept", "attack")
        ]
        write_table(folder / f"curves{seed}", pd.concat(curves, ignore_index=True))
        losses = [
            {"model": model, "embedding": name, "loss": rng.random()}
            for model in settings.models
            for name in ("concept", "word")
        ]
        write_table(folder / f"losses{seed}", pd.DataFrame(losses))
    grid = [{"run": name, "set": "attack", "success": rng.random()} for name in settings.candidates]
    write_table(folder / "grid", pd.DataFrame(grid))
    pictures = {run.name: torch.zeros(8, 3, 12, 12, dtype=torch.uint8) for run in settings.runs if run.shown}
    save_file(pictures, folder / "pictures")
    both = [f"{kind}{name}" for kind in ("", "loose_", "gate_", "loose_gate_") for name in ("values", "totals")]
    tables = paths(folder, *both, "losses")
    evaluate(
        paper="implicit_negatives", scale="small", **tables, seeds=SEEDS, loss_seeds=SEEDS, loose_seeds=SEEDS,
        metrics=folder / "metrics", units=folder / "units",
    )  # fmt: skip
    return folder


def write_samples(folder, prefix, seed, runs, rng):
    rows, names = [], []
    for run in runs:
        names.append(run.name)
        for name in (CONCEPT,) if run.method == "prompt" else SETS:
            dsr, intact = rng.integers(0, 2, (2, PROMPTS)).astype(np.float32)
            values = {"dsr": dsr, "crisp": intact, "intact": intact, "success": dsr * intact}
            if run.method != "prompt":
                values["similarity"] = rng.random(PROMPTS, np.float32)
            rows.append(pd.DataFrame({"set": name, "prompt": range(PROMPTS), **values, "run": run.name}))
    write_table(folder / f"{prefix}values{seed}", pd.concat(rows, ignore_index=True))
    totals = pd.DataFrame({"run": names, "evaluations": 40.0 + len(prefix), "wall_seconds": 2.0})
    write_table(folder / f"{prefix}totals{seed}", totals)


def paths(folder, *names):
    return {name: tuple(folder / f"{name}{seed}" for seed in SEEDS) for name in names}


def test_every_claim_can_be_decided(files):
    paper = read_paper(PAPER / "paper.yaml")
    decided = decide(paper, read_metrics(files / "metrics"), read_units(files / "units"), replicates=50)
    assert [claim.id for claim in decided] == [claim.id for claim in paper.claims]
    assert all(not claim.skipped for claim in decided)


def test_metrics_are_means_over_prompts(files):
    metrics, units = read_metrics(files / "metrics"), read_units(files / "units")
    rows = units[(units["method"] == "sld/explicit@uce") & (units["setting"] == "attack") & (units["seed"] == 1)]
    mean = metrics[(metrics["method"] == "sld/explicit@uce") & (metrics["setting"] == "attack")]
    found = mean[(mean["seed"] == 1) & (mean["metric"] == "dsr")]
    assert found["value"].item() == pytest.approx(rows[rows["metric"] == "dsr"]["value"].mean())
    assert found["cost"].item() == 40 and found["wall_seconds"].item() == 2
    assert set(metrics[metrics["setting"] == TRADE_OFF]["metric"]) == {"front", "safe_front"}
    assert {"concept@uce", "word@base"} < set(metrics[metrics["metric"] == "inversion_loss"]["method"])
    bare = metrics[metrics["setting"] == CONCEPT]["method"]
    assert all(text.partition("@")[0] in ("concept", "word") or parse_run(text).method == "prompt" for text in bare)


@pytest.mark.parametrize(("prefix", "run", "kind"), [
    ("loose_", "np/implicit@esd", "loose captions"),
    ("gate_", "none@esd", "development prompts"),
    ("loose_gate_", "none@esd", "loose captions, development prompts"),
])  # fmt: skip
def test_the_control_and_gates_are_settings_of_their_own(files, prefix, run, kind):
    metrics, units = read_metrics(files / "metrics"), read_units(files / "units")
    written = pd.concat([pd.read_parquet(files / f"{prefix}values{seed}").assign(seed=seed) for seed in SEEDS])
    for name in ("attack", "safe"):
        setting = f"{name}, {kind}"
        rows = written[(written["run"] == run) & (written["set"] == name) & (written["seed"] == 2)]
        chosen = f"method == '{run}' and setting == '{setting}' and metric == 'success' and seed == 2"
        found = metrics.query(chosen)
        assert found["value"].item() == pytest.approx(rows["success"].mean())
        assert found["cost"].item() == 40 + len(prefix)  # its own, not that of the run of the same name
        assert len(units.query(chosen)) == PROMPTS
    assert not any("loose" in setting for setting in metrics[metrics["metric"] == "front"]["setting"])


def test_tables_are_written_without_the_control_and_gates(files, tmp_path):
    evaluate(
        paper="implicit_negatives", scale="small", **paths(files, "values", "totals", "losses"), seeds=SEEDS,
        loss_seeds=SEEDS, loose_values=(), loose_totals=(), loose_seeds=(), gate_values=(), gate_totals=(),
        loose_gate_values=(), loose_gate_totals=(), metrics=tmp_path / "metrics", units=tmp_path / "units",
    )  # fmt: skip
    whole = read_metrics(files / "metrics")
    rest = whole[~whole["setting"].str.endswith(("loose captions", "development prompts"))].reset_index(drop=True)
    pd.testing.assert_frame_equal(read_metrics(tmp_path / "metrics"), rest)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_figures_are_drawn(files, tmp_path, name):
    curves, pictures = paths(files, "curves")["curves"], (files / "pictures",)
    figures.draw(
        figure=name, metrics=files / "metrics", grid=files / "grid", curves=curves, pictures=pictures,
        loose_pictures=pictures, png=tmp_path / "figure.png", pdf=tmp_path / "figure.pdf",
    )  # fmt: skip
    assert (tmp_path / "figure.png").stat().st_size > 3000
