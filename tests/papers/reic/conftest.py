import json
from pathlib import Path

import pytest
import torch

from papers.reic import codred, corpus
from papers.reic.document_store import DocumentStore, build_store
from papers.reic.options import (
    CorpusOptions,
    EncoderOptions,
    InputOptions,
    PretrainOptions,
    SelectorOptions,
    TrainOptions,
)
from papers.reic.pretrain import pretrain

TINY_CORPUS = CorpusOptions(train_bags=24, dev_bags=8, test_bags=3, candidates=8, mentions=1, distant_documents=4)


@pytest.fixture(scope="session")
def tiny_options() -> TrainOptions:
    """A module of width 16 and six steps."""
    return TrainOptions(
        EncoderOptions(width=16, layers=1, heads=2, feedforward=16),
        SelectorOptions(8, 8, 0.1),
        InputOptions(10, 3, 28, 28, "document"),
        steps=6,
        batch_size=6,
        learning_rate=0.003,
        uniform_fraction=0.34,
        pair_layers=1,
        pair_heads=2,
        pair_feedforward=16,
        most_mentions=2,
        baseline="mean",
        evaluated_picks=(1,),
        log_every=2,
    )


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> Path:
    """A frozen encoder after three steps."""
    folder = tmp_path_factory.mktemp("reic") / "encoder"
    pretrain(PretrainOptions(3, 8, bags=4), TINY_CORPUS, block_length=10, seed=3, model=folder)
    torch.use_deterministic_algorithms(False)
    return folder


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> Path:
    """Folder of a procedural corpus."""
    folder = tmp_path_factory.mktemp("reic-corpus")
    corpus.write_corpus(folder, TINY_CORPUS, 7)
    build_store(folder / "documents.sqlite", [folder / name for name in codred.DOCUMENT_FILES])
    return folder


@pytest.fixture(scope="session")
def tiny_store(tiny_corpus) -> DocumentStore:
    return DocumentStore(tiny_corpus / "documents.sqlite")


def linked(title, sentences, entities, **more):
    """A line of a document file: sentences of one paragraph, entities {number or None: [(sentence, start, end)]}."""
    vertices = [
        [{**({"Q": number} if number else {}), "pos": [0, *where]} for where in places] for number, places in entities
    ]
    tokens = [[sentence.split() for sentence in sentences]]
    return json.dumps({"id": 1, "title": title, "tokens": tokens, "vertexSet": vertices, **more})
