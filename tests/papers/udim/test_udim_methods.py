"""Names of runs, and where their hyperparameters come from."""

import pytest

from papers.udim.methods import BASES, TERMS, Hyperparameters, Run, parse_run
from shared.errors import InputError

DEFAULTS = Hyperparameters(learning_rate=0.001)
SELECTED = {
    "erm": {"learning_rate": 0.002},
    "sam": {"rho": 0.2},
    "sam+udim": {"rho": 0.1, "data_radius": 0.5, "weight": 3.0},
    "sam+random": {"data_radius": 2.0},
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("term", [None, *TERMS])
def test_every_combination_has_its_name(base, term):
    text = f"{base}+{term}" if term else base
    assert parse_run(text) == Run(base, term, {}) and parse_run(text).method == text


def test_a_run_names_hyperparameters():
    run = parse_run("sam+udim@data_radius=0.5,weight=0")
    assert run.overrides == {"data_radius": 0.5, "weight": 0.0} and run.method == "sam+udim"
    settings = run.settings(DEFAULTS, SELECTED)
    assert settings == Hyperparameters(learning_rate=0.001, rho=0.1, data_radius=0.5, weight=0.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("erm", Hyperparameters(0.002)),
        ("sam", Hyperparameters(0.001, rho=0.2)),
        ("sagm", Hyperparameters(0.001, rho=0.2)),
        ("gam+udim", Hyperparameters(0.001, rho=0.1, data_radius=0.5, weight=3.0)),
        ("sam+random", Hyperparameters(0.001, data_radius=2.0)),
        ("sagm+random", Hyperparameters(0.001, data_radius=2.0)),
        ("sam+variance", Hyperparameters(0.001, rho=0.1, data_radius=0.5, weight=3.0)),
        ("sam+zero", Hyperparameters(0.001, rho=0.1, data_radius=0.0, weight=3.0)),
        ("erm+fishr@weight=1000", Hyperparameters(0.002, weight=1000.0)),
    ],
)
def test_hyperparameters_are_those_selected_for_the_nearest_method(text, expected):
    assert parse_run(text).settings(DEFAULTS, SELECTED) == expected
    overrides = parse_run(text).overrides
    untuned = parse_run(text).settings(DEFAULTS, {})
    assert untuned == Hyperparameters(
        0.001, data_radius=0.0 if "zero" in text else 1.0, weight=overrides.get("weight", 1.0)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adam", "unknown base 'adam'; there are: erm"),
        ("sam+foo", "unknown term 'foo'; there are: udim"),
        ("sam+", "unknown term ''"),
        ("sam@", "expected <name>=<value>"),
        ("sam@radius=1", "expected <name>=<value> once for some of learning_rate, rho"),
        ("sam@rho=1,rho=2", "expected <name>=<value> once"),
        ("sam@rho=x", "rho must be a number, got 'x'"),
        ("sam@rho=-1", "rho must be finite and at least 0, got -1"),
        ("sam@rho=inf", "rho must be finite"),
        ("sam@rho=nan", "rho must be finite"),
    ],
)
def test_a_mistake_is_named(text, message):
    with pytest.raises(InputError, match=message):
        parse_run(text)
