"""Every scale fits together, claims ask for what it measures, its networks exist, and every figure is drawn."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from papers.tiw_dsm import figures
from papers.tiw_dsm.data import choose_subsets, draw_problem
from papers.tiw_dsm.measurements import ERROR_SIGMAS, LOG10_WEIGHTS, WEIGHT_SIGMAS
from papers.tiw_dsm.methods import parse_arm
from papers.tiw_dsm.options import GROUPS, DataOptions, Scale
from papers.tiw_dsm.train import kept_samples
from shared.claims import read_paper
from shared.diffusion.training import build_denoiser, build_discriminator
from shared.errors import InputError
from shared.options import flags, from_mapping, read_scale, read_yaml
from shared.pages import read_captions
from shared.plotting import house_style
from shared.results import metrics_table

PAPER = Path(__file__).resolve().parents[3] / "papers" / "tiw_dsm"
SCALES = tuple(read_yaml(PAPER / "config.yaml")["scales"])


def settings_of(scale: str) -> Scale:
    return read_scale(PAPER / "config.yaml", scale, Scale)


def arms_of(settings: Scale, setting: str) -> list[str]:
    return [name for family in settings.settings[setting].families for name in settings.families[family]]


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_consistent(scale):
    settings = settings_of(scale)
    for setting, one in settings.settings.items():
        names = arms_of(settings, setting)
        assert len(set(names)) == len(names)
        for name in names:
            parse_arm(name)
        assert figures.testbed(setting) in figures.TESTBEDS
        if setting != "toy":
            assert figures.percent(setting) == pytest.approx(100 * one.train.data.reference_fraction, abs=5)
        assert len(flags(one.train)) > 30  # no two options of one name
        training = one.train.denoiser.training
        assert training.batch_size <= one.train.data.biased_size
    assert set(settings.figures) <= set(figures.FIGURES) == set(read_captions(PAPER / "figures.yaml"))


@pytest.mark.parametrize("scale", SCALES)
def test_claims_ask_for_what_the_scale_measures(scale):
    settings, paper = settings_of(scale), read_paper(PAPER / "paper.yaml")
    made = 0
    for claim in paper.claims:
        for test in (*claim.guards, *claim.tests):
            if test.scales is None or scale in test.scales:
                made += 1
                seeds = set()
                for method, setting, metric in test.series:
                    where = f"{claim.id}, {test.name}"
                    arms = arms_of(settings, setting)
                    if method.partition("@")[0] in ("noisy", "clean"):
                        ratio = method.partition("@")[2] or "fixed"
                        assert metric in ("small_weights", "ratio_error"), where
                        assert ratio in {parse_arm(name).ratio for name in arms if parse_arm(name).uses_ratio}, where
                    else:
                        assert method in arms, where
                    families = settings.settings[setting].families
                    trained = [family for family in families if method in settings.families[family]]
                    seeds.add(families[trained[0]] if trained else None)
                assert len(seeds) == 1, f"{claim.id}, {test.name}: unpaired seeds"
    assert made >= {"small": 30, "smoke": 10, "gpu": 5, "paper": 5}[scale]


def test_steps_are_those_of_the_comments():
    found = {scale: {name: one.train for name, one in settings_of(scale).settings.items()} for scale in SCALES}

    def images(train):
        training = train.denoiser.training
        steps = round(training.epochs * (train.data.biased_size // training.batch_size))
        return steps, steps * (training.batch_size + train.references_per_batch)

    assert images(found["small"]["mixture-5"])[0] == 3000
    assert images(found["small"]["glyphs-5"])[0] == 2000
    assert images(found["gpu"]["cifar10-5"])[0] == pytest.approx(20000, rel=1e-3)
    assert images(found["paper"]["cifar10-5"])[1] == pytest.approx(11e6, rel=1e-3)
    assert images(found["paper"]["cifar10-10"])[1] == pytest.approx(21e6, rel=1e-3)


@pytest.mark.parametrize("scale", ["gpu", "paper"])
def test_networks_of_large_scales_exist(scale):
    train = settings_of(scale).settings["cifar10-5"].train
    with torch.device("meta"):
        denoiser = build_denoiser(train.denoiser, (3, 32, 32), seed=0)
        settings = train.ratio.discriminator(train.ratio.ratio_steps, train.data.biased_size)
        discriminator = build_discriminator(settings, (3, 32, 32), sigma_data=train.denoiser.sigma_data, seed=0)
        assert denoiser(torch.zeros(2, 3, 32, 32), torch.ones(2)).shape == (2, 3, 32, 32)
        assert discriminator(torch.zeros(2, 3, 32, 32), torch.ones(2)).shape == (2,)
    weights = sum(weight.numel() for weight in denoiser.parameters())
    assert {"gpu": 3e6, "paper": 3e7}[scale] < weights < {"gpu": 2e7, "paper": 1e8}[scale]
    # CIFAR-10's 5000 images of each class suffice for the subsets.
    for one in settings_of(scale).settings.values():
        chosen = choose_subsets(torch.arange(10).repeat(5000), one.train.data, seed=0)
        assert len(chosen["biased"]) == 10000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"a": {"families": {"other": [0]}}}}, "settings.a.families: no family 'other'"),
        ({"judges": {}, "settings": {"a": {"data": {"testbed": "glyphs"}}}}, "judges: settings.a needs one for glyphs"),
        ({"sources": {"train": "a", "test": "b"}}, "sources: settings.a needs none"),
        ({"processes": 7}, "processes: must divide the batch size of settings.a, 64"),
        ({"settings": {"a": {"data": {"reference_fraction": 0.001}}}}, "need at least one reference of each"),
        ({"settings": {"a": {"data": {"imbalance": 0.5}}}}, "imbalance: need a number of at least 1, got 0.5"),
        ({"settings": {"a": {"ratio": {"ratio_candidates": [50, 75]}}}}, "need rising multiples of the first"),
        ({"settings": {"a": {"ref_fraction": 1.0}}}, "ref_fraction: must lie in (0, 1), got 1.0"),
        ({"settings": {"a": {"mirror": True}}}, "mirror: mixture has no images"),
        ({"settings": {"a": {"data": {"colour": 1}}}}, "unknown key 'colour'"),
    ],
)
def test_a_configuration_that_does_not_fit(changes, message):
    small = read_yaml(PAPER / "config.yaml")["scales"]["small"]
    one = dict(small["settings"]["exact-5"])
    change = dict(changes.get("settings", {}).get("a", {}))
    one["families"] = change.pop("families", one["families"])
    train = dict(one["train"])
    for key, value in change.items():
        train[key] = {**train.get(key, {}), **value} if isinstance(value, dict) else value
    values = {**small, **changes, "settings": {"a": {**one, "train": train}}}
    with pytest.raises(InputError) as error:
        from_mapping(values, Scale, where="config.yaml: scales.small")
    assert message in str(error.value) and "\n" not in str(error.value)


def tables(scale: str) -> figures.Tables:
    """Made-up results of a scale: every arm a little better than the one before it."""
    settings = settings_of(scale)
    metrics, shares, errors, weights, lengths, drawn = [], [], [], [], [], {}
    for setting, one in settings.settings.items():
        data = one.train.data
        arms = arms_of(settings, setting)
        for seed in range(3):
            key = {"setting": setting, "seed": seed}
            for index, name in enumerate(arms):
                for metric in ("energy_distance", "group_tv"):
                    value = 0.05 - 0.001 * index + 0.0005 * seed
                    metrics.append({"method": name, **key, "metric": metric, "value": value})
                groups = GROUPS[data.testbed]
                shares += [{"method": name, **key, "group": group, "share": 1 / groups} for group in range(groups)]
            for ratio in {parse_arm(name).ratio for name in arms if parse_arm(name).uses_ratio} - {"exact"}:
                suffix = "" if ratio == "fixed" else f"@{ratio}"
                for kind, levels in (("clean", (0.0,)), ("noisy", WEIGHT_SIGMAS)):
                    for metric, value in (("steps", 200.0), ("small_weights", 0.4), ("ratio_error", 0.2)):
                        metrics.append({"method": kind + suffix, **key, "metric": metric, "value": value})
                    weights += [
                        {"method": kind + suffix, **key, "sigma": sigma, "log10_weight": edge, "count": 3}
                        for sigma in levels
                        for edge in LOG10_WEIGHTS.tolist()[:-1]
                    ]
                    lengths += [
                        {"discriminator": kind, **key, "steps": steps, "held_out_loss": 0.7, "selected": steps == 25}
                        for steps in (25, 50)
                    ]
                if not data.has_images:
                    errors += [
                        {"method": f"noisy{suffix}", **key, "sigma": sigma, "error": 0.1 / (1 + sigma)}
                        for sigma in ERROR_SIGMAS.tolist()
                    ]
        small = DataOptions(data.testbed, 0.5, biased_size=40) if data.testbed != "cifar10" else None
        if small is None:
            kept = torch.zeros(24, 3, 32, 32, dtype=torch.uint8)
        else:
            problem = draw_problem(small, 0, 40)
            kept = kept_samples(problem.test, problem)
        drawn[setting] = dict.fromkeys(arms, kept)
    frame = metrics_table([{"paper": "tiw_dsm", "scale": scale, **row} for row in metrics])
    columns = (["method", "setting", "seed", "sigma", "error"],)
    return figures.Tables(
        frame, pd.DataFrame(shares), pd.DataFrame(lengths), pd.DataFrame(errors, columns=columns[0]),
        pd.DataFrame(weights), drawn
    )  # fmt: skip


@pytest.mark.parametrize(("scale", "name"), [(scale, name) for scale in SCALES for name in settings_of(scale).figures])
def test_every_figure_is_drawn_with_its_labels(scale, name):
    with house_style():
        figure = figures.FIGURES[name](tables(scale))
    drawn = [axes for axes in figure.axes if axes.axison]
    for axes in drawn:
        assert axes.lines or axes.patches or axes.collections or axes.images
    assert any(axes.get_xlabel() or axes.get_title(loc="left") for axes in drawn)


def test_differences_in_the_dose_response_are_paired():
    with house_style():
        panel = figures.sizes(tables("small")).axes[1]
    found = {line.get_label(): line.get_ydata() for line in panel.lines}
    assert np.allclose(found["TIW-DSM − IW-DSM"][[0, 2, 3]], -1) and np.allclose(found["TIW-DSM − IW-DSM"][1], -3)


def test_names_in_words():
    assert figures.title_of("mixture-2.5") == "mixture, 2.5 % references"
    assert figures.label_of(parse_arm("tiw^0.5@selected")) == "TIW-DSM, a = 0.5, held-out length"
    assert figures.steps_of(["tiw", "tiw@50", "tiw@selected", "tiw^2"], 200.0) == {50.0: "tiw@50", 200.0: "tiw"}
