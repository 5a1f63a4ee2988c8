import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from papers.stg import figures
from papers.stg.evaluate import evaluate, hypervolumes, in_settings, with_costs, with_selected
from papers.stg.options import SETS
from papers.stg.select import matching_runs, select_runs
from papers.stg.toy_mixture import UNSAFE_VALUES
from shared.errors import InputError
from shared.results import read_metrics, read_units
from shared.statistics import hypervolume
from shared.t2i.hub_prompts import hub_prompt_sets, read_prompts
from shared.tables import read_table, write_table

RUNS = ("base", "stg:0.2", "stg:1", "sdg:3", "sdg:10", "stg:0.2,fraction=0.4", "base@duo")


def test_the_most_successful_strength_is_selected_and_of_equals_the_weakest():
    rows = [
        ("stg:0.1", "explicit", 0.2), ("stg:0.1", "safe", 0.8),
        ("stg:0.2", "explicit", 0.7), ("stg:0.2", "safe", 0.7),
        ("stg:0.5", "explicit", 0.8), ("stg:0.5", "safe", 0.6),
        ("sdg:1", "explicit", 0.1), ("sdg:1", "safe", 0.1),
    ]  # fmt: skip
    results = pd.DataFrame(rows, columns=["run", "set", "success"])
    runs = ["stg:0.1", "stg:0.2", "stg:0.5", "sdg:1"]
    assert select_runs(runs, results) == {"stg": "stg:0.2", "sdg": "sdg:1"}
    with pytest.raises(InputError, match="was not tried"):
        select_runs([*runs, "sdg:3"], results)


def test_stg_is_matched_to_the_safety_of_others():
    rows = [
        ("stg:0.1", 0.4), ("stg:0.2", 0.7), ("stg:0.5", 0.9), ("sdg:1", 0.7), ("sld:1", 0.95), ("safree:0", 0.2),
    ]  # fmt: skip
    values = [(run, name, value * (name == "explicit")) for run, value in rows for name in ("explicit", "safe")]
    results = pd.DataFrame(values, columns=["run", "set", "dsr"])
    selected = {"stg": "stg:0.5", "sdg": "sdg:1", "sld": "sld:1", "safree": "safree:0"}
    found = matching_runs([run for run, _ in rows], results, selected)
    assert found == {
        "stg-as-safe-as-sdg": "stg:0.2", "stg-as-safe-as-sld": "stg:0.5", "stg-as-safe-as-safree": "stg:0.1",
    }  # fmt: skip


def test_hypervolume_is_the_area_of_the_union():
    assert hypervolume([(0.5, 1.0)]) == 0.5
    assert hypervolume([(0.5, 1.0), (1.0, 0.5), (0.4, 0.4)]) == pytest.approx(0.75)
    rng = np.random.default_rng(0)
    points = rng.random((5, 2))
    grid = (np.arange(1000) + 0.5) / 1000
    covered = ((grid[:, None, None] < points[:, 0]) & (grid[None, :, None] < points[:, 1])).any(axis=-1)
    assert hypervolume(points.tolist()) == pytest.approx(covered.mean(), abs=2e-3)


def test_hypervolumes_take_plain_runs_and_the_base_model():
    rows = [
        {"method": method, "seed": 0, "setting": "unsafe", "metric": metric, "value": value}
        for method, dsr, similarity in (
            ("base", 0.2, 1.0), ("stg:1", 0.8, 0.5), ("stg", 0.9, 0.9), ("stg:1,fraction=0.4", 1.0, 1.0),
            ("stg:1@duo", 1.0, 1.0), ("base@duo", 1.0, 1.0),
        )
        for metric, value in (("dsr", dsr), ("similarity", similarity))
    ]  # fmt: skip
    found = hypervolumes(pd.DataFrame(rows))
    assert found[["method", "seed", "setting", "metric"]].to_numpy().tolist() == [["stg", 0, "unsafe", "hypervolume"]]
    assert found["value"].item() == pytest.approx(0.2 + 0.6 * 0.5)


def test_unsafe_prompts_with_something_to_keep_stand_together():
    images = pd.DataFrame(
        {"run": "base", "seed": 0, "set": list(SETS), "prompt": 0, "dsr": 0.5, "kept": [0.1, 0.2, np.nan, 0.3, 0.4]}
    )
    rows = in_settings(images)
    unsafe = rows[(rows["setting"] == "unsafe") & (rows["metric"] == "kept")]
    assert unsafe["value"].tolist() == [0.1, 0.2, 0.3]
    assert unsafe["unit"].tolist() == ["explicit/0", "synonym/0", "implicit/0"]
    assert "solo" not in set(rows[rows["metric"] == "kept"]["setting"])


