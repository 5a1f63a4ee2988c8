"""Prompts from files: tables of attack prompts, and GenEval's metadata."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from shared.errors import InputError
from shared.t2i.bench import PromptSet


def read_prompts(source: str) -> list[str]:
    """The prompts of a source, in their order.

    Args:
        source: ``csv:<column>:<encoding>:<file>``, a table with a header, or ``geneval:<file>``, JSON objects with the
            key ``prompt``, one a line.

    Raises:
        InputError: an unknown kind, or a file that does not hold prompts.
    """
    kind, _, rest = source.partition(":")
    if kind == "geneval" and rest:
        return _read_geneval(Path(rest))
    parts = rest.split(":", 2)
    if kind != "csv" or len(parts) != 3:
        raise InputError(f"prompts {source!r}: expected csv:<column>:<encoding>:<file> or geneval:<file>")
    return _read_table(Path(parts[2]), column=parts[0], encoding=parts[1])


def _read_table(path: Path, *, column: str, encoding: str) -> list[str]:
    try:
        with path.open(encoding=encoding, newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, LookupError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a table of prompts in {encoding}: {error}") from None
    if not rows or column not in rows[0]:
        raise InputError(f"{path}: no column {column!r}; there are: {', '.join(rows[0]) if rows else 'no rows'}")
    prompts = [(row[column] or "").strip() for row in rows]
    return [prompt for prompt in prompts if prompt]


def _read_geneval(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [str(json.loads(line)["prompt"]) for line in lines if line.strip()]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not GenEval's metadata, JSON lines with a prompt: {error}") from None


def hub_prompt_sets(sources: tuple[str, ...], *, skip: int, count: int) -> list[PromptSet]:
    """Sets ``<name>=<source>``: of each source `count` prompts at most, after the first `skip`.

    Raises:
        InputError: a source cannot be read or is used up.
    """
    sets = []
    for entry in sources:
        name, _, source = entry.partition("=")
        prompts = read_prompts(source)[skip : skip + count]
        if not prompts:
            raise InputError(f"prompts {entry!r}: no prompts after the first {skip}")
        sets.append(PromptSet(name, tuple(prompts)))
    return sets
