"""A small language with a known reward: prompts, a noisy writer, gold judge and preference labels.

A prompt names two of six themes; a response is up to 12 words, each of one theme. The writer is imperfect to a varying
degree, so that preferences between two of its responses carry information, and both responses of a pair come from it
rather than from a policy, as in the paper's offline data. The gold reward stands in for the paper's GPT-4 judge.

Everything is a function of id arrays, padded with `PAD_ID` on the right; randomness comes from the generator passed
in. A response ends at its first EOS or PAD; what stands behind is ignored.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.lm import special_tokens
from shared.lm.special_tokens import BOS_ID, EOS_ID, PAD_ID, SEP_ID, SPECIAL_WORDS

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

THEMES = {
    "sea": ("wave", "tide", "gull", "sail", "reef", "salt"),
    "forest": ("moss", "pine", "fern", "owl", "bark", "root"),
    "kitchen": ("oven", "flour", "knife", "broth", "spoon", "onion"),
    "city": ("tram", "tower", "bridge", "crowd", "neon", "alley"),
    "sky": ("cloud", "star", "comet", "dawn", "rain", "moon"),
    "music": ("drum", "violin", "chord", "choir", "flute", "tempo"),
}
WORDS: tuple[str, ...] = (
    *(f"<{theme}>" for theme in THEMES),
    *(word for words in THEMES.values() for word in words),
)
"""The language's own tokens: 6 themes, then 6 words of each theme."""
VOCABULARY: tuple[str, ...] = (*SPECIAL_WORDS, *WORDS)
"""The 46 tokens in order of their ids, the special ones first."""

N_THEMES = len(THEMES)
WORDS_PER_THEME = 6
FIRST_THEME_ID = special_tokens.FIRST_WORD_ID
FIRST_WORD_ID = FIRST_THEME_ID + N_THEMES

STYLES = (0.25, 0.5, 0.8)
REPEAT_PROBABILITY = 0.15
STOP_PROBABILITY = 0.13
MIN_WORDS, MAX_WORDS = 3, 12
RESPONSE_LENGTH = MAX_WORDS + 1
"""Width of a padded response: the longest one and its EOS."""


@dataclass(frozen=True)
class PreferencePairs:
    """Prompts (N, 4) with a preferred and a dispreferred response each, (N, RESPONSE_LENGTH), as token ids."""

    prompts: IntArray
    chosen: IntArray
    rejected: IntArray


def all_prompts() -> IntArray:
    """Every prompt, (30, 4): [BOS, theme a, theme b, SEP] for all ordered pairs a != b."""
    first, second = np.nonzero(~np.eye(N_THEMES, dtype=bool))
    theme_ids = FIRST_THEME_ID + np.stack([first, second], axis=1)
    ones = np.ones((len(theme_ids), 1), dtype=np.int64)
    return np.concatenate([BOS_ID * ones, theme_ids, SEP_ID * ones], axis=1)


def write_responses(prompts: IntArray, rng: np.random.Generator) -> IntArray:
    """One response of the noisy writer to each prompt, EOS included.

    The writer draws a style q from `STYLES` per response. Each word repeats the previous one (probability .15), else is
    on theme with probability q (uniform over the 12 words of the prompt's themes), else any of the 36 words. From the
    third word on it stops with probability .13 before each further word, and at 12 words at the latest.

    Args:
        prompts: (N, 4) ids as of `all_prompts`.

    Returns:
        (N, RESPONSE_LENGTH) ids: 3 to 12 words, EOS, PAD.

    Raises:
        ValueError: prompts is not such an array.
    """
    themes = _prompt_themes(prompts)
    shape = len(themes), MAX_WORDS
    style = rng.choice(STYLES, size=(len(themes), 1))
    n_words = np.minimum(MIN_WORDS - 1 + rng.geometric(STOP_PROBABILITY, size=(len(themes), 1)), MAX_WORDS)
    repeated = rng.random(shape) < REPEAT_PROBABILITY
    on_theme = rng.random(shape) < style
    own_theme = np.take_along_axis(themes, rng.integers(0, 2, size=shape), axis=1)
    theme = np.where(on_theme, own_theme, rng.integers(0, N_THEMES, size=shape))
    words = FIRST_WORD_ID + theme * WORDS_PER_THEME + rng.integers(0, WORDS_PER_THEME, size=shape)
    position = np.arange(MAX_WORDS)
    # Each position takes the last word that is no repeat; the first one, with nothing to repeat, is its own.
    source = np.maximum.accumulate(np.where(repeated, 0, position), axis=1)
    words = np.take_along_axis(words, source, axis=1)

    responses = np.full((len(themes), RESPONSE_LENGTH), PAD_ID, dtype=np.int64)
    responses[:, :MAX_WORDS] = np.where(position < n_words, words, PAD_ID)
    np.put_along_axis(responses, n_words, EOS_ID, axis=1)
    return responses


