"""CodRED's files: relations, labelled text paths, linked documents, gold evidence.

relations.json              list of "P..." ids; class 0 is "n/a", the others 1 + rank in sorted order
train_dataset.json,
dev_dataset.json            list of ["Q985235#Q1497", head document's title, tail document's title, "P206" | "n/a"]
test_dataset.json           list of {"h_id", "t_id", "doc": [title, title]}; labels are hidden
wiki_ent_link.jsonl,
popular_page_ent_link.jsonl a document per line: "id", "title", "tokens" = paragraphs of sentences of words,
                            "vertexSet" = entities, each a list of mentions {"Q": 1497 (may be missing),
                            "pos": [paragraph, sentence, first word, behind the last word]}
distant_documents.jsonl     the same, and "edgeSet" = [{"h": entity, "t": entity, "rs": [206, ...]}]: relations
                            within a document, their ids without the P as the entities' without the Q
train_evi.json, dev_evi.json
                            list of {"key", "h", "t", "r", "doc_h", "doc_t", "evis_h": [[paragraph, sentence], ...],
                            "evis_t": ...}, a record for every chain of reasoning
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import InputError

NOT_AVAILABLE = "n/a"
DOCUMENT_FILES = ("wiki_ent_link.jsonl", "popular_page_ent_link.jsonl")
DISTANT_FILE = "distant_documents.jsonl"


@dataclass(frozen=True)
class TextPath:
    """Two documents that may together tell how a pair of entities is related."""

    key: str
    """``Q<head>#Q<tail>``."""
    head_title: str
    tail_title: str
    label: int | None
    """Class of the path, 0 for n/a; None where it is hidden."""

    @property
    def entities(self) -> tuple[int, int]:
        """Wikidata numbers of head and tail."""
        head, tail = self.key.split("#")
        return int(head[1:]), int(tail[1:])


@dataclass(frozen=True)
class Bag:
    """All paths of a pair, with what they say together."""

    key: str
    labels: frozenset[int]
    """Its relations; empty for n/a. One at most in training."""
    paths: tuple[TextPath, ...]


@dataclass(frozen=True)
class LinkedDocument:
    """A document with its entities; checked."""

    title: str
    sentences: tuple[tuple[int, int, tuple[str, ...]], ...]
    """(paragraph, sentence, words), in order."""
    entities: tuple[tuple[int | None, tuple[tuple[int, int, int, int], ...]], ...]
    """Per vertex its Wikidata number, if it has one, and its mentions: paragraph, sentence, first word, behind the
    last."""
    edges: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    """(head vertex, tail vertex, Wikidata numbers of relations), of distant documents."""


Evidence = dict[tuple[str, str, str], tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]]]
"""(key, head title, tail title) -> (paragraph, sentence) of the head's and of the tail's evidence, all chains
together."""


def read_relations(folder: Path) -> list[str]:
    """Names of the classes, "n/a" first.

    Raises:
        InputError: the file is missing or not a list of distinct ids.
    """
    path = folder / "relations.json"
    names = _read_json(path)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: expected a list of relation ids")
    if len(set(names)) < len(names):
        raise InputError(f"{path}: a relation id occurs twice")
    return [NOT_AVAILABLE, *sorted(names)]


def read_paths(folder: Path, split: str, relations: Sequence[str]) -> list[TextPath]:
    """The text paths of "train", "dev" or "test".

    Raises:
        InputError: naming the file and the entry that is not as it should be.
    """
    path = folder / f"{split}_dataset.json"
    class_of = {name: index for index, name in enumerate(relations)}
    paths = []
    for index, entry in enumerate(_read_json(path)):
        where = f"{path}: entry {index}"
        if isinstance(entry, dict):
            if missing := {"h_id", "t_id", "doc"} - set(entry):
                raise InputError(f"{where}: no key {min(missing)!r}")
            found = (f"{entry['h_id']}#{entry['t_id']}", *entry["doc"])
            label = None
        elif isinstance(entry, list) and len(entry) == 4:
            found, label = tuple(entry[:3]), class_of.get(entry[3])
            if label is None:
                raise InputError(f"{where}: {entry[3]!r} is not in relations.json")
        else:
            raise InputError(f"{where}: expected [key, title, title, relation]")
        if len(found) != 3 or not all(isinstance(part, str) for part in found):
            raise InputError(f"{where}: expected a key and two titles")
        ids = found[0].split("#")
        if len(ids) != 2 or not all(part[:1] == "Q" and part[1:].isdecimal() for part in ids):
            raise InputError(f"{where}: expected a key like 'Q985235#Q1497', got {found[0]!r}")
        paths.append(TextPath(*found, label))
    return paths


