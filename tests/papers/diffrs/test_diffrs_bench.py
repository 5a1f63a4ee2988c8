"""The bench of all methods, followed requests, judges, and what the evaluation derives."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from papers.diffrs.bench import NOISE, Bench
from papers.diffrs.evaluate import matching_rows, rank_correlation, spearman_rows
from papers.diffrs.exact import cases, judge_of
from papers.diffrs.judges import number_judge, ring_judge
from papers.diffrs.log_ratios import QUANTILES, log_ratio_quantiles
from papers.diffrs.methods import parse_run
from papers.diffrs.noise_schedule import edm_sigmas
from papers.diffrs.paths import follow_requests
from shared.diffusion.gaussian_mixtures import ring
from shared.diffusion.samplers import EULER, HEUN, integrate

DATA, MODEL = cases()["exact-2d"]


def log_ratio(x, sigma):
    return DATA.log_density(x, sigma) - MODEL.log_density(x, sigma)


BENCH = Bench(
    denoiser=MODEL.denoise,
    log_ratio=log_ratio,
    sigmas=edm_sigmas(6, sigma_max=20.0),
    solver=HEUN,
    shape=(2,),
    seed=3,
    slots=7,
    warm_up=200,
)


def test_plain_methods_start_from_the_same_noise():
    expected = integrate(MODEL.denoise, BENCH.noise(NOISE, 20), BENCH.sigmas)
    base = BENCH.draw(parse_run("base"), 20)
    torch.testing.assert_close(base.samples, expected, rtol=0, atol=1e-9)
    assert base.total_nfe == 20 * 11
    for name in ("longer@steps=6", "churn@steps=6,amount=0", "restart@repeats=0", "dg@weight=0"):
        same = BENCH.draw(parse_run(name), 20)
        torch.testing.assert_close(same.samples, expected, rtol=0, atol=1e-9)
        assert same.total_nfe == 20 * 11


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [("longer@steps=9", 17), ("churn@steps=7", 13), ("restart@repeats=2,nodes=4", 23), ("best@candidates=3", 33)],
)
def test_evaluations_are_counted(name, evaluations):
    calls = []

    def denoiser(x, sigma):
        calls.append(len(x))
        return MODEL.denoise(x, sigma)

    drawn = replace(BENCH, denoiser=denoiser).draw(parse_run(name), 20)
    assert drawn.total_nfe == sum(calls) == 20 * evaluations
    assert drawn.samples.shape == (20, 2)


def test_selected_hyperparameters_are_used():
    selected = {"longer": {"steps": 8}}
    assert BENCH.draw(parse_run("longer"), 5, selected).total_nfe == 5 * 15
    assert BENCH.draw(parse_run("longer@steps=7"), 5, selected).total_nfe == 5 * 13


def test_processes_share_the_requests_and_the_constants():
    parts = [replace(BENCH, share=(number, 2)) for number in range(2)]
    drawn = [part.draw(parse_run("diffrs@percentile=0.9"), 9) for part in parts]
    assert [len(each.samples) for each in drawn] == [5, 4]
    assert not torch.equal(drawn[0].samples[:4], drawn[1].samples)
    torch.testing.assert_close(parts[0].warm_up_log_ratios, parts[1].warm_up_log_ratios)


def test_diffrs_keeps_its_budget():
    details = replace(BENCH, budget=2.0).draw(parse_run("diffrs@percentile=0.99"), 40).details
    assert details.nfe.max() <= 22
    assert replace(BENCH, budget=None).max_nfe is None


def test_ddim_has_no_guidance_by_heun():
    bench = replace(BENCH, solver=EULER)
    assert bench.draw(parse_run("diffrs"), 5).total_nfe >= 5 * 6
    with pytest.raises(ValueError, match="dg: is made for Heun's solver"):
        bench.draw(parse_run("dg"), 5)


def test_followed_requests_are_pushed_back_by_single_levels():
    table = follow_requests(BENCH, 12, percentile=0.95)
    assert set(table["request"]) == set(range(12))
    assert (table["kind"] == "rejected").any()
    for _, rows in table.groupby("request"):
        tested = rows[rows["kind"] != "without"]
        steps = tested["level"].diff().iloc[1:]
        after = tested["kind"].iloc[:-1].to_numpy()
        level = tested["level"].iloc[:-1].to_numpy()
        assert (steps[after == "accepted"] == 1).all()
        # From level 0 nothing is pushed back; from above one level, and a draw from the prior is another one.
        assert (steps[(after == "rejected") & (level > 0)] == -1).all()
        assert tested["level"].iloc[-1] == 6 and tested["kind"].iloc[-1] == "accepted"
    ends = table[table["kind"] == "without"][["x", "y"]].to_numpy()
    assert np.isfinite(ends).all() and (np.hypot(*ends.T) < 3).all()
    assert follow_requests(BENCH, 0).empty


def test_log_ratios_part_where_the_noise_ends():
    """By the exact ratio, data and the model's samples part more and more as the noise decreases."""
    generator = torch.Generator().manual_seed(0)
    sets = {"data": DATA.sample(4000, generator)[0], "base": MODEL.sample(4000, generator)[0]}
    table = log_ratio_quantiles(BENCH, sets)
    assert len(table) == 2 * 7 * len(QUANTILES)
    median = table[table["quantile"] == 0.5].pivot(index="level", columns="source", values="log_ratio")
    gap = median["data"] - median["base"]
    assert abs(gap[0]) < 0.05 and gap.is_monotonic_increasing and gap[6] > 0.5
    last = table.query("level == 6 and source == 'base'")["log_ratio"]
    told = log_ratio(sets["base"], torch.zeros(4000)).double().quantile(torch.tensor(QUANTILES).double())
    assert last.tolist() == pytest.approx(told.tolist(), abs=1e-4)


