"""A procedural language of concepts and synonyms with known statistics.

A vocabulary of `n_concepts * n_synonyms` words: word k of concept c has the id 4 + n_synonyms c + k. A prompt names
distinct concepts; an answer repeats them in order, in the writer's preferred synonyms, with a few errors. The last
concept is "boilerplate", filler that no prompt asks for. Words of one concept are used in the same places, so a
language model trained on answers embeds synonyms close together, while their frequencies differ by orders of
magnitude: similarity of meaning and similarity of probability are separated.
"""

from dataclasses import dataclass

import numpy as np

from shared.lm.special_tokens import BOS_ID, EOS_ID, FIRST_WORD_ID, SEP_ID

_CONTENT_WORDS = (
    ("cat", "kitty", "feline", "mouser"),
    ("dog", "hound", "canine", "pooch"),
    ("house", "home", "dwelling", "abode"),
    ("car", "auto", "vehicle", "motorcar"),
    ("road", "street", "lane", "avenue"),
    ("boat", "ship", "vessel", "craft"),
    ("money", "cash", "funds", "currency"),
    ("child", "kid", "youngster", "infant"),
)
_BOILERPLATE_WORDS = ("indeed", "certainly", "surely", "truly")


@dataclass(frozen=True)
class ConceptLanguage:
    """The language and the writer of its answers.

    For each concept of the prompt, in order, the writer names another content concept with probability
    `other_concept_rate` and boilerplate with probability `boilerplate_rate`, else the concept asked for; the synonym
    is then drawn from `synonym_probabilities`. Prompts use all synonyms equally often.
    """

    n_concepts: int = 9
    """Concepts, the last of which is boilerplate."""
    n_synonyms: int = 4
    """Words per concept."""
    prompt_length: int = 4
    """Concepts a prompt names, all different and none of them boilerplate."""
    boilerplate_rate: float = 0.15
    """Probability that the writer answers a concept with boilerplate, in [0, 1]."""
    other_concept_rate: float = 0.03
    """Probability that the writer answers a concept with another content concept, in [0, 1]."""
    synonym_probabilities: tuple[float, ...] = (0.70, 0.20, 0.08, 0.02)
    """How often the writer uses each synonym; one number per synonym, summing to 1."""

    def __post_init__(self) -> None:
        if self.n_concepts < 3:
            raise ValueError(f"n_concepts: need two content concepts and boilerplate, got {self.n_concepts}")
        if not 1 <= self.prompt_length < self.n_concepts:
            raise ValueError(f"prompt_length: must lie in [1, {self.n_concepts - 1}], got {self.prompt_length}")
        if min(self.boilerplate_rate, self.other_concept_rate, self.copy_rate) < 0:
            raise ValueError(
                "boilerplate_rate and other_concept_rate: must be non-negative with a sum of at most 1, got "
                f"{self.boilerplate_rate} and {self.other_concept_rate}"
            )
        probabilities = np.asarray(self.synonym_probabilities)
        if len(probabilities) != self.n_synonyms or (probabilities < 0).any() or abs(probabilities.sum() - 1) > 1e-9:
            raise ValueError(
                f"synonym_probabilities: need {self.n_synonyms} probabilities summing to 1, "
                f"got {self.synonym_probabilities}"
            )

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids, the four special ones included."""
        return FIRST_WORD_ID + self.n_concepts * self.n_synonyms

    @property
    def boilerplate_concept(self) -> int:
        return self.n_concepts - 1

    @property
    def copy_rate(self) -> float:
        """Probability that the writer names the concept asked for."""
        return 1.0 - self.boilerplate_rate - self.other_concept_rate

    @property
    def answer_entropy(self) -> float:
        """Entropy of the answers in nats per token, EOS included: the lowest mean loss any model can reach."""
        others = [self.other_concept_rate / (self.n_concepts - 2)] * (self.n_concepts - 2)
        concept = _entropy([self.copy_rate, self.boilerplate_rate, *others])
        return self.prompt_length * (concept + _entropy(self.synonym_probabilities)) / (self.prompt_length + 1)

    def words(self) -> list[str]:
        """The words in the order of their ids, from id 4 on: `build_tokenizer` makes the tokenizer of them."""
        return [self._word(c, k) for c in range(self.n_concepts) for k in range(self.n_synonyms)]

    def _word(self, concept: int, synonym: int) -> str:
        if concept == self.boilerplate_concept:
            names = _BOILERPLATE_WORDS
        else:
            names = _CONTENT_WORDS[concept] if concept < len(_CONTENT_WORDS) else ()
        return names[synonym] if synonym < len(names) else f"concept{concept}-{synonym}"

    def token_ids(self, concepts: np.ndarray, synonyms: np.ndarray) -> np.ndarray:
        """Ids of synonym `synonyms` of concept `concepts`, integer arrays that broadcast."""
        return FIRST_WORD_ID + self.n_synonyms * np.asarray(concepts) + np.asarray(synonyms)

    def concept_of(self, ids: np.ndarray) -> np.ndarray:
        """Concept of each token id, -1 for special tokens; same shape."""
        ids = np.asarray(ids)
        return np.where(ids >= FIRST_WORD_ID, (ids - FIRST_WORD_ID) // self.n_synonyms, -1)

    def synonym_of(self, ids: np.ndarray) -> np.ndarray:
        """Which synonym of its concept each token id is, -1 for special tokens; same shape."""
        ids = np.asarray(ids)
        return np.where(ids >= FIRST_WORD_ID, (ids - FIRST_WORD_ID) % self.n_synonyms, -1)

    def prompts(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """`n` prompts, int64 (n, prompt_length + 2): bos, the words, sep."""
        content = np.tile(np.arange(self.boilerplate_concept), (n, 1))
        concepts = rng.permuted(content, axis=1)[:, : self.prompt_length]
        synonyms = rng.integers(self.n_synonyms, size=concepts.shape)
        words = self.token_ids(concepts, synonyms)
        return np.concatenate([np.full((n, 1), BOS_ID), words, np.full((n, 1), SEP_ID)], axis=1)

    def answers(self, prompts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One answer of the writer to each prompt, int64 (n, prompt_length + 1): the words, eos.

        Raises:
            ValueError: `prompts` does not have prompt_length + 2 columns.
        """
        prompts = np.asarray(prompts)
        if prompts.ndim != 2 or prompts.shape[1] != self.prompt_length + 2:
            raise ValueError(f"prompts: need shape (n, {self.prompt_length + 2}), got {prompts.shape}")
        asked = self.concept_of(prompts[:, 1:-1])
        n_content = self.n_concepts - 1
        other = (asked + rng.integers(1, n_content, size=asked.shape)) % n_content
        event = rng.random(asked.shape)
        named = np.where(event < self.other_concept_rate, other, asked)
        named = np.where(event >= 1.0 - self.boilerplate_rate, self.boilerplate_concept, named)
        synonyms = rng.choice(self.n_synonyms, size=named.shape, p=self.synonym_probabilities)
        return np.concatenate([self.token_ids(named, synonyms), np.full((len(named), 1), EOS_ID)], axis=1)


def _entropy(probabilities) -> float:
    p = np.asarray([value for value in probabilities if value > 0])
    return float(-(p * np.log(p)).sum())
