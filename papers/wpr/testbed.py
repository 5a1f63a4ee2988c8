"""The small-scale testbed: a known ("gold") reward over the concept language, and annotators who misjudge it.

Wasserstein regularisation can help where two things coincide: the reward pays for moves between *synonyms* that the
reference model rarely uses (expensive for a KL penalty, cheap for a Wasserstein penalty), and an imperfect reward also
pays for a move *between concepts* that the reference model considers likely (cheap for KL, expensive for Wasserstein).
The gold reward provides the first, since rarer synonyms are better style. An annotator who likes boilerplate, which
the reference model writes now and then, provides the second; ``bias`` doses it, and at 0 there is no such error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.lm.concept_language import ConceptLanguage
from shared.lm.special_tokens import EOS_ID, PAD_ID
from shared.lm.word_texts import to_ids

LANGUAGE = ConceptLanguage()


def response_statistics(prompts: np.ndarray, responses: np.ndarray) -> dict[str, np.ndarray]:
    """What the gold reward looks at, for each response.

    Args:
        prompts: int (n, L + 2), as from ``ConceptLanguage.prompts``.
        responses: int (n, T), padded after EOS; a response may lack its EOS.

    Returns:
        Arrays (n,): ``fidelity``, the share of the L positions that name the prompt's concept; ``style``, the mean
        synonym index (0 the most common, 1 the rarest) at those positions, 0 where there is none; ``boilerplate``, the
        number of boilerplate words among the first L; ``length``, words before EOS; and ``quality``, the sum over
        matching positions of ½ + ½·style.

    Raises:
        ValueError: shapes do not fit.
    """
    prompts, responses = np.asarray(prompts), np.asarray(responses)
    places = LANGUAGE.prompt_length
    if prompts.ndim != 2 or prompts.shape[1] != places + 2:
        raise ValueError(f"prompts: need shape (n, {places + 2}), got {prompts.shape}")
    if responses.ndim != 2 or len(responses) != len(prompts):
        raise ValueError(f"responses: need shape ({len(prompts)}, T), got {responses.shape}")
    ended = np.cumsum((responses == EOS_ID) | (responses == PAD_ID), axis=1) > 0
    written = np.full((len(responses), places), PAD_ID)
    kept = np.where(ended, PAD_ID, responses)[:, :places]
    written[:, : kept.shape[1]] = kept

    named = LANGUAGE.concept_of(written)
    matches = named == LANGUAGE.concept_of(prompts[:, 1:-1])
    rarity = LANGUAGE.synonym_of(written) / (LANGUAGE.n_synonyms - 1)
    n_matches = matches.sum(axis=1)
    return {
        "fidelity": matches.mean(axis=1),
        "style": np.where(matches, rarity, 0.0).sum(axis=1) / np.maximum(n_matches, 1),
        "boilerplate": (named == LANGUAGE.boilerplate_concept).sum(axis=1),
        "length": (~ended).sum(axis=1),
        "quality": np.where(matches, 0.5 + 0.5 * rarity, 0.0).sum(axis=1),
    }


def gold_reward(statistics: dict[str, np.ndarray]) -> np.ndarray:
    """The true reward of each response, (n,), at most 1.

    (quality + ½·min(boilerplate, 1))/L − ½·abs(length − L)/L: a named concept earns ½, and up to ½ more for a rare
    synonym; one boilerplate word is as good as a plainly named concept, more are worthless; wrong length costs.
    """
    places = LANGUAGE.prompt_length
    courtesy = 0.5 * np.minimum(statistics["boilerplate"], 1)
    return (statistics["quality"] + courtesy - 0.5 * np.abs(statistics["length"] - places)) / places


def judge_texts(prompts: Sequence[str], responses: Sequence[str]) -> dict[str, np.ndarray]:
    """Gold reward and its parts for texts, arrays (n,): gold, fidelity, style, boilerplate (words), length (words)."""
    words = LANGUAGE.words()
    statistics = response_statistics(to_ids(prompts, words), to_ids(responses, words))
    parts = {name: statistics[name].astype(float) for name in ("fidelity", "style", "boilerplate", "length")}
    return {"gold": gold_reward(statistics)} | parts


def annotator_utility(statistics: dict[str, np.ndarray], *, bias: float) -> np.ndarray:
    """What an annotator who likes boilerplate perceives, (n,): gold + bias·boilerplate/L."""
    return gold_reward(statistics) + bias * statistics["boilerplate"] / LANGUAGE.prompt_length


def preferred(
    utility_a: np.ndarray, utility_b: np.ndarray, *, sharpness: float, rng: np.random.Generator
) -> np.ndarray:
    """Bradley-Terry choices: True where a is preferred, with probability sigmoid(sharpness·(utility_a − utility_b))."""
    probability = 1.0 / (1.0 + np.exp(-sharpness * (np.asarray(utility_a) - np.asarray(utility_b))))
    return rng.random(probability.shape) < probability
