"""The page of all papers: every claim with its verdict, beside some figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.claims import Paper, Verdicts
from shared.errors import InputError
from shared.files import atomic_output
from shared.pages import VERDICTS, CaptionedFigure, Provenance, provenance, template_environment

_THUMBNAILS = 3  # figures per paper: enough to recognise it, and the page stays light
_TESTS = 4  # per claim; the rest stands in the paper's report


@dataclass(frozen=True)
class PaperEntry:
    """One paper on the page.

    Attributes:
        paper: from ``paper.yaml``.
        verdicts: from ``claims.json``, of this paper.
        report: its report.html.
        figures: its figures; the first ones become thumbnails.
        records: what its stages recorded of their runs (:mod:`shared.stage`).
    """

    paper: Paper
    verdicts: Verdicts
    report: Path
    figures: Sequence[CaptionedFigure] = ()
    records: Iterable[Mapping[str, Any]] = field(default=())


def render_index(entries: Sequence[PaperEntry], *, folder: Path) -> str:
    """The page as one HTML5 document for a file in ``folder``, from which reports and figures are linked.

    It loads nothing but figures; without JavaScript it is the full list, with it the list can be filtered.

    Raises:
        InputError: verdicts of another paper, or a paper twice.
    """
    ids = [entry.paper.id for entry in entries]
    for entry in entries:
        if entry.verdicts.paper != entry.paper.id:
            raise InputError(f"verdicts must be of paper '{entry.paper.id}', got those of '{entry.verdicts.paper}'")
        if ids.count(entry.paper.id) > 1:
            raise InputError(f"paper '{entry.paper.id}' is there more than once")
    sections = [_section(entry) for entry in entries]
    return (
        template_environment(folder)
        .get_template("index.html.j2")
        .render(
            sections=sections,
            counts={name: sum(entry.verdicts.counts[name] for entry in entries) for name in VERDICTS},
            tests_shown=_TESTS,
        )
    )


def write_index(path: Path, entries: Sequence[PaperEntry]) -> None:
    """Write the page, atomically; errors as :func:`render_index`."""
    text = render_index(entries, folder=path.parent)
    with atomic_output(path) as partial:
        partial.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class _Section:
    """A paper as the template shows it."""

    paper: Paper
    verdicts: Verdicts
    report: Path
    thumbnails: Sequence[CaptionedFigure]
    provenance: Provenance


def _section(entry: PaperEntry) -> _Section:
    return _Section(
        paper=entry.paper,
        verdicts=entry.verdicts,
        report=entry.report,
        thumbnails=entry.figures[:_THUMBNAILS],
        provenance=provenance(entry.records),
    )
