"""Prepare at the paper's scale: dolly instructions to learn from, and the instruction suites, in the tables of the
testbed (:mod:`papers.csd.prepare`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from papers.csd.options import VALIDATION, HubDataOptions
from shared.errors import InputError
from shared.hub import HUB, hub_file
from shared.stage import Output, run
from shared.tables import read_table, write_table

_TASK = "Below is an instruction that describes a task"
_CONTEXT = ", paired with an input that provides further context"
_REQUEST = ". Write a response that appropriately completes the request."


def prepare_hub(
    options: HubDataOptions, *, words: Output, teaching: Output, distillation: Output, plain: Output, prompts: Output
) -> None:
    """Split the training source into training, validation and test examples, and read plain text and other suites.

    Teacher and students learn on the same examples, as in the paper. ``words`` stays empty: models bring a tokenizer.
    """
    words.write_text("", encoding="utf-8")
    examples = read_dolly(local_file(options.training))
    held_out = options.validation_prompts + options.test_prompts
    if held_out >= len(examples):
        raise InputError(f"{options.training}: has {len(examples)} examples, of which {held_out} are to be held out")
    shuffled = examples.iloc[np.random.default_rng(options.split_seed).permutation(len(examples))]
    for path in (teaching, distillation):
        write_table(path, shuffled.iloc[held_out:].assign(answer=lambda rows: rows["references"].str[0])[
            ["prompt", "answer"]
        ])  # fmt: skip
    texts = []
    if options.plain_text is not None:
        texts = read_table(local_file(options.plain_text), ("text",))["text"].head(options.max_plain_texts).tolist()
    write_table(plain, pd.DataFrame({"text": texts}, dtype=str))
    suites = {
        VALIDATION: shuffled.iloc[: options.validation_prompts],
        "dolly": shuffled.iloc[options.validation_prompts : held_out],
    }
    for text in options.suites:
        name, reader, source = parse_suite(text)
        suites[name] = reader(local_file(source)).head(options.max_suite_prompts)
    write_table(
        prompts,
        pd.concat([table.assign(suite=name, prompt_id=np.arange(len(table))) for name, table in suites.items()])[
            ["suite", "prompt_id", "prompt", "references"]
        ],
    )


def instruction_prompt(instruction: str, context: str = "") -> str:
    """The paper's prompt: an instruction, with its input where there is one."""
    middle = f"### Input:\n{context}\n\n" if context else ""
    return (
        f"{_TASK}{_CONTEXT if context else ''}{_REQUEST}\n\n### Instruction:\n{instruction}\n\n{middle}### Response:\n"
    )


def read_dolly(path: Path) -> pd.DataFrame:
    """databricks-dolly-15k: objects of instruction, context, response, category. Columns prompt, references."""
    rows = [
        (instruction_prompt(_text(row, "instruction", where), _text(row, "context", where)),
         [_text(row, "response", where)])
        for where, row in _objects(path)
    ]  # fmt: skip
    return _table(path, rows)


def read_self_instruct(path: Path) -> pd.DataFrame:
    """User-oriented instructions of Self-Instruct: an instruction with instances of input and output.

    One prompt for each instruction and input; the outputs of equal inputs are its references.
    """
    rows: dict[str, list[str]] = {}
    for where, row in _objects(path):
        instances = row.get("instances")
        if not isinstance(instances, list) or not instances:
            raise InputError(f"{where}: 'instances' must be a list of at least one object")
        for instance in instances:
            if not isinstance(instance, dict):
                raise InputError(f"{where}: 'instances' must hold objects, got {type(instance).__name__}")
            prompt = instruction_prompt(_text(row, "instruction", where), _text(instance, "input", where))
            rows.setdefault(prompt, []).append(_text(instance, "output", where))
    return _table(path, list(rows.items()))


def read_instructions(path: Path) -> pd.DataFrame:
    """MiniLLM's evaluation files: objects of instruction, input and output, one text or a list of them."""
    rows = []
    for where, row in _objects(path):
        output = row.get("output")
        references = output if isinstance(output, list) else [output]
        if not references or not all(isinstance(text, str) for text in references):
            raise InputError(f"{where}: 'output' must be a text or a list of texts")
        rows.append((instruction_prompt(_text(row, "instruction", where), _text(row, "input", where)), references))
    return _table(path, rows)


READERS = {"self-instruct": read_self_instruct, "instruction": read_instructions}


def parse_suite(text: str) -> tuple[str, Any, str]:
    """Name, reader and source of a suite ``<name>=<format>:<source>``.

    Raises:
        InputError: not of that form, or an unknown format.
    """
    name, _, rest = text.partition("=")
    kind, _, source = rest.partition(":")
    if not (name and source) or kind not in READERS or name in (VALIDATION, "dolly"):
        raise InputError(
            f"suite {text!r}: expected <name>=<{'|'.join(READERS)}>:<source>, a name other than dolly or {VALIDATION}"
        )
    return name, READERS[kind], source


def local_file(source: str) -> Path:
    """A source's file; one on the hub is downloaded to the hub's cache."""
    return hub_file(source) if source.startswith(HUB) else Path(source)


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON-lines file, each with its place for messages."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}:{number}: not valid JSON: {error.msg}") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: expected an object, got {type(row).__name__}")
            yield f"{path}:{number}", row


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise InputError(f"{where}: {key!r} must be a text, got {value!r}")
    return value.strip()


def _table(path: Path, rows: list[tuple[str, list[str]]]) -> pd.DataFrame:
    if not rows:
        raise InputError(f"{path}: holds no examples")
    return pd.DataFrame(rows, columns=["prompt", "references"])


if __name__ == "__main__":
    run(prepare_hub)
