"""The testbed's language and its grammar as a judge, on texts: words separated by blanks.

A prompt is written with its special words, ``<bos> verb3 noise1 topic7 <sep>``; a response is its words alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from papers.csd.template_language import EOS, PAD, build_language, entropy_floor, expected_length, parses

# One language for all seeds: a seed varies the training data and the models.
LANGUAGE = build_language(np.random.default_rng(20_250_930))
WORDS = LANGUAGE.words[4:]
"""Words without the specials, which the tokenizer brings itself."""

_INDEX = {word: index for index, word in enumerate(LANGUAGE.words)}


def to_texts(tokens: NDArray[np.int64]) -> list[str]:
    """Texts of the language's token rows (n, T), without padding and the end of sequence."""
    names = np.array(LANGUAGE.words)
    return [" ".join(names[row[(row != PAD) & (row != EOS)]]) for row in tokens]


def read_prompts(prompts: Iterable[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Verbs and topics (n,), as indices, that prompts of the language name."""
    verbs = {LANGUAGE.words[word]: index for index, word in enumerate(LANGUAGE.verb_words)}
    topics = {LANGUAGE.words[word]: index for index, word in enumerate(LANGUAGE.topic_words)}
    split = [prompt.split() for prompt in prompts]
    return tuple(
        np.array([next(table[w] for w in words if w in table) for words in split]) for table in (verbs, topics)
    )


def parse_rate(prompts: Sequence[str], responses: Sequence[str], finished: Sequence[bool]) -> NDArray[np.float64]:
    """1 where the grammar can produce a response, fillers left out, to its prompt, else 0: (n,).

    Args:
        prompts: (n,) texts.
        responses: (n,) texts; a word outside of the language, such as ``<unk>``, makes them wrong.
        finished: (n,) whether the end of sequence was sampled; without it no response is right.
    """
    rows = [
        [*(_INDEX.get(word, -1) for word in text.split()), *([EOS] if ended else [])]
        for text, ended in zip(responses, finished, strict=True)
    ]
    tokens = np.full((len(rows), max([1, *map(len, rows)])), PAD)
    for target, row in zip(tokens, rows, strict=True):
        target[: len(row)] = row
    return parses(LANGUAGE, tokens, *read_prompts(prompts)).astype(float)


def floor_per_token(prompts: Iterable[str]) -> float:
    """Least negative log-likelihood, in nats per token, that any model can have on responses to these prompts."""
    _, topics = read_prompts(prompts)
    return float(entropy_floor(LANGUAGE, topics).sum() / expected_length(LANGUAGE, topics).sum())