def gold_reward(prompts: IntArray, responses: IntArray) -> FloatArray:
    """The judge: how well each response treats its prompt's two themes.

    [on-theme - 0.7 off-theme - immediate repeats + covered themes - 0.5 |length - 8| - 2 (no EOS)] / 3, where length
    counts the tokens before the first EOS or PAD, on-theme those that are words of one of the two themes, off-theme
    all others (special tokens included), immediate repeats those equal to the token before, and covered themes
    (0, 1 or 2) how many of the two have a word. A response cut off before its EOS pays for it.

    Args:
        prompts: (N, 4) ids as of `all_prompts`.
        responses: (N, L) ids, 0 to 45, L >= 1; padded with PAD on the right.

    Returns:
        (N,) rewards; the best is 10/3: eight words on theme, both themes covered, no immediate repeat, EOS.

    Raises:
        ValueError: an array has another shape or ids outside its range.
    """
    themes = _prompt_themes(prompts)
    responses = np.asarray(responses)
    if responses.ndim != 2 or len(responses) != len(themes) or responses.shape[1] == 0:
        raise ValueError(f"responses must be ({len(themes)}, L >= 1), got {responses.shape}")
    if responses.size and not (responses.min() >= 0 and responses.max() < len(VOCABULARY)):
        raise ValueError(
            f"responses must hold ids 0 to {len(VOCABULARY) - 1}, got {responses.min()} to {responses.max()}"
        )
    ends = (responses == EOS_ID) | (responses == PAD_ID)
    content = ~np.logical_or.accumulate(ends, axis=1)
    length = content.sum(axis=1)  # also the index of the first EOS or PAD, where there is one
    last = np.minimum(length, responses.shape[1] - 1)
    finished = np.take_along_axis(responses, last[:, None], axis=1)[:, 0] == EOS_ID

    word_theme = (responses - FIRST_WORD_ID) // WORDS_PER_THEME  # negative for what is not a word
    covers = (word_theme[:, :, None] == themes[:, None, :]) & content[:, :, None]
    on_theme = covers.any(axis=2).sum(axis=1)
    covered = covers.any(axis=1).sum(axis=1)
    repeats = ((responses[:, 1:] == responses[:, :-1]) & content[:, 1:]).sum(axis=1)
    off_theme = length - on_theme
    # In whole tenths, so that rewards that tie on paper are equal in floating point.
    tenths = 10 * (on_theme - repeats + covered) - 7 * off_theme - 5 * np.abs(length - 8) - 20 * ~finished
    return tenths / 30


def prefer_first(
    first_rewards: FloatArray, second_rewards: FloatArray, kappa: float, rng: np.random.Generator
) -> BoolArray:
    """Bradley-Terry labels: True with probability sigmoid(kappa (r_first - r_second)).

    Args:
        first_rewards, second_rewards: (N,) rewards.
        kappa: sharpness in (0, inf); the larger, the fewer labels contradict the rewards.

    Returns:
        (N,) True where the first response is preferred.

    Raises:
        ValueError: unequal shapes, kappa not in (0, inf).
    """
    first_rewards, second_rewards = np.asarray(first_rewards), np.asarray(second_rewards)
    if first_rewards.shape != second_rewards.shape:
        raise ValueError(f"rewards must have equal shapes, got {first_rewards.shape} and {second_rewards.shape}")
    if not 0 < kappa < math.inf:
        raise ValueError(f"kappa must be positive and finite, got {kappa}")
    # sigmoid is the distribution function of the standard logistic variable
    return rng.logistic(size=first_rewards.shape) < kappa * (first_rewards - second_rewards)


def draw_preference_pairs(n_pairs: int, kappa: float, rng: np.random.Generator) -> PreferencePairs:
    """Offline preference data: uniform prompts, two different responses of the writer each, Bradley-Terry labels.

    The same generator state gives the same prompts and responses whatever kappa is; only labels differ.

    Raises:
        ValueError: n_pairs < 1 or kappa not in (0, inf).
    """
    if n_pairs < 1:
        raise ValueError(f"n_pairs must be at least 1, got {n_pairs}")
    prompts = all_prompts()
    return draw_pairs_for(prompts[rng.integers(0, len(prompts), size=n_pairs)], kappa, rng)


def draw_pairs_for(prompts: IntArray, kappa: float, rng: np.random.Generator) -> PreferencePairs:
    """Two different responses of the writer to each prompt (N, 4), with a Bradley-Terry label.

    Raises:
        ValueError: prompts is not such an array, or kappa not in (0, inf).
    """
    first, second = write_responses(prompts, rng), write_responses(prompts, rng)
    while (same := (first == second).all(axis=1)).any():  # a pair of equal responses has no preference
        second[same] = write_responses(prompts[same], rng)
    wins = prefer_first(gold_reward(prompts, first), gold_reward(prompts, second), kappa, rng)[:, None]
    return PreferencePairs(prompts, np.where(wins, first, second), np.where(wins, second, first))


def _prompt_themes(prompts: IntArray) -> IntArray:
    """Theme numbers 0 to 5, (N, 2)."""
    prompts = np.asarray(prompts)
    if prompts.ndim != 2 or prompts.shape[1] != 4:
        raise ValueError(f"prompts must be (N, 4), got {prompts.shape}")
    themes = prompts[:, 1:3] - FIRST_THEME_ID
    valid = (prompts[:, 0] == BOS_ID) & (prompts[:, 3] == SEP_ID) & (themes[:, 0] != themes[:, 1])
    valid &= ((themes >= 0) & (themes < N_THEMES)).all(axis=1)
    if not valid.all():
        raise ValueError(f"prompts must be [BOS, theme, other theme, SEP], got {prompts[~valid][0].tolist()}")
    return themes