def test_a_ring_is_judged_by_its_density():
    data = ring(8, 0.07)
    samples, _ = data.sample(4000, torch.Generator().manual_seed(1))
    judge = judge_of(data, seed=0)
    good = judge(samples)
    assert good["outliers"] < 0.002 and good["mode_variation"] < 0.03 and good["sliced_w2"] < 0.06
    assert good["coverage"] > 0.9 and abs(good["energy"]) < 0.002
    # Half of the modes: less is covered, and the law is another; but there are no outliers.
    half = judge(samples[samples[:, 1] > 0])
    assert half["outliers"] < 0.002 and half["coverage"] < 0.6 and half["mode_variation"] > 0.3
    assert half["sliced_w2"] > 3 * good["sliced_w2"]
    wide = ring_judge(data, samples, 500)(samples + 0.3 * torch.randn(4000, 2))
    assert wide["outliers"] > 0.3


def test_numbers_are_judged_by_quantiles():
    samples = 0.3 + 0.15 * torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    assert number_judge(0.3, 0.15)(samples)["w1"] < 0.004
    assert number_judge(0.5, 0.15)(samples)["w1"] == pytest.approx(0.2, abs=0.004)


def runs_of(rows):
    return pd.DataFrame(rows, columns=["setting", "seed", "run", "nfe", "outliers", "sliced_w2"])


def test_matching_evaluations_are_interpolated():
    runs = runs_of(
        [
            ("a", 0, "base", 35.0, 0.30, 0.5),
            ("a", 0, "final@percentile=0.5", 75.0, 0.10, 0.4),
            ("a", 0, "final@percentile=0.75", 95.0, 0.02, 0.3),
            ("a", 0, "diffrs@percentile=0.75", 43.0, 0.06, 0.2),
            ("b", 0, "base", 35.0, 0.30, 0.5),
            ("b", 0, "final@percentile=0.5", 75.0, 0.10, 0.4),
            ("b", 0, "diffrs@percentile=0.75", 43.0, 0.01, 0.2),
        ]
    )
    values = matching_rows(runs).set_index("setting")["value"].to_dict()
    assert values["a"] == pytest.approx(85.0)  # half way
    assert values["b"] == 75.0  # never as good: its closest
    images = runs.assign(outliers=math.nan, frechet=runs["outliers"])
    assert matching_rows(images)["value"].tolist() == matching_rows(runs)["value"].tolist()


def test_rank_correlations_over_gamma():
    rows = [("a", 0, f"diffrs@percentile={gamma}", nfe, 0.1, value)
            for gamma, nfe, value in ((0.5, 40.0, 0.3), (0.75, 43.0, 0.1), (0.9, 50.0, 0.2))]  # fmt: skip
    values = spearman_rows(runs_of(rows)).set_index("metric")["value"].to_dict()
    assert values == {"spearman_nfe": pytest.approx(1.0), "spearman_primary": pytest.approx(-0.5)}
    assert spearman_rows(runs_of(rows[:2])).empty


def test_what_does_not_change_has_no_rank_correlation():
    assert rank_correlation([1, 2, 3], [5, 5, 5]) == rank_correlation([5, 5, 5], [1, 2, 3]) == 0
    assert rank_correlation([1, 2, 3], [2, 4, 9]) == 1
