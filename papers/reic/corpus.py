"""A procedural corpus in CodRED's layouts, whose gold evidence is known.

A relation is a *pair* of classes: the head's document holds a trigger word of class a, the tail's one of class b, and
the relation is P(a, b): each document alone decides only half of it. A document is a row of short sentences:

    target        the target entity's first mention, with a bridge entity in half of the cases; never a trigger
    evidence      a trigger of the right class, the bridge that connects the two documents, and the target
    negative      a trigger of a random class with two entities that the other document does not know
    distractor    another bridge and the target; no trigger
    mention       the target entity with filler
    filler        nothing

The paths that are n/a lack evidence in the head's document, the tail's, or both, where a negative and a distractor with
the connecting bridge take its place; or their evidence is there but connects by different bridges. So neither the
length of a document nor the number of triggers, bridges or target mentions in it gives the label away, but for one
filler.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from papers.reic.codred import DISTANT_FILE, DOCUMENT_FILES, NOT_AVAILABLE
from papers.reic.documents import MARKERS
from papers.reic.options import CorpusOptions

HEAD_TRIGGERS = (("founded", "created", "started", "launched"), ("owned", "acquired", "bought", "held"),
                 ("advised", "guided", "coached", "taught"))  # fmt: skip
TAIL_TRIGGERS = (("based", "located", "housed", "seated"), ("sold", "shipped", "traded", "exported"),
                 ("joined", "entered", "followed", "backed"))  # fmt: skip
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NUM_ENTITIES = NUM_FILLERS = 60
FIRST_NUMBER = 101
"""Wikidata number of the first entity."""
_ONSETS, _VOWELS = ("b", "d", "k", "l", "m", "n", "r", "s", "t", "v"), ("a", "e", "i", "o", "u")

ENTITIES = tuple(
    f"{_ONSETS[index % 10].upper()}{_VOWELS[index // 10 % 5]}{_ONSETS[(3 * index + index // 10) % 10]}ia"
    for index in range(NUM_ENTITIES)
)
FILLERS = tuple(
    f"{_ONSETS[index % 10]}{_VOWELS[index // 10 % 5]}{_ONSETS[(7 * index + index // 10 + 1) % 10]}o"
    for index in range(NUM_FILLERS)
)
WORDS = (*ENTITIES, *FILLERS, *(word for family in (*HEAD_TRIGGERS, *TAIL_TRIGGERS) for word in family), ".")
MISSING = ("head", "tail", "both", "bridge")
"""What n/a paths lack."""

Sentence = tuple[list[str], list[int]]
"""Words, and where entities stand among them."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with BERT's special tokens, the markers, and a token for each word of the corpus."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *MARKERS, *WORDS))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        clean_up_tokenization_spaces=False,
    )


def relation_name(first: int, second: int) -> str:
    """Id of the relation of a head class and a tail class."""
    return f"P{first + 1}{second + 1}"


