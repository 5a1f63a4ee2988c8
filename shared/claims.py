"""A paper's claims as data, and the verdicts on them, computed from the paper's tables.

``papers/<id>/paper.yaml`` holds the claims (:class:`Paper` is its schema)::

    id: wpr
    title: Semantic-aware Wasserstein Policy Regularization ...
    authors: [B. Na, ...]
    venue: ICLR 2026
    arxiv: "2602.01685"
    code: https://...            # or null
    summary: One sentence.
    metrics: {gold: "Gold reward, higher is better"}   # optional: what the report's tables of results show, in this
    methods: {rkl: "PPO, reverse KL"}                  # order and by these labels; what has no label is left out of
    settings: {A: biased annotators}                   # them, and without any labels all is shown
    reported:                                          # the paper's own numbers
      - {table: Table 1, setting: "TL;DR, win rate vs SFT", method: rkl, value: 0.848}
    claims:
      - id: beats-kl
        statement: WPR reaches a higher gold reward than reverse-KL PPO, each at its own best beta
        reported: {value: 0.608, quantity: win rate of WPR against RKL, source: "Table 1, TL;DR"}   # or a list
        note: Optional text.
        guards:                                        # optional: what must hold for the tests to mean anything
          - {name: the reward model learns, setting: A, metric: rm_accuracy, method: rm, direction: greater,
             threshold: 0.52}
        tests:
          - {name: biased annotator, setting: A, metric: gold, method: wpr, baseline: rkl, direction: greater}

**A test** compares an estimate with a bound, by the estimate's bootstrap interval (:func:`shared.statistics.
hierarchical_bootstrap`: over seeds, then units where the units table has the metric).

- With ``baseline`` the estimate is the paired difference method - baseline (``effect: relative``: in parts of the
  baseline), and the bound is ``margin``, 0 by default. The baseline may stand in another setting
  (``baseline_setting``) or metric (``baseline_metric``). ``minus`` subtracts a second difference: a claim about gains.
- Without ``baseline`` the estimate is the method's value, and the bound is ``threshold``.
- ``direction: greater``: supported if the whole interval lies above the bound, contradicted if below it; ``less`` the
  reverse; ``equivalent``: supported if the whole interval lies within ± ``margin`` of 0 (or of ``threshold``),
  contradicted if wholly outside. Everything else, and anything with fewer than three seeds, is inconclusive.
- ``scales`` limits a test to these scales.

**A claim** is supported if all its tests are, conditional if some are, contradicted if none is and at least one is
contradicted, else inconclusive; and inconclusive wherever a guard is not supported or a test has fewer than three
seeds. No test picks "the best" of several baselines by its result: an evaluation selects on validation data and writes
the selected one under a name of its own. Intervals are not corrected for the number of tests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from shared import results
from shared.errors import InputError
from shared.files import write_json
from shared.options import read_yaml
from shared.statistics import Array, Interval, hierarchical_bootstrap, minimum_detectable_effect, seed_interval

SCHEMA_VERSION = 1
MINIMUM_SEEDS = 3
LEVEL = 0.95

Verdict = Literal["supported", "conditional", "contradicted", "inconclusive"]
Name = Annotated[str, Field(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ReportedEffect(_Model):
    """What the paper reports for a claim or test; ``value`` is None where only the direction is known."""

    value: float | None = None
    quantity: Name
    source: Name


class ReportedNumber(_Model):
    """One cell of the paper's tables."""

    table: Name
    setting: Name
    method: Name
    value: float | None


class Gain(_Model):
    """A difference method - baseline, subtracted from a test's own difference (same metric)."""

    method: Name
    baseline: Name
    setting: Name
    baseline_setting: Name | None = None


