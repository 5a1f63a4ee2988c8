"""The scales of `config.yaml`, the claims, and the mixtures."""

from pathlib import Path

import pytest
import torch

from papers.lidar import figures
from papers.lidar.evaluate import families
from papers.lidar.hub import SUPPORTED
from papers.lidar.mixtures import graded_reward
from papers.lidar.options import MixtureOptions, Scale
from papers.lidar.runs import parse_run
from papers.lidar.study_mixtures import study_mixtures
from papers.lidar.tune import candidates
from shared.claims import read_paper
from shared.errors import InputError
from shared.options import read_scale, read_yaml
from shared.pages import read_captions
from shared.tables import read_table

PAPER = Path(__file__).resolve().parents[3] / "papers" / "lidar"
SCALES = ("smoke", "small", "paper", "paper_sdxl")


def settings_of(scale: str) -> Scale:
    return read_scale(PAPER / "config.yaml", scale, Scale)


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_consistent(scale):
    settings = settings_of(scale)
    names = [run.name for run in settings.all_runs]
    assert {"vanilla", settings.matched} <= set(names) and set(settings.sampler.pictured) <= set(names)
    assert set(settings.figures) <= set(figures.FIGURES) == set(read_captions(PAPER / "figures.yaml"))
    assert all(family in figures.FAMILIES for family in families(names))
    assert all(figures.label(name) for name in names)
    if settings.hub:
        assert all(run.kind in SUPPORTED for run in settings.all_runs)
    else:
        tried = [parse_run(name) for group in settings.tuned.values() for name in group]
        assert len({len(candidates(run, settings.tune)) for run in tried}) == 1
        tuned = {run.tuned for run in tried} | {"universal-reward", None}
        assert all(run.tuned in tuned for run in settings.all_runs)


@pytest.mark.parametrize("scale", SCALES)
def test_claims_ask_for_what_the_scale_samples(scale):
    names, made = {run.name for run in settings_of(scale).all_runs}, 0
    curves = set(families(sorted(names)))
    for claim in read_paper(PAPER / "paper.yaml").claims:
        for test in claim.tests:
            if test.scales is None or scale in test.scales:
                made += 1
                known = names | curves | {"bon-as-dear", "estimate"}
                assert all(method in known for method, *_ in test.series), f"{claim.id}, {test.name}"
    assert made >= 4


def test_the_paper_scale_is_the_papers():
    settings = settings_of("paper")
    assert (settings.sampler.num_steps, settings.sampler.guidance_scale, settings.sampler.eta) == (100, 7.5, 1.0)
    assert (settings.hub.reward_weight, settings.hub.scale, settings.sampler.end_timestep) == (5000, 12.5, 200)
    assert settings.sampler.images_per_prompt == 4 and settings.sampler.lookahead_size == 50
    assert settings_of("paper_sdxl").hub.float32_decoder
    flux = settings_of("paper_flux")
    assert flux.hub.scheduler == "own" and flux.sampler.eta == 0 and flux.solvers["d8"].adapter_weight == 0.125


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tuning_seed": 6}, "tuning_seed: must not be a reported seed"),
        ({"hub": None, "scenes": None}, "exactly one of them"),
        ({"tune": None}, "tune, tuned: go with scenes"),
        ({"families": {"a": ["vanilla"], "b": ["vanilla"]}}, "families: every run may stand in one"),
        ({"families": {"a": ["lidar/d5-n28"]}}, "lookahead_size: must be at least"),
    ],
)
def test_scales_that_contradict_themselves_are_refused(tmp_path, change, message):
    scale = read_yaml(PAPER / "config.yaml")["scales"]["small"] | change
    path = tmp_path / "config.json"
    path.write_text(str({"scales": {"small": scale}}).replace("None", "null").replace("'", '"'))
    with pytest.raises(InputError, match=message):
        read_scale(path, "small", Scale)


# Mixtures


def test_the_exact_future_reward_is_the_limit_of_sampling():
    """E[exp(λ r) | x] by rejection-free integration: many samples of the posterior of each component."""
    problem, sigma, weight = graded_reward(16, 0.3, 0), 0.7, 2.0
    generator = torch.Generator().manual_seed(0)
    clean, _ = problem.mixture.sample(3, generator)
    x = clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    draws, _ = problem.mixture.sample(400_000, generator)
    logits = -(x[:, None] - draws).square().sum(-1) / (2 * sigma**2)
    expected = (logits + weight * draws @ problem.slope).logsumexp(1) - logits.logsumexp(1)
    torch.testing.assert_close(problem.expected_future_reward(x, sigma, weight), expected, rtol=0, atol=0.05)


def test_errors_on_mixtures_fall_with_the_root_of_n(tmp_path):
    options = MixtureOptions(dimensions=(64,), sizes=(64, 1024), replicates=6, points=32)
    study_mixtures(options, seeds=(0,), errors=tmp_path / "e.parquet")
    table = read_table(tmp_path / "e.parquet").set_index("size")
    for metric in ("efr_error", "score_error"):
        assert 2.5 < table.loc[64, metric] / table.loc[1024, metric] < 6.5  # a factor of 4 by the theorem
