"""Diversity of generated texts: overlap between the samples of a prompt, repetition within a sample."""

from collections.abc import Sequence
from itertools import permutations
from statistics import fmean

from sacrebleu.metrics import BLEU


def self_bleu(
    samples: Sequence[Sequence[str]],
    *,
    max_ngram_order: int = 4,
    tokenize: str = "13a",
    smooth_method: str = "exp",
) -> float:
    """Self-BLEU: sentence BLEU between the samples of one prompt, averaged over pairs, then over prompts.

    Every ordered pair counts, as BLEU's brevity penalty makes it asymmetric; the order of the samples does not matter.
    Texts shorter than `max_ngram_order` are compared up to their own order, so identical texts score 1, except
    that an empty text scores 0 with anything.

    Args:
        samples: for each prompt its n >= 2 texts; n may differ between prompts.
        max_ngram_order: longest n-gram, >= 1 (4 is BLEU-4).
        tokenize: sacrebleu's tokenizer; "none" for texts that are already separated by blanks.
        smooth_method: sacrebleu's smoothing of absent n-gram orders: "exp", "floor", "add-k" or "none".

    Returns:
        A number in [0, 1] (sacrebleu's own scale is 100 times this); lower is more diverse.

    Raises:
        ValueError: no prompt, a prompt with fewer than two texts, max_ngram_order < 1, an unknown tokenizer or
            smoothing.
    """
    if not samples:
        raise ValueError("samples must hold at least one prompt, got none")
    for index, texts in enumerate(samples):
        if len(texts) < 2:
            raise ValueError(f"samples must hold at least 2 texts per prompt, got {len(texts)} at prompt {index}")
    bleu = _sentence_bleu(max_ngram_order, tokenize, smooth_method)
    per_prompt = (
        fmean(bleu.sentence_score(text, [other]).score for text, other in permutations(texts, 2)) for texts in samples
    )
    return min(fmean(per_prompt) / 100, 1.0)  # sacrebleu's perfect score is 100 plus a rounding error


def distinct_n(texts: Sequence[str], n: int = 1) -> float:
    """Distinct-n: unique over total n-grams of each text, averaged over texts.

    Words are separated by blanks. A text without an n-gram, such as an empty one, counts as 0.

    Args:
        texts: at least one text.
        n: n-gram order, >= 1.

    Returns:
        A number in [0, 1]; higher is more diverse.

    Raises:
        ValueError: no text, n < 1.
    """
    if not texts:
        raise ValueError("texts must hold at least one text, got none")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return fmean(_distinct_share(text.split(), n) for text in texts)


def _distinct_share(words: list[str], n: int) -> float:
    ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _sentence_bleu(max_ngram_order: int, tokenize: str, smooth_method: str) -> BLEU:
    if max_ngram_order < 1:
        raise ValueError(f"max_ngram_order must be at least 1, got {max_ngram_order}")
    if tokenize not in BLEU.TOKENIZERS:
        raise ValueError(f"tokenize must be one of {', '.join(BLEU.TOKENIZERS)}, got {tokenize!r}")
    if smooth_method not in BLEU.SMOOTH_DEFAULTS:
        raise ValueError(f"smooth_method must be one of {', '.join(BLEU.SMOOTH_DEFAULTS)}, got {smooth_method!r}")
    return BLEU(
        max_ngram_order=max_ngram_order,
        tokenize=tokenize,
        smooth_method=smooth_method,
        effective_order=True,  # sentence BLEU: orders longer than the text do not count
    )
