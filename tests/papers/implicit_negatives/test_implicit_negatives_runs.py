import inspect
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from papers.implicit_negatives import figures
from papers.implicit_negatives.evaluate import fronts
from papers.implicit_negatives.options import ATTACK, SAFE, Scale
from papers.implicit_negatives.runs import Run, parse_run
from papers.implicit_negatives.tune import select_strengths
from shared.claims import read_paper
from shared.errors import InputError
from shared.options import read_scale
from shared.pages import read_captions

PAPER = Path(__file__).resolve().parents[3] / "papers" / "implicit_negatives"
SCALES = ("smoke", "small", "paper")


def settings_of(scale: str) -> Scale:
    return read_scale(PAPER / "config.yaml", scale, Scale)


def test_names_of_runs():
    assert parse_run("none") == Run("none")
    assert parse_run("np:0.5/implicit@uce") == Run("np", 0.5, "implicit", "uce")
    assert parse_run("sld/implicit-base@uce").inverted_on == "base"
    assert parse_run("sld/implicit@uce").inverted_on == "uce" and parse_run("sld/explicit@uce").inverted_on is None
    for text in ("none@uce", "sld:10/explicit", "safree/random@esd", "prompt/implicit"):
        assert parse_run(text).name == text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("cfg/explicit", "unknown method"),
        ("sld", "expected none, or"),
        ("none/explicit", "expected none, or"),
        ("none:1", "expected none, or"),
        ("sld/explicit@", "a name after @"),
        ("sld/words", "unknown negative"),
        ("sld/explicit-uce", "unknown negative"),
        ("sld/implicit-", "unknown negative"),
        ("sld:much/explicit", "expected a number"),
    ],
)
def test_other_names_are_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_run(text)


def test_runs_take_the_selected_strength():
    assert parse_run("sld/explicit").at({"sld": 3.0}) == Run("sld", 3.0, "explicit")
    assert parse_run("sld:1/explicit").at({"sld": 3.0}).strength == 1.0
    assert parse_run("prompt/explicit").at({}) == Run("prompt", None, "explicit")
    with pytest.raises(ValueError, match="no strength is selected for sld"):
        parse_run("sld/explicit").at({"np": 1.0})


def test_the_most_successful_strength_is_selected_and_of_equals_the_weakest():
    rows = [
        ("np:1/explicit", "attack", 0.2), ("np:1/explicit", "safe", 0.8),
        ("np:2/explicit", "attack", 0.7), ("np:2/explicit", "safe", 0.3),
        ("sld:1/explicit", "attack", 0.1), ("sld:3/explicit", "attack", 0.2),
    ]  # fmt: skip
    tried = pd.DataFrame(rows, columns=["run", "set", "success"])
    runs = ["np:1/explicit", "np:2/explicit", "sld:1/explicit", "sld:3/explicit"]
    assert select_strengths(runs, tried) == {"np": 1.0, "sld": 3.0}
    with pytest.raises(InputError, match="was not tried"):
        select_strengths([*runs, "sld:9/explicit"], tried)


def test_fronts_hold_all_strengths_and_the_unguided_model():
    values = {"none@uce": (0.5, 1.0), "np:1/explicit@uce": (1.0, 0.5), "np:0.1/explicit@uce": (0.6, 0.4),
              "np/explicit@uce": (1.0, 1.0)}  # fmt: skip
    rows = [
        {"method": name, "setting": setting, "seed": 0, "metric": metric, "value": value}
        for name, (safety, kept) in values.items()
        for setting, metric, value in (
            (ATTACK, "dsr", safety), (ATTACK, "success", safety / 2), (SAFE, "similarity", kept),
        )
    ]  # fmt: skip
    found = fronts(pd.DataFrame(rows)).set_index("metric")
    assert set(found["method"]) == {"np/explicit@uce"}  # selected ones are among the strengths
    assert found.loc["front", "value"] == pytest.approx(0.75)
    assert found.loc["safe_front", "value"] == pytest.approx(0.375)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"tuning_seed": 0}, "tuning_seed"),
        ({"gate_prompts": 5}, "gate_prompts: need an even number, got 5"),
        ({"prompts": None}, "exactly one"),
        ({"grid": {"np": (1.0,)}}, "as many strengths"),
        ({"groups": {"all": ("sld/explicit",)}}, "need none"),
        ({"groups": {"all": ("none", "none@spm")}}, "no model 'spm'"),
        ({"groups": {"all": ("none", "sld/implicit-spm")}}, "groups: run 'sld/implicit-spm': no model 'spm'"),
        ({"prompts": None, "hub": settings_of("paper").hub}, "control: its base models are the testbed's"),
        ({"prompts": None, "hub": settings_of("paper").hub, "control": None}, "gate_prompts: goes with prompts"),
        ({"processes": 2}, "processes: share prompts of the hub"),
        ({"own_systems": True}, "own_systems: are the testbed's, and system_seed must be none of the seeds"),
        (
            {"prompts": None, "gate_prompts": 0, "hub": settings_of("paper").hub, "control": None},
            "uce: goes with prompts",
        ),
    ],
)
def test_inconsistent_scales_are_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        replace(settings_of("smoke"), **change)


