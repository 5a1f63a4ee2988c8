"""Example: one path as a page to read, with what each method shows of it marked."""

from __future__ import annotations

import html
import re

import pandas as pd

from papers.reic.labels import LABELS, SETTINGS
from shared.files import atomic_output
from shared.stage import Input, Output, run
from shared.tables import read_table

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }
p.block { margin: .2rem 0; padding: .2rem .5rem; border-radius: .3rem; }
.shown { background: #fde9c8; } .target { outline: 2px solid #444; } .evidence { font-weight: 600; }
mark.entity { background: #cfe3ff; } mark.bridge { background: #d9f2d0; } .pick { float: right; color: #7a4b00; }
.columns { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; }
"""
_MARKED = re.compile(r"\[unused(\d+)\] (.*?) \[unused\d+\]")


def readable(text: str) -> str:
    """A block without its markers: targets in double brackets, bridges in single ones."""
    marked = _MARKED.sub(lambda found: f"⟦{found[2]}⟧" if int(found[1]) < 5 else f"⟨{found[2]}⟩", text)
    return re.sub(r" ?\[unused\d+\]", "", marked).strip().replace(" .", ".")


def write_example(*, title: str, examples: tuple[Input, ...], page: Output) -> None:
    """Write the page, of the first seed's first path in every setting and method.

    Args:
        title: of the page.
        examples: tables of :mod:`papers.reic.runs`.
        page: HTML that loads nothing.
    """
    rows = pd.concat([read_table(path) for path in examples], ignore_index=True)
    rows = rows[(rows["seed"] == rows["seed"].min()) & (rows["path"] == 0)]
    sections = [
        section(f"{LABELS.get(method, method)} ({SETTINGS.get(setting, setting)})", found)
        for (setting, method), found in sorted(rows.groupby(["setting", "method"]), key=lambda group: _place(*group[0]))
    ]
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n"
        "<p>Shaded: shown to the relation module, with the place in the order of picking. Framed: the target block. "
        'Bold: gold evidence. <mark class="entity">Head or tail entity</mark>, '
        '<mark class="bridge">bridge entity</mark>.</p>\n' + "\n".join(sections) + "\n</body></html>\n"
    )
    with atomic_output(page) as partial:
        partial.write_text(text, encoding="utf-8")


def _place(setting: str, method: str) -> tuple[int, int]:
    """Where a section stands: as in the figures, what they do not know last."""
    return tuple(
        list(known).index(name) if name in known else len(known)
        for known, name in ((SETTINGS, setting), (LABELS, method))
    )


def section(title: str, rows: pd.DataFrame) -> str:
    """The two documents of a path, for one method."""
    columns = []
    for side in rows["side"].unique():
        document = rows[rows["side"] == side].sort_values("block")
        blocks = "\n".join(block_html(row) for row in document.to_dict("records"))
        columns.append(f"<div><h3>{side}’s document</h3>\n{blocks}</div>")
    return f'<section><h2>{html.escape(title)}</h2><div class="columns">{"".join(columns)}</div></section>'


def block_html(row: dict[str, object]) -> str:
    """One block."""
    shown = row["role"] == "target" or row["pick"] > 0
    names = ["block", *(["shown"] if shown else []), *(["target"] if row["role"] == "target" else [])]
    names += ["evidence"] if row["evidence"] else []
    place = f'<span class="pick">{row["pick"]}</span>' if row["pick"] else ""
    text = _MARKED.sub(
        lambda found: f'<mark class="{"entity" if int(found[1]) < 5 else "bridge"}">{found[2]}</mark>',
        html.escape(str(row["text"])),
    )
    return f'<p class="{" ".join(names)}">{place}{text}</p>'


if __name__ == "__main__":
    run(write_example)