class Test(_Model):
    """One test of a claim; the module's docstring says what the keys mean."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    name: Name
    setting: Name
    metric: Name
    method: Name
    baseline: Name | None = None
    baseline_setting: Name | None = None
    baseline_metric: Name | None = None
    minus: Gain | None = None
    effect: Literal["difference", "relative"] = "difference"
    direction: Literal["greater", "less", "equivalent"]
    margin: float | None = None
    threshold: float | None = None
    scales: tuple[Name, ...] | None = Field(default=None, min_length=1)
    reported: ReportedEffect | None = None

    @model_validator(mode="after")
    def _keys_fit_together(self) -> Test:
        if self.baseline is None:
            for key in ("baseline_setting", "baseline_metric", "minus"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} needs a baseline")
            if self.effect == "relative":
                raise ValueError("effect: relative needs a baseline")
            if self.threshold is None:
                raise ValueError("a test without baseline needs a threshold")
            if self.margin is not None and self.direction != "equivalent":
                raise ValueError("without baseline, margin is for direction: equivalent; put the bound in threshold")
        elif self.threshold is not None:
            raise ValueError("threshold is for tests without baseline; put the bound in margin")
        elif self.series[0] == self.series[1]:
            raise ValueError("method and baseline are the same series")
        if self.minus is not None and self.effect == "relative":
            raise ValueError("minus needs effect: difference")
        if self.direction == "equivalent" and not (self.margin is not None and self.margin > 0):
            raise ValueError("direction: equivalent needs a margin above 0")
        return self

    @property
    def center(self) -> float:
        """The value that plots mark: no effect, or the threshold."""
        return self.threshold if self.threshold is not None else 0.0

    @property
    def bounds(self) -> tuple[float, ...]:
        """What the interval must clear: one bound, or the two ends of the zone of equivalence."""
        if self.direction == "equivalent":
            return (self.center - self.margin, self.center + self.margin)
        return (self.threshold if self.baseline is None else self.margin or 0.0,)

    @property
    def series(self) -> tuple[tuple[str, str, str], ...]:
        """(method, setting, metric) of everything compared: method, baseline, and those of ``minus``."""
        if self.baseline is None:
            return ((self.method, self.setting, self.metric),)
        other_metric = self.baseline_metric or self.metric
        pairs = [(self.method, self.setting, self.baseline, self.baseline_setting or self.setting)]
        if self.minus is not None:
            gain = self.minus
            pairs.append((gain.method, gain.setting, gain.baseline, gain.baseline_setting or gain.setting))
        return tuple(
            series
            for method, setting, baseline, baseline_setting in pairs
            for series in ((method, setting, self.metric), (baseline, baseline_setting, other_metric))
        )


def _listed(value: object) -> object:
    return [value] if isinstance(value, dict) else value


class Claim(_Model):
    """One claim of a paper with the tests that decide it."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    statement: Name
    reported: Annotated[tuple[ReportedEffect, ...], BeforeValidator(_listed)] = ()
    note: Name | None = None
    guards: tuple[Test, ...] = ()
    tests: tuple[Test, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Claim:
        _check_unique([test.name for test in (*self.guards, *self.tests)], "test name")
        return self


class Paper(_Model):
    """Content of ``papers/<id>/paper.yaml``."""

    id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    title: Name
    authors: tuple[Name, ...] = Field(min_length=1)
    venue: Name
    arxiv: Annotated[str, Field(pattern=r"^\d{4}\.\d{4,5}$")] | None
    code: Annotated[str, Field(pattern=r"^https://")] | None
    summary: Name
    metrics: dict[Name, Name] = {}
    methods: dict[Name, Name] = {}
    settings: dict[Name, Name] = {}
    reported: tuple[ReportedNumber, ...] = ()
    claims: tuple[Claim, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Paper:
        _check_unique([claim.id for claim in self.claims], "claim id")
        return self


class TestResult(_Model):
    """What one test found.

    Attributes:
        test: the test's definition.
        estimate, low, high: the effect and its bootstrap interval (None where one seed allows none).
        seed_low, seed_high: Student's t interval over the seeds' estimates, for comparison; it decides nothing.
        minimum_detectable_effect: distance from the bound that would be found with 80 % power, by the seeds' spread.
        seeds, per_seed: the seeds and the effect in each, in the same order.
        units_per_seed: evaluation units in each seed (the fewest), None where only values per seed are known.
        means: mean of every series compared, in the order of ``test.series``.
        verdict, reason: the decision, and in words why.
    """

    __test__ = False

    test: Test
    estimate: float
    low: float | None
    high: float | None
    seed_low: float | None
    seed_high: float | None
    minimum_detectable_effect: float | None
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]
    units_per_seed: int | None
    means: tuple[float, ...]
    verdict: Literal["supported", "contradicted", "inconclusive"]
    reason: str


class ClaimResult(_Model):
    """The verdict on one claim; ``skipped`` names tests that its paper does not make at this scale."""

    id: str
    statement: str
    reported: tuple[ReportedEffect, ...]
    note: str | None
    verdict: Verdict
    reason: str
    guards: tuple[TestResult, ...]
    tests: tuple[TestResult, ...]
    skipped: tuple[str, ...]


class Verdicts(_Model):
    """Content of ``claims.json``: one paper's verdicts at one scale, and how the intervals were drawn."""

    schema_version: Literal[1] = SCHEMA_VERSION
    paper: str
    scale: str
    level: float = LEVEL
    replicates: int
    seed: int
    claims: tuple[ClaimResult, ...]

    @property
    def too_few_seeds(self) -> bool:
        """Whether some test had too few seeds to decide anything."""
        made = (result for claim in self.claims for result in (*claim.tests, *claim.guards))
        return any(len(result.seeds) < MINIMUM_SEEDS for result in made)

    @property
    def counts(self) -> dict[str, int]:
        """Number of claims with each verdict, all four of them."""
        verdicts = [claim.verdict for claim in self.claims]
        return {verdict: verdicts.count(verdict) for verdict in get_args(Verdict)}


def read_paper(path: Path) -> Paper:
    """Read and check a ``paper.yaml``.

    Raises:
        InputError: in one line naming the file and the key.
    """
    try:
        return Paper.model_validate(read_yaml(path))
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}") from None