def test_systems_are_as_small_but_for_their_base_models():
    changed = {"own_systems": True, "testbed": "small"}
    assert settings_of("systems") == replace(settings_of("small"), **changed)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"runs": ("np/explicit",)}, "runs: need none"),
        ({"runs": ("none", "none")}, "every run once"),
        ({"runs": ("none", "none@duo")}, "runs: run 'none@duo': no model 'duo'; there are: base, uce, esd"),
        ({"runs": ("none", "cfg/explicit")}, "unknown method"),
        ({"gate_prompts": 0}, "gate_prompts: need at least one, got 0"),
    ],
)
def test_an_inconsistent_control_is_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        replace(settings_of("smoke").control, **change)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("word_dropout: 0.3", "word_dropout: 1.3", r"control.captions: word_dropout: must lie in \[0, 1\], got 1.3"),
        ("noun_noise: 0.3", "nouns: 0.3", "control.captions: unknown key 'nouns'; known keys: scenes"),
        ("scenes: 16000", "scenes: many", "scales.small.control.captions.scenes: .*valid integer, got 'many'"),
    ],
)
def test_mistakes_in_the_controls_configuration_are_named(tmp_path, old, new, complaint):
    text = (PAPER / "config.yaml").read_text(encoding="utf-8")
    assert text.count(old) >= 1
    (tmp_path / "config.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InputError, match=complaint):
        read_scale(tmp_path / "config.yaml", "small", Scale)


def test_sheets_show_unguided_models_and_what_defends_unlearned_ones():
    names = ["none", "none@uce", "np/explicit@uce", "safree/implicit@esd", "np/explicit", "prompt/implicit@uce",
             "np:1/explicit@uce", "sld/implicit-esd@uce", "sld/random@uce"]  # fmt: skip
    assert [name for name in names if parse_run(name).shown] == names[:4]


def test_the_control_keeps_pictures_of_the_first_seed_alone():
    settings = settings_of("small")
    kept = [settings.control_guidance_of(seed).pictures_per_set for seed in settings.seeds]
    assert kept == [settings.control.pictures_per_set, 0, 0]
    assert replace(settings.control_guidance_of(0), pictures_per_set=0) == settings.control_guidance_of(1)


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_consistent(scale):
    settings = settings_of(scale)
    assert set(settings.figures) <= set(figures.FIGURES) == set(read_captions(PAPER / "figures.yaml"))
    assert len(settings.candidates) == len({*settings.candidates}) == 3 * len(settings.grid["np"])
    if scale != "paper":
        assert settings.models == ("base", "uce", "esd", "duo")
        assert settings.control.models == ("base", "uce", "esd")


@pytest.mark.parametrize("scale", SCALES)
def test_claims_ask_for_what_the_scale_measures(scale):
    settings = settings_of(scale)
    runs = {text for group in settings.groups.values() for text in group}
    loose = set(settings.control.runs) if settings.control else set()
    swept = {Run(run.method, None, run.negative, run.model).name for run in map(parse_run, runs) if run.strength}
    made = 0
    for claim in read_paper(PAPER / "paper.yaml").claims:
        for test in (*claim.guards, *claim.tests):
            if test.scales is None or scale in test.scales:
                made += 1
                for method, setting, _ in test.series:
                    measured = {"trade-off": swept}.get(setting, loose if "loose" in setting else runs)
                    assert method in measured, f"{claim.id}, {test.name}"
    assert made > 12 or scale == "paper"


def test_fixed_names_and_signatures():
    from papers.implicit_negatives.concept_inversion import concept_inversion_loss
    from papers.implicit_negatives.safety_guidance import safe_latent_guidance
    from papers.implicit_negatives.token_filtering import filter_prompt_embeddings, filtered_step_limit
    from papers.implicit_negatives.unlearning import uce_edit

    assert list(inspect.signature(concept_inversion_loss).parameters) == [
        "predict_noise", "latents", "noise", "timesteps", "alphas_cumprod", "concept",
    ]  # fmt: skip
    assert list(inspect.signature(safe_latent_guidance).parameters)[:5] == [
        "noise_uncond", "noise_text", "noise_concept", "momentum", "step_index",
    ]  # fmt: skip
    assert inspect.signature(filter_prompt_embeddings).parameters["alpha"].default == 0.01
    assert inspect.signature(filtered_step_limit).parameters["midpoint"].default == 5.333
    assert inspect.signature(uce_edit).parameters["preserve_weight"].default == 0.1
