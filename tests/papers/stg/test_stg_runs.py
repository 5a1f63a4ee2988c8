from dataclasses import replace
from pathlib import Path

import pytest

from papers.stg import figures
from papers.stg.options import Scale
from papers.stg.runs import Run, parse_run
from shared.claims import read_paper
from shared.options import read_scale
from shared.pages import read_captions

PAPER = Path(__file__).resolve().parents[3] / "papers" / "stg"
SCALES = ("smoke", "small", "paper", "paper_sdxl", "paper_sd3", "paper_flux", "paper_lcm")


def settings_of(scale: str) -> Scale:
    return read_scale(PAPER / "config.yaml", scale, Scale)


def test_names_of_runs():
    assert parse_run("base") == Run("base")
    assert parse_run("safree:-0.05") == Run("safree", -0.05)
    assert parse_run("stg:0.2,fraction=0.4,threshold=0.3@duo") == Run(
        "stg", 0.2, {"fraction": 0.4, "threshold": 0.3}, "duo"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("stgg:0.2", "unknown method"),
        ("stg", "expected base or"),
        ("base:1", "expected base or"),
        ("stg:0.2@", "a name after @"),
        ("stg:much", "expected a number"),
        ("stg:nan", "expected a number"),
        ("stg:0.2,gamma=1", "unknown option"),
    ],
)
def test_other_names_are_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_run(text)


def test_groups_spell_out_the_grid():
    settings = settings_of("smoke")
    assert settings.runs_of("all")[:3] == ("base", "stg:0.2", "stg:1")
    assert "stg:0.2,fraction=0.4" in settings.runs_of("all")
    assert settings.grid_of("all") == settings.grid_runs


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"tuning_seed": 0}, "tuning_seed"),
        ({"prompts": None}, "exactly one"),
        ({"grid": {"stg": (0.1, 0.2), "sdg": (1.0,)}}, "as many strengths"),
        ({"grid": {"dpo": (0.1, 0.2)}}, "grid: expected some of"),
        ({"groups": {"all": ("stg",)}}, "need base"),
        ({"groups": {"all": ("base", "stg", "stg:0.2")}}, "every run once"),
        ({"groups": {"all": ("base", "stg")}}, "must hold every method"),
        ({"unlearn": None}, "no model"),
    ],
)
def test_inconsistent_scales_are_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        replace(settings_of("smoke"), **change)


def test_unlearned_models_of_the_hub_need_adapters():
    settings = settings_of("paper")
    with pytest.raises(ValueError, match=r"no model duo in hub\.loras"):
        replace(settings, hub=replace(settings.hub, loras=()))


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_consistent(scale):
    settings = settings_of(scale)
    runs = [text for group in settings.groups for text in settings.runs_of(group)]
    assert set(settings.defence.traced) <= set(runs)
    assert set(settings.figures) <= set(figures.FIGURES) == set(read_captions(PAPER / "figures.yaml"))


@pytest.mark.parametrize("scale", SCALES)
def test_claims_ask_for_what_the_scale_measures(scale):
    settings = settings_of(scale)
    runs = {text for group in settings.groups for text in settings.runs_of(group)} | set(settings.grid)
    runs |= {f"stg-as-safe-as-{method}" for method in settings.grid}
    toys = {f"{method}:{scale_:g}" for method in ("sdg", "stg") for scale_ in settings.toy.scales}
    made = 0
    for claim in read_paper(PAPER / "paper.yaml").claims:
        for test in (*claim.guards, *claim.tests):
            if test.scales is None or scale in test.scales:
                made += 1
                for method, setting, _ in test.series:
                    assert method in (toys if setting.startswith("toy / ") else runs), f"{claim.id}, {test.name}"
    assert made > (12 if "sdg" in settings.grid else 4)
