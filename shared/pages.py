"""What the report of a paper and the page of all papers have in common: words for numbers, images, templates."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shared.claims import Paper, ReportedEffect, Test, TestResult, Verdict, first_problem
from shared.errors import InputError
from shared.options import read_yaml

VERDICTS: tuple[str, ...] = get_args(Verdict)
SYMBOLS = {"supported": "✓", "conditional": "◐", "contradicted": "✗", "inconclusive": "?"}
NOTHING = "–"

# Raw HTML and images stay out: a caption must not make a page load anything.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).disable("image")


class Caption(BaseModel):
    """What is said about a figure: title, caption (inline Markdown), and ``alt``, for readers who cannot see it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: Annotated[str, Field(min_length=1)]
    caption: Annotated[str, Field(min_length=1)]
    alt: Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class CaptionedFigure:
    """A png file and its caption; ``name`` is the file's stem."""

    path: Path
    caption: Caption

    @property
    def name(self) -> str:
        return self.path.stem


def read_captions(path: Path) -> dict[str, Caption]:
    """Read captions: a YAML mapping from a figure's name to ``title``, ``caption`` and ``alt``.

    Raises:
        InputError: in one line naming the file and the key.
    """
    try:
        return TypeAdapter(dict[str, Caption]).validate_python(read_yaml(path))
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}") from None


def captioned(paths: Iterable[Path], captions: Mapping[str, Caption | Mapping[str, str]]) -> list[CaptionedFigure]:
    """Join png files with their captions, in the order of the captions.

    Raises:
        InputError: a figure without a caption, or a caption without a figure.
    """
    by_name = {path.stem: path for path in paths}
    for name in by_name.keys() - captions.keys():
        raise InputError(f"{by_name[name]}: the figure has no caption")
    for name in captions.keys() - by_name.keys():
        raise InputError(f"caption {name!r} has no figure; there are: {', '.join(sorted(by_name)) or 'none'}")
    return [CaptionedFigure(by_name[name], Caption.model_validate(caption)) for name, caption in captions.items()]


# ---- numbers in words -----------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Three significant digits, with a true minus sign."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        return _minus(f"{value:.2e}")
    return _minus(f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}")


def stated(value: float | None) -> str:
    """A number that someone wrote down (a bound, a result of the paper), as it was written."""
    return NOTHING if value is None else _minus(f"{value:.8g}")


def mean_and_spread(mean: float, spread: float | None) -> str:
    """``mean ± spread``, to two significant digits of the spread; the mean alone where no spread is known."""
    if spread is None:
        return number(mean)
    if spread == 0:
        return f"{number(mean)} ± 0"
    digits = _digits_for(spread)
    if digits is None:
        return f"{number(mean)} ± {number(spread)}"
    return _minus(f"{mean:.{digits}f} ± {spread:.{digits}f}")


def effect(result: TestResult) -> str:
    """A test's estimate with its interval: ``+0.147 [+0.141, +0.154]``; a relative effect in per cent."""
    sign = "+" if result.test.baseline is not None else ""
    unit = " %" if result.test.effect == "relative" else ""
    if result.low is None:
        return f"{_rounded(result, [result.estimate], sign)[0]}{unit}"
    estimate, low, high = _rounded(result, [result.estimate, result.low, result.high], sign)
    return f"{estimate}{unit} [{low}, {high}]"


def seed_by_seed(result: TestResult) -> str:
    """The effect in every seed, rounded like the interval."""
    return "; ".join(_rounded(result, result.per_seed))


def t_interval(result: TestResult) -> str:
    """Student's t interval over the seeds."""
    if result.seed_low is None:
        return NOTHING
    return "[{}, {}]".format(*_rounded(result, [result.seed_low, result.seed_high]))


def detectable(result: TestResult) -> str:
    """The smallest effect that as many, as noisy seeds would show."""
    if result.minimum_detectable_effect is None:
        return NOTHING
    return _rounded(result, [result.minimum_detectable_effect])[0]


def criterion(test: Test) -> str:
    """What a test's interval must clear, in symbols."""
    if test.direction == "equivalent":
        if test.baseline is None:
            return f"within {stated(test.threshold)} ± {stated(test.margin)}"
        return f"within ± {_amount(test, test.margin)}"
    return f"{'>' if test.direction == 'greater' else '<'} {_amount(test, test.bounds[0])}"


def compared(test: Test, paper: Paper) -> str:
    """What a test compares, in the paper's labels: ``Gold reward: WPR − RKL, biased annotators``."""
    metric = paper.metrics.get(test.metric, test.metric)
    text = f"{metric}: {_pair(test.method, test.setting, test.baseline, test.baseline_setting, paper)}"
    if test.baseline_metric is not None:
        text += f", the latter in {paper.metrics.get(test.baseline_metric, test.baseline_metric)}"
    if test.minus is not None:
        gain = test.minus
        text += f"; less {_pair(gain.method, gain.setting, gain.baseline, gain.baseline_setting, paper)}"
    return text


def reported(effects: Sequence[ReportedEffect]) -> list[str]:
    """The paper's own numbers, one line each."""
    return [
        f"{stated(each.value)} {each.quantity} ({each.source})"
        if each.value is not None
        else f"{each.quantity} ({each.source})"
        for each in effects
    ]


def sample_size(result: TestResult) -> str:
    """``3 seeds × 512 units``."""
    text = f"{len(result.seeds)} seed" + ("" if len(result.seeds) == 1 else "s")
    return text if result.units_per_seed is None else f"{text} × {result.units_per_seed} units"


