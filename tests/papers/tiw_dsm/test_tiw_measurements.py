"""Metrics tell the right distribution from copies and from biased ones; errors and weights are counted right."""

import math
from dataclasses import replace

import pytest
import torch
from tiw_cases import TINY, TINY_IMAGES

from papers.tiw_dsm.data import draw_problem
from papers.tiw_dsm.measurements import (
    LOG10_WEIGHTS,
    WEIGHT_SIGMAS,
    SampleMeter,
    as_unit,
    biased_weights,
    denoiser_error,
    draw_samples,
    ratio_errors,
    small_weight_share,
    weight_counts,
)
from papers.tiw_dsm.methods import Logits
from shared.vision.models import build_classifier
from shared.vision.options import ClassifierOptions

PROBLEM = draw_problem(TINY.data, seed=0, test_size=400)
METER = SampleMeter(TINY.data, PROBLEM)


def test_metrics_tell_what_is_wrong():
    fresh = draw_problem(TINY.data, seed=1, test_size=400).test
    good, biased, copies = (METER.measure(each) for each in (fresh, PROBLEM.biased, PROBLEM.reference.repeat(30, 1)))
    assert good["energy_distance"] < 0.02 < min(biased["energy_distance"], copies["energy_distance"])
    assert good["group_tv"] < 0.1 < biased["group_tv"] and copies["group_tv"] < 1e-9
    assert copies["reference_distance"] == 0 and good["reference_distance"] == pytest.approx(1, abs=0.1)
    assert METER.measure(PROBLEM.test)["reference_distance"] == 1


def test_images_are_judged_by_a_classifier():
    problem = draw_problem(TINY_IMAGES.data, seed=0, test_size=60)
    options = ClassifierOptions("cnn", (4,), hidden=8)
    judge = build_classifier(options, channels=1, size=8, num_classes=4, seed=0).eval()
    meter = SampleMeter(TINY_IMAGES.data, problem, judge)
    same, noise = meter.measure(problem.test), meter.measure(torch.randn(60, 1, 8, 8))
    assert same["feature_distance"] == pytest.approx(0, abs=1e-6) and same["coverage"] == 1
    assert noise["feature_distance"] > same["feature_distance"] and noise["coverage"] < 0.5
    expected = judge(as_unit(problem.test)).argmax(1).bincount(minlength=4) / 60
    torch.testing.assert_close(meter.group_shares(problem.test).float(), expected)


def test_the_exact_denoiser_has_no_error_and_samples_well():
    exact = PROBLEM.densities.unbiased.denoise
    assert denoiser_error(TINY, exact, PROBLEM, seed=0) == pytest.approx(0, abs=1e-9)
    biased = denoiser_error(TINY, PROBLEM.densities.biased.denoise, PROBLEM, seed=0)
    assert biased > 0.01
    options = replace(TINY, sampling=replace(TINY.sampling, samples=300, solver_steps=12, sample_batch=100))
    samples = draw_samples(options, exact, (6,), seed=0, device=torch.device("cpu"))
    assert METER.measure(samples)["energy_distance"] < 0.02
    torch.testing.assert_close(samples, draw_samples(options, exact, (6,), 0, torch.device("cpu")))


def test_errors_of_known_ratios():
    densities = PROBLEM.densities
    rows, clean = ratio_errors(TINY, densities.logits, densities, seed=0, count=500)
    assert clean == pytest.approx(0, abs=1e-9) and max(row["error"] for row in rows) == pytest.approx(0, abs=1e-9)

    def guess(x, sigma):
        return torch.zeros(len(x))

    rows, clean = ratio_errors(TINY, Logits(guess, guess), densities, seed=0, count=500)
    # Without noise the guess w̃ = 1 is off by E (w̃ − 1)²; with much noise it is right.
    assert clean > 0.1 and rows[0]["error"] == pytest.approx(clean, rel=0.1) and rows[-1]["error"] < 0.1 * clean


def test_weights_are_counted():
    log_weights = torch.tensor([-100.0, math.log(0.005), math.log(0.02), 0.0, 100.0], dtype=torch.float64)
    assert small_weight_share(log_weights) == pytest.approx(0.4)
    counts = {row["log10_weight"]: row["count"] for row in weight_counts(log_weights)}
    assert len(counts) == len(LOG10_WEIGHTS) - 1 and sum(counts.values()) == 5
    assert [counts[edge] for edge in (-6.0, -2.5, -1.75, 0.0, 1.75)] == [1] * 5


def test_weights_of_the_biased_data_at_all_levels():
    found = biased_weights(PROBLEM.densities.logits, PROBLEM.biased, seed=0)
    assert list(found) == [("clean", 0.0), *[("noisy", sigma) for sigma in WEIGHT_SIGMAS]]
    torch.testing.assert_close(
        found["clean", 0.0], PROBLEM.densities.log_ratio(PROBLEM.biased, torch.zeros(120)).double()
    )
    spread = [found["noisy", sigma].std().item() for sigma in WEIGHT_SIGMAS]
    assert spread == sorted(spread, reverse=True)
