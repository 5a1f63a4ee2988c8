"""The small scale's problem: a procedural corpus, written in CodRED's files and read back by their loader."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertModel

from papers.reic import codred, corpus
from papers.reic.document_store import DocumentStore, build_store
from papers.reic.documents import PathReader
from papers.reic.embeddings import BlockEncoder, Standardized
from papers.reic.options import CorpusOptions
from papers.reic.training import BagTexts, Problem, Remembered

TRIGGERS = frozenset(word for family in (*corpus.HEAD_TRIGGERS, *corpus.TAIL_TRIGGERS) for word in family)


def open_encoder(folder: Path, *, batch_size: int = 1024) -> BlockEncoder:
    """The frozen encoder that the stage ``pretrain`` wrote.

    Masked-token training leaves [CLS] without a meaning: the mean over the candidate's tokens stands for it.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)
    return BlockEncoder(model, tokenizer, tokenizer, name="testbed", pooling="mean", batch_size=batch_size)


def read_problem(
    folder: Path, documents: DocumentStore, block_length: int, encoder: BlockEncoder, *, seed: int
) -> Problem:
    """Training and dev split of a data set's files, all texts and embeddings kept in memory."""
    relations = codred.read_relations(folder)
    splits = {}
    for split in ("train", "dev"):
        paths = codred.read_paths(folder, split, relations)
        reader = PathReader(documents, encoder.tokenizer, codred.read_evidence(folder, split), block_length, seed)
        bags = codred.make_bags(paths, training=split == "train")
        splits[split] = BagTexts(bags, reader, keep=True)
    texts = [text for split in splits.values() for index in range(len(split)) for text in split[index]]
    known = [document for text in texts for document in text.documents]
    train = [doc for index in range(len(splits["train"])) for text in splits["train"][index] for doc in text.documents]
    remembered = Remembered(encoder)
    remembered(known)
    embed = Remembered(Standardized(remembered, train))
    return Problem(relations, splits["train"], splits["dev"], encoder.tokenizer, embed, encoder.dim, (), TRIGGERS)


def open_testbed(options: CorpusOptions, block_length: int, encoder: BlockEncoder, seed: int) -> Problem:
    """The problem of a seed."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpus.write_corpus(folder, options, seed)
        store = folder / "documents.sqlite"
        build_store(store, [folder / name for name in codred.DOCUMENT_FILES])
        documents = DocumentStore(store)
        try:
            return read_problem(folder, documents, block_length, encoder, seed=seed)
        finally:
            documents.close()
