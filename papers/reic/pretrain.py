"""Pretrain: the small scale's frozen encoder, by masked-token prediction on documents of a corpus of its own."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from papers.reic import codred, corpus
from papers.reic.document_store import DocumentStore, build_store
from papers.reic.documents import PathReader
from papers.reic.embeddings import BlockEncoder
from papers.reic.networks import small_bert
from papers.reic.options import CorpusOptions, EncoderOptions, PretrainOptions
from shared.data_order import generator_for
from shared.progress import Progress
from shared.schedules import one_cycle, set_learning_rate
from shared.stage import Output, run

FROZEN = EncoderOptions(layers=1)
"""Size of the frozen encoder."""
_MASK_STREAM = 6


def pretrain(
    options: PretrainOptions, corpus_options: CorpusOptions, *, block_length: int, seed: int, model: Output
) -> dict[str, float]:
    """Write the encoder and its tokenizer in the format of transformers, weights in half precision."""
    inputs = block_inputs(dataclasses.replace(corpus_options, train_bags=options.bags, dev_bags=1), block_length, seed)
    tokenizer = corpus.build_tokenizer()
    longest = max(map(len, inputs))
    ids = torch.full((len(inputs), longest), tokenizer.pad_token_id)
    for row, each in enumerate(inputs):
        ids[row, : len(each)] = torch.tensor(each)
    torch.manual_seed(seed)
    encoder = small_bert(FROZEN, len(tokenizer), 4 * block_length)
    head = nn.Linear(encoder.config.hidden_size, len(tokenizer))
    loss = fit_masked(encoder, head, ids, tokenizer.mask_token_id, options, seed)
    encoder.half().save_pretrained(model)
    tokenizer.save_pretrained(model)
    return {"loss": loss, "inputs": len(inputs)}


def block_inputs(options: CorpusOptions, block_length: int, seed: int) -> list[list[int]]:
    """Ids of all pairs of a block and its document's target block, as the frozen encoder will read them."""
    tokenizer = corpus.build_tokenizer()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpus.write_corpus(folder, options, seed)
        build_store(folder / "documents.sqlite", [folder / name for name in codred.DOCUMENT_FILES])
        documents = DocumentStore(folder / "documents.sqlite")
        reader = PathReader(documents, tokenizer, {}, block_length)
        paths = codred.read_paths(folder, "train", codred.read_relations(folder))
        texts = [reader(path) for path in paths]
        documents.close()
    encoder = BlockEncoder(small_bert(FROZEN, len(tokenizer), 8), tokenizer, tokenizer, name="")
    return [each.ids for text in texts for document in text.documents for each in encoder.inputs(document)[1:]]


def fit_masked(
    encoder: nn.Module, head: nn.Module, ids: Tensor, mask_id: int, options: PretrainOptions, seed: int
) -> float:
    """Train encoder and head to find masked tokens of the rows of ids (N, S), 0 being padding; returns the last
    loss."""
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=options.learning_rate, fused=True)
    schedule, mean = one_cycle(options.steps), 0.0
    with Progress(options.steps, "masked tokens") as progress:
        for step in range(options.steps):
            generator = generator_for(seed, step, _MASK_STREAM)
            rows = ids[torch.randint(len(ids), (options.batch_size,), generator=generator)]
            asked = (torch.rand(rows.shape, generator=generator) < options.masked) & (rows != 0)
            hidden = encoder(
                input_ids=rows.masked_fill(asked, mask_id), attention_mask=(rows != 0).long()
            ).last_hidden_state
            loss = cross_entropy(head(hidden[asked]), rows[asked])
            set_learning_rate(optimizer, schedule(step))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            mean = 0.95 * mean + 0.05 * loss.item() if step else loss.item()
            progress.update({"loss": mean})
    return mean


if __name__ == "__main__":
    run(pretrain)