def test_selected_runs_stand_under_their_method_with_their_costs():
    rows = pd.DataFrame({"run": ["base", "stg:1"], "setting": "safe", "seed": 0, "metric": "dsr", "value": [0.1, 0.9]})
    totals = pd.DataFrame({"run": ["base", "stg:1"], "seed": 0, "wall_seconds": [1.0, 2.0], "evaluations": [40, 56]})
    named = with_costs(with_selected(rows, {"stg": "stg:1"}), totals, {"stg": "stg:1"}).set_index("method")
    assert named["cost"].to_dict() == {"base": 40, "stg:1": 56, "stg": 56}
    assert named.loc["stg", "value"] == 0.9 and named.loc["stg", "wall_seconds"] == 2.0


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Made-up measurements of two groups and two seeds, evaluated."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    inputs = {"values": [], "totals": [], "traces": []}
    for seed in (0, 1):
        values = pd.DataFrame(
            [
                {"run": run, "set": name, "prompt": prompt, "dsr": float(rng.random() < 0.5),
                 "kept": np.nan if name == "solo" else 1.0, "similarity": round(rng.random(), 3),
                 "success": np.nan if name == "solo" else 0.5, "alignment": 0.3, "detected": 0.0}
                for run in RUNS for name in SETS for prompt in range(2)
            ]
        )  # fmt: skip
        totals = pd.DataFrame(
            {"run": RUNS, "evaluations": 40.0, "seconds": 0.1, "wall_seconds": 2.0, "frechet": rng.random(len(RUNS))}
        )
        traces = pd.DataFrame(
            [
                {"run": run, "set": name, "step": step, "value": 0.1, "flagged": 0.25 * step}
                for run in ("base", "stg:0.2") for name in SETS for step in range(3)
            ]
        )  # fmt: skip
        for name, table in (("values", values), ("totals", totals), ("traces", traces)):
            path = folder / f"{name}-{seed}.parquet"
            write_table(path, table)
            inputs[name].append(path)
    (folder / "selection.json").write_text(json.dumps({"stg": "stg:1", "sdg": "sdg:3"}))
    toy = [
        {"value": value, "run": run, "seed": seed, "unsafe": 0.1, "off_manifold": 0.2, "safe_total_variation": 0.3}
        for value in UNSAFE_VALUES for run in ("base", "sdg:10", "stg:10") for seed in (0, 1)
    ]  # fmt: skip
    write_table(folder / "toy.parquet", pd.DataFrame(toy))
    evaluate(
        paper="stg", scale="smoke", **{name: tuple(paths) for name, paths in inputs.items()}, seeds=(0, 1),
        selection=folder / "selection.json", toy=folder / "toy.parquet", metrics=folder / "metrics.parquet",
        units=folder / "units.parquet", trace=folder / "trace.parquet",
    )  # fmt: skip
    points = pd.DataFrame(
        [{"value": value, "run": run, "x": 0.1, "y": 0.2} for value in UNSAFE_VALUES for run in ("base", "stg:10")]
    )
    write_table(folder / "points.parquet", points)
    write_table(
        folder / "grid.parquet", pd.DataFrame({"run": RUNS[1:5], "set": "safe", "success": [0.1, 0.2, 0.3, 0.4]})
    )
    save_file({run: torch.zeros(5, 3, 12, 12, dtype=torch.uint8) for run in RUNS}, folder / "pictures.safetensors")
    return folder


def test_evaluation_fills_the_tables(tables):
    metrics, units = read_metrics(tables / "metrics.parquet"), read_units(tables / "units.parquet")
    assert {"stg", "sdg", "stg:1", "base@duo"} < set(metrics["method"])
    assert {*SETS, "unsafe", "cost", "toy / linear"} <= set(metrics["setting"])
    key = {"method": "stg", "setting": "unsafe", "seed": 0, "metric": "similarity"}
    chosen = metrics[(metrics[list(key)] == pd.Series(key)).all(axis=1)]
    values = read_table(tables / "values-0.parquet")
    expected = values[(values["run"] == "stg:1") & ~values["set"].isin(["solo", "safe"])]["similarity"].mean()
    assert chosen["value"].item() == pytest.approx(expected) and chosen["cost"].item() == 40
    assert set(units["metric"]) == {"dsr", "kept", "similarity"}
    flagged = metrics[(metrics["metric"] == "flagged") & (metrics["setting"] == "safe")]
    assert flagged["value"].tolist() == [0.25] * len(flagged)
    hypervolume_rows = metrics[metrics["metric"] == "hypervolume"]
    assert set(hypervolume_rows["method"]) == {"stg", "sdg"}


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_every_figure_can_be_drawn(tables, tmp_path, name):
    figures.draw(
        figure=name, fraction=0.8, threshold=0.1, metrics=tables / "metrics.parquet", grid=tables / "grid.parquet",
        trace=tables / "trace.parquet", points=tables / "points.parquet", selection=tables / "selection.json",
        pictures=(tables / "pictures.safetensors",), png=tmp_path / "a.png", pdf=tmp_path / "a.pdf",
    )  # fmt: skip
    assert (tmp_path / "a.png").stat().st_size > 2000


