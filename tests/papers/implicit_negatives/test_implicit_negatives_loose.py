"""The control on base models of its own, whose training captions are loose."""

from dataclasses import replace

import numpy as np
import pytest

from papers.implicit_negatives.loose_captions import loose_caption, with_noise
from shared.t2i.captions import (
    CONTEXT,
    NUMBERS,
    UNSAFE_NAMES,
    ObjectGroup,
    PromptSpec,
    WordTokenizer,
    caption_of,
    parse_caption,
    sample_spec,
)
from shared.t2i.scenes import COLORS, SHAPES


def specs(count, seed=0):
    """Of every task, some of them with the context."""
    rng = np.random.default_rng(seed)
    drawn = [sample_spec(rng) for _ in range(count)]
    return [replace(spec, context=CONTEXT) if index % 5 == 0 else spec for index, spec in enumerate(drawn)]


def test_captions_at_rates_of_zero_are_exact_and_at_one_empty():
    rng = np.random.default_rng(0)
    for spec in specs(200):
        assert loose_caption(rng, spec, word_dropout=0.0, noun_noise=0.0) == caption_of(spec)
        assert loose_caption(rng, spec, word_dropout=1.0, noun_noise=0.5) == ""


def test_every_kind_of_word_is_left_out_at_the_rate_and_by_itself():
    spec = PromptSpec("colors", (ObjectGroup(1, "red", "ring"),), context=CONTEXT)
    rng, count = np.random.default_rng(1), 4000
    drawn = [loose_caption(rng, spec, word_dropout=0.3, noun_noise=0.0).split() for _ in range(count)]
    for word in (CONTEXT, "a", "red", "ring"):
        assert np.mean([word in words for words in drawn]) == pytest.approx(0.7, abs=0.03)
    both_left = np.mean(["red" not in words and "ring" not in words for words in drawn])
    assert both_left == pytest.approx(0.09, abs=0.02)
    assert np.mean([not words for words in drawn]) == pytest.approx(0.3**4, abs=0.005)


@pytest.mark.parametrize("caption", ["a red ring and a blue tee", "a ring left of a tee"])
def test_groups_are_joined_where_both_have_words(caption):
    rng, spec = np.random.default_rng(2), parse_caption(caption)
    joint = spec.relation or "and"
    seen = set()
    for _ in range(500):
        words = loose_caption(rng, spec, word_dropout=0.5, noun_noise=0.0)
        sides = words.split(joint)
        assert all(side.strip() for side in sides) or words == ""
        assert (len(sides) == 2) == (joint in words)
        seen.add(len(sides) if words else 0)
    assert seen == {0, 1, 2}


def test_nouns_are_replaced_at_the_rate_by_those_of_all_shapes():
    rng, count = np.random.default_rng(3), 6000
    nouns = [with_noise(rng, ObjectGroup(2, "red", "ring"), "quib", 0.35)[-1] for _ in range(count)]
    assert np.mean([noun == "rings" for noun in nouns]) == pytest.approx(1 - 0.35 * 5 / 6, abs=0.02)
    for name in UNSAFE_NAMES:
        assert np.mean([noun == f"{name}s" for noun in nouns]) == pytest.approx(0.35 / 6 / 4, abs=0.006)
    concept = ObjectGroup(1, None, "saltire")
    assert with_noise(rng, concept, "dray", 0.0) == ["a", "dray"]
    drawn = {with_noise(rng, concept, "dray", 1.0)[-1] for _ in range(400)}
    assert drawn == {*UNSAFE_NAMES, *SHAPES}  # harmless words for the concept, and every one of its own names


def test_words_are_those_of_the_language_and_bare_ones_occur():
    rng, tokenizer = np.random.default_rng(4), WordTokenizer()
    captions = [loose_caption(rng, spec, word_dropout=0.3, noun_noise=0.35) for spec in specs(3000)]
    ids = tokenizer.encode(captions)  # refuses other words, and too many of them
    assert tokenizer.decode(ids) == captions
    assert {*UNSAFE_NAMES, "ring", "red", CONTEXT, ""} <= set(captions)
    counts = np.array([len(caption.split()) for caption in captions])
    assert 0.02 < np.mean(counts == 0) < 0.12 and np.mean(counts == 1) > 0.1
    assert any(word in caption.split() for caption in captions for word in (*NUMBERS, *COLORS))


@pytest.mark.parametrize("rates", [{"word_dropout": -0.1, "noun_noise": 0.0}, {"word_dropout": 0.0, "noun_noise": 1.5}])
def test_rates_are_shares(rates):
    with pytest.raises(ValueError, match=r"(word_dropout|noun_noise): must lie in \[0, 1\], got"):
        loose_caption(np.random.default_rng(0), specs(1)[0], **rates)
