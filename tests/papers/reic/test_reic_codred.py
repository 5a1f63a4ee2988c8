"""CodRED's layouts, field by field, on files of two documents."""

import json

import pytest

from papers.reic import codred, corpus
from papers.reic.document_store import DocumentStore, build_store
from papers.reic.documents import PathReader, intra_document_texts
from shared.errors import InputError
from tests.papers.reic.conftest import linked

HEAD = linked("A/C", ["Babia dodo Dalia .", "kano founded Karia ."],
              [(985235, [(0, 0, 1)]), (None, [(0, 1, 2)]), (7, [(1, 2, 3)]), (8, [(0, 2, 3)])])  # fmt: skip
TAIL = linked("B", ["kano Karia .", "Lavia based Karia .", "Lavia ."],
              [(7, [(0, 1, 2), (1, 2, 3)]), (1497, [(1, 0, 1), (2, 0, 1)])])  # fmt: skip
EVIDENCE = {"key": "Q985235#Q1497", "h": "Q985235", "t": "Q1497", "r": "P206", "doc_h": "A/C", "doc_t": "B",
            "evis_h": [[0, 1]], "evis_t": [[0, 1]]}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "relations.json").write_text(json.dumps(["P31", "P206", "P17"]))
    paths = [
        ["Q985235#Q1497", "A/C", "B", "P206"], ["Q985235#Q1497", "A/C", "B", "P17"], ["Q985235#Q1497", "A/C", "B",
        "n/a"],
        ["Q1#Q2", "A/C", "B", "n/a"],
    ]  # fmt: skip
    for split in ("train", "dev"):
        (tmp_path / f"{split}_dataset.json").write_text(json.dumps(paths))
    (tmp_path / "test_dataset.json").write_text(json.dumps([{"h_id": "Q985235", "t_id": "Q1497", "doc": ["A/C", "B"]}]))
    (tmp_path / "wiki_ent_link.jsonl").write_text(HEAD + "\n")
    (tmp_path / "popular_page_ent_link.jsonl").write_text(TAIL + "\n")
    second = EVIDENCE | {"evis_h": [[0, 0]], "evis_t": [[0, 1], [0, 2]]}
    (tmp_path / "dev_evi.json").write_text(json.dumps([EVIDENCE, second]))
    return tmp_path


def store_of(folder):
    path = folder / "documents.sqlite"
    assert build_store(path, [folder / name for name in codred.DOCUMENT_FILES]) == 2
    return DocumentStore(path)


def test_relations_and_paths(folder):
    relations = codred.read_relations(folder)
    assert relations == ["n/a", "P17", "P206", "P31"]  # sorted as text
    paths = codred.read_paths(folder, "train", relations)
    assert [path.label for path in paths] == [2, 1, 0, 0] and paths[0].entities == (985235, 1497)
    assert (paths[0].head_title, paths[0].tail_title) == ("A/C", "B")
    (hidden,) = codred.read_paths(folder, "test", relations)
    assert hidden.label is None and hidden.key == "Q985235#Q1497"


def test_bags(folder):
    paths = codred.read_paths(folder, "train", codred.read_relations(folder))
    bags = codred.make_bags(paths, training=True)
    assert [(bag.key, set(bag.labels), [path.label for path in bag.paths]) for bag in bags] == [
        ("Q1#Q2", set(), [0]), ("Q985235#Q1497", {1}, [1, 0]), ("Q985235#Q1497", {2}, [2, 0]),
    ]  # fmt: skip
    dev = codred.make_bags(paths, training=False)
    assert [(set(bag.labels), len(bag.paths)) for bag in dev] == [(set(), 1), ({1, 2}, 3)]


def test_documents_and_evidence(folder):
    evidence = codred.read_evidence(folder, "dev")
    assert evidence["Q985235#Q1497", "A/C", "B"] == ({(0, 0), (0, 1)}, {(0, 1), (0, 2)})
    assert codred.read_evidence(folder, "train") == {}
    store = store_of(folder)
    assert store["A/C"].entities[1] == (None, ((0, 0, 1, 2),))
    assert store["B"].sentences[1] == (0, 1, ("Lavia", "based", "Karia", "."))
    with pytest.raises(InputError, match="no document 'C'"):
        store["C"]


