"""Files of prompts for models of the hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from shared.errors import InputError

COLUMNS = ("prompt", "caption")


@dataclass(frozen=True)
class Prompt:
    """A prompt and the kind of task it is, for tables by task."""

    text: str
    task: str


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, in its order.

    Args:
        path: GenEval's ``evaluation_metadata.jsonl``, an object with ``prompt`` and ``tag`` on every line, whose tags
            become tasks; or a ``.csv`` table with a column ``prompt`` or ``caption``, such as captions of COCO.

    Raises:
        InputError: another format, or no prompts; the message names file and line.
    """
    if path.suffix == ".jsonl":
        prompts = _read_geneval(path)
    elif path.suffix == ".csv":
        prompts = _read_table(path)
    else:
        raise InputError(f"{path}: expected a file of prompts that ends in .jsonl or .csv")
    if not prompts:
        raise InputError(f"{path}: the file holds no prompts")
    return prompts


def _read_geneval(path: Path) -> list[Prompt]:
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            text, task = entry["prompt"], entry["tag"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}:{number}: expected an object with prompt and tag") from None
        if not (isinstance(text, str) and text.strip() and isinstance(task, str)):
            raise InputError(f"{path}:{number}: expected a text as prompt and as tag, got {text!r}, {task!r}")
        prompts.append(Prompt(text, task))
    return prompts


def _read_table(path: Path) -> list[Prompt]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: no table: {str(error).splitlines()[0]}") from None
    column = next((name for name in COLUMNS if name in table), None)
    if column is None:
        raise InputError(f"{path}: no column {' or '.join(COLUMNS)}; there are: {', '.join(table)}")
    blank = table.index[table[column].str.strip() == ""]
    if len(blank):
        raise InputError(f"{path}:{blank[0] + 2}: the prompt is empty")
    return [Prompt(text, "captions") for text in table[column]]


def split_prompts(prompts: list[Prompt], *, dev: int, test: int, seed: int) -> dict[str, list[Prompt]]:
    """Random development prompts, on which strengths are selected, and test prompts from the rest: ``dev``, ``test``.

    Raises:
        InputError: fewer prompts than asked for.
    """
    if dev + test > len(prompts):
        raise InputError(f"prompts: {dev} + {test} asked for, the file holds {len(prompts)}")
    order = np.random.default_rng(seed).permutation(len(prompts))
    chosen = {"dev": order[:dev], "test": order[dev : dev + test]}
    return {split: [prompts[row] for row in sorted(rows)] for split, rows in chosen.items()}
