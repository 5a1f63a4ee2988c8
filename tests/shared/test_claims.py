import copy
import json

import numpy as np
import pytest
import yaml
from example_paper import DOCUMENT, VERDICTS, paper, tables

from shared import results
from shared.claims import (
    Test,
    Verdicts,
    claim_verdict,
    decide,
    interval_verdict,
    read_paper,
    read_verdicts,
    write_verdicts,
)
from shared.errors import InputError
from shared.statistics import Interval


def one_test(**keys):
    return {"name": "t", "setting": "A", "metric": "gold", "method": "ours", "direction": "greater"} | keys


def one_claim(*tests, guards=()):
    return paper(claims=[{"id": "c", "statement": "S", "tests": list(tests), "guards": list(guards)}])


def decide_one(test, metrics, units=None, **options):
    (claim,) = decide(one_claim(test), metrics, units, **({"replicates": 2000} | options))
    return claim.tests[0]


def metrics_of(values, *, metric="gold", paper="demo", scale="small"):
    """``{(method, setting): [value of seed 0, ...]}`` as a metrics table."""
    return results.metrics_table(
        {"paper": paper, "scale": scale, "method": method, "setting": setting, "seed": seed, "metric": metric}
        | {"value": float(value)}
        for (method, setting), of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    )


def units_of(values, *, metric="gold"):
    """``{(method, setting): [[unit values of seed 0], ...]}`` as a units table."""
    return results.units_table(
        {"paper": "demo", "scale": "small", "method": method, "setting": setting, "seed": seed, "unit": f"u{unit}"}
        | {"metric": metric, "value": float(value)}
        for (method, setting), of_seeds in values.items()
        for seed, of_units in enumerate(of_seeds)
        for unit, value in enumerate(of_units)
    )


# ---- verdicts -------------------------------------------------------------------------------------------------------


def test_every_kind_of_verdict_comes_out():
    metrics, units = tables()
    decided = decide(paper(), metrics, units, replicates=2000)
    assert {claim.id: claim.verdict for claim in decided} == VERDICTS
    by_id = {claim.id: claim for claim in decided}
    assert by_id["beats-kl"].reason == "supported: biased annotators; contradicted: unbiased annotators"
    assert by_id["semantic"].reason == "the interval lies above 0.05"
    gain = by_id["larger-where-biased"].tests[0]
    assert gain.estimate == pytest.approx((0.62 - 0.47) - (0.80 - 0.84), abs=0.02)
    assert gain.means == pytest.approx((0.62, 0.47, 0.80, 0.84), abs=0.05)


@pytest.mark.parametrize(
    ("keys", "interval", "verdict"),
    [
        ({"baseline": "b"}, (0.01, 0.2), "supported"),
        ({"baseline": "b"}, (-0.01, 0.2), "inconclusive"),
        ({"baseline": "b"}, (-0.2, -0.01), "contradicted"),
        ({"baseline": "b"}, (0.0, 0.2), "inconclusive"),
        ({"baseline": "b", "margin": 0.05}, (0.01, 0.2), "inconclusive"),
        ({"baseline": "b", "margin": 0.05}, (0.06, 0.2), "supported"),
        ({"baseline": "b", "margin": 0.05}, (0.01, 0.04), "contradicted"),
        ({"baseline": "b", "direction": "less"}, (-0.2, -0.01), "supported"),
        ({"baseline": "b", "direction": "less"}, (0.01, 0.2), "contradicted"),
        ({"baseline": "b", "direction": "less", "margin": 0.3}, (0.01, 0.2), "supported"),
        ({"threshold": 0.5}, (0.51, 0.6), "supported"),
        ({"threshold": 0.5}, (0.4, 0.49), "contradicted"),
        ({"threshold": 0.5}, (0.4, 0.6), "inconclusive"),
        ({"threshold": 0.5, "direction": "less"}, (0.4, 0.49), "supported"),
        ({"baseline": "b", "direction": "equivalent", "margin": 0.1}, (-0.05, 0.09), "supported"),
        ({"baseline": "b", "direction": "equivalent", "margin": 0.1}, (-0.05, 0.11), "inconclusive"),
        ({"baseline": "b", "direction": "equivalent", "margin": 0.1}, (-0.3, 0.3), "inconclusive"),
        ({"baseline": "b", "direction": "equivalent", "margin": 0.1}, (0.11, 0.3), "contradicted"),
        ({"baseline": "b", "direction": "equivalent", "margin": 0.1}, (-0.3, -0.11), "contradicted"),
        ({"threshold": 12.0, "direction": "equivalent", "margin": 0.1}, (11.95, 12.05), "supported"),
        ({"threshold": 12.0, "direction": "equivalent", "margin": 0.1}, (-0.05, 0.05), "contradicted"),
    ],
)
def test_the_decision_rule_of_a_test(keys, interval, verdict):
    test = Test.model_validate(one_test(**keys))
    estimate = Interval(sum(interval) / 2, *interval)
    assert interval_verdict(test, estimate, seeds=3)[0] == verdict
    assert interval_verdict(test, estimate, seeds=2) == ("inconclusive", "2 seeds < 3")
    assert interval_verdict(test, Interval(0.3, None, None), seeds=1) == ("inconclusive", "1 seed < 3")


