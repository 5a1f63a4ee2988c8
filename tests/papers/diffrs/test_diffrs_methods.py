"""Names of runs, configuration, and the selection of hyperparameters."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from papers.diffrs.methods import DEFAULTS, parse_run
from papers.diffrs.options import Scale
from papers.diffrs.select import best_candidates, candidate_rows
from papers.diffrs.selection import read_selection
from shared.claims import read_paper
from shared.errors import InputError
from shared.options import read_scale, read_yaml

FOLDER = Path(__file__).resolve().parents[3] / "papers/diffrs"
SCALES = sorted(read_yaml(FOLDER / "config.yaml")["scales"])


def test_a_run_names_its_hyperparameters():
    run = parse_run("restart@repeats=4,high=1.5")
    assert (run.method, dict(run.overrides)) == ("restart", {"repeats": 4, "high": 1.5})
    selected = {"restart": {"repeats": 9, "low": 0.5}, "dg": {"weight": 7}}
    assert run.settings(selected) == {"repeats": 4, "nodes": 3, "low": 0.5, "high": 1.5}
    assert parse_run("dg").settings({}) == DEFAULTS["dg"]
    assert parse_run("base").settings(selected) == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("difrs", "unknown method 'difrs'; there are: base, longer"),
        ("dg@percentile=1", "for some of steps, weight, corrector"),
        ("base@steps=3", "for some of none"),
        ("dg@weight=1,weight=2", "<name>=<value> once"),
        ("dg@weight=a", "weight must be a number, got 'a'"),
        ("dg@weight=-1", "finite and at least 0, got -1"),
        ("longer@steps=2.5", "steps must be a whole number, got 2.5"),
    ],
)
def test_wrong_runs_are_named(name, message):
    with pytest.raises(InputError, match=message):
        parse_run(name)


@pytest.mark.parametrize("name", SCALES)
def test_every_tuned_method_has_as_many_candidates_and_none_is_reported_untuned(name):
    scale = read_scale(FOLDER / "config.yaml", name, Scale)
    for setting in scale.settings.values():
        methods = [parse_run(run).method for run in setting.candidates]
        counts = {methods.count(method) for method in methods}
        assert name == "smoke" or len(counts) <= 1
        for run in setting.candidates:
            assert parse_run(run).overrides
        if setting.candidates and name != "smoke":
            bare = {run for run in setting.runs if "@" not in run and run != "base"}
            assert bare <= set(methods)


@pytest.mark.parametrize("name", SCALES)
def test_every_claim_can_be_tested(name):
    """What a test compares is among the runs of its setting."""
    scale = read_scale(FOLDER / "config.yaml", name, Scale)
    runs = {setting: set(options.runs) for setting, options in scale.settings.items()}
    runs |= {setting: {*scale.exact.exact_runs, "diffrs"} for setting in ("exact-1d", "exact-2d")}
    for claim in read_paper(FOLDER / "paper.yaml").claims:
        for test in (*claim.guards, *claim.tests):
            if test.scales is None or name in test.scales:
                for method, setting, metric in test.series:
                    derived = metric.startswith("spearman") or metric == "nfe_to_match"
                    assert derived or method in runs[setting], (test.name, method, setting)


def test_scales_refuse_what_does_not_fit():
    scale = read_scale(FOLDER / "config.yaml", "smoke", Scale)
    with pytest.raises(ValueError, match="tuning_seed: must not be a reported seed of ring, got 0"):
        replace(scale, tuning_seed=0)
    with pytest.raises(ValueError, match=r"settings.ring.model: must be one of ring, glyphs, got 'x'"):
        replace(scale, settings={"ring": replace(scale.settings["ring"], model="x")})
    with pytest.raises(ValueError, match=r"models.glyphs.judge"):
        replace(scale, models={**scale.models, "glyphs": replace(scale.models["glyphs"], judge=None)})


def test_the_best_candidate_of_each_method_is_selected():
    runs = pd.DataFrame(
        [
            ("a", "dg@weight=1", 35.0, 0.3),
            ("a", "dg@weight=2", 35.0, 0.2),
            ("a", "diffrs@percentile=0.9", 50.0, 0.1),
            ("a", "diffrs@percentile=0.5", 40.0, 0.1),
            ("b", "dg@weight=3", 35.0, 0.9),
        ],
        columns=["setting", "run", "nfe", "frechet"],
    )
    chosen = best_candidates(candidate_rows(runs))
    assert set(chosen["run"]) == {"diffrs@percentile=0.5", "dg@weight=2", "dg@weight=3"}
    assert len(chosen) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", ":1: not valid JSON"),
        ("[]", "expected an object of settings, got list"),
        ('{"a": 1}', "a: expected an object of methods, got 1"),
        ('{"a": {"x": {}}}', "a.x: expected an object of a method"),
        ('{"a": {"dg": {"wait": 1}}}', "a.dg: expected numbers for some of steps, weight, corrector, got 'wait'"),
    ],
)
def test_a_damaged_selection_is_named(tmp_path, content, message):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_selection(tmp_path / "s.json")
    (tmp_path / "s.json").write_text(json.dumps({"a": {"dg": {"weight": 1}}}))
    assert read_selection(tmp_path / "s.json") == {"a": {"dg": {"weight": 1}}}
