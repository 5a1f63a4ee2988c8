from pathlib import Path

import pytest

from papers.date import figures
from papers.date.options import Scale
from papers.date.variants import parse_schedules, parse_variant
from shared.claims import read_paper
from shared.options import read_scale
from shared.pages import read_captions

REPOSITORY = Path(__file__).resolve().parents[3]
PAPER = REPOSITORY / "papers" / "date"
SCALES = ("smoke", "small", "paper", "paper_sdxl", "paper_sd3", "paper_flux", "paper_pixart")


def settings_of(scale: str) -> Scale:
    return read_scale(PAPER / "config.yaml", scale, Scale)


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_consistent(scale):
    settings = settings_of(scale)
    assert len(set(settings.variants)) == len(settings.variants)
    assert "fixed" in settings.variants
    assert set(settings.figures) <= set(figures.FIGURES) == set(read_captions(PAPER / "figures.yaml"))
    paper = read_paper(PAPER / "paper.yaml")
    assert set(settings.variants) <= set(paper.methods)
    variants = [parse_variant(name) for name in settings.variants]
    schedules = {variant.schedule for variant in variants if variant.schedule}
    assert set(parse_schedules(settings.sampler.schedules, settings.sampler.num_steps)) == schedules
    tuned = [name for names in settings.tuned.values() for name in names]
    assert len(set(tuned)) == len(tuned) and set(tuned) <= set(settings.variants)
    if settings.hub:
        assert all(each.reward != "plain" for each in variants)
        assert {"universal"} <= set(settings.variants)
        assert ("ebca" in settings.variants) == (scale in ("paper", "paper_sdxl"))


@pytest.mark.parametrize("scale", SCALES)
def test_claims_ask_for_what_the_scale_measures(scale):
    settings, made = settings_of(scale), 0
    measured = {"evaluator_score", "preference_score"}
    if settings.scenes:
        measured |= {"gold", "frechet_distance"}
    for claim in read_paper(PAPER / "paper.yaml").claims:
        for test in (*claim.guards, *claim.tests):
            if test.scales is None or scale in test.scales:
                made += 1
                for method, setting, metric in test.series:
                    assert method in settings.variants, f"{claim.id}, {test.name}: {method}"
                    assert setting == "all" and metric in measured, f"{claim.id}, {test.name}"
    assert made >= 8


def test_the_paper_scale_is_the_papers():
    settings = settings_of("paper")
    assert (settings.sampler.num_steps, settings.sampler.guidance_scale) == (50, 8.0)
    assert "every10=0:50:10" in settings.sampler.schedules and 0.5 in settings.tune.step_sizes