def results_with(*verdicts, seeds=3):
    """Test results of known verdicts, made by really deciding them."""
    level = {"supported": 1.0, "contradicted": -1.0, "inconclusive": 0.0}
    found = []
    for number, verdict in enumerate(verdicts):
        values = [level[verdict] + noise for noise in (-0.1, 0.0, 0.1)[:seeds]]
        test = one_test(name=f"t{number}", threshold=0.0)
        found.append(decide_one(test, metrics_of({("ours", "A"): values})))
    return found


@pytest.mark.parametrize(
    ("tests", "verdict"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "inconclusive"], "conditional"),
        (["supported", "contradicted"], "conditional"),
        (["inconclusive", "contradicted"], "contradicted"),
        (["contradicted", "contradicted"], "contradicted"),
        (["inconclusive", "inconclusive"], "inconclusive"),
        ([], "inconclusive"),
    ],
)
def test_the_decision_rule_of_a_claim(tests, verdict):
    found = results_with(*tests)
    assert [result.verdict for result in found] == tests
    assert claim_verdict(found)[0] == verdict


def test_a_guard_that_does_not_hold_makes_a_claim_inconclusive():
    tests = results_with("supported")
    assert claim_verdict(tests, results_with("supported"))[0] == "supported"
    for failing in ("inconclusive", "contradicted"):
        verdict, reason = claim_verdict(tests, results_with("supported", failing))
        assert verdict == "inconclusive"
        assert reason.startswith("guard 't1' does not hold: the interval")


def test_fewer_than_three_seeds_decide_nothing_but_are_shown():
    metrics, units = tables(seeds=(0, 1))
    for claim in decide(paper(), metrics, units, replicates=500):
        assert (claim.verdict, claim.reason) == ("inconclusive", "2 seeds < 3")
        assert all(len(result.per_seed) == 2 for result in claim.tests)
    metrics, units = tables(seeds=(5,))
    decided = decide(paper(), metrics, units, replicates=500)
    assert {claim.reason for claim in decided} == {"1 seed < 3"}
    of_units, of_seeds = decided[0].tests[0], decided[3].tests[0]
    assert of_units.low < of_units.estimate < of_units.high
    assert (of_seeds.estimate, of_seeds.low, of_seeds.high) == (pytest.approx(0.085), None, None)


def test_a_claim_with_one_test_of_too_few_seeds_is_not_conditional():
    (enough,), (few,) = results_with("supported"), results_with("supported", seeds=2)
    assert claim_verdict([enough, few]) == ("inconclusive", "2 seeds < 3")


# ---- estimates ------------------------------------------------------------------------------------------------------


def test_a_paired_difference_over_seeds():
    metrics = metrics_of({("ours", "A"): [1.0, 2.0, 3.0], ("theirs", "A"): [0.5, 1.0, 1.5]})
    found = decide_one(one_test(baseline="theirs"), metrics)
    assert found.per_seed == (0.5, 1.0, 1.5)
    assert (found.estimate, found.low, found.high) == pytest.approx((1.0, 0.5, 1.5))
    assert found.means == pytest.approx((2.0, 1.0))
    assert (found.seeds, found.units_per_seed) == ((0, 1, 2), None)
    assert found.seed_low < found.low < found.high < found.seed_high
    assert found.minimum_detectable_effect == pytest.approx(0.5 * 3.264 / 1.0, rel=1e-3)


