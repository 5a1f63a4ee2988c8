import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from papers.bpo import figures, study_optima
from papers.bpo.evaluate import selections
from papers.bpo.methods import parse_method
from papers.bpo.options import PREFERRED, SFT, Scale, TabularOptions
from papers.bpo.tabular import optimality_gaps, random_problem
from shared.claims import read_paper
from shared.options import read_scale
from shared.pages import read_captions
from shared.plotting import house_style
from shared.results import metrics_table
from shared.tables import read_table

REPOSITORY = Path(__file__).resolve().parents[3]
PAPER = REPOSITORY / "papers" / "bpo"
SCALES = ("smoke", "small", "paper", "paper_tldr", "paper_ultrafeedback")


def settings_of(scale: str) -> Scale:
    return read_scale(PAPER / "config.yaml", scale, Scale)


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_consistent(scale):
    settings = settings_of(scale)
    methods = [method for family in settings.families.values() for method in family]
    assert len(set(methods)) == len(methods)
    for method in set(methods) - {SFT, PREFERRED}:
        parse_method(method)
    assert {SFT, PREFERRED, "dpo"} <= set(methods)
    assert set(settings.optimize.tempered_methods) | set(settings.optimize.saved_policies) <= set(methods)
    assert (settings.data is None) != (settings.hub is None)
    assert set(settings.figures) <= set(figures.FIGURES) == set(read_captions(PAPER / "figures.yaml"))
    optimize, supervised = settings.optimize, settings.supervised
    assert optimize.max_answer_tokens == supervised.max_answer_tokens >= optimize.sampling.max_new_tokens
    assert optimize.max_prompt_tokens == supervised.max_prompt_tokens


@pytest.mark.parametrize("scale", SCALES)
def test_claims_ask_for_what_the_scale_measures(scale):
    settings = settings_of(scale)
    methods = {method for family in settings.families.values() for method in family} | {"sba"}
    methods |= {name for name, members in selections(sorted(methods)).items() if members}
    if len(settings.optimize.temperatures):
        methods |= {f"dpo-matching-{name}" for name in selections(sorted(methods))["best-sba"]}
    losses = set(optimality_gaps(random_problem(0)))
    made = 0
    for claim in read_paper(PAPER / "paper.yaml").claims:
        for test in (*claim.guards, *claim.tests):
            if test.scales is None or scale in test.scales:
                made += 1
                for method, setting, _ in test.series:
                    known = losses if setting == "tabular" else methods
                    assert method in known, f"{claim.id}, {test.name}: {method}"
                    assert setting in ("tabular", *settings.settings), f"{claim.id}, {test.name}: {setting}"
    assert made > 20


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
def test_every_dag_builds(scale):
    # A run of the repository that was interrupted must not fail the test.
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "papers/bpo",
        "-n",
        "--rerun-incomplete",
        "--config",
        f"scale={scale}",
    ]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]


def test_optima_are_written_for_every_loss_and_problem(tmp_path):
    paths = {name: tmp_path / name for name in ("gaps", "generators")}
    study_optima.study_optima(TabularOptions(problems=2), seeds=(0, 3), **paths)
    by_problem = dict(list(read_table(paths["gaps"]).groupby(["seed", "problem"])))
    assert set(by_problem) == {(0, 0), (0, 1), (3, 0), (3, 1)}
    for (seed, problem), rows in by_problem.items():
        assert rows.set_index("loss")["gap"].to_dict() == optimality_gaps(random_problem(2 * seed + problem))


def test_generator_curves_touch_at_the_data_ratio():
    curves = study_optima.generator_curves(points=2001)
    for (generator, _), rows in curves.groupby(["generator", "lam"]):
        rows = rows.set_index("ratio")
        assert rows["divergence"].min() >= -1e-15
        assert rows["divergence"].idxmin() == pytest.approx(0.5, rel=2e-3)
        at_one = rows["gradient"].iloc[1000]
        expected = {"logistic": 0.5, "kliep": 2.0, "lsif": 4.0, "scaled_basu": 0.5}.get(generator)
        assert expected is None or at_one == pytest.approx(expected)


@pytest.fixture(scope="module")
def tables() -> figures.Tables:
    methods = ["dpo", "kliep", "ba:2", "fdpo-fkl", "fpo-js", "sba:-0.5", "sba:0.5", "sba:2", "simpo", "best-sba"]
    label = {"paper": "bpo", "scale": "small"}
    rows, temperatures, steps, margins = [], [], [], []
    for setting in ("clean", "noisy"):
        for seed in range(3):
            for index, method in enumerate(methods):
                key = {"method": method, "setting": setting, "seed": seed}
                for metric in ("win_vs_sft", "entropy"):
                    rows.append({**label, **key, "metric": metric, "value": 0.5 + 0.01 * index + 0.001 * seed})
                for t in (0.6, 1.0) if method in ("dpo", "sba:0.5") else (1.0,):
                    temperatures.append({**key, "temperature": t, "win_vs_sft": 1.5 - t, "entropy": 2 * t})
                steps += [{**key, "step": step, "grad_norm": 1.0 + step} for step in (1, 2)]
                margins += [{**key, "pair": pair, "margin": float(pair)} for pair in range(3)]
    found = [("bpo/scaled_basu_-0.5", -1e-17), ("f_dpo/alpha_0.1", 1e-3), ("f_po/jensen_shannon", 0.1)]
    gaps = [{"seed": seed, "problem": 0, "loss": loss, "gap": gap} for loss, gap in found for seed in range(3)]
    frames = (pd.DataFrame(each) for each in (temperatures, steps, margins, gaps))
    return figures.Tables(metrics_table(rows), *frames, study_optima.generator_curves(points=11))


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_every_figure_is_drawn_with_its_labels(name, tables):
    with house_style():
        figure = figures.FIGURES[name](tables)
    for axes in figure.axes:
        assert axes.get_xlabel() and (axes.lines or axes.patches or axes.collections)
    assert any(axes.get_ylabel() or axes.get_yticklabels() for axes in figure.axes)


def test_labels_in_figures():
    assert figures.loss_label("bpo/scaled_basu_-0.5") == "SBA −0.5"
    assert figures.loss_label("f_dpo/alpha_0.1") == "α 0.1"
    assert figures.loss_label("bpo/scaled_basu_0.5_clipped") == "SBA 0.5 clipped"
    families = {
        name: figures.family_of(name) for name in ("dpo", "dpo:0.1", "sba:2", "ba:-0.9", "lsif", "fpo-alpha:0.1")
    }
    assert families == {
        "dpo": ("DPO", ""),
        "dpo:0.1": None,
        "sba:2": ("SBA", "2"),
        "ba:-0.9": ("BPO", "BA −0.9"),
        "lsif": ("BPO", "LSIF"),
        "fpo-alpha:0.1": ("f-PO", "α"),
    }
    assert figures.family_of("sba:0@simpo") is None and figures.family_of("inner-sba") is None
