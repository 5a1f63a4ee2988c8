"""Embed: the frozen embeddings of all documents of the training and dev paths, once for all methods and seeds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from papers.reic import codred
from papers.reic.document_store import DocumentStore
from papers.reic.documents import PathDocument, PathReader
from papers.reic.embeddings import BlockEncoder, write_embeddings
from papers.reic.networks import prepare_tokenizer
from papers.reic.options import EncoderOptions, HubOptions
from shared.errors import InputError
from shared.stage import Input, Output, run


def embed(
    encoder: EncoderOptions, options: HubOptions, *, block_length: int, store: Input, embeddings: Output
) -> dict[str, int]:
    """Write a folder of float16 embeddings, by a hash of the document's blocks and of the encoder's name."""
    tokenizer = open_tokenizer(encoder)
    frozen = open_hub_encoder(options, tokenizer, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    folder = Path(options.dataset)
    documents = all_documents(folder, DocumentStore(store), tokenizer, block_length)
    return {"documents": write_embeddings(embeddings, frozen, documents)}


def open_tokenizer(encoder: EncoderOptions) -> PreTrainedTokenizerBase:
    """The relation module's tokenizer, with all markers.

    Raises:
        InputError: the encoder has no name.
    """
    if encoder.name is None:
        raise InputError("name: CodRED needs a pretrained encoder")
    return prepare_tokenizer(AutoTokenizer.from_pretrained(encoder.name))


def open_hub_encoder(options: HubOptions, reader: PreTrainedTokenizerBase, device: torch.device) -> BlockEncoder:
    """The frozen encoder, read at [CLS].

    Args:
        options: with its name.
        reader: the tokenizer of the documents.
        device: where it computes.
    """
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(options.selector_encoder))
    model = AutoModel.from_pretrained(options.selector_encoder, add_pooling_layer=False, use_safetensors=True)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    return BlockEncoder(
        model.to(device), tokenizer, reader, name=options.selector_encoder, batch_size=options.embedding_batch
    )


def all_documents(
    folder: Path, store: DocumentStore, tokenizer: PreTrainedTokenizerBase, block_length: int
) -> Iterator[PathDocument]:
    """Both documents of every training and dev path."""
    relations = codred.read_relations(folder)
    reader = PathReader(store, tokenizer, {}, block_length)
    for split in ("train", "dev"):
        for path in codred.read_paths(folder, split, relations):
            yield from reader(path).documents


if __name__ == "__main__":
    run(embed)
