"""Write the report of a paper, as Markdown and as an HTML page."""

from __future__ import annotations

from shared.artifacts import read_record
from shared.claims import read_paper, read_verdicts
from shared.pages import captioned, read_captions
from shared.report import write_report
from shared.results import read_metrics
from shared.stage import Input, Output, run


def report(
    *,
    paper: Input,
    captions: Input,
    verdicts: Input,
    metrics: Input,
    figures: tuple[Input, ...],
    records: tuple[Input, ...],
    templates: tuple[Input, ...],
    markdown: Output,
    html: Output,
) -> None:
    """Put verdicts, figures (png files named as in ``captions``), main numbers and provenance on one page.

    ``templates`` are the page's sources; they are named so that a change to them makes the report anew.
    """
    names = [path.stem for path in figures]
    chosen = {name: caption for name, caption in read_captions(captions).items() if name in names}
    write_report(
        markdown,
        html,
        read_paper(paper),
        read_verdicts(verdicts),
        read_metrics(metrics),
        captioned(figures, chosen),
        [read_record(path) for path in records],
    )


if __name__ == "__main__":
    run(report)
