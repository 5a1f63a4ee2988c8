"""The procedural language: vectorised reward and writer against slow, per-sequence ones written from the text."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from papers.bpo.writer_language import (
    BOS_ID,
    EOS_ID,
    MAX_WORDS,
    PAD_ID,
    RESPONSE_LENGTH,
    SEP_ID,
    THEMES,
    VOCABULARY,
    all_prompts,
    draw_preference_pairs,
    gold_reward,
    prefer_first,
    write_responses,
)
from shared.lm.special_tokens import SPECIAL_WORDS

PROPERTY = settings(deadline=None, max_examples=100)
SEA, FOREST, SKY = (VOCABULARY.index(f"<{theme}>") for theme in ("sea", "forest", "sky"))
PROMPT = [BOS_ID, SEA, SKY, SEP_ID]


def ids(text: str) -> list[int]:
    return [VOCABULARY.index(token) for token in text.split()]


def theme_of(token: int) -> str | None:
    return next((theme for theme, words in THEMES.items() if VOCABULARY[token] in words), None)


def slow_reward(prompt: list[int], response: list[int]) -> float:
    own = {VOCABULARY[token].strip("<>") for token in prompt[1:3]}
    words, finished = [], False
    for token in response:
        if VOCABULARY[token] in ("<eos>", "<pad>"):
            finished = VOCABULARY[token] == "<eos>"
            break
        words.append(token)
    on_theme = [word for word in words if theme_of(word) in own]
    repeats = sum(1 for a, b in pairwise(words) if a == b)
    covered = {theme_of(word) for word in on_theme}
    score = len(on_theme) - 0.7 * (len(words) - len(on_theme)) - repeats + len(covered)
    return (score - 0.5 * abs(len(words) - 8) - 2 * (not finished)) / 3


def slow_writer(prompt: list[int], rng: np.random.Generator) -> list[int]:
    all_words = [token for token in range(len(VOCABULARY)) if theme_of(token)]
    own = {VOCABULARY[token].strip("<>") for token in prompt[1:3]}
    own_words = [token for token in all_words if theme_of(token) in own]
    style, words = rng.choice([0.25, 0.5, 0.8]), []
    while len(words) < 12 and not (len(words) >= 3 and rng.random() < 0.13):
        if words and rng.random() < 0.15:
            words.append(words[-1])
        else:
            words.append(int(rng.choice(own_words if rng.random() < style else all_words)))
    return [*words, EOS_ID] + [PAD_ID] * (12 - len(words))


# --- vocabulary and prompts


def test_vocabulary_is_46_tokens_in_their_documented_order():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 46
    assert VOCABULARY[:4] == SPECIAL_WORDS
    assert [VOCABULARY[i] for i in (PAD_ID, BOS_ID, EOS_ID, SEP_ID)] == ["<pad>", "<bos>", "<eos>", "<sep>"]
    assert VOCABULARY[4:10] == tuple(f"<{theme}>" for theme in THEMES)
    assert [theme_of(i) for i in range(46)] == [None] * 10 + [theme for theme in THEMES for _ in range(6)]
    assert not any(character.isspace() for token in VOCABULARY for character in token)


def test_prompts_are_all_ordered_pairs_of_different_themes():
    prompts = all_prompts()
    assert prompts.dtype == np.int64
    assert {tuple(p) for p in prompts.tolist()} == {
        (BOS_ID, a, b, SEP_ID) for a in range(4, 10) for b in range(4, 10) if a != b
    }
    assert prompts.shape == (30, 4)


# --- reward


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wave tide star gull moon reef dawn salt <eos>", (8 + 2) / 3),  # the best there is
        ("wave tide star gull moon reef dawn salt", (8 + 2 - 2) / 3),  # never ends
        ("wave tide star gull moon reef dawn salt <pad> <eos>", (8 + 2 - 2) / 3),  # padding ends it, not EOS
        ("wave tide gull reef salt sail wave tide <eos>", (8 + 1) / 3),  # one theme only
        ("wave wave star star star reef dawn salt <eos>", (8 - 3 + 2) / 3),
        ("wave wave star gull <eos> <eos> wave star", (4 - 1 + 2 - 2) / 3),  # nothing counts behind EOS
        ("moss oven drum <eos>", (-0.7 * 3 - 2.5) / 3),
        ("wave star <sea> <sep> <bos> <eos>", (2 - 0.7 * 3 + 2 - 1.5) / 3),  # specials are off theme
        ("<eos>", -4 / 3),
        ("<pad>", -6 / 3),
        ("wave", (1 + 1 - 3.5 - 2) / 3),
    ],
)
def test_known_rewards(text, expected):
    assert gold_reward(np.array([PROMPT]), np.array([ids(text)])) == pytest.approx(expected, abs=1e-12)
    assert slow_reward(PROMPT, ids(text)) == pytest.approx(expected, abs=1e-12)


TOKENS = st.one_of(st.integers(0, 45), st.integers(10, 45), st.sampled_from(ids("wave star <eos> <pad>")))


@PROPERTY
@given(data=st.data(), width=st.integers(1, 15), rows=st.integers(1, 6))
def test_reward_agrees_with_a_slow_one(data, width, rows):
    response = st.lists(TOKENS, min_size=width, max_size=width)
    responses = data.draw(st.lists(response, min_size=rows, max_size=rows))
    prompts = all_prompts()[data.draw(st.lists(st.integers(0, 29), min_size=rows, max_size=rows))]
    expected = [slow_reward(p, r) for p, r in zip(prompts.tolist(), responses, strict=True)]
    got = gold_reward(prompts, np.array(responses))
    assert got.dtype == np.float64
    assert got.tolist() == pytest.approx(expected, abs=1e-12)
    padded = np.concatenate([np.array(responses), np.full((rows, 3), PAD_ID)], axis=1)
    assert np.array_equal(gold_reward(prompts, padded), got)
    assert np.array_equal(gold_reward(prompts[:, [0, 2, 1, 3]], np.array(responses)), got)
    assert got.max() <= 10 / 3 + 1e-12


def test_rewards_that_tie_on_paper_are_equal():
    scores = {}
    for on in range(1, 13):
        for off in range(13 - on):
            words = ids("wave star") * 6
            response = [*words[:on], *(ids("moss oven") * 6)[:off], EOS_ID] + [PAD_ID] * (12 - on - off)
            covered = min(on, 2)
            tenths = 10 * on + 10 * covered - 7 * off - 5 * abs(on + off - 8)
            scores.setdefault(tenths, set()).add(gold_reward(np.array([PROMPT]), np.array([response]))[0])
    assert len(scores) < 78  # some of the 78 responses do tie
    assert all(len(values) == 1 for values in scores.values())


def test_reward_accepts_no_rows():
    assert gold_reward(np.zeros((0, 4), dtype=np.int64), np.zeros((0, 5), dtype=np.int64)).shape == (0,)


@pytest.mark.parametrize(
    ("prompts", "responses", "match"),
    [
        ([PROMPT], [[46]], "responses must hold ids 0 to 45.*46"),
        ([PROMPT], [[-1]], "responses must hold ids 0 to 45.*-1"),
        ([PROMPT], [[2], [2]], r"responses must be \(1, L >= 1\).*\(2, 1\)"),
        ([PROMPT], [[]], r"responses must be.*\(1, 0\)"),
        ([PROMPT], [2], r"responses must be.*\(1,\)"),
        (PROMPT, [[2]], r"prompts must be \(N, 4\).*\(4,\)"),
        ([PROMPT[:3]], [[2]], r"prompts must be \(N, 4\).*\(1, 3\)"),
        ([[BOS_ID, SEA, SEA, SEP_ID]], [[2]], "other theme.*4, 4"),
        ([[BOS_ID, SEA, 10, SEP_ID]], [[2]], "other theme.*10"),
        ([[BOS_ID, SEP_ID, SEA, SEP_ID]], [[2]], "other theme"),
        ([[PAD_ID, SEA, SKY, SEP_ID]], [[2]], "other theme"),
        ([[BOS_ID, SEA, SKY, EOS_ID]], [[2]], "other theme"),
    ],
)
def test_bad_arrays_are_named(prompts, responses, match):
    with pytest.raises(ValueError, match=match):
        gold_reward(np.array(prompts), np.array(responses))


# --- writer


def test_responses_are_3_to_12_words_then_eos_then_padding():
    prompts = np.repeat(all_prompts(), 100, axis=0)
    responses = write_responses(prompts, np.random.default_rng(0))
    assert responses.shape == (3000, RESPONSE_LENGTH)
    assert responses.dtype == np.int64
    lengths = set()
    for row in responses.tolist():
        end = row.index(EOS_ID)
        assert all(token >= 10 for token in row[:end])
        assert all(token == PAD_ID for token in row[end + 1 :])
        lengths.add(end)
    assert lengths == set(range(3, MAX_WORDS + 1))


def test_length_distribution_is_exact():
    prompts = np.repeat(all_prompts(), 2000, axis=0)
    responses = write_responses(prompts, np.random.default_rng(1))
    share = np.bincount((responses == EOS_ID).argmax(axis=1), minlength=13) / len(prompts)
    expected = [0.13 * 0.87 ** (n - 3) for n in range(3, 12)] + [0.87**9]
    assert share[3:] == pytest.approx(expected, abs=0.008)  # 4 standard errors


def test_words_are_on_theme_repeated_and_uniform_as_stated():
    prompts = np.repeat(all_prompts(), 2000, axis=0)
    responses = write_responses(prompts, np.random.default_rng(2))
    first, second = responses[:, 0], responses[:, 1]
    q = np.mean([0.25, 0.5, 0.8])
    own = ((first[:, None] - 10) // 6 == prompts[:, 1:3] - 4).any(axis=1)
    assert own.mean() == pytest.approx(q + (1 - q) / 3, abs=0.008)
    # A fresh word equals the one before it by chance as well: mostly where both are drawn from the 12 on theme.
    by_chance = np.mean([12 * (s / 12 + (1 - s) / 36) ** 2 + 24 * ((1 - s) / 36) ** 2 for s in (0.25, 0.5, 0.8)])
    assert (first == second).mean() == pytest.approx(0.15 + 0.85 * by_chance, abs=0.007)
    assert np.bincount(first, minlength=46)[10:] / len(first) == pytest.approx(1 / 36, abs=0.003)


def test_writer_agrees_with_a_slow_one_in_the_rewards_it_gets():
    prompts = np.repeat(all_prompts(), 100, axis=0)
    rng = np.random.default_rng(3)
    slow = np.array([slow_writer(prompt, rng) for prompt in prompts.tolist()])
    fast_prompts = np.repeat(all_prompts(), 2000, axis=0)
    fast_rewards = gold_reward(fast_prompts, write_responses(fast_prompts, rng))
    slow_rewards = gold_reward(prompts, slow)
    assert slow_rewards.mean() == pytest.approx(fast_rewards.mean(), abs=0.1)  # 4 standard errors
    assert slow_rewards.std() == pytest.approx(fast_rewards.std(), abs=0.07)


def test_style_belongs_to_the_response():
    # Words 1 and 3 of a response are on theme together more often than chance, as they share its style.
    prompts = np.repeat(all_prompts(), 1000, axis=0)
    responses = write_responses(prompts, np.random.default_rng(4))
    own = ((responses[:, [0, 2], None] - 10) // 6 == (prompts[:, 1:3] - 4)[:, None, :]).any(axis=2).astype(float)
    # Var(q) (2/3)^2 = 0.022; repeats alone would give 0.15^2 Var(own) = 0.005.
    assert np.cov(own.T)[0, 1] > 0.015


def test_writer_is_reproducible():
    prompts = all_prompts()
    first, again, other = (write_responses(prompts, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


# --- preferences


@pytest.mark.parametrize("kappa", [1.0, 4.0])
@pytest.mark.parametrize("difference", [-1.0, 0.0, 0.4])
def test_labels_are_bradley_terry(kappa, difference):
    n = 40_000
    wins = prefer_first(np.full(n, 1.0 + difference), np.full(n, 1.0), kappa, np.random.default_rng(7))
    assert wins.dtype == bool
    assert wins.mean() == pytest.approx(1 / (1 + math.exp(-kappa * difference)), abs=0.01)


def test_pairs_are_different_responses_to_known_prompts_labelled_by_their_rewards():
    pairs = draw_preference_pairs(6400, 4.0, np.random.default_rng(8))
    assert pairs.prompts.shape == (6400, 4)
    assert pairs.chosen.shape == pairs.rejected.shape == (6400, RESPONSE_LENGTH)
    assert (pairs.chosen != pairs.rejected).any(axis=1).all()
    assert len(np.unique(pairs.prompts, axis=0)) == 30
    difference = gold_reward(pairs.prompts, pairs.chosen) - gold_reward(pairs.prompts, pairs.rejected)
    expected_flips = (1 / (1 + np.exp(4.0 * np.abs(difference)))).mean()
    assert ((difference < 0) + (difference == 0) / 2).mean() == pytest.approx(expected_flips, abs=0.012)
    assert 0.05 < expected_flips < 0.11


def test_noisier_labels_flip_more():
    shares = []
    for kappa in (1.0, 4.0, 1e6):
        pairs = draw_preference_pairs(6400, kappa, np.random.default_rng(9))
        rewards = (gold_reward(pairs.prompts, answers) for answers in (pairs.chosen, pairs.rejected))
        shares.append(np.less(*rewards).mean())
    assert 0.2 < shares[0] < 0.3
    assert shares[0] > 2 * shares[1] > shares[2] == 0


def test_equal_responses_are_redrawn():
    class Repetitive:
        """A generator whose second and third batch of draws repeat the first one."""

        def __init__(self):
            self.generators = [np.random.default_rng(seed) for seed in (1, 2, 2, 2, 3)]

        def __getattr__(self, name):
            if name == "choice":  # the first draw of each batch of responses
                self.generators = self.generators[1:]
            return getattr(self.generators[0], name)

    pairs = draw_preference_pairs(50, 4.0, Repetitive())
    assert (pairs.chosen != pairs.rejected).any(axis=1).all()


@pytest.mark.parametrize("kappa", [0.0, -1.0, math.nan, math.inf])
def test_bad_kappa_is_named(kappa):
    with pytest.raises(ValueError, match=f"kappa.*{kappa}"):
        prefer_first(np.zeros(2), np.zeros(2), kappa, np.random.default_rng(0))


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match=r"equal shapes.*\(2,\) and \(3,\)"):
        prefer_first(np.zeros(2), np.zeros(3), 1.0, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"n_pairs.*0"):
        draw_preference_pairs(0, 1.0, np.random.default_rng(0))
