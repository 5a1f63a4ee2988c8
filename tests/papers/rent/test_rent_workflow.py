from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from papers.rent import figures
from papers.rent.corruption import parse_setting
from papers.rent.evaluate import concentrations
from papers.rent.methods import parse_method
from papers.rent.options import Scale
from shared.claims import read_paper
from shared.errors import InputError
from shared.options import from_mapping, read_scale, read_yaml
from shared.pages import read_captions
from shared.plotting import house_style
from shared.results import metrics_table

PAPER = Path(__file__).resolve().parents[3] / "papers" / "rent"
SCALES = tuple(read_yaml(PAPER / "config.yaml")["scales"])


def settings_of(scale: str) -> Scale:
    return read_scale(PAPER / "config.yaml", scale, Scale)


def methods_of(settings: Scale, setting: str) -> list[str]:
    return [method for family in settings.settings[setting] for method in settings.families[family]]


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_consistent(scale):
    settings = settings_of(scale)
    for setting in settings.settings:
        parse_setting(setting)
        methods = methods_of(settings, setting)
        assert len(set(methods)) == len(methods)
        for method in methods:
            parse_method(method)
    assert set(settings.figures) <= set(figures.FIGURES) == set(read_captions(PAPER / "figures.yaml"))


@pytest.mark.parametrize("scale", SCALES)
def test_claims_ask_for_what_the_scale_measures(scale):
    settings = settings_of(scale)
    labels = read_paper(PAPER / "paper.yaml").methods
    made = 0
    for claim in read_paper(PAPER / "paper.yaml").claims:
        for test in (*claim.guards, *claim.tests):
            if test.scales is None or scale in test.scales:
                made += 1
                for method, setting, metric in test.series:
                    where = f"{claim.id}, {test.name}"
                    assert setting in settings.settings, where
                    methods = methods_of(settings, setting)
                    if metric == "concentration_rank":
                        assert method == "dws" and len(concentrations(methods)) == 5, where
                    else:
                        assert method in methods and method in labels, where
    assert made > 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"sym20": ["core", "other"]}}, "settings.sym20: no family 'other'"),
        ({"processes": 3}, "processes: must divide the batch size, 64"),
        ({"data": {"dataset": "cifar10"}}, "sources: cifar10 needs its files"),
        ({"data": {"dataset": "digits"}}, "data.train_images: is for digits, and needed there"),
        ({"sources": {"train": "a", "test": "b"}}, "sources: digits needs none"),
        ({"train": {"epochs": 5}}, "train.classifier: field required"),
    ],
)
def test_a_configuration_that_does_not_fit(changes, message):
    small = read_yaml(PAPER / "config.yaml")["scales"]["small"]
    with pytest.raises(InputError) as error:
        from_mapping(small | changes, Scale, where="config.yaml: scales.small")
    assert message in str(error.value) and "\n" not in str(error.value)


def tables(settings=("asym40", "idn40", "sym20", "sym50"), methods=None) -> figures.Tables:
    """Made-up results: every method a little better than the one before it."""
    small = settings_of("small")
    rows, curves, weights = [], [], []
    for setting in settings:
        for seed in range(3):
            for index, method in enumerate(methods or methods_of(small, "sym50" if setting != "sym20" else setting)):
                key = {"method": method, "setting": setting, "seed": seed}
                for metric in ("accuracy", "transition_error"):
                    if metric == "accuracy" or "/" in method:
                        value = 0.5 + 0.01 * index + 0.001 * seed
                        rows.append({"paper": "rent", "scale": "small", **key, "metric": metric, "value": value})
                for epoch in (1, 2, 3):
                    curves.append({**key, "epoch": epoch, "accuracy": 0.1 * epoch, "fit_mislabelled": 0.2,
                                   "purity": np.nan if method.startswith("fl") else 0.6})  # fmt: skip
                for epoch in (2, 3):
                    weights += [
                        {**key, "epoch": epoch, "clean": clean, "weight": 0.5 * index, "count": index + clean}
                        for clean in (True, False)
                        for index in range(4)
                    ]
    return figures.Tables(metrics_table(rows), pd.DataFrame(curves), pd.DataFrame(weights))


@pytest.mark.parametrize("name", list(figures.FIGURES))
@pytest.mark.parametrize("found", [tables(), tables(("sym50",), methods_of(settings_of("gpu"), "sym50"))])
def test_every_figure_is_drawn_with_its_labels(name, found):
    with house_style():
        figure = figures.FIGURES[name](found)
    for axes in figure.axes:
        assert axes.get_title(loc="left") or axes.get_xlabel()
        assert axes.lines or axes.patches or axes.collections
    assert any(axes.get_xlabel() for axes in figure.axes)
    assert any(axes.get_ylabel() or axes.get_yticklabels() for axes in figure.axes)


def test_settings_are_ordered_and_named():
    assert tables().settings == ["sym20", "sym50", "asym40", "idn40"]
    assert figures.setting_title("asym40") == "asymmetric, 40 %"
    assert figures.setting_title("human-worse") == "human, worse"
    assert figures.method_label("rent/forward") == "RENT, anchors" and figures.method_label("b0") == "uniform bootstrap"
    assert figures.style_of("rent/true") == figures.style_of("rent/forward") != figures.style_of("rw/true")


def test_controls_are_paired_differences():
    with house_style():
        panel = figures.controls(tables(("sym50",))).axes[0]
    means = {
        round(line.get_ydata()[0]): line.get_xdata()[0]
        for line in panel.lines
        if line.get_marker() not in ("|", "None")
    }
    names = methods_of(settings_of("small"), "sym50")
    expected = 100 * 0.01 * (names.index("rent/forward") - names.index("rw/forward"))
    assert means[0] == pytest.approx(expected)
    assert means[2] == pytest.approx(100 * 0.01 * (names.index("b0") - names.index("ce")))


def test_an_unknown_figure_is_one_line(tmp_path):
    found = tables(("sym50",))
    found.metrics.to_parquet(tmp_path / "metrics")
    for name in ("curves", "weights"):
        getattr(found, name).to_parquet(tmp_path / name)
    paths = {"metrics": tmp_path / "metrics", "curves": (tmp_path / "curves",), "weights": (tmp_path / "weights",)}
    with pytest.raises(InputError, match="figure 'pie': there is none; there are: accuracy, controls"):
        figures.draw(figure="pie", **paths, png=tmp_path / "a.png", pdf=tmp_path / "a.pdf")
    figures.draw(figure="accuracy", **paths, png=tmp_path / "a.png", pdf=tmp_path / "a.pdf")
    assert (tmp_path / "a.png").stat().st_size > 5000 and (tmp_path / "a.pdf").exists()
