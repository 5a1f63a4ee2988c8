import re
from dataclasses import replace

import pytest

from papers.date.options import Scale, TuneOptions
from papers.date.variants import parse_rewards, parse_schedules, parse_variant, strength_source

TUNED = ["date/all", "date/first", "date-preference/all", "universal", "date-raw/all"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fixed", {"kind": "fixed", "step_factor": 1.0}),
        ("fixed-x2.5", {"kind": "fixed", "step_factor": 2.5}),
        ("date/all", {"kind": "date", "schedule": "all", "reward": "guidance", "normalize": True}),
        ("date-raw/all", {"normalize": False}),
        ("date-anchor/late", {"start": "anchor", "schedule": "late"}),
        ("date-noisy/all", {"scores_noisy": True}),
        ("date-plain/all", {"reward": "plain"}),
        ("date-sum/all", {"reward": "sum"}),
        ("random/every5", {"kind": "random", "schedule": "every5"}),
        ("universal", {"kind": "universal", "schedule": None}),
    ],
)
def test_names_say_what_is_sampled(name, expected):
    variant = parse_variant(name)
    assert variant.name == name
    assert {key: getattr(variant, key) for key in expected} == expected


@pytest.mark.parametrize("name", ["date", "fixed-x", "date-fast/all", "random-raw/all", "ebca/all", "fixed/all", ""])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="variant: expected a name such as"):
        parse_variant(name)


def test_schedules():
    found = parse_schedules(["all=0:20:1", "late=8:20:3", "every5=0:20:5", "some=7,3,19,3", "one=4"], 20)
    assert found == {
        "all": tuple(range(20)), "late": (8, 11, 14, 17), "every5": (0, 5, 10, 15), "some": (3, 7, 19), "one": (4,),
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["all", "all=0:20", "all=0:21:1", "all=5:5:1", "all=0:20:0", "a-b=0:1:1", "a=3,20", "a=3,", "a=", "a=-1"]
)
def test_schedules_outside_of_the_sampler_are_refused(text):
    with pytest.raises(ValueError, match=f"schedules: .*{text}"):
        parse_schedules([text], 20)
    with pytest.raises(ValueError, match="'a' is there twice"):
        parse_schedules(["a=0:1:1", "a=1:2:1"], 20)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("fixed-x2", None),
        ("date/all", "date/all"),
        ("date/first", "date/first"),
        ("date-preference/all", "date-preference/all"),
        ("universal", "universal"),
        ("random/all", "date/all"),
        ("date-raw/all", "date/all"),  # its own trial only tells the length of its steps
    ],
)
def test_where_strengths_come_from(name, source):
    assert strength_source(parse_variant(name), TUNED) == source


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ebca", "ebca"),
        ("date/second", "date/second"),
        ("date-anchor/all", "date-anchor/all"),
        ("date-noisy/first", "date-noisy/first"),
        ("random/late", "date/late"),
    ],
)
def test_nothing_takes_a_strength_that_was_selected_for_something_else(name, source):
    with pytest.raises(ValueError, match=f"lacks '{source}', whose strength '{name}' takes"):
        strength_source(parse_variant(name), TUNED)


def test_sums_of_rewards():
    assert parse_rewards(["guidance*1.0", "preference*0.5", "plain*2"]) == {
        "guidance": 1.0, "preference": 0.5, "plain": 2.0,
    }  # fmt: skip
    assert parse_rewards([]) == {}


@pytest.mark.parametrize("text", ["guidance", "evaluator*1.0", "plain*0", "plain*-1", "preference*1.0", "plain*x"])
def test_other_sums_are_refused(text):
    with pytest.raises(ValueError, match=re.escape(f"got {text!r}")):
        parse_rewards(["preference*1.0", text])


def test_every_method_gets_as_many_candidates():
    with pytest.raises(ValueError, match="as many candidates, got \\[1, 2\\]"):
        TuneOptions(step_sizes=(0.1, 0.2), universal_scales=(1.0,), energy_rates=(0.1, 0.2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tuning_seed": 1}, "must not be a reported seed"),
        ({"scenes": None}, "exactly one of them"),
        ({"tuned": {"a": ("date/late", "date/other")}}, "none named 'other'"),
        ({"families": {"a": ("date-other/all",)}}, "variant: expected"),
        ({"families": {"a": ("date/first",)}}, "lacks 'date/first'"),
        ({"tune": TuneOptions((0.1,), universal_scales=(1.0,))}, "universal_scales must be given where"),
        ({"tuned": {"a": ("date/late", "ebca")}}, "energy_rates must be given where"),
        ({"tuned": {"a": ("date/late", "date-sum/all")}}, "rewards: must be given where"),
    ],
)
def test_an_inconsistent_scale_is_refused(change, message):
    from date_cases import PROMPTS, SAMPLER

    from papers.date.options import SelectOptions

    values = {
        "seeds": (0, 1),
        "tuning_seed": 100,
        "sampler": replace(SAMPLER, rewards=()),
        "tune": TuneOptions((0.1,)),
        "select": SelectOptions("gold"),
        "tuned": {"a": ("date/late",)},
        "families": {"a": ("fixed", "date/late")},
        "figures": (),
        "scenes": PROMPTS,
    }
    assert Scale(**values).variants == ["fixed", "date/late"]
    with pytest.raises(ValueError, match=message):
        Scale(**values | change)


@pytest.mark.parametrize("change", [{"num_updates": 0}, {"prior_weight": -1.0}])
def test_options_of_an_update_are_checked(change):
    from date_cases import SAMPLER

    with pytest.raises(ValueError, match="num_updates, prior_weight: need at least 1"):
        replace(SAMPLER, **change)
