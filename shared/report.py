"""The report of one paper: REPORT.md and report.html, and the generated parts of its README."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from shared.claims import ClaimResult, Paper, Verdicts
from shared.errors import InputError
from shared.files import atomic_output
from shared.pages import (
    NOTHING,
    SYMBOLS,
    CaptionedFigure,
    effect,
    mean_and_spread,
    provenance,
    reported,
    template_environment,
)

MOST_TESTS_SHOWN = 12
"""More tests of a claim than this are counted in the table of verdicts, not listed."""


@dataclass(frozen=True)
class ResultTable:
    """Mean ± standard deviation over seeds in one setting: column titles, and rows of a method and its cells."""

    setting: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def render_html(
    paper: Paper,
    verdicts: Verdicts,
    metrics: pd.DataFrame,
    figures: Sequence[CaptionedFigure] = (),
    records: Iterable[Mapping[str, Any]] = (),
    *,
    folder: Path,
) -> str:
    """The report as one HTML5 document; it loads nothing but its figures, and needs no script.

    Args:
        paper: from ``paper.yaml``.
        verdicts: from ``claims.json``, of this paper.
        metrics: metrics table of the same scale.
        figures: shown in this order.
        records: what the stages recorded of their runs (:mod:`shared.stage`); may be empty.
        folder: where the document will be, from which figures are linked.

    Raises:
        InputError: ``verdicts`` of another paper.
    """
    context = _context(paper, verdicts, metrics, figures, records)
    return template_environment(folder).get_template("report.html.j2").render(context)


def render_markdown(
    paper: Paper,
    verdicts: Verdicts,
    metrics: pd.DataFrame,
    figures: Sequence[CaptionedFigure] = (),
    records: Iterable[Mapping[str, Any]] = (),
    *,
    folder: Path,
) -> str:
    """The report as Markdown; arguments and errors as :func:`render_html`."""
    environment = template_environment(folder)
    environment.filters |= {"cell": _cell, "text": _text}
    context = _context(paper, verdicts, metrics, figures, records)
    return environment.get_template("report.md.j2").render(context)


def write_report(
    markdown: Path,
    html: Path,
    paper: Paper,
    verdicts: Verdicts,
    metrics: pd.DataFrame,
    figures: Sequence[CaptionedFigure] = (),
    records: Iterable[Mapping[str, Any]] = (),
) -> None:
    """Write both forms of the report, atomically; arguments and errors as :func:`render_html`."""
    records = list(records)
    pages = {
        markdown: render_markdown(paper, verdicts, metrics, figures, records, folder=markdown.parent),
        html: render_html(paper, verdicts, metrics, figures, records, folder=html.parent),
    }
    for path, text in pages.items():
        with atomic_output(path) as partial:
            partial.write_text(text, encoding="utf-8")


def result_tables(paper: Paper, metrics: pd.DataFrame) -> list[ResultTable]:
    """Main results, one table per setting: those metrics, methods and settings that ``paper`` labels, in its order.

    Where it labels none of a kind, all are shown. A method without any of the metrics has no row; the spread is the
    standard deviation over seeds (n - 1), left out for a single seed.
    """
    shown_metrics = _shown(paper.metrics, metrics["metric"])
    cells = {
        key: mean_and_spread(values.mean(), values.std(ddof=1) if len(values) > 1 else None)
        for key, values in metrics.groupby(["setting", "method", "metric"], observed=True)["value"]
    }
    tables = []
    for setting, setting_label in _shown(paper.settings, metrics["setting"]).items():
        columns = {
            metric: label
            for metric, label in shown_metrics.items()
            if any(key[0] == setting and key[2] == metric for key in cells)
        }
        rows = []
        for method, label in _shown(paper.methods, metrics["method"]).items():
            found = tuple(cells.get((setting, method, metric), NOTHING) for metric in columns)
            if any(cell != NOTHING for cell in found):
                rows.append((label, found))
        if rows:
            tables.append(ResultTable(setting_label, tuple(columns.values()), tuple(rows)))
    return tables


def verdict_table_markdown(claims: Sequence[ClaimResult]) -> str:
    """The verdicts as a Markdown table, for READMEs: claim, verdict, what was measured here, what the paper reports.

    Of a claim with more tests than a cell can show it says how many had which outcome; the report lists them all.
    """
    lines = ["| Claim | Verdict | Measured here (95 % interval) | The paper |", "| --- | --- | --- | --- |"]
    for claim in claims:
        measured = [f"{result.test.name}: {effect(result)}" for result in claim.tests] or [NOTHING]
        if len(measured) > MOST_TESTS_SHOWN:
            outcomes = Counter(result.verdict for result in claim.tests)
            measured = [
                f"{len(measured)} tests: {', '.join(f'{n} {verdict}' for verdict, n in outcomes.most_common())}"
            ]
        cells = (
            [claim.statement],
            [f"{SYMBOLS[claim.verdict]} {claim.verdict}"],
            measured,
            reported(claim.reported) or [NOTHING],
        )
        lines.append("| " + " | ".join("<br>".join(map(_cell, cell)) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def replace_between_markers(text: str, name: str, new: str) -> str:
    """Replace what stands between ``<!-- generated:NAME -->`` and ``<!-- /generated:NAME -->``.

    Raises:
        InputError: the text does not hold exactly one such pair of markers, in this order.
    """
    start, end = f"<!-- generated:{name} -->", f"<!-- /generated:{name} -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise InputError(f"expected one pair of markers {start} and {end}")
    before, rest = text.split(start)
    after = rest.split(end)[1]
    return f"{before}{start}\n{new.strip()}\n{end}{after}"


def _context(
    paper: Paper,
    verdicts: Verdicts,
    metrics: pd.DataFrame,
    figures: Sequence[CaptionedFigure],
    records: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    if verdicts.paper != paper.id:
        raise InputError(f"verdicts must be of paper '{paper.id}', got those of '{verdicts.paper}'")
    return {
        "paper": paper,
        "verdicts": verdicts,
        "seeds": sorted(metrics["seed"].unique().tolist()),
        "tables": result_tables(paper, metrics),
        "figures": figures,
        "provenance": provenance(records),
    }


def _shown(labels: Mapping[str, str], column: pd.Series) -> Mapping[str, str]:
    """What a column's names are shown as, in order: the labels, or without any the names themselves, sorted."""
    return labels or {name: name for name in sorted(column.unique())}


def _text(text: str) -> str:
    """Text that may hold inline Markdown, but no HTML: GitHub would take ``<name>`` for a tag."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", " ".join(text.split()))


def _cell(text: str) -> str:
    """Text for one cell of a Markdown table."""
    return _text(text).replace("|", "\\|")