def test_units_are_paired_by_name_and_resampled():
    generator = np.random.default_rng(0)
    theirs = generator.normal(size=(3, 50)) * 10
    ours = theirs + 0.3 + 0.1 * generator.normal(size=(3, 50))
    units = units_of({("ours", "A"): ours, ("theirs", "A"): theirs})
    shuffled = units.sample(frac=1.0, random_state=1)
    metrics = results.aggregate(units)
    found = decide_one(one_test(baseline="theirs"), metrics, shuffled)
    assert found.units_per_seed == 50
    assert found.estimate == pytest.approx((ours - theirs).mean())
    assert 0.2 < found.low < found.high < 0.4  # unpaired, the interval would be a hundred times wider
    by_seeds = decide_one(one_test(baseline="theirs"), metrics)
    assert by_seeds.units_per_seed is None
    assert by_seeds.estimate == pytest.approx(found.estimate)


def test_units_known_for_one_side_only_fall_back_to_seeds():
    units = units_of({("ours", "A"): [[0.0, 2.0], [1.0, 3.0], [2.0, 4.0]]})
    metrics = metrics_of({("ours", "A"): [1.0, 2.0, 3.0], ("theirs", "A"): [0.0, 0.0, 0.0]})
    found = decide_one(one_test(baseline="theirs"), metrics, units)
    assert (found.units_per_seed, found.per_seed) == (None, (1.0, 2.0, 3.0))
    assert decide_one(one_test(threshold=0.0), metrics, units).units_per_seed == 2


def test_a_baseline_in_another_setting_or_metric():
    metrics = results.metrics_table(
        [
            *metrics_of({("ours", "A"): [3, 4, 5], ("ours", "B"): [1, 1, 1]}).to_dict("records"),
            *metrics_of({("ours", "A"): [2.0, 2.0, 2.5]}, metric="proxy").to_dict("records"),
        ]
    )
    moved = decide_one(one_test(baseline="ours", baseline_setting="B"), metrics)
    assert moved.per_seed == (2.0, 3.0, 4.0)
    other = decide_one(one_test(baseline="ours", baseline_metric="proxy"), metrics)
    assert other.per_seed == (1.0, 2.0, 2.5)


def test_a_relative_effect_is_in_parts_of_the_baseline():
    metrics = metrics_of({("ours", "A"): [9.0, 18.0, 36.0], ("theirs", "A"): [10.0, 20.0, 40.0]})
    found = decide_one(one_test(baseline="theirs", effect="relative", direction="less", margin=0.05), metrics)
    assert (found.estimate, found.low, found.high) == pytest.approx((-0.1, -0.1, -0.1))
    assert found.verdict == "supported"
    negative = metrics_of({("ours", "A"): [-9.0] * 3, ("theirs", "A"): [-10.0] * 3})
    assert decide_one(one_test(baseline="theirs", effect="relative"), negative).estimate == pytest.approx(0.1)
    zero = metrics_of({("ours", "A"): [1.0] * 3, ("theirs", "A"): [1.0, 0.0, 1.0]})
    with pytest.raises(InputError, match="claim 'c', test 't': a relative effect needs a baseline that is not 0"):
        decide_one(one_test(baseline="theirs", effect="relative"), zero)


def test_adding_a_test_changes_no_other_interval():
    metrics, units = tables()
    test, other = one_test(baseline="theirs"), one_test(name="other", threshold=0.1)
    alone = decide(one_claim(test), metrics, units, replicates=300)[0].tests[0]
    (claim,) = decide(one_claim(other, test), metrics, units, replicates=300)
    assert claim.tests[1] == alone
    assert decide_one(test, metrics, units, replicates=300, seed=1).low != alone.low


def test_identical_methods_are_equivalent():
    metrics = metrics_of({("ours", "A"): [1.0, 2.0, 3.0], ("theirs", "A"): [1.0, 2.0, 3.0]})
    found = decide_one(one_test(baseline="theirs", direction="equivalent", margin=0.5), metrics)
    assert (found.estimate, found.low, found.high, found.verdict) == (0.0, 0.0, 0.0, "supported")
    assert decide_one(one_test(baseline="theirs"), metrics).verdict == "inconclusive"