def test_an_unknown_figure_is_refused(tables, tmp_path):
    with pytest.raises(InputError, match="figure 'nothing'"):
        figures.draw(
            figure="nothing", fraction=0.8, threshold=0.1, metrics=tables / "metrics.parquet",
            grid=tables / "grid.parquet", trace=tables / "trace.parquet", points=tables / "points.parquet",
            selection=tables / "selection.json", pictures=(), png=tmp_path / "a.png", pdf=tmp_path / "a.pdf",
        )  # fmt: skip


def test_sweeps_go_from_weak_to_strong():
    columns = pd.DataFrame(
        columns=["stg:1", "stg:0.2", "stg", "stg:0.2@duo", "stg:0.2,fraction=0.4", "safree:-0.3", "safree:0.01"]
    )
    assert figures.sweep(columns, "stg") == ["stg:0.2", "stg:1"]
    assert figures.sweep(columns, "safree") == ["safree:0.01", "safree:-0.3"]


def test_controls_include_the_plain_run_at_its_default():
    columns = pd.DataFrame(columns=["stg:1", "stg:0.2", "stg:0.2,fraction=0.4", "stg:0.2@duo", "stg:0.2,threshold=0.6"])
    defaults = {"fraction": 0.8, "threshold": 0.1}
    assert figures.controls(columns, "fraction", defaults) == {0.4: "stg:0.2,fraction=0.4", 0.8: "stg:0.2"}
    assert figures.controls(columns, "threshold", defaults) == {0.1: "stg:0.2", 0.6: "stg:0.2,threshold=0.6"}
    assert figures.controls(columns, "strength", defaults) == {0.2: "stg:0.2", 1.0: "stg:1"}
    assert figures.controls(columns[["stg:1"]], "fraction", defaults) == {}


def test_strips_keep_images_in_order():
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    row = figures.strip(images, 2, gap=1, between=3)
    assert row.shape == (2, 2 * (2 * 3 + 3), 3)
    assert row[0, [0, 3, 9, 12], 0].tolist() == [0, 1, 2, 3] and (row[:, 2] == 255).all()


def test_prompts_from_a_table_in_another_encoding(tmp_path):
    path = tmp_path / "attack.csv"
    path.write_bytes('id,sensitive prompt\n1,caf\xe9 scene\n2,\n3,"a, b"\n'.encode("latin-1"))
    assert read_prompts(f"csv:sensitive prompt:latin-1:{path}") == ["café scene", "a, b"]
    with pytest.raises(InputError, match="not a table of prompts in utf-8"):
        read_prompts(f"csv:sensitive prompt:utf-8:{path}")
    with pytest.raises(InputError, match="no column 'prompt'; there are: id, sensitive prompt"):
        read_prompts(f"csv:prompt:latin-1:{path}")
    with pytest.raises(InputError, match="not a table of prompts in klingon"):
        read_prompts(f"csv:prompt:klingon:{path}")


def test_prompts_of_geneval(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text(
        '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}\n'
        '{"tag": "colors", "include": [{"class": "cow", "color": "red"}], "prompt": "red cow"}\n'
    )
    assert read_prompts(f"geneval:{path}") == ["a photo of a bench", "red cow"]
    (only,) = hub_prompt_sets((f"safe=geneval:{path}",), skip=1, count=5)
    assert (only.name, only.captions, only.specs) == ("safe", ("red cow",), None)
    with pytest.raises(InputError, match="no prompts after the first 2"):
        hub_prompt_sets((f"safe=geneval:{path}",), skip=2, count=5)
    path.write_text('{"tag": "single_object"}\n')
    with pytest.raises(InputError, match="not GenEval's metadata"):
        read_prompts(f"geneval:{path}")
    with pytest.raises(InputError, match="expected csv"):
        read_prompts("json:prompts.json")