def test_texts_of_a_path(folder):
    relations = codred.read_relations(folder)
    reader = PathReader(store_of(folder), corpus.build_tokenizer(), codred.read_evidence(folder, "dev"), 7)
    text = reader(codred.read_paths(folder, "dev", relations)[0])
    head, tail = text.documents
    assert " ".join(head.tokens) == ("[unused1] Babia [unused2] dodo Dalia . kano founded [unused5] Karia [unused6] .")
    assert " ".join(tail.tokens) == (
        "kano [unused5] Karia [unused6] . [unused3] Lavia [unused4] based [unused5] Karia [unused6] . Lavia ."
    )
    assert (head.blocks, head.target, head.mention) == (((0, 6), (6, 12)), 0, (0, 3))
    assert tail.tokens[slice(*tail.mention)] == ("[unused3]", "Lavia", "[unused4]")
    assert head.bridges == (frozenset(), frozenset({7})) and head.evidence == {0, 1}
    assert tail.target in (0, 1) and tail.names_target[tail.target] and sum(tail.names_target) >= 1
    assert [head.block_of(0), head.candidate_of(1)] == [1, 0] and head.num_candidates == 1


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("relations.json", ["P1", "P1"], "occurs twice"),
        ("train_dataset.json", [["Q1#Q2", "A/C", "B", "P9"]], "entry 0: 'P9' is not in relations.json"),
        ("train_dataset.json", [["1#Q2", "A/C", "B", "P31"]], "expected a key like"),
        ("train_dataset.json", [["Q1#Q2", "B", "P31"]], "entry 0: expected"),
        ("train_dataset.json", [{"h_id": "Q1", "doc": []}], "entry 0: no key 't_id'"),
        ("dev_evi.json", [{"key": "Q1#Q2"}], "record 0: no key 'doc_h'"),
    ],
)
def test_files_that_are_not_as_they_should_be(folder, file, content, message):
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        codred.read_paths(folder, "train", codred.read_relations(folder))
        codred.read_evidence(folder, "dev")
    assert file in str(error.value) and "\n" not in str(error.value)


def test_paths_that_do_not_fit_their_documents(folder):
    relations = codred.read_relations(folder)
    paths = codred.read_paths(folder, "dev", relations)
    outside = {("Q985235#Q1497", "A/C", "B"): (frozenset({(0, 9)}), frozenset())}
    with pytest.raises(InputError, match=r"document 'A/C' of pair Q985235#Q1497: evidence \[0, 9\] lies outside"):
        PathReader(store_of(folder), corpus.build_tokenizer(), outside, 7)(paths[0])
    (folder / "documents.sqlite").unlink()
    with pytest.raises(InputError, match="document 'A/C' of pair Q1#Q2: no mention of Q1"):
        PathReader(store_of(folder), corpus.build_tokenizer(), {}, 7)(paths[3])
    with pytest.raises(InputError, match="lies outside the document"):
        codred.parse_document(linked("A", ["a b"], [(1, [(0, 1, 3)])]), "A")
    (folder / "wiki_ent_link.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"wiki_ent_link.jsonl:1: expected a JSON object with a title"):
        list(codred.document_lines(folder / "wiki_ent_link.jsonl"))


def test_distant_documents():
    line = linked("D", ["Babia owned Dalia ."], [(1, [(0, 0, 1)]), (2, [(0, 2, 3)])],
                  edgeSet=[{"h": 0, "t": 1, "rs": [17]}, {"h": 1, "t": 0, "rs": []}])  # fmt: skip
    tokenizer = corpus.build_tokenizer()
    found = intra_document_texts(codred.parse_document(line, "D"), tokenizer, {17: 3}, (5, 4))
    texts = [(tokenizer.convert_ids_to_tokens(head), tokenizer.convert_ids_to_tokens(tail), label)
             for head, tail, label in found]  # fmt: skip
    assert [label for *_, label in texts] == [3, 0]
    assert all("[unused1]" in head and "[unused3]" in tail for head, tail, _ in texts)
    with pytest.raises(InputError, match="edgeSet"):
        codred.parse_document(line.replace('"t": 1', '"t": 5'), "D")