def decide(
    paper: Paper | Path,
    metrics: pd.DataFrame,
    units: pd.DataFrame | None = None,
    *,
    replicates: int = 10_000,
    seed: int = 0,
) -> list[ClaimResult]:
    """Decide every claim of a paper, in the order of its ``paper.yaml``.

    Args:
        paper: the paper or its ``paper.yaml``.
        metrics: metrics table of this paper at one scale (:mod:`shared.results`).
        units: units table of the same, where there is one; a metric in it is resampled over units too.
        replicates: bootstrap replicates of each interval.
        seed: of the bootstrap. Every test draws from its own stream, so adding a test changes no other interval.

    Raises:
        InputError: a table of another paper, of several scales, or without something that a test needs (the message
            names claim, test and the missing key); seeds or units of method and baseline that cannot be paired; or a
            zero baseline in a relative effect.
        ValueError: metrics and units tables that contradict each other.
    """
    paper = read_paper(paper) if isinstance(paper, Path) else paper
    scale = _only_scale(paper, metrics, units)
    if units is not None:
        results.check_agreement(metrics, units)
    decided = []
    for claim in paper.claims:
        guards, tests = (
            tuple(
                _decide_test(claim.id, test, metrics, units, replicates, seed)
                for test in group
                if test.scales is None or scale in test.scales
            )
            for group in (claim.guards, claim.tests)
        )
        made = {result.test.name for result in (*guards, *tests)}
        verdict, reason = claim_verdict(tests, guards)
        decided.append(
            ClaimResult(
                id=claim.id,
                statement=claim.statement,
                reported=claim.reported,
                note=claim.note,
                verdict=verdict,
                reason=reason,
                guards=guards,
                tests=tests,
                skipped=tuple(test.name for test in (*claim.guards, *claim.tests) if test.name not in made),
            )
        )
    return decided


