"""Write the page of all papers."""

from __future__ import annotations

from pathlib import Path

from shared.artifacts import read_record
from shared.claims import read_paper, read_verdicts
from shared.index_page import PaperEntry, write_index
from shared.pages import captioned, read_captions
from shared.stage import Input, Output, run


def index(
    *,
    papers: tuple[Input, ...],
    captions: tuple[Input, ...],
    verdicts: tuple[Input, ...],
    reports: tuple[Input, ...],
    figures: tuple[Input, ...],
    records: tuple[Input, ...],
    templates: tuple[Input, ...],
    page: Output,
) -> None:
    """Put every paper's verdicts and first figures on one page.

    ``papers``, ``captions``, ``verdicts`` and ``reports`` are in the same order; figures and records are told apart by
    the paper's folder in their paths. ``templates`` are the page's sources, named so that a change to them counts.
    """
    entries = []
    for paper, caption_file, verdict, report in zip(papers, captions, verdicts, reports, strict=True):
        mine = [path for path in figures if path.is_relative_to(paper.parent)]
        known = {
            name: each for name, each in read_captions(caption_file).items() if name in {path.stem for path in mine}
        }
        entries.append(
            PaperEntry(
                paper=read_paper(paper),
                verdicts=read_verdicts(verdict),
                report=report,
                figures=captioned(mine, known),
                records=[read_record(path) for path in records if path.is_relative_to(Path(paper).parent)],
            )
        )
    write_index(page, entries)


if __name__ == "__main__":
    run(index)
