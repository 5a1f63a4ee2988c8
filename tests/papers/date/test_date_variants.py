import pytest

from papers.date.options import Scale, TuneOptions
from papers.date.variants import (
    evaluations_per_image,
    parse_schedules,
    parse_variant,
    strength_source,
)

TUNED = ["date/all", "date/late", "universal", "ebca", "date-raw/all"]


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
    found = parse_schedules(["all=0:20:1", "late=8:20:3", "every5=0:20:5"], 20)
    assert found == {"all": tuple(range(20)), "late": (8, 11, 14, 17), "every5": (0, 5, 10, 15)}


@pytest.mark.parametrize("text", ["all", "all=0:20", "all=0:21:1", "all=5:5:1", "all=0:20:0", "a-b=0:1:1"])
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
        ("date-preference/all", "date/all"),
        ("random/all", "date/all"),
        ("date-raw/all", "date/all"),  # its own trial only tells the length of its steps
        ("date/first", "date/late"),
        ("universal", "universal"),
    ],
)
def test_where_strengths_come_from(name, source):
    assert strength_source(parse_variant(name), TUNED, "date/late") == source


def test_a_baseline_has_to_be_tuned():
    with pytest.raises(ValueError, match="lacks 'ebca'"):
        strength_source(parse_variant("ebca"), ["date/all"], "date/all")


def test_equal_cost():
    adapted = evaluations_per_image(parse_variant("date/all"), 20, 20)
    assert adapted == evaluations_per_image(parse_variant("fixed-x2.5"), 20, 0) == 100
    assert evaluations_per_image(parse_variant("random/all"), 20, 20) == 40
    assert evaluations_per_image(parse_variant("universal"), 20, 0) == 120


def test_every_method_gets_as_many_candidates():
    with pytest.raises(ValueError, match="as many candidates, got \\[1, 2\\]"):
        TuneOptions(step_sizes=(0.1, 0.2), universal_scales=(1.0,), energy_rates=(0.1, 0.2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tuning_seed": 1}, "must not be a reported seed"),
        ({"scenes": None}, "exactly one of them"),
        ({"families": {"a": ("date/other",)}}, "none named 'other'"),
        ({"families": {"a": ("date-other/all",)}}, "variant: expected"),
    ],
)
def test_an_inconsistent_scale_is_refused(change, message):
    from date_cases import PROMPTS, SAMPLER

    from papers.date.options import SelectOptions

    values = {
        "seeds": (0, 1),
        "tuning_seed": 100,
        "sampler": SAMPLER,
        "tune": TuneOptions((0.1,), (1.0,), (0.1,)),
        "select": SelectOptions("gold", "date/all"),
        "tuned": {"a": ("date/all",)},
        "families": {"a": ("fixed", "date/late")},
        "figures": (),
        "scenes": PROMPTS,
    }
    assert Scale(**values).variants == ["fixed", "date/late"]
    with pytest.raises(ValueError, match=message):
        Scale(**values | change)