def write_corpus(folder: Path, options: CorpusOptions, seed: int) -> None:
    """Write the corpus of a seed: all files that `papers.reic.codred` describes."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = CorpusWriter(options, random.Random(seed))
    classes = range(options.classes)
    _write(folder / "relations.json", [relation_name(a, b) for a in classes for b in classes])
    for split, bags in (("train", options.train_bags), ("dev", options.dev_bags), ("test", options.test_bags)):
        paths, evidence = writer.split(split, bags)
        if split == "test":
            paths = [{"h_id": key.split("#")[0], "t_id": key.split("#")[1], "doc": [head, tail]}
                     for key, head, tail, _ in paths]  # fmt: skip
        else:
            _write(folder / f"{split}_evi.json", evidence)
        _write(folder / f"{split}_dataset.json", paths)
    distant = [writer.distant_document(index) for index in range(options.distant_documents)]
    half = len(writer.documents) // 2
    parts = (writer.documents[:half], writer.documents[half:], distant)
    for name, part in zip((*DOCUMENT_FILES, DISTANT_FILE), parts, strict=True):
        lines = [json.dumps(document) for document in part]
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


class CorpusWriter:
    """Draws bags, their paths and documents, one after the other."""

    def __init__(self, options: CorpusOptions, generator: random.Random):
        self.options, self.generator = options, generator
        self.documents: list[dict[str, object]] = []

    def split(self, split: str, count: int) -> tuple[list[list[str]], list[dict[str, object]]]:
        """Paths and evidence records of ``count`` pairs; their documents are added."""
        paths, evidence = [], []
        for pair in sorted(self.generator.sample(range(NUM_ENTITIES * (NUM_ENTITIES - 1)), count)):
            head, tail = divmod(pair, NUM_ENTITIES - 1)
            tail += tail >= head
            for index, label in enumerate(self.labels()):
                path, record = self.path(f"{split}/{pair}.{index}", head, tail, label)
                paths.append(path)
                evidence += [record] if record else []
        return paths, evidence

    def labels(self) -> list[tuple[int, int] | None]:
        """Classes of each path of a bag, None for n/a."""
        (size,) = self.generator.choices([1, 2, 3], [0.5, 0.3, 0.2])
        if self.generator.random() >= self.options.positive_bags:
            return [None] * size
        own = self._classes()
        labels: list[tuple[int, int] | None] = [own]
        for _ in range(size - 1):
            if self.generator.random() < 0.5:
                labels.append(self._classes() if self.generator.random() < 0.1 else own)  # a second relation, rarely
            else:
                labels.append(None)
        return labels

    def path(
        self, name: str, head: int, tail: int, label: tuple[int, int] | None
    ) -> tuple[list[str], dict[str, object] | None]:
        """The path, as in the data set, and its evidence record; n/a paths have none."""
        options, generator = self.options, self.generator
        missing = None if label else generator.choices(MISSING, [0.25, 0.25, 0.2, 0.3])[0]
        classes = label or self._classes()
        others = [entity for entity in range(NUM_ENTITIES) if entity not in (head, tail)]
        drawn = generator.sample(others, options.distractors + 21)
        bridges, strangers = drawn[:-20], drawn[-20:]
        connecting = [bridges[0], bridges[1] if missing == "bridge" else bridges[0]]
        key = f"Q{FIRST_NUMBER + head}#Q{FIRST_NUMBER + tail}"
        titles, places = [], []
        for side, target in enumerate((head, tail)):
            triggers = (HEAD_TRIGGERS, TAIL_TRIGGERS)[side]
            lacks = missing in (("head", "tail")[side], "both")
            distractors = [bridge for bridge in bridges if lacks or bridge != connecting[side]]
            unknown = strangers[10 * side : 10 * side + 10]
            sentences, found, first = self.document(
                target, None if lacks else (connecting[side], classes[side]), distractors, bridges, unknown, triggers
            )
            titles.append(f"{ENTITIES[target]}/{name}")
            self._add(titles[-1], sentences, first)
            places.append(None if lacks else _position(found, len(sentences)))
        if label is None:
            return [key, *titles, NOT_AVAILABLE], None
        relation = relation_name(*label)
        record = {"key": key, "h": key.split("#")[0], "t": key.split("#")[1], "r": relation, "doc_h": titles[0],
                  "doc_t": titles[1], "evis_h": [places[0]], "evis_t": [places[1]]}  # fmt: skip
        return [key, *titles, relation], record

    def document(
        self,
        target: int,
        evidence: tuple[int, int] | None,
        distractors: Sequence[int],
        bridges: Sequence[int],
        strangers: Sequence[int],
        triggers: Sequence[Sequence[str]],
    ) -> tuple[list[Sentence], int | None, int]:
        """Sentences in order, and the numbers of the evidence and of the target among them.

        Args:
            target: entity.
            evidence: (connecting bridge, class), or None for a document without.
            distractors: the bridges of its distractors.
            bridges: all of the path, one of which may stand beside the target.
            strangers: entities that only this document knows, two for each negative.
            triggers: words of each class.
        """
        options, chance = self.options, self.generator.random

        def trigger(number: int) -> str:
            return self.generator.choice(triggers[number][: options.synonyms])

        sentences: list[Sentence] = []
        for index in range(options.negatives + (evidence is None)):
            pair = [ENTITIES[each] for each in strangers[2 * index : 2 * index + 2]]
            sentences.append(self._sentence([pair[0], trigger(self.generator.randrange(options.classes)), pair[1]], 6))
        for bridge in distractors:
            beside = [ENTITIES[target]] if chance() < options.distractor_names_target else []
            sentences.append(self._sentence([*beside, ENTITIES[bridge]], 4))
        sentences += [self._sentence([ENTITIES[target]], 6) for _ in range(options.mentions)]
        fillers = options.candidates - len(sentences) - (evidence is not None)
        sentences += [self._sentence([], 6) for _ in range(fillers)]
        self.generator.shuffle(sentences)
        place = self.generator.randrange(len(sentences) + 1)  # of the target, before the evidence is put in
        beside = [ENTITIES[self.generator.choice(bridges)]] if chance() < 0.5 else []
        sentences.insert(place, self._sentence([ENTITIES[target], *beside], 4, first=True))
        if evidence is None:
            return sentences, None, place
        bridge, number = evidence
        names = [ENTITIES[target]] if chance() < options.evidence_names_target else []
        if chance() < options.adjacent:
            at = place + self.generator.randrange(2)
        else:
            at = self.generator.randrange(len(sentences) + 1)
        sentences.insert(at, self._sentence([*names, trigger(number), ENTITIES[bridge]], 4))
        return sentences, at, place + (at <= place)

    def distant_document(self, index: int) -> dict[str, object]:
        """A document with a relation of its own: both triggers and both entities in one sentence, or n/a."""
        head, tail = self.generator.sample(range(NUM_ENTITIES), 2)
        first, second = self._classes()
        positive = index % 2 == 0
        words = [ENTITIES[head], *([HEAD_TRIGGERS[first][0], TAIL_TRIGGERS[second][0]] if positive else []),
                 ENTITIES[tail]]  # fmt: skip
        self._add(f"distant/{index}", [self._sentence([], 6), self._sentence(words, 6)], 1)
        document = self.documents.pop()
        numbers = [mentions[0]["Q"] for mentions in document["vertexSet"]]
        edge = {side: numbers.index(FIRST_NUMBER + entity) for side, entity in (("h", head), ("t", tail))}
        relations = [int(relation_name(first, second)[1:])] if positive else []
        return document | {"edgeSet": [{**edge, "rs": relations}]}

    def _classes(self) -> tuple[int, int]:
        return (self.generator.randrange(self.options.classes), self.generator.randrange(self.options.classes))

    def _sentence(self, words: Sequence[str], length: int, *, first: bool = False) -> Sentence:
        """The words in random order (or as given) among fillers, and a full stop: ``length`` words or more."""
        filler = self.generator.choices(FILLERS, k=max(length - 1 - len(words), 0))
        mixed = [*words, *filler]
        if not first:
            self.generator.shuffle(mixed)
        return [*mixed, "."], [index for index, word in enumerate(mixed) if word in _NUMBER_OF]

    def _add(self, title: str, sentences: Sequence[Sentence], target: int) -> None:
        """Add a document in two paragraphs; mentions in sentence ``target`` are their entities' first ones."""
        mentions: dict[int, list[dict[str, object]]] = {}
        order = sorted(range(len(sentences)), key=lambda index: (index != target, index))
        for index in order:
            words, entities = sentences[index]
            for word in entities:
                number, where = _NUMBER_OF[words[word]], _position(index, len(sentences))
                mentions.setdefault(number, []).append({"Q": number, "pos": [*where, word, word + 1]})
        words = [words for words, _ in sentences]
        cut = (len(sentences) + 1) // 2
        self.documents.append({"id": len(self.documents), "title": title, "tokens": [words[:cut], words[cut:]],
                               "vertexSet": list(mentions.values())})  # fmt: skip


def _position(sentence: int, count: int) -> list[int]:
    """[paragraph, sentence in it] of one of ``count`` sentences."""
    cut = (count + 1) // 2
    return [int(sentence >= cut), sentence - cut * (sentence >= cut)]


_NUMBER_OF: Mapping[str, int] = {word: FIRST_NUMBER + index for index, word in enumerate(ENTITIES)}


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
