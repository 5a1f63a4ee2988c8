"""Every scale's configuration, and that claims, figures and captions fit what it measures."""

from pathlib import Path

import pytest
import torch

from papers.udim import figures
from papers.udim.methods import parse_run
from papers.udim.networks import build_network
from papers.udim.options import CORRUPTION_NAMES, ClassifierOptions, Scale
from shared.claims import read_paper
from shared.errors import InputError
from shared.options import read_scale
from shared.pages import read_captions
from shared.vision.domains import CORRUPTIONS, LEVELS, STYLES

PAPER = Path(__file__).resolve().parents[3] / "papers" / "udim"
SCALES = ("smoke", "small", "gpu", "paper")


def settings_of(scale: str) -> Scale:
    return read_scale(PAPER / "config.yaml", scale, Scale)


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_consistent(scale):
    settings = settings_of(scale)
    for suite in settings.suites.values():
        names = [name for family in suite.families.values() for name in family]
        assert len(set(names)) == len(names) and set(suite.train.saved) <= set(names)
        assert set(suite.domains.styles) <= set(STYLES) and set(suite.domains.levels) <= set(LEVELS)
        assert suite.train.probe_level in suite.domains.levels and set(names) <= set(figures.LABELS)
    assert settings.suites[settings.slices.suite].train.saved
    assert set(settings.figures) <= set(figures.FIGURES) == set(read_captions(PAPER / "figures.yaml"))
    assert tuple(CORRUPTIONS) == CORRUPTION_NAMES


@pytest.mark.parametrize("scale", SCALES)
def test_every_method_has_the_same_number_of_candidates(scale):
    runs = [run for runs in settings_of(scale).tuning.candidates.values() for run in runs]
    methods = [parse_run(run).method for run in runs]
    assert len(set(runs)) == len(runs) and len({methods.count(method) for method in methods}) == 1
    assert {"sam", "sam+udim"} <= set(methods)


@pytest.mark.parametrize("scale", SCALES)
def test_claims_ask_for_what_the_scale_measures(scale):
    settings = settings_of(scale)
    made = 0
    for claim in read_paper(PAPER / "paper.yaml").claims:
        for test in (*claim.guards, *claim.tests):
            if test.scales is None or scale in test.scales:
                made += 1
                for method, setting, _ in test.series:
                    assert any(method in family for family in settings.suites[setting].families.values()), test.name
    assert made >= 10


def test_the_papers_networks_are_what_their_options_say():
    for scale in ("gpu", "paper"):
        suite = settings_of(scale).suites["corruptions"]
        with torch.device("meta"):
            model = build_network(suite.train.network, channels=3, size=32, classes=10, seed=0)
        assert sum(parameter.numel() for parameter in model.parameters()) == 11_173_962  # ResNet-18 for CIFAR
    pacs = settings_of("paper").suites["leave-one-out"].train
    assert pacs.network.pretrained == "microsoft/resnet-18" and pacs.network.batch_norm == "frozen"
    assert (pacs.hyperparameters.learning_rate, pacs.steps, pacs.weight_decay) == (3e-5, 5001, 1e-4)
    assert isinstance(pacs.network.classifier, ClassifierOptions)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tuning_seed: 100", "tuning_seed: 0", "tuning_seed: must not be a reported seed, got 0"),
        ("steps: 600", "stesp: 600", "unknown key 'stesp'"),
        ("data: digits\n", "data: letters\n", "suites.corruptions.data: must be one of digits, got 'letters'"),
        ("sam+random, sam+zero]", "sam+rnd]", "run 'sam\\+rnd': unknown term 'rnd'"),
        ("suite: corruptions\n      # Six", "suite: other\n      # Six", "suite: must be one of .* got 'other'"),
        ("- sam@rho=0.02", "- sam", "candidates: must name hyperparameters, got 'sam'"),
        ("slices: {suite: corruptions}", "slices: {suite: corruptions, points: 1}", "need at least 2 directions"),
        ("protocol: corruptions", "protocol: corruption", "protocol: input should be 'corruptions'"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_refused(tmp_path, old, new, message):
    text = (PAPER / "config.yaml").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "config.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_scale(tmp_path / "config.yaml", "small", Scale)
