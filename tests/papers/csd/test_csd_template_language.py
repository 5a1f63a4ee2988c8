"""The procedural language: its grammar, its probabilities and its entropy, against an enumeration of the process."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from papers.csd.template_language import (
    BOS,
    EOS,
    PAD,
    SEP,
    SUITES,
    LanguageOptions,
    build_language,
    entropy_floor,
    expected_length,
    log_probabilities,
    parses,
    sample_prompts,
    sample_responses,
)

LANGUAGE = build_language(np.random.default_rng(0))
SMALL = LanguageOptions(
    verbs=4,
    topics=3,
    words_per_topic=3,
    function_words=4,
    distractor_words=2,
    filler_words=2,
    template_probabilities=(0.7, 0.3),
    template_items=(1, 3),
    slot_probabilities=(0.6, 0.4),
    filler_probability=0.2,
    max_distractors=2,
)


def sampled(suite="in_distribution", size=2000, seed=1, language=LANGUAGE):
    rng = np.random.default_rng(seed)
    prompts = sample_prompts(language, suite, size, rng)
    return prompts, sample_responses(language, prompts.verbs, prompts.topics, rng)


def tokens(row) -> list[int]:
    return [int(token) for token in row if token != PAD]


def enumerate_responses(language, verb: int, topic: int) -> dict[tuple[int, ...], float]:
    """Every response to a prompt with its probability, by walking through the process as it is told."""
    options, probabilities = language.options, {}
    for template, template_probability in enumerate(options.template_probabilities):
        length = language.template_lengths[topic, template]
        items = [
            [(w, p) for w, p in zip(words, weights, strict=True) if p > 0]
            for words, weights in zip(
                language.item_words[topic, template, :length],
                language.item_probabilities[topic, template, :length],
                strict=True,
            )
        ]
        for choice in itertools.product(*items):
            body = [word for word, _ in choice]
            if language.body_reversed[verb]:
                body.reverse()
            opener = list(language.openers[verb])
            words = body + opener if language.opener_last[verb] else opener + body
            before = template_probability * math.prod(p for _, p in choice)
            for fillers in itertools.product([None, *language.filler_words], repeat=len(words)):
                response = [t for pair in zip(fillers, words, strict=True) for t in pair if t is not None]
                probability = before
                for filler in fillers:
                    rho = options.filler_probability
                    probability *= 1 - rho if filler is None else rho / len(language.filler_words)
                key = (*map(int, response), EOS)
                probabilities[key] = probabilities.get(key, 0.0) + probability
    return probabilities


def padded(responses) -> np.ndarray:
    width = max(map(len, responses))
    return np.array([[*response, *[PAD] * (width - len(response))] for response in responses])


# --- Vocabulary


def test_vocabulary():
    assert len(LANGUAGE.words) == 316 == len(set(LANGUAGE.words))
    assert [LANGUAGE.words[i] for i in (PAD, BOS, SEP, EOS)] == ["<pad>", "<bos>", "<sep>", "<eos>"]
    assert LANGUAGE.words[LANGUAGE.verb_words[2]] == "verb2"
    assert LANGUAGE.words[LANGUAGE.openers[3, 1]] == "open3b"
    groups = [LANGUAGE.verb_words, LANGUAGE.topic_words, LANGUAGE.distractor_words, LANGUAGE.filler_words]
    groups += [LANGUAGE.openers.ravel(), np.unique(LANGUAGE.item_words[LANGUAGE.item_words != PAD])]
    together = np.concatenate(groups)
    assert len(set(together)) == len(together) and together.min() > EOS


def test_rouge_sees_each_word_as_one_token_with_its_own_stem():
    stemmed = [DefaultTokenizer(use_stemmer=True).tokenize(word) for word in LANGUAGE.words[4:]]
    assert all(len(stems) == 1 for stems in stemmed)
    assert len({stems[0] for stems in stemmed}) == len(stemmed)


def test_language_depends_on_the_seed_alone():
    same, other = (build_language(np.random.default_rng(seed)) for seed in (0, 1))
    assert (same.item_words == LANGUAGE.item_words).all() and (same.held_out == LANGUAGE.held_out).all()
    assert other.item_words.shape != LANGUAGE.item_words.shape or (other.item_words != LANGUAGE.item_words).any()


def test_templates_are_as_described():
    assert LANGUAGE.item_words.shape == (24, 3, 8, 4)
    assert LANGUAGE.template_lengths.min() >= 5 and LANGUAGE.template_lengths.max() <= 8
    used = np.arange(8) < LANGUAGE.template_lengths[..., None]
    np.testing.assert_allclose(LANGUAGE.item_probabilities.sum(-1), used)
    slots = (LANGUAGE.item_probabilities > 0).sum(-1) == 4
    assert 0.4 < slots[used].mean() < 0.6
    for topic in range(24):
        words = [LANGUAGE.words[i] for i in np.unique(LANGUAGE.item_words[topic][slots[topic]])]
        assert all(word.startswith(f"word{topic}x") for word in words)
    function_words = {LANGUAGE.words[i] for i in LANGUAGE.item_words[..., 0][used & ~slots]}
    assert all(word.startswith("func") for word in function_words)
    assert len({(bool(a), bool(b)) for a, b in zip(LANGUAGE.opener_last, LANGUAGE.body_reversed, strict=True)}) == 4


def test_held_out_combinations_are_balanced():
    assert (LANGUAGE.held_out.sum(0) == 1).all()
    assert (LANGUAGE.held_out.sum(1) == 4).all()


# --- Prompts


@pytest.mark.parametrize("suite", SUITES)
def test_prompts_name_their_verb_and_topic(suite):
    prompts, _ = sampled(suite)
    assert prompts.tokens.shape == (2000, LANGUAGE.max_prompt_length)
    assert prompts.tokens.dtype == np.int64
    counts = []
    for row, verb, topic in zip(prompts.tokens, prompts.verbs, prompts.topics, strict=True):
        prompt = tokens(row)
        assert list(row[len(prompt) :]) == [PAD] * (len(row) - len(prompt))
        assert prompt[0] == BOS and prompt[-1] == SEP
        body = prompt[1:-1]
        named = [token for token in body if token not in LANGUAGE.distractor_words]
        assert named == [LANGUAGE.verb_words[verb], LANGUAGE.topic_words[topic]]
        before_verb = body.index(named[0])
        distractors = len(body) - 2
        assert before_verb == (distractors if suite == "paraphrase" else 0)
        counts.append(distractors)
    expected = {"long_distractors": {4, 5, 6}, "paraphrase": {1, 2, 3}}.get(suite, {0, 1, 2, 3})
    assert set(counts) == expected


def test_distractors_stand_on_both_sides_of_the_topic():
    prompts, _ = sampled()
    third, fourth = prompts.tokens[:, 2], prompts.tokens[:, 3]
    is_topic = third == LANGUAGE.topic_words[prompts.topics]
    assert 0.1 < (is_topic & (fourth != SEP)).mean() < 0.6
    assert 0.1 < (~is_topic).mean() < 0.6


def test_suites_draw_their_own_combinations():
    topics = LANGUAGE.topic_probabilities
    for suite in SUITES:
        prompts, _ = sampled(suite, size=20_000)
        assert (LANGUAGE.held_out[prompts.verbs, prompts.topics] == (suite == "held_out")).all()
        shares = np.bincount(prompts.topics, minlength=24) / 20_000
        expected = topics if suite != "rare_topics" else np.where(np.arange(24) >= 18, topics, 0)
        np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.015)
        assert np.bincount(prompts.verbs, minlength=6).min() > 0
    assert topics[0] / topics[9] == pytest.approx(10**0.7)


def test_unknown_suite():
    with pytest.raises(ValueError, match=r"suite must be one of .*'train'"):
        sample_prompts(LANGUAGE, "train", 3, np.random.default_rng(0))


# --- The process against its enumeration


@pytest.mark.parametrize("seed", range(3))
def test_probabilities_and_entropy_are_exact(seed):
    """Every response of a small language: one derivation each, probabilities, entropy and length."""
    language = build_language(np.random.default_rng(seed), SMALL)
    floors, lengths = (f(language, np.arange(3)) for f in (entropy_floor, expected_length))
    for verb, topic in itertools.product(range(4), range(3)):
        probabilities = enumerate_responses(language, verb, topic)
        assert sum(probabilities.values()) == pytest.approx(1, rel=1e-12)
        responses, many = padded(list(probabilities)), len(probabilities)
        arguments = (language, responses, np.full(many, verb), np.full(many, topic))
        p = np.array(list(probabilities.values()))
        np.testing.assert_allclose(log_probabilities(*arguments), np.log(p), rtol=1e-12)
        assert parses(*arguments).all()
        assert floors[topic] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-12)
        assert lengths[topic] == pytest.approx((p * (responses != PAD).sum(1)).sum(), rel=1e-12)


def test_nothing_else_has_probability():
    """Every sequence over the words that could matter, up to a length, that the enumeration does not hold."""
    language = build_language(np.random.default_rng(2), SMALL)
    verb, topic = 1, 0
    possible = enumerate_responses(language, verb, topic)
    allowed = {word for response in possible for word in response} - {EOS}
    alphabet = [*sorted(allowed), *language.openers[0], PAD, SEP]
    fillers = set(map(int, language.filler_words))
    grammatical = {tuple(word for word in response if word not in fillers) for response in possible}
    candidates = [(*c, EOS) for n in range(5) for c in itertools.product(alphabet, repeat=n)]
    arguments = (language, padded(candidates), np.full(len(candidates), verb), np.full(len(candidates), topic))
    finite, parsed = np.isfinite(log_probabilities(*arguments)), parses(*arguments)
    assert len(grammatical) < finite.sum() < parsed.sum() < len(candidates)
    for index, candidate in enumerate(candidates):
        assert finite[index] == (candidate in possible)
        assert parsed[index] == (tuple(word for word in candidate if word not in fillers) in grammatical)


def test_samples_follow_the_enumerated_probabilities():
    language = build_language(np.random.default_rng(1), SMALL)
    many = 40_000
    for verb, topic in ((0, 0), (3, 2)):
        arguments = (language, np.full(many, verb), np.full(many, topic), np.random.default_rng(7))
        rows, counts = np.unique(sample_responses(*arguments), axis=0, return_counts=True)
        seen = {tuple(tokens(row)): count for row, count in zip(rows, counts, strict=True)}
        probabilities = enumerate_responses(language, verb, topic)
        assert set(seen) <= set(probabilities)
        likely = {r: p for r, p in probabilities.items() if p * many > 20}
        deviations = [(seen.get(r, 0) - p * many) / math.sqrt(p * many * (1 - p)) for r, p in likely.items()]
        assert len(likely) > 20 and np.mean(np.square(deviations)) < 1.6 and np.max(np.abs(deviations)) < 5


@pytest.mark.parametrize("suite", SUITES)
def test_samples_parse_and_their_nll_is_the_entropy_floor(suite):
    """Within 3 standard errors, over the default language."""
    prompts, responses = sampled(suite, size=20_000, seed=3)
    assert responses.shape == (20_000, LANGUAGE.max_response_length) == (20_000, 21)
    assert parses(LANGUAGE, responses, prompts.verbs, prompts.topics).all()
    excess = -log_probabilities(LANGUAGE, responses, prompts.verbs, prompts.topics)
    excess -= entropy_floor(LANGUAGE, prompts.topics)
    assert abs(excess.mean()) < 3 * excess.std() / math.sqrt(len(excess))
    longer = (responses != PAD).sum(1) - expected_length(LANGUAGE, prompts.topics)
    assert abs(longer.mean()) < 3 * longer.std() / math.sqrt(len(longer))


def test_sampling_repeats_with_the_seed():
    first, second, other = (sampled(seed=seed) for seed in (1, 1, 2))
    assert (first[1] == second[1]).all() and (first[0].tokens == second[0].tokens).all()
    assert (first[1] != other[1]).any()


# --- The grammar on responses that a model could give


def read(response, verb, topic) -> tuple[bool, float]:
    arguments = (LANGUAGE, np.array([response]), np.array([verb]), np.array([topic]))
    return bool(parses(*arguments)[0]), float(log_probabilities(*arguments)[0])


@given(st.integers(0, 1999), st.data())
@settings(max_examples=150, deadline=None)
def test_corrupted_responses_do_not_parse(index, data):
    prompts, responses = SAMPLES
    verb, topic = prompts.verbs[index], prompts.topics[index]
    response = tokens(responses[index])
    assert read(response, verb, topic)[0]

    words = [i for i, token in enumerate(response[:-1]) if token not in LANGUAGE.filler_words]
    place = data.draw(st.sampled_from(words))
    kind = data.draw(st.sampled_from(["delete", "replace", "insert", "no end", "early end"]))
    foreign = data.draw(st.sampled_from([PAD, BOS, SEP, *LANGUAGE.verb_words, *LANGUAGE.distractor_words]))
    corrupted = {
        "delete": response[:place] + response[place + 1 :],
        "replace": [*response[:place], foreign, *response[place + 1 :]],
        "insert": [*response[:place], foreign, *response[place:]],
        "no end": response[:-1],
        "early end": [*response[:place], EOS, *response[place:]],
    }[kind]
    assert read(corrupted, verb, topic) == (False, -math.inf)


SAMPLES = sampled()


def test_response_to_another_prompt_does_not_parse():
    prompts, responses = SAMPLES
    assert not parses(LANGUAGE, responses, (prompts.verbs + 1) % 6, prompts.topics).any()
    assert parses(LANGUAGE, responses, prompts.verbs, (prompts.topics + 1) % 24).sum() == 0


def test_order_of_the_body_counts():
    prompts, responses = SAMPLES
    # The same words after the opener, rotated by one.
    first = ~LANGUAGE.opener_last[prompts.verbs]
    fillers = np.isin(responses, LANGUAGE.filler_words).any(1)
    rows = np.flatnonzero(first & ~fillers)
    rotated = [[*row[:2], *np.roll(row[2:-1], 1), EOS] for row in map(tokens, responses[rows])]
    share = parses(LANGUAGE, padded(rotated), prompts.verbs[rows], prompts.topics[rows]).mean()
    assert len(rows) > 300 and share < 0.05


def test_fillers_parse_anywhere_but_are_possible_only_before_words():
    prompts, responses = SAMPLES
    index = next(i for i, row in enumerate(responses) if not np.isin(row, LANGUAGE.filler_words).any())
    verb, topic, response = prompts.verbs[index], prompts.topics[index], tokens(responses[index])
    filler = int(LANGUAGE.filler_words[0])
    plain = read(response, verb, topic)[1]
    rho, fillers = LANGUAGE.options.filler_probability, len(LANGUAGE.filler_words)
    parsed, value = read([response[0], filler, *response[1:]], verb, topic)
    assert parsed and value == pytest.approx(plain + math.log(rho / fillers / (1 - rho)), rel=1e-12)
    assert read([response[0], filler, filler, *response[1:]], verb, topic) == (True, -math.inf)
    assert read([*response[:-1], filler, EOS], verb, topic) == (True, -math.inf)


def test_what_follows_the_end_is_not_read():
    prompts, responses = SAMPLES
    garbage = np.hstack([responses, np.full((len(responses), 4), LANGUAGE.verb_words[0])])
    np.testing.assert_array_equal(
        log_probabilities(LANGUAGE, garbage, prompts.verbs, prompts.topics),
        log_probabilities(LANGUAGE, responses, prompts.verbs, prompts.topics),
    )


@pytest.mark.parametrize("response", [[EOS], [PAD], [], [EOS] * 40, [5] * 60, [PAD] * 10 + [EOS]])
def test_degenerate_responses(response):
    response = np.array([response], dtype=np.int64)
    assert not parses(LANGUAGE, response, np.array([0]), np.array([0])).any()
    assert log_probabilities(LANGUAGE, response, np.array([0]), np.array([0])) == -np.inf


def test_only_fillers_do_not_parse():
    filler = int(LANGUAGE.filler_words[0])
    assert read([filler, filler, EOS], 0, 0) == (False, -math.inf)


def test_no_examples():
    prompts, responses = sampled(size=0)
    assert responses.shape == (0, 21)
    assert parses(LANGUAGE, responses, prompts.verbs, prompts.topics).shape == (0,)


def test_no_fillers():
    language = build_language(np.random.default_rng(0), LanguageOptions(filler_probability=0.0))
    prompts, responses = sampled(language=language, seed=4)
    assert not np.isin(responses, language.filler_words).any()
    values = log_probabilities(language, responses, prompts.verbs, prompts.topics)
    assert np.isfinite(values).all()
    spoiled = np.hstack([np.full((len(responses), 1), language.filler_words[0]), responses])
    assert parses(language, spoiled, prompts.verbs, prompts.topics).all()
    assert (log_probabilities(language, spoiled, prompts.verbs, prompts.topics) == -np.inf).all()


# --- Options


def test_templates_of_a_topic_never_produce_the_same_body():
    """Where words are scarce they nearly would: they are drawn again until they cannot."""
    for seed in range(20):
        language = build_language(np.random.default_rng(seed), SMALL)
        for topic in range(3):
            bodies = [
                {
                    tuple(choice)
                    for choice in itertools.product(
                        *(w[p > 0] for w, p in zip(words[:length], probabilities[:length], strict=True))
                    )
                }
                for words, probabilities, length in zip(
                    language.item_words[topic],
                    language.item_probabilities[topic],
                    language.template_lengths[topic],
                    strict=True,
                )
            ]
            assert not bodies[0] & bodies[1]


def test_words_too_few_for_distinct_templates():
    with pytest.raises(ValueError, match="too few words"):
        build_language(np.random.default_rng(0), LanguageOptions(function_words=1, template_items=(1, 1), slot_share=0))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"verbs": 1}, "verbs must be at least 2, got 1"),
        ({"max_distractors": 0}, "max_distractors"),
        ({"filler_words": 0}, "filler_words"),
        ({"template_probabilities": (0.5, 0.4)}, "template_probabilities"),
        ({"template_probabilities": ()}, "template_probabilities"),
        ({"slot_probabilities": (1.5, -0.5)}, "slot_probabilities"),
        ({"template_items": (8, 5)}, "template_items"),
        ({"template_items": (5, 61)}, "template_items"),
        ({"words_per_topic": 3}, "words_per_topic"),
        ({"slot_share": 1.5}, "slot_share"),
        ({"filler_probability": -0.1}, "filler_probability"),
    ],
)
def test_bad_options_are_named(wrong, named):
    with pytest.raises(ValueError, match=named):
        LanguageOptions(**wrong)
