"""Frozen embeddings of a document's blocks, which the selector looks at.

z_tgt is the output for "[CLS] s_tgt", z_m that for "[CLS] s_a [SEP] s_b" with the candidate and the target block in
their order of appearance. Markers are not shown to the encoder, but for those of bridges in z_tgt's input. The encoder
is never trained, so that embeddings are computed once: `write_embeddings` keeps them by a hash of what they depend on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from papers.reic.documents import MARKERS, TARGET_MARKERS, PathDocument
from shared.errors import InputError

_TARGET_MARKERS = frozenset(marker for pair in TARGET_MARKERS.values() for marker in pair)


class PairInput(NamedTuple):
    """What the encoder reads for one block."""

    ids: list[int]
    candidate: tuple[int, int]
    """Span of the block's own tokens in it."""


class BlockEncoder:
    """The frozen encoder with its tokenizer.

    Attributes:
        name: what stands for the encoder in the keys of stored embeddings.
        dim: D.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        reader_tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        pooling: Literal["cls", "mean"] = "cls",
        batch_size: int = 256,
    ):
        """An encoder in evaluation mode.

        Args:
            model: of transformers, giving a ``last_hidden_state``.
            tokenizer: its own.
            reader_tokenizer: that of the documents; where it is another one, blocks are written out and read again.
            name: see the class.
            pooling: the output at [CLS], or the mean over the candidate's own tokens, for an encoder whose training
                leaves [CLS] without a meaning.
            batch_size: blocks read at once.
        """
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.name, self.pooling, self.batch_size = tokenizer, f"{name}/{pooling}", pooling, batch_size
        self.dim = model.config.hidden_size
        self._reader = reader_tokenizer
        self._same = tokenizer.get_vocab() == reader_tokenizer.get_vocab()

    def key(self, document: PathDocument) -> str:
        """Hash of all that the embeddings of a document depend on."""
        content = repr((self.name, document.tokens, document.blocks, document.target))
        return hashlib.sha256(content.encode()).hexdigest()

    def inputs(self, document: PathDocument) -> list[PairInput]:
        """Of the target block, then of every candidate in order."""
        texts = [self._ids(document.tokens[start:end], MARKERS) for start, end in document.blocks]
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        start, end = document.blocks[document.target]
        own = self._ids(document.tokens[start:end], _TARGET_MARKERS)
        target = texts[document.target]
        result = [PairInput([cls, *own], (1, 1 + len(own)))]
        for block, text in enumerate(texts):
            if block < document.target:
                result.append(PairInput([cls, *text, sep, *target], (1, 1 + len(text))))
            elif block > document.target:
                at = 2 + len(target)
                result.append(PairInput([cls, *target, sep, *text], (at, at + len(text))))
        return result

    def _ids(self, tokens: Sequence[str], hidden: Iterable[str]) -> list[int]:
        hidden = frozenset(hidden)
        shown = [token for token in tokens if token not in hidden]
        if self._same:
            return self.tokenizer.convert_tokens_to_ids(shown)
        written = self._reader.convert_tokens_to_string([token for token in shown if token not in MARKERS])
        return self.tokenizer(written, add_special_tokens=False)["input_ids"]

    @torch.no_grad()
    def __call__(self, documents: Sequence[PathDocument]) -> list[Tensor]:
        """Per document (1 + M, D) float32: z_tgt, then z_1..z_M."""
        inputs = [self.inputs(document) for document in documents]
        flat = [each for group in inputs for each in group]
        order = sorted(range(len(flat)), key=lambda index: len(flat[index].ids))
        device = next(self.model.parameters()).device
        vectors = torch.empty(len(flat), self.dim)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            vectors[rows] = self._pooled([flat[row] for row in rows], device).float().cpu()
        return list(vectors.split([len(group) for group in inputs]))

    def _pooled(self, batch: Sequence[PairInput], device: torch.device) -> Tensor:
        longest = max(len(each.ids) for each in batch)
        ids = torch.full((len(batch), longest), self.tokenizer.pad_token_id)
        mask, own = torch.zeros(len(batch), longest, dtype=torch.long), torch.zeros(len(batch), longest)
        for row, each in enumerate(batch):
            ids[row, : len(each.ids)] = torch.tensor(each.ids)
            mask[row, : len(each.ids)] = 1
            own[row, slice(*each.candidate)] = 1
        hidden = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        own = own.to(hidden)
        return (hidden * own[..., None]).sum(1) / own.sum(1, keepdim=True).clamp(min=1)


def write_embeddings(
    folder: Path,
    encoder: BlockEncoder,
    documents: Iterator[PathDocument],
    *,
    shard: int = 4096,
    progress: Callable[[int], None] = lambda count: None,
) -> int:
    """Write the embeddings of documents as float16, in safetensors files of ``shard`` documents each, under their keys.

    Returns the number of different documents.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    waiting: dict[str, PathDocument] = {}

    def flush() -> None:
        vectors = encoder(list(waiting.values()))
        tensors = {key: each.half().contiguous() for key, each in zip(waiting, vectors, strict=True)}
        save_file(tensors, folder / f"embeddings-{len(list(folder.iterdir())):05d}.safetensors")
        waiting.clear()

    for document in documents:
        key = encoder.key(document)
        if key not in seen:
            seen.add(key)
            waiting[key] = document
            if len(waiting) == shard:
                flush()
                progress(len(seen))
    if waiting:
        flush()
    return len(seen)


class StoredEmbeddings:
    """Embeddings that `write_embeddings` wrote, read one by one."""

    def __init__(self, folder: Path, encoder: BlockEncoder):
        """Raises InputError if the folder holds none."""
        self.encoder, self.folder = encoder, folder
        self._files: dict[str, safe_open] = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = safe_open(path, "pt")
            self._files |= dict.fromkeys(file.keys(), file)
        if not self._files:
            raise InputError(f"{folder}: no embeddings")

    def __call__(self, documents: Sequence[PathDocument]) -> list[Tensor]:
        """As that of the encoder.

        Raises:
            InputError: a document is not there.
        """
        found = []
        for document in documents:
            key = self.encoder.key(document)
            if key not in self._files:
                raise InputError(f"{self.folder}: no embeddings of document {document.title!r} as it is cut and marked")
            found.append(self._files[key].get_tensor(key).float())
        return found


class Standardized:
    """Embeddings with every dimension shifted and scaled to mean 0 and variance 1 on training documents."""

    def __init__(self, source: Callable[[Sequence[PathDocument]], list[Tensor]], documents: Sequence[PathDocument]):
        """Computes the embeddings of ``documents`` once, to know their mean and spread."""
        self.source = source
        vectors = torch.cat(source(documents))
        self.mean, self.scale = vectors.mean(0), vectors.std(0).clamp(min=1e-6)

    def __call__(self, documents: Sequence[PathDocument]) -> list[Tensor]:
        """As those of the source."""
        return [(each - self.mean) / self.scale for each in self.source(documents)]