# ---- what is missing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "nobody"}, "no method 'nobody' at scale 'small'; there are: ours, ours_30, reward_model, "),
        ({"baseline": "nobody"}, "no method 'nobody' at scale 'small'; there are: "),
        ({"setting": "C"}, "no setting 'C' for method 'ours' at scale 'small'; there are: A, B"),
        ({"metric": "fid"}, "no metric 'fid' for method 'ours', setting 'A' at scale 'small'; there are: gold, kl, "),
        ({"baseline_setting": "C"}, "no setting 'C' for method 'theirs' at scale 'small'; there are: A, B"),
        (
            {"minus": {"method": "ours", "baseline": "shuffled", "setting": "B"}},
            "no setting 'B' for method 'shuffled' at scale 'small'; there are: A",
        ),
    ],
)
def test_what_is_missing_is_named(keys, message):
    metrics, units = tables(prompts=3)
    with pytest.raises(InputError) as caught:
        decide_one(one_test(baseline="theirs") | keys, metrics, units)
    assert str(caught.value).startswith(f"claim 'c', test 't': {message}")
    assert "\n" not in str(caught.value)


def test_tests_of_other_scales_are_skipped():
    metrics, units = tables(scale="smoke", prompts=3)
    here, elsewhere = one_test(name="here", threshold=0.0), one_test(name="elsewhere", method="x", threshold=0.0)
    elsewhere["scales"] = ["small", "paper"]
    (claim,) = decide(one_claim(here, elsewhere), metrics, units, replicates=100)
    assert [result.test.name for result in claim.tests] == ["here"]
    assert claim.skipped == ("elsewhere",)
    (claim,) = decide(one_claim(elsewhere), metrics, units, replicates=100)
    assert (claim.verdict, claim.reason) == ("inconclusive", "none of its tests is made at this scale")
    with pytest.raises(InputError, match="no method 'x'"):
        decide(one_claim(elsewhere), *tables(scale="small", prompts=3), replicates=100)


def test_what_cannot_be_paired_is_named():
    metrics = metrics_of({("ours", "A"): [1, 2, 3], ("theirs", "A"): [1, 2]})
    with pytest.raises(
        InputError, match=r"ours/A/gold and theirs/A/gold cannot be paired: only one of them has seed 2"
    ):
        decide_one(one_test(baseline="theirs"), metrics)
    units = units_of({("ours", "A"): [[1, 2]] * 3, ("theirs", "A"): [[1, 2], [1, 2], [1]]})
    with pytest.raises(InputError, match="cannot be paired: only one of them has seed and unit 2 u1"):
        decide_one(one_test(baseline="theirs"), results.aggregate(units), units)


def test_tables_of_something_else_are_refused():
    metrics = metrics_of({("ours", "A"): [1, 2, 3]})
    with pytest.raises(InputError, match="the tables must be of paper 'demo' alone, got other"):
        decide_one(one_test(threshold=0.0), metrics_of({("ours", "A"): [1]}, paper="other"))
    both = results.metrics_table(
        [*metrics.to_dict("records"), *metrics_of({("ours", "A"): [1]}, scale="smoke").to_dict("records")]
    )
    with pytest.raises(InputError, match="must be of one scale, got small, smoke"):
        decide_one(one_test(threshold=0.0), both)
    with pytest.raises(ValueError, match="metrics and units tables disagree"):
        decide_one(one_test(threshold=0.0), metrics, units_of({("ours", "A"): [[1, 1], [2, 2], [3, 4]]}))


# ---- paper.yaml -----------------------------------------------------------------------------------------------------


def write_yaml(path, document):
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_read_paper(tmp_path):
    assert read_paper(write_yaml(tmp_path / "paper.yaml", DOCUMENT)) == paper()
    assert len(paper().claims[0].reported) == 1
    assert len(paper().claims[1].reported) == 2


def changed(path, value):
    """The example document with one key set (value None: deleted)."""
    document = copy.deepcopy(DOCUMENT)
    *parents, last = path
    place = document
    for key in parents:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return document


