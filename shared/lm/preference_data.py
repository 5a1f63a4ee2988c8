"""Preference pairs of published data sets as tables of prompt, chosen and rejected answer."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from shared.errors import InputError

ASSISTANT = "\n\nAssistant:"
TLDR_PROMPT = "POST\nSubreddit: r/{subreddit}\n{post}\nTL;DR: "


class Pair(NamedTuple):
    """A prompt with the answer that was preferred and the one that was not."""

    prompt: str
    chosen: str
    rejected: str


class Record(NamedTuple):
    """A record of a data set, and where it stands, for error messages."""

    where: str
    content: Mapping[str, Any]


def read_preferences(source: str, dataset: str, *, template: str = "<prompt>") -> tuple[pd.DataFrame, int]:
    """Pairs of a data set as a table with columns prompt, chosen, rejected, and the number of records left out.

    Left out are pairs that teach nothing: with an empty or two identical answers.

    Args:
        source: a local ``.jsonl`` or ``.jsonl.gz`` file, or ``<hub name>[#<configuration>]:<split>``.
        dataset: its format: hh-rlhf, tldr or ultrafeedback.
        template: what the bare instructions of ultrafeedback are put into, at ``<prompt>``; the other formats have cues
            of their own.

    Raises:
        InputError: unknown format, a record that is not in it (with file and line), or no usable record.
    """
    if dataset not in PAIRS:
        raise InputError(f"dataset {dataset!r}: unknown format; there are: {', '.join(PAIRS)}")
    pairs, left_out = [], 0
    for record in read_records(source):
        pair = PAIRS[dataset](record)
        if pair.chosen.strip() and pair.rejected.strip() and pair.chosen != pair.rejected:
            prompt = template.replace("<prompt>", pair.prompt) if dataset == "ultrafeedback" else pair.prompt
            pairs.append(pair._replace(prompt=prompt))
        else:
            left_out += 1
    if not pairs:
        raise InputError(f"{source}: no usable pair")
    return pd.DataFrame(pairs), left_out


def is_single_turn(prompt: str) -> bool:
    """Whether a dialogue's prompt asks for the assistant's first answer."""
    return prompt.count(ASSISTANT) <= 1


def read_records(source: str) -> Iterator[Record]:
    """Records of a source, as in :func:`read_preferences`, each with where it stands.

    Raises:
        InputError: the file is missing, or a line is not a JSON object; with file and line.
    """
    if source.endswith((".jsonl", ".jsonl.gz")):
        yield from _read_lines(Path(source))
        return
    name, _, split = source.rpartition(":")
    if not name:
        raise InputError(f"{source}: expected a .jsonl or .jsonl.gz file, or <hub name>:<split>")
    from datasets import load_dataset  # heavy, and needed for the hub alone

    repository, _, configuration = name.partition("#")
    for index, content in enumerate(load_dataset(repository, configuration or None, split=split)):
        yield Record(f"{source}:{index}", content)


def _read_lines(path: Path) -> Iterator[Record]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                content = json.loads(line)
                if not isinstance(content, dict):
                    raise InputError(f"{path}:{number}: expected a JSON object, got {type(content).__name__}")
                yield Record(f"{path}:{number}", content)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{number}: not valid JSON: {error.msg}") from None
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise InputError(f"{path}:{number + 1}: damaged file: {error}") from None


def dialogue_pair(record: Record) -> Pair:
    """HH-RLHF: two whole dialogues; the prompt is what they share, up to an "Assistant:" of both.

    Raises:
        InputError: a key is missing, or the dialogues share no turn of the assistant.
    """
    chosen, rejected = (_text(record, key) for key in ("chosen", "rejected"))
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    cut = chosen[: min(len(chosen), len(rejected)) if same is None else same].rfind(ASSISTANT)
    if cut < 0:
        raise InputError(f"{record.where}: the dialogues share no turn that ends in {ASSISTANT!r}")
    cut += len(ASSISTANT)
    return Pair(chosen[:cut], chosen[cut:], rejected[cut:])


def summary_pair(record: Record) -> Pair:
    """TL;DR comparisons of summarize-from-feedback: a post with two summaries and the index of the better one.

    Raises:
        InputError: a key is missing or the choice is not 0 or 1.
    """
    try:
        info, (first, second), choice = record.content["info"], record.content["summaries"], record.content["choice"]
        prompt = TLDR_PROMPT.format(subreddit=info["subreddit"], post=info["post"])
        texts = first["text"], second["text"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{record.where}: expected info, two summaries and choice: {error!r}") from None
    if choice not in (0, 1):
        raise InputError(f"{record.where}: choice must be 0 or 1, got {choice!r}")
    return Pair(prompt, texts[choice], texts[1 - choice])


def message_pair(record: Record) -> Pair:
    """UltraFeedback, binarised: a prompt, and two lists of messages that end in the assistant's answers.

    Raises:
        InputError: a key is missing, or a list does not end in an answer.
    """
    answers = []
    for key in ("chosen", "rejected"):
        messages = record.content.get(key)
        last = messages[-1] if isinstance(messages, list) and messages else None
        if not isinstance(last, Mapping) or last.get("role") != "assistant" or not isinstance(last.get("content"), str):
            raise InputError(f"{record.where}: {key!r} must be a list of messages that ends in the assistant's answer")
        answers.append(last["content"])
    return Pair(_text(record, "prompt"), *answers)


PAIRS: dict[str, Callable[[Record], Pair]] = {
    "hh-rlhf": dialogue_pair,
    "tldr": summary_pair,
    "ultrafeedback": message_pair,
}


def _text(record: Record, key: str) -> str:
    value = record.content.get(key)
    if not isinstance(value, str):
        raise InputError(f"{record.where}: expected a text under {key!r}, got {type(value).__name__}")
    return value