def duration(seconds: float) -> str:
    """``1 h 02 min``, ``11 min 04 s`` or ``8.3 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


# ---- where results come from ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageSummary:
    """All runs of one stage: how many, their time together in seconds, and the fingerprints of their code."""

    stage: str
    runs: int
    seconds: float
    code: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """What the stages' records say together; ``seconds`` is the sum over jobs, not the time a user waited."""

    stages: tuple[StageSummary, ...]
    machines: tuple[str, ...]
    packages: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def runs(self) -> int:
        return sum(stage.runs for stage in self.stages)


def provenance(records: Iterable[Mapping[str, Any]]) -> Provenance:
    """Sum up the records that stages write (:mod:`shared.stage`), in the order in which stages first appear."""
    by_stage: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_stage.setdefault(record["stage"], []).append(record)
    everything = [record for group in by_stage.values() for record in group]
    packages = {f"{name} {version}" for record in everything for name, version in record.get("packages", {}).items()}
    return Provenance(
        stages=tuple(
            StageSummary(
                stage=stage,
                runs=len(group),
                seconds=sum(record.get("wall_seconds", 0.0) for record in group),
                code=tuple(sorted({record["code"] for record in group})),
            )
            for stage, group in by_stage.items()
        ),
        machines=tuple(sorted({_machine(record["machine"]) for record in everything if "machine" in record})),
        packages=tuple(sorted(packages)),
    )


# ---- pictures -------------------------------------------------------------------------------------------------------


def interval_picture(result: TestResult, *, width: int = 180, height: int = 22) -> Markup:
    """A test as inline SVG: interval, estimate, seeds (ticks) and bounds, on a scale of its own.

    It is hidden from screen readers: the numbers stand beside it.
    """
    bounds = result.test.bounds
    ends = [result.estimate, *result.per_seed, *bounds, result.test.center]
    ends += [end for end in (result.low, result.high) if end is not None]
    span = max(ends) - min(ends) or 1.0

    def x(value: float) -> str:
        return f"{6 + (width - 12) * (value - min(ends)) / span:.1f}"

    middle = height / 2
    parts = []
    if len(bounds) == 2:
        breadth = float(x(bounds[1])) - float(x(bounds[0]))
        parts.append(f'<rect class="zone" x="{x(bounds[0])}" y="2" width="{breadth:.1f}" height="{height - 4}"/>')
    parts += [f'<path class="bound" d="M{x(bound)} 1V{height - 1}"/>' for bound in bounds]
    parts += [f'<path class="seed" d="M{x(seed)} {middle - 5:g}v10"/>' for seed in result.per_seed]
    if result.low is not None:
        parts.append(f'<path class="range" d="M{x(result.low)} {middle:g}H{x(result.high)}"/>')
    parts.append(f'<circle class="estimate" cx="{x(result.estimate)}" cy="{middle:g}" r="4"/>')
    return Markup(
        f'<svg class="interval {result.verdict}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'aria-hidden="true">{"".join(parts)}</svg>'
    )


def template_environment(folder: Path) -> Environment:
    """Jinja environment of the pages: everything is escaped unless it is Markup, undefined names are errors.

    Args:
        folder: where the page will be, from which figures and other pages are linked: copies of figures inside of pages
            would make up most of a store that travels with the repository.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "compared": compared,
        "criterion": criterion,
        "detectable": detectable,
        "duration": duration,
        "effect": effect,
        "inline": lambda text: Markup(_MARKDOWN.renderInline(text)),
        "interval_picture": interval_picture,
        "link": lambda path: Path(os.path.relpath(path, folder)).as_posix(),
        "number": number,
        "reported": reported,
        "sample_size": sample_size,
        "seed_by_seed": seed_by_seed,
        "stated": stated,
        "t_interval": t_interval,
    }
    environment.globals |= {"symbols": SYMBOLS, "verdict_names": VERDICTS}
    return environment


def _pair(method: str, setting: str, baseline: str | None, baseline_setting: str | None, paper: Paper) -> str:
    first, where = paper.methods.get(method, method), paper.settings.get(setting, setting)
    if baseline is None:
        return f"{first}, {where}"
    second = paper.methods.get(baseline, baseline)
    if baseline_setting is None or baseline_setting == setting:
        return f"{first} − {second}, {where}"
    return f"{first}, {where} − {second}, {paper.settings.get(baseline_setting, baseline_setting)}"


def _amount(test: Test, value: float) -> str:
    return f"{stated(100 * value)} %" if test.effect == "relative" else stated(value)


def _rounded(result: TestResult, values: Sequence[float], sign: str = "") -> list[str]:
    """Values in a test's unit (per cent for relative effects), all to two digits of the interval's half width."""
    scale = 100 if result.test.effect == "relative" else 1
    digits = None if result.low is None else _digits_for(scale * (result.high - result.low) / 2)
    if digits is None:
        return [f"{sign if value > 0 else ''}{number(scale * value)}" for value in values]
    return [_minus(f"{scale * value:{sign}.{digits}f}") for value in values]


def _digits_for(width: float) -> int | None:
    """Decimals that show two significant digits of ``width``; None where plain decimals do not suit it."""
    if not 1e-5 <= width < 1e6:
        return None
    return max(0, 1 - math.floor(math.log10(width)))


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _machine(machine: Mapping[str, Any]) -> str:
    parts = [machine.get("gpu"), machine.get("system")]
    if "cpus" in machine:
        parts.append(f"{machine['cpus']} CPUs")
    if "python" in machine:
        parts.append(f"Python {machine['python']}")
    return ", ".join(part for part in parts if part)
