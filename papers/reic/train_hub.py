"""Train on CodRED with pretrained encoders, under accelerate; see :mod:`papers.reic.runs` for the tables."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator

from papers.reic import codred
from papers.reic.document_store import DocumentStore
from papers.reic.documents import PathReader, intra_document_texts
from papers.reic.embed import open_hub_encoder, open_tokenizer
from papers.reic.embeddings import StoredEmbeddings
from papers.reic.options import HubOptions, TrainOptions
from papers.reic.runs import TABLES, make_runs
from papers.reic.training import BagTexts, Problem
from shared.stage import Input, Output, State, run


def train_hub(
    options: TrainOptions,
    hub: HubOptions,
    *,
    seed: int,
    runs: tuple[str, ...],
    ranks: tuple[int, ...],
    store: Input,
    embeddings: Input,
    summary: Output,
    units: Output,
    history: Output,
    curve: Output,
    by_picks: Output,
    distances: Output,
    examples: Output,
    state: State,
) -> dict[str, dict[str, float]] | None:
    """Make the runs one after another."""
    paths = dict(zip(TABLES, (summary, units, history, curve, by_picks, distances, examples), strict=True))
    accelerator = Accelerator(mixed_precision=options.mixed_precision)
    problem = open_codred(options, hub, store, embeddings, accelerator, seed)
    return make_runs(runs, problem, options, {}, seed, accelerator, state, ranks, paths)


def open_codred(
    options: TrainOptions,
    hub: HubOptions,
    store: Path,
    embeddings: Path,
    accelerator: Accelerator,
    seed: int,
) -> Problem:
    """CodRED's closed setting: texts are read when they are needed, intra-document examples kept in memory."""
    folder, tokenizer = Path(hub.dataset), open_tokenizer(options.encoder)
    frozen = open_hub_encoder(hub, tokenizer, accelerator.device)
    relations, documents = codred.read_relations(folder), DocumentStore(store)
    splits = {}
    for split in ("train", "dev"):
        evidence = codred.read_evidence(folder, split)
        reader = PathReader(documents, tokenizer, evidence, options.inputs.block_length, seed)
        paths = codred.read_paths(folder, split, relations)
        splits[split] = BagTexts(codred.make_bags(paths, training=split == "train"), reader, keep=False)
    intra: list[tuple[list[int], list[int], int]] = []
    if options.intra_document_share:
        known = {
            title for bag in splits["dev"].bags for path in bag.paths for title in (path.head_title, path.tail_title)
        }
        class_of = {int(name[1:]): index for index, name in enumerate(relations) if index}
        budgets = (options.inputs.head_budget, options.inputs.tail_budget)
        distant = folder / codred.DISTANT_FILE
        for title, line in codred.document_lines(distant):
            if title not in known:
                document = codred.parse_document(line, f"{distant}: document {title!r}")
                intra += intra_document_texts(document, tokenizer, class_of, budgets)
    source = StoredEmbeddings(embeddings, frozen)
    return Problem(relations, splits["train"], splits["dev"], tokenizer, source, frozen.dim, intra)


if __name__ == "__main__":
    run(train_hub)
