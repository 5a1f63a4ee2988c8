"""Between token ids of a procedural language and texts of its words, without loading a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from shared.errors import InputError
from shared.lm.special_tokens import EOS_ID, PAD_ID, SPECIAL_WORDS


def to_texts(ids: np.ndarray, words: Sequence[str]) -> list[str]:
    """Texts of padded rows of token ids (n, T), words separated by spaces.

    EOS and padding are left out, other special tokens written out. ``words`` are the language's, from id 4 on.
    """
    names = np.array([*SPECIAL_WORDS, *words])
    return [" ".join(names[row[(row != PAD_ID) & (row != EOS_ID)]]) for row in ids]


def to_ids(texts: Iterable[str], words: Sequence[str]) -> np.ndarray:
    """Token ids of texts, int64 (n, longest), padded on the right; the inverse of :func:`to_texts`.

    Raises:
        InputError: a word that is not in the language.
    """
    index = {word: token for token, word in enumerate([*SPECIAL_WORDS, *words])}
    try:
        rows = [[index[word] for word in text.split()] for text in texts]
    except KeyError as error:
        raise InputError(f"text: the word {error.args[0]!r} is not in the language") from None
    ids = np.full((len(rows), max(1, *map(len, rows)) if rows else 1), PAD_ID)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    return ids
