"""The procedural corpus, read back through the loader of CodRED's files."""

import dataclasses
import json

import pytest

from papers.reic import codred, corpus
from papers.reic.documents import PathReader
from papers.reic.options import CorpusOptions
from papers.reic.testbed import TRIGGERS
from tests.papers.reic.conftest import TINY_CORPUS


@pytest.fixture(scope="module")
def texts(tiny_corpus, tiny_store):
    relations = codred.read_relations(tiny_corpus)
    reader = PathReader(tiny_store, corpus.build_tokenizer(), codred.read_evidence(tiny_corpus, "train"), 10)
    return [reader(path) for path in codred.read_paths(tiny_corpus, "train", relations)]


def triggers(document, block):
    return TRIGGERS.intersection(document.tokens[slice(*document.blocks[block])])


def test_every_sentence_is_a_block_of_its_own(texts):
    for text in texts:
        for document in text.documents:
            assert len(document.blocks) == TINY_CORPUS.candidates + 1
            assert all(document.tokens[end - 1] == "." for _, end in document.blocks)
            assert "[UNK]" not in document.tokens


def test_evidence_holds_a_trigger_and_the_connecting_bridge(texts):
    relations = ["n/a", *(corpus.relation_name(a, b) for a in range(2) for b in range(2))]
    positive = [text for text in texts if text.path.label]
    assert len(positive) > 10
    for text in positive:
        head, tail = text.documents
        (first,), (second,) = head.evidence, tail.evidence
        assert head.bridges[first] == tail.bridges[second] and len(head.bridges[first]) == 1
        (cause,), (effect,) = triggers(head, first), triggers(tail, second)
        name = relations[text.path.label]
        assert cause in corpus.HEAD_TRIGGERS[int(name[1]) - 1] and effect in corpus.TAIL_TRIGGERS[int(name[2]) - 1]
        assert head.evidence.isdisjoint({head.target})


def test_counts_do_not_give_the_label_away(texts):
    """Blocks with triggers, bridges and targets are as many in n/a paths as in others; no target has a trigger."""
    for text in texts:
        for document in text.documents:
            bearing = [block for block in range(len(document.blocks)) if triggers(document, block)]
            assert len(bearing) == TINY_CORPUS.negatives + 1 and document.target not in bearing
            bridged = [block for block, found in enumerate(document.bridges) if found and block != document.target]
            assert len(bridged) == TINY_CORPUS.distractors + 1
            assert sum(document.names_target) == 1 + TINY_CORPUS.mentions + TINY_CORPUS.distractors + 1
        assert len({bridge for found in text.documents[0].bridges for bridge in found}) == TINY_CORPUS.distractors + 1


def test_other_files(tiny_corpus):
    relations = codred.read_relations(tiny_corpus)
    assert len(codred.read_paths(tiny_corpus, "test", relations)) >= 3
    records = json.loads((tiny_corpus / "train_evi.json").read_text())
    assert set(records[0]) == {"key", "h", "t", "r", "doc_h", "doc_t", "evis_h", "evis_t"}
    distant = [codred.parse_document(line, title)
               for title, line in codred.document_lines(tiny_corpus / codred.DISTANT_FILE)]  # fmt: skip
    assert len(distant) == 4 and distant[0].edges[0][2] and not distant[1].edges[0][2]
    assert all("/" in title for title, _ in codred.document_lines(tiny_corpus / codred.DOCUMENT_FILES[0]))


def test_a_seed_gives_the_same_bytes_and_another_others(tmp_path):
    small = dataclasses.replace(TINY_CORPUS, train_bags=3, dev_bags=2)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        corpus.write_corpus(tmp_path / name, small, seed)
    files = [path.name for path in (tmp_path / "a").iterdir()]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    assert (tmp_path / "a" / "train_dataset.json").read_bytes() != (tmp_path / "c" / "train_dataset.json").read_bytes()


@pytest.mark.parametrize("wrong", [{"candidates": 5}, {"classes": 4}, {"distractors": 0}, {"synonyms": 5}])
def test_options_that_do_not_fit(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CorpusOptions(10, 5, **wrong)