TEST = ("claims", 0, "tests", 0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("titel",), "T", "titel: unknown key"),
        (("title",), None, "title: missing key"),
        (("arxiv",), 2601.01234, "arxiv: input should be a valid string, got 2601.01234"),
        (("arxiv",), "arXiv:2601.01234", "arxiv: string should match pattern"),
        (("claims",), [], "claims: tuple should have at least 1 item"),
        (("claims", 1, "id"), "beats-kl", "document: claim id 'beats-kl' occurs more than once"),
        (("claims", 0, "tests"), [], r"claims[0].tests: tuple should have at least 1 item"),
        (("claims", 0, "id"), "Beats KL", r"claims[0].id: string should match pattern"),
        ((*TEST, "direction"), "bigger", "claims[0].tests[0].direction: input should be 'greater', 'less' or"),
        ((*TEST, "direction"), None, "claims[0].tests[0].direction: missing key"),
        ((*TEST, "setting"), False, "claims[0].tests[0].setting: input should be a valid string, got False"),
        ((*TEST, "margn"), 0.1, "claims[0].tests[0].margn: unknown key"),
        ((*TEST, "margin"), float("nan"), "claims[0].tests[0].margin: input should be a finite number, got nan"),
        ((*TEST, "threshold"), 0.1, "claims[0].tests[0]: threshold is for tests without baseline"),
        ((*TEST, "baseline"), None, "claims[0].tests[0]: a test without baseline needs a threshold"),
        ((*TEST, "baseline"), "ours", "claims[0].tests[0]: method and baseline are the same series"),
        ((*TEST, "direction"), "equivalent", "claims[0].tests[0]: direction: equivalent needs a margin above 0"),
        (("claims", 3, "tests", 0, "margin"), 0.1, "claims[3].tests[0]: without baseline, margin is for"),
        (("claims", 3, "tests", 0, "effect"), "relative", "claims[3].tests[0]: effect: relative needs a baseline"),
        (("claims", 3, "tests", 0, "baseline_setting"), "B", "claims[3].tests[0]: baseline_setting needs a baseline"),
        (("claims", 5, "tests", 0, "effect"), "relative", "claims[5].tests[0]: minus needs effect: difference"),
        ((*TEST, "name"), "unbiased annotators", "claims[0]: test name 'unbiased annotators' occurs more than once"),
        (("reported", 0, "value"), "high", "reported[0].value: input should be a valid number"),
    ],
)
def test_a_bad_paper_names_file_and_key_in_one_line(tmp_path, path, value, message):
    file = write_yaml(tmp_path / "paper.yaml", changed(path, value))
    with pytest.raises(InputError) as caught:
        read_paper(file)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "\n" not in str(caught.value)


def test_a_paper_that_is_no_mapping(tmp_path):
    (tmp_path / "paper.yaml").write_text("- just\n- a list\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"paper.yaml: document: input should be"):
        read_paper(tmp_path / "paper.yaml")


# ---- claims.json ----------------------------------------------------------------------------------------------------


def verdicts_of_example():
    metrics, units = tables(prompts=10)
    claims = decide(paper(), metrics, units, replicates=200)
    return Verdicts(paper="demo", scale="small", replicates=200, seed=0, claims=claims)


def test_verdicts_survive_the_file(tmp_path):
    verdicts = verdicts_of_example()
    write_verdicts(tmp_path / "claims.json", verdicts)
    assert read_verdicts(tmp_path / "claims.json") == verdicts
    first = (tmp_path / "claims.json").read_bytes()
    write_verdicts(tmp_path / "claims.json", verdicts_of_example())
    assert (tmp_path / "claims.json").read_bytes() == first
    assert json.loads(first)["schema_version"] == 1


def test_bad_verdict_files_are_named(tmp_path):
    path = tmp_path / "claims.json"
    with pytest.raises(InputError, match=r"claims.json: no such file"):
        read_verdicts(path)
    path.write_text('{"claims": [', encoding="utf-8")
    with pytest.raises(InputError, match=r"claims.json:1: not valid JSON"):
        read_verdicts(path)
    document = verdicts_of_example().model_dump(mode="json")
    path.write_text(json.dumps(document | {"schema_version": 2}), encoding="utf-8")
    with pytest.raises(InputError, match=r"claims.json: schema_version: input should be 1, got 2"):
        read_verdicts(path)
    document["claims"][0]["verdict"] = "proven"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError, match=r"claims.json: claims\[0\].verdict: input should be"):
        read_verdicts(path)


def test_verdicts_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        verdicts_of_example().claims[0].verdict = "supported"
