"""The stages one after another on an untrained system, and every figure."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from date_cases import PROMPTS, SAMPLER, save_system
from safetensors.torch import load_file

from papers.date import evaluate, figures, sample, select, tune
from papers.date.options import SelectOptions, TuneOptions
from shared.errors import InputError
from shared.options import flags
from shared.plotting import house_style
from shared.results import read_metrics, read_units
from shared.stage import run
from shared.tables import read_table, write_table

TUNE = TuneOptions(step_sizes=(0.5, 1.0), universal_scales=(1.0, 3.0), energy_rates=(0.1, 0.3))
TUNED = ("date/all", "date/late", "date-raw/all", "universal", "ebca", "date-sum/all", "date/first", "date/fourth")
MAIN = ("fixed", "fixed-x2.5", "date/all", "date/late", "random/all", "date-raw/all")
MORE = TUNED[3:]
DRAWN = ("scores", "steps", "directions", "paths", "images")


def start(module, *options, **values):
    """Run a stage in this process, by the command line that a rule would use."""
    name = module.__name__.rpartition(".")[2]
    arguments = [flag for group in options for flag in flags(group)]
    for key, value in values.items():
        listed = value if isinstance(value, (tuple, list)) else (value,)
        arguments += [f"--{key.replace('_', '-')}", *map(str, listed)]
    run(getattr(module, {"figures": "draw"}.get(name, name)), arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Everything that the rules make, for two seeds and two families."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("date")
    system = save_system(folder)
    start(tune, SAMPLER, PROMPTS, TUNE, seed=100, variants=TUNED, trials=folder / "trials.parquet", **system)
    start(
        select, SelectOptions("gold_share"), variants=(*MAIN, *MORE), trials=folder / "trials.parquet",
        strengths=folder / "strengths.parquet",
    )  # fmt: skip
    for seed in (0, 1):
        for family, variants in (("main", MAIN), ("more", MORE)):
            files = {name: folder / f"{name}-{family}-{seed}" for name in (*DRAWN, "record")}
            start(sample, SAMPLER, PROMPTS, seed=seed, variants=variants, strengths=folder / "strengths.parquet",
                  **system, **files)  # fmt: skip
    start(
        evaluate, paper="date", scale="small", scores=files_of(folder, "scores"), steps=files_of(folder, "steps"),
        records=files_of(folder, "record"), metrics=folder / "metrics", units=folder / "units",
        traces=folder / "traces",
    )  # fmt: skip
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    return folder


def files_of(folder, name):
    return [folder / f"{name}-{family}-{seed}" for seed in (0, 1) for family in ("main", "more")]


def test_trials_cover_every_candidate(made):
    trials = read_table(made / "trials.parquet")
    tried = trials.groupby("variant")["strength"].apply(tuple).to_dict()
    others = {"date-raw/all": (1.0,), "universal": (1.0, 3.0), "ebca": (0.1, 0.3)}
    assert tried == dict.fromkeys(TUNED, (0.5, 1.0)) | others
    lengths = trials.set_index(["variant", "strength"])["step_length"]
    assert lengths["date/all", 0.5] == pytest.approx(0.5, rel=1e-4) and lengths["universal", 1.0] == 0
    assert {"gold_share", "evaluator_score", "frechet_distance"} <= set(trials)


def test_selected_strengths(made):
    chosen = read_table(made / "strengths.parquet").set_index("variant")["strength"]
    assert set(chosen.index) == {*MAIN, *MORE} - {"fixed", "fixed-x2.5"}
    assert chosen["random/all"] == chosen["date/all"]
    trials = read_table(made / "trials.parquet").sort_values("strength")
    for name in ("date/first", "date-sum/all", "date/fourth", "universal"):
        own = trials[trials["variant"] == name]
        assert chosen[name] == own["strength"].iloc[own["gold_share"].argmax()]
    # Steps of the gradient as it is are as long as DATE's.
    steps = pd.concat([read_table(path) for path in files_of(made, "steps")])
    lengths = steps[steps["length"] > 0].groupby("variant")["length"].mean()
    assert lengths["date-raw/all"] == pytest.approx(chosen["date/all"], rel=0.5)


def test_selection_takes_the_highest_and_of_equals_the_least():
    trials = pd.DataFrame(
        {"variant": ["ebca"] * 3, "strength": [3.0, 1.0, 2.0], "gold": [0.5, 0.4, 0.5], "step_length": 0.0}
    )
    assert select.best_strengths(trials, "gold") == {"ebca": 2.0}
    other = pd.DataFrame({"variant": "universal", "strength": [5.0, 6.0, 7.0], "gold": [0.1, 0.3, 0.2]})
    assert select.best_strengths(pd.concat([trials, other]), "gold") == {"ebca": 2.0, "universal": 6.0}
    with pytest.raises(ValueError, match="lacks 'date/first', whose strength"):
        select.strengths_of(("date/first",), trials, SelectOptions("gold"))


def test_the_gradients_factor_gives_steps_as_long_as_dates():
    trials = pd.DataFrame(
        {"variant": ["date/all", "date-raw/all"], "strength": [0.5, 1.0], "gold": 0.5, "step_length": [0.5, 0.04]}
    )
    found = select.strengths_of(("date-raw/all", "fixed"), trials, SelectOptions("gold"))
    assert found == {"date-raw/all": pytest.approx(12.5)}
    with pytest.raises(ValueError, match="lacks 'date-raw/all', the length of whose steps"):
        select.strengths_of(("date-raw/all",), trials.head(1), SelectOptions("gold"))


def test_the_tables_say_what_was_judged(made):
    metrics, units = read_metrics(made / "metrics"), read_units(made / "units")
    assert set(metrics["method"]) == set(units["method"]) == {*MAIN, *MORE}
    assert set(units["metric"]) == set(evaluate.COMPARED) and set(units["setting"]) == {"all"}
    overall = metrics[metrics["setting"] == "all"]
    assert set(overall["metric"]) == {
        *evaluate.COMPARED, "gold_share", "guidance_score", "plain_score", "frechet_distance", "step_length",
        "distance",
    }  # fmt: skip
    scores = pd.concat([read_table(path) for path in files_of(made, "scores")])
    one = scores[(scores["variant"] == "universal") & (scores["seed"] == 1)]
    row = metrics[(metrics["method"] == "universal") & (metrics["seed"] == 1)].set_index(["setting", "metric"])["value"]
    assert row["all", "guidance_score"] == pytest.approx(one["guidance_score"].mean())
    by_task = one.set_index("task")["evaluator_score"]
    assert all(row[task, "evaluator_score"] == pytest.approx(value) for task, value in by_task.items())
    record = json.loads((made / "record-more-1").read_text())["measurements"]
    assert row["all", "frechet_distance"] == record["sets"]["universal"]["frechet_distance"]
    costs = metrics.groupby("method")["cost"].unique().map(list)
    expected = {"fixed": 8, "date/all": 20, "fixed-x2.5": 20, "random/all": 8, "universal": 32, "ebca": 8}
    assert {name: costs[name] for name in expected} == {name: [cost] for name, cost in expected.items()}
    walls = metrics[(metrics["method"] == "universal") & (metrics["seed"] == 1)]["wall_seconds"].unique()
    assert walls.tolist() == [record["seconds"]["universal"]]


def test_images_steps_and_directions(made):
    images = load_file(made / "images-main-0")
    assert set(images) == set(MAIN) and images["fixed"].shape == (6, 3, 12, 12)
    assert images["fixed"].dtype == torch.uint8
    traces = read_table(made / "traces")
    fixed = traces[(traces["variant"] == "fixed") & (traces["seed"] == 0)].sort_values("step")
    assert fixed["step"].tolist() == [0, 1, 2, 3] and not fixed["distance"].any()
    directions = read_table(made / "directions-main-0")
    assert set(directions["variant"]) == {"date/all", "date/late", "random/all", "date-raw/all"}
    own = directions[directions["step"] == directions["other"]]
    np.testing.assert_allclose(own["cosine"], 1, atol=1e-5)
    assert set(directions[directions["variant"] == "date/late"]["step"]) == {2, 3}


def test_the_same_seed_gives_the_same_files(made, tmp_path):
    files = {name: tmp_path / name for name in DRAWN}
    start(sample, SAMPLER, PROMPTS, seed=1, variants=MAIN, strengths=made / "strengths.parquet",
          **{name: made / f"{name}.safetensors" for name in ("guidance", "preference", "plain", "evaluator")},
          pipeline=made / "pipeline", **files)  # fmt: skip
    torch.use_deterministic_algorithms(False)
    for name in DRAWN:
        assert files[name].read_bytes() == (made / f"{name}-main-1").read_bytes(), name


@pytest.fixture(scope="module")
def drawing(made):
    return {
        "metrics": made / "metrics",
        "traces": made / "traces",
        "trials": (made / "trials.parquet",),
        "strengths": made / "strengths.parquet",
        **{name: tuple(files_of(made, name)) for name in ("scores", "directions", "paths", "images")},
    }


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_every_figure_is_drawn(name, drawing, tmp_path, monkeypatch):
    kept = {}
    monkeypatch.setattr(figures, "draw_figure", lambda found, figure, tables, *paths: kept.update(tables=tables))
    figures.draw(SAMPLER, figure=name, **drawing, png=tmp_path / "a.png", pdf=tmp_path / "a.pdf")
    with house_style():
        figure = figures.FIGURES[name](kept["tables"])
    assert any(axes.get_ylabel() or axes.get_yticklabels() for axes in figure.axes)
    assert all(axes.lines or axes.patches or axes.collections or axes.images for axes in figure.axes)


def test_the_image_grid_shows_the_first_seeds_images(drawing):
    found = figures.read_images(drawing["images"], [read_table(path) for path in drawing["scores"]])
    assert set(found) == {*MAIN, *MORE}
    torch.testing.assert_close(found["fixed"], load_file(drawing["images"][0])["fixed"])


def test_bad_input_is_named(made, tmp_path):
    judged = [read_table(made / "scores-main-0")]
    broken = tmp_path / "images"
    broken.write_bytes(b"no")
    with pytest.raises(InputError, match="images: no images"):
        figures.read_images((broken,), judged)
    with pytest.raises(InputError, match="lacks 'date/all', whose strength 'random/all' takes"):
        select.select(
            SelectOptions("gold"), variants=("random/all",), trials=(write_trials(tmp_path),),
            strengths=tmp_path / "s",
        )  # fmt: skip


def write_trials(folder):
    path = folder / "trials.parquet"
    write_table(path, pd.DataFrame({"variant": ["ebca"], "strength": 1.0, "gold": 1.0, "step_length": 0.0}))
    return path


def test_labels():
    assert figures.label("date/all") == "DATE" and figures.label("date/late") == "DATE, a fifth, late"
    assert figures.label("fixed-x2.5") == "fixed, 2.5 × steps"
    assert figures.colour("date-raw/all") == figures.SKY and figures.colour("fixed-x2") == figures.BLACK