def make_bags(paths: Sequence[TextPath], *, training: bool) -> list[Bag]:
    """Bags sorted by key, and in training by relation.

    In training there is a bag for each pair and relation, with its positive paths and all n/a paths of the pair, which
    two relations of a pair therefore share; a pair with n/a paths alone gives one bag. Else there is a bag for each
    pair, with all its relations and paths.
    """
    by_key: dict[str, list[TextPath]] = defaultdict(list)
    for path in paths:
        by_key[path.key].append(path)
    bags = []
    for key, members in sorted(by_key.items()):
        labels = sorted({path.label for path in members if path.label})
        if training and labels:
            for label in labels:
                kept = tuple(path for path in members if path.label in (label, 0))
                bags.append(Bag(key, frozenset({label}), kept))
        else:
            bags.append(Bag(key, frozenset(labels), tuple(members)))
    return bags


def read_evidence(folder: Path, split: str) -> Evidence:
    """Gold evidence of a split; empty where there is no such file.

    Raises:
        InputError: naming the file, the record and its missing key.
    """
    path = folder / f"{split}_evi.json"
    if not path.exists():
        return {}
    found: dict[tuple[str, str, str], tuple[set, set]] = defaultdict(lambda: (set(), set()))
    for index, record in enumerate(_read_json(path)):
        if missing := {"key", "doc_h", "doc_t", "evis_h", "evis_t"} - set(record):
            raise InputError(f"{path}: record {index}: no key {min(missing)!r}")
        sides = found[record["key"], record["doc_h"], record["doc_t"]]
        for side, name in zip(sides, ("evis_h", "evis_t"), strict=True):
            side.update((int(paragraph), int(sentence)) for paragraph, sentence in record[name])
    return {key: (frozenset(head), frozenset(tail)) for key, (head, tail) in found.items()}


def document_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Title and line of every document of a jsonl file.

    Raises:
        InputError: the file is missing, or a line is not a document; it names the line.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)["title"], line
            except (json.JSONDecodeError, KeyError, TypeError):
                raise InputError(f"{path}:{number}: expected a JSON object with a title") from None


def parse_document(line: str, where: str) -> LinkedDocument:
    """A document from its line.

    Args:
        line: JSON.
        where: begins the message of an error.

    Raises:
        InputError: a key is missing, or a mention or an edge points outside.
    """
    record = json.loads(line)
    if missing := {"title", "tokens", "vertexSet"} - set(record):
        raise InputError(f"{where}: no key {min(missing)!r}")
    sentences = tuple(
        (paragraph, index, tuple(words))
        for paragraph, sentences in enumerate(record["tokens"])
        for index, words in enumerate(sentences)
    )
    lengths = {(paragraph, index): len(words) for paragraph, index, words in sentences}
    entities = []
    for number, mentions in enumerate(record["vertexSet"]):
        spans = []
        for mention in mentions:
            paragraph, sentence, start, end = mention["pos"]
            if not 0 <= start <= end <= lengths.get((paragraph, sentence), -1):
                raise InputError(f"{where}: vertexSet[{number}]: position {mention['pos']} lies outside the document")
            spans.append((paragraph, sentence, start, end))
        numbers = [mention["Q"] for mention in mentions if mention.get("Q") is not None]
        entities.append((int(numbers[0]) if numbers else None, tuple(spans)))
    edges = []
    for edge in record.get("edgeSet", []):
        if not all(0 <= edge[side] < len(entities) for side in ("h", "t")):
            raise InputError(f"{where}: edgeSet: {edge['h']} -> {edge['t']} lies outside the vertexSet")
        edges.append((edge["h"], edge["t"], tuple(int(relation) for relation in edge["rs"])))
    return LinkedDocument(record["title"], sentences, tuple(entities), tuple(edges))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