def interval_verdict(test: Test, interval: Interval, seeds: int) -> tuple[Verdict, str]:
    """Decide one test from its interval; the rule is in the module's docstring. Returns verdict and reason."""
    if seeds < MINIMUM_SEEDS:
        return "inconclusive", f"{_counted(seeds, 'seed')} < {MINIMUM_SEEDS}"
    low, high = interval.low, interval.high
    if test.direction == "equivalent":
        lower, upper = test.bounds
        if lower < low and high < upper:
            return "supported", f"the interval lies within [{lower:g}, {upper:g}]"
        if high < lower or upper < low:
            return "contradicted", f"the interval lies outside [{lower:g}, {upper:g}]"
        return "inconclusive", f"the interval reaches across an end of [{lower:g}, {upper:g}]"
    bound = test.bounds[0]
    if low > bound:
        return ("supported" if test.direction == "greater" else "contradicted"), f"the interval lies above {bound:g}"
    if high < bound:
        return ("supported" if test.direction == "less" else "contradicted"), f"the interval lies below {bound:g}"
    return "inconclusive", f"the interval contains {bound:g}"


def claim_verdict(tests: Sequence[TestResult], guards: Sequence[TestResult] = ()) -> tuple[Verdict, str]:
    """Combine the verdicts of a claim's tests and guards; the rule is in the module's docstring."""
    if not tests:
        return "inconclusive", "none of its tests is made at this scale"
    fewest = min(len(result.seeds) for result in (*tests, *guards))
    if fewest < MINIMUM_SEEDS:
        return "inconclusive", f"{_counted(fewest, 'seed')} < {MINIMUM_SEEDS}"
    for guard in guards:
        if guard.verdict != "supported":
            return "inconclusive", f"guard '{guard.test.name}' does not hold: {guard.reason}"
    by_verdict = {
        verdict: [result.test.name for result in tests if result.verdict == verdict]
        for verdict in ("supported", "contradicted", "inconclusive")
    }
    reason = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in by_verdict.items() if names)
    if len(tests) == 1:
        reason = tests[0].reason
    if len(by_verdict["supported"]) == len(tests):
        return "supported", reason
    if by_verdict["supported"]:
        return "conditional", reason
    return ("contradicted" if by_verdict["contradicted"] else "inconclusive"), reason


def write_verdicts(path: Path, verdicts: Verdicts) -> None:
    """Write ``claims.json``, atomically and with the same bytes for the same verdicts."""
    write_json(path, verdicts.model_dump(mode="json"))


def read_verdicts(path: Path) -> Verdicts:
    """Read a ``claims.json``.

    Raises:
        InputError: not there, not JSON, or not of this schema version; in one line naming the file and the key.
    """
    try:
        return Verdicts.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}") from None


def _decide_test(
    claim: str, test: Test, metrics: pd.DataFrame, units: pd.DataFrame | None, replicates: int, seed: int
) -> TestResult:
    where = f"claim '{claim}', test '{test.name}'"
    seeds, groups, of_units = _paired_groups(where, test, metrics, units)
    statistic = _statistic(test)
    stream = int.from_bytes(hashlib.sha256(f"{claim}\0{test.name}".encode()).digest()[:8], "big")
    seed_means = np.array([group.mean(axis=0) for group in groups])
    if test.effect == "relative" and (seed_means[:, 1] == 0).any():
        raise InputError(f"{where}: a relative effect needs a baseline that is not 0")
    interval = hierarchical_bootstrap(
        groups, statistic=statistic, replicates=replicates, level=LEVEL, seed=(seed, stream)
    )
    per_seed = statistic(seed_means)
    by_seeds = seed_interval(per_seed, level=LEVEL)
    verdict, reason = interval_verdict(test, interval, len(seeds))
    return TestResult(
        test=test,
        estimate=interval.estimate,
        low=interval.low,
        high=interval.high,
        seed_low=by_seeds.low,
        seed_high=by_seeds.high,
        minimum_detectable_effect=minimum_detectable_effect(per_seed, level=LEVEL),
        seeds=seeds,
        per_seed=tuple(per_seed.tolist()),
        units_per_seed=min(map(len, groups)) if of_units else None,
        means=tuple(seed_means.mean(axis=0).tolist()),
        verdict=verdict,
        reason=reason,
    )


