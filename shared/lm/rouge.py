"""ROUGE-L of generated texts, by the ``rouge-score`` package."""

from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer


def rouge_l(texts: Sequence[str], references: Sequence[Sequence[str]], *, stemmer: bool = True) -> list[float]:
    """ROUGE-L F1 of each text against its best reference (Lin 2004).

    The package compares lower-case runs of ASCII letters and digits and drops every other character, so that a text
    in another script scores 0; so does an empty text.

    Args:
        texts: one per prompt.
        references: for each text, one or more references, of which the one with the largest F1 counts.
        stemmer: compare Porter stems of words of more than three characters.

    Returns:
        One value in [0, 1] per text; reports commonly show 100 times their mean.

    Raises:
        ValueError: as many lists of references as texts are not given, or one is empty or a bare string.
    """
    if len(references) != len(texts):
        raise ValueError(f"references must be one list per text ({len(texts)}), got {len(references)}")
    scorer = RougeScorer(["rougeL"], use_stemmer=stemmer)
    scores = []
    for index, (text, own) in enumerate(zip(texts, references, strict=True)):
        if isinstance(own, str) or len(own) == 0:
            raise ValueError(f"references[{index}] must be a list of one or more texts, got {own!r}")
        scores.append(max(scorer.score(reference, text)["rougeL"].fmeasure for reference in own))
    return scores