def _statistic(test: Test) -> Callable[[Array], Array]:
    """The effect as a function of the series' means (..., series) -> (...)."""
    if test.effect == "relative":
        return lambda means: (means[..., 0] - means[..., 1]) / np.abs(means[..., 1])
    weights = np.array([1.0, -1.0, -1.0, 1.0])[: len(test.series)]
    return lambda means: means @ weights


def _paired_groups(
    where: str, test: Test, metrics: pd.DataFrame, units: pd.DataFrame | None
) -> tuple[tuple[int, ...], list[Array], bool]:
    """What a test compares, paired: seeds; per seed an array (units, series); whether the rows are real units.

    Without units for every series each seed is one row, its value in the metrics table.
    """
    found = [_rows(units, series) for series in test.series] if units is not None else []
    of_units = bool(found) and not any(rows.empty for rows in found)
    if not of_units:
        found = [_rows(metrics, series) for series in test.series]
        for series, rows in zip(test.series, found, strict=True):
            if rows.empty:
                raise InputError(f"{where}: {_what_is_missing(metrics, series)}")
    index = ["seed", "unit"] if of_units else ["seed"]
    columns = [rows.set_index(index)["value"] for rows in found]
    for series, column in zip(test.series[1:], columns[1:], strict=True):
        unpaired = columns[0].index.symmetric_difference(column.index)
        if len(unpaired):
            first = " ".join(map(str, np.atleast_1d(unpaired[0])))
            raise InputError(
                f"{where}: {_spelled(test.series[0])} and {_spelled(series)} cannot be paired: "
                f"only one of them has {' and '.join(index)} {first}"
            )
    table = pd.concat(columns, axis=1).sort_index()
    by_seed = table.groupby(level="seed", sort=True)
    return tuple(map(int, by_seed.groups)), [group.to_numpy() for _, group in by_seed], of_units


def _rows(table: pd.DataFrame, series: tuple[str, str, str]) -> pd.DataFrame:
    method, setting, metric = series
    return table[(table["method"] == method) & (table["setting"] == setting) & (table["metric"] == metric)]


def _what_is_missing(metrics: pd.DataFrame, series: tuple[str, str, str]) -> str:
    """The first key of (method, setting, metric) that the table lacks, given those before it."""
    rows, known = metrics, []
    for key, name in zip(("method", "setting", "metric"), series, strict=True):
        matching = rows[rows[key] == name]
        if matching.empty:
            context = f" for {', '.join(known)}" if known else ""
            there = ", ".join(sorted(rows[key].unique()))
            return f"no {key} '{name}'{context} at scale '{metrics['scale'].iloc[0]}'; there are: {there}"
        rows, known = matching, [*known, f"{key} '{name}'"]
    raise AssertionError("nothing is missing")


def _only_scale(paper: Paper, metrics: pd.DataFrame, units: pd.DataFrame | None) -> str:
    tables = [metrics] if units is None else [metrics, units]
    papers = sorted({name for table in tables for name in table["paper"].unique()})
    scales = sorted({name for table in tables for name in table["scale"].unique()})
    if papers != [paper.id]:
        raise InputError(f"the tables must be of paper '{paper.id}' alone, got {', '.join(papers) or 'no rows'}")
    if len(scales) != 1:
        raise InputError(f"the tables of paper '{paper.id}' must be of one scale, got {', '.join(scales)}")
    return scales[0]


def _spelled(series: tuple[str, str, str]) -> str:
    return "/".join(series)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _check_unique(names: Sequence[str], what: str) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{what} {repeated[0]!r} occurs more than once")


def first_problem(error: ValidationError) -> str:
    """Pydantic's first complaint as 'key: what is wrong, got what'."""
    first = error.errors(include_url=False)[0]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
    elif first["type"] == "missing":
        message = "missing key"
    given = "" if first["type"] in ("missing", "value_error", "extra_forbidden") else f", got {first['input']!r}"
    return f"{key or 'document'}: {message[:1].lower()}{message[1:]}{given}"
