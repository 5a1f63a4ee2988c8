"""A procedural language of prompts and noisy template responses, with its grammar and its exact entropy.

A prompt names a verb and a topic among distractor words. A response is one of the topic's few templates, a row of
function words and slots filled with topic words; the verb decides a two-word opener, the end it stands at, and whether
the body is reversed; filler words are inserted at random. So every prompt has several modes and a tail of noise, which
is what tells mass-covering from mode-seeking objectives when a student samples at temperature 1, and yet whether a
response is right, how likely it was, and how uncertain it had to be are all known exactly.

Fillers and openers are words of their own, and no two templates of a topic can produce the same body. A response
therefore has one derivation only, and its probability and the entropy floor are closed forms, not bounds.

Everything random takes a ``numpy.random.Generator``; everything is vectorised over the examples. Token sequences are
int64 arrays [examples, width], padded on the right with ``PAD``.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.special import entr, xlog1py, xlogy

SPECIAL_WORDS = ("<pad>", "<bos>", "<sep>", "<eos>")
PAD, BOS, SEP, EOS = range(4)
SUITES = ("in_distribution", "held_out", "long_distractors", "rare_topics", "paraphrase")
OPENER_WORDS = 2


@dataclass(frozen=True)
class LanguageOptions:
    """Sizes and probabilities of a language."""

    verbs: int = 6
    topics: int = 24
    words_per_topic: int = 8
    function_words: int = 60
    distractor_words: int = 12
    filler_words: int = 6
    topic_exponent: float = 0.7
    """Zipf: the k-th topic has probability ∝ k^-exponent."""
    template_probabilities: tuple[float, ...] = (0.5, 0.3, 0.2)
    template_items: tuple[int, int] = (5, 8)
    """Fewest and most items of a template."""
    slot_share: float = 0.5
    """Probability that an item is a slot and not a function word."""
    slot_probabilities: tuple[float, ...] = (0.55, 0.25, 0.12, 0.08)
    """A slot takes one of as many words of its topic."""
    filler_probability: float = 0.06
    """Probability of one filler before a word."""
    max_distractors: int = 3

    def __post_init__(self) -> None:
        # One verb alone would be held out for every topic.
        for name, least in (("verbs", 2), ("topics", 1), ("distractor_words", 1), ("filler_words", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.max_distractors < 1:
            raise ValueError(f"max_distractors must be at least 1, got {self.max_distractors}")
        for name in ("template_probabilities", "slot_probabilities"):
            values = getattr(self, name)
            if not values or min(values) <= 0 or not np.isclose(sum(values), 1):
                raise ValueError(f"{name} must be positive and sum to 1, got {values}")
        if not 1 <= self.template_items[0] <= self.template_items[1] <= self.function_words:
            raise ValueError(
                "template_items must be 1 ≤ fewest ≤ most ≤ function_words, "
                f"got {self.template_items} and {self.function_words}"
            )
        if len(self.slot_probabilities) > self.words_per_topic:
            raise ValueError(
                "slot_probabilities must be no more than words_per_topic, "
                f"got {len(self.slot_probabilities)} and {self.words_per_topic}"
            )
        for name in ("slot_share", "filler_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class TemplateLanguage:
    """A drawn language. Words are named by their ids, which index ``words``; the specials come first."""

    options: LanguageOptions
    words: tuple[str, ...]
    verb_words: NDArray[np.int64]  # [verbs]
    topic_words: NDArray[np.int64]  # [topics]
    distractor_words: NDArray[np.int64]  # [distractors]
    filler_words: NDArray[np.int64]  # [fillers]
    topic_probabilities: NDArray[np.float64]  # [topics], decreasing
    held_out: NDArray[np.bool_]  # [verbs, topics]: combinations kept out of training
    openers: NDArray[np.int64]  # [verbs, OPENER_WORDS]
    opener_last: NDArray[np.bool_]  # [verbs]
    body_reversed: NDArray[np.bool_]  # [verbs]
    template_lengths: NDArray[np.int64]  # [topics, templates]
    item_words: NDArray[np.int64]  # [topics, templates, items, choices], PAD where there is no choice
    item_probabilities: NDArray[np.float64]  # the same shape; 0 where there is no choice

    @property
    def max_prompt_length(self) -> int:
        """Longest prompt of any suite: the specials, verb, topic, and twice the usual distractors."""
        return 4 + 2 * self.options.max_distractors

    @property
    def max_response_length(self) -> int:
        """Longest response: a filler before each word, and the end of sequence."""
        return 2 * (OPENER_WORDS + self.item_words.shape[2]) + 1


@dataclass(frozen=True)
class Prompts:
    """Sampled prompts: BOS, verb, topic and distractors, SEP."""

    verbs: NDArray[np.int64]  # [examples], index of the verb
    topics: NDArray[np.int64]  # [examples], index of the topic
    tokens: NDArray[np.int64]  # [examples, max_prompt_length]


def build_language(rng: Generator, options: LanguageOptions | None = None) -> TemplateLanguage:
    """Draw templates, openers and held-out combinations. The default options make 316 words."""
    options = options or LanguageOptions()
    words = list(SPECIAL_WORDS)

    def add(names: list[str]) -> NDArray[np.int64]:
        words.extend(names)
        return np.arange(len(words) - len(names), len(words))

    verb_words = add([f"verb{i}" for i in range(options.verbs)])
    topic_words = add([f"topic{i}" for i in range(options.topics)])
    distractor_words = add([f"noise{i}" for i in range(options.distractor_words)])
    filler_words = add([f"filler{i}" for i in range(options.filler_words)])
    openers = add([f"open{i}{side}" for i in range(options.verbs) for side in "ab"]).reshape(-1, OPENER_WORDS)
    function_words = add([f"func{i}" for i in range(options.function_words)])
    slot_words = add([f"word{i}x{j}" for i in range(options.topics) for j in range(options.words_per_topic)])

    templates = [_draw_templates(rng, options, function_words, own) for own in slot_words.reshape(options.topics, -1)]
    frequencies = np.arange(1, options.topics + 1) ** -options.topic_exponent
    styles = rng.permutation(options.verbs)
    # One verb per topic is held out, each verb for as many topics: both stay well covered by training.
    held_out_verbs = rng.permutation(np.arange(options.topics) % options.verbs)
    return TemplateLanguage(
        options=options,
        words=tuple(words),
        verb_words=verb_words,
        topic_words=topic_words,
        distractor_words=distractor_words,
        filler_words=filler_words,
        topic_probabilities=frequencies / frequencies.sum(),
        held_out=np.arange(options.verbs)[:, None] == held_out_verbs,
        openers=openers,
        opener_last=styles % 2 == 1,
        body_reversed=styles // 2 % 2 == 1,
        template_lengths=np.stack([lengths for lengths, _, _ in templates]),
        item_words=np.stack([items for _, items, _ in templates]),
        item_probabilities=np.stack([probabilities for _, _, probabilities in templates]),
    )


def sample_prompts(language: TemplateLanguage, suite: str, size: int, rng: Generator) -> Prompts:
    """Sample the prompts of a suite.

    Args:
        suite: "in_distribution" (training's own distribution: 0 to ``max_distractors`` distractors anywhere after the
            verb), "held_out" (verb and topic never combined in training), "long_distractors" (one more than the
            maximum, to twice it), "rare_topics" (the least likely quarter), "paraphrase" (distractors, at least one,
            before the verb).
        size: number of prompts.

    Raises:
        ValueError: an unknown suite.
    """
    if suite not in SUITES:
        raise ValueError(f"suite must be one of {', '.join(SUITES)}, got {suite!r}")
    verbs, topics = _sample_combinations(language, suite, size, rng)
    most = language.options.max_distractors
    fewest, most = {"long_distractors": (most + 1, 2 * most), "paraphrase": (1, most)}.get(suite, (0, most))
    present = np.arange(2 * language.options.max_distractors) < rng.integers(fewest, most + 1, (size, 1))
    distractors = rng.choice(language.distractor_words, present.shape)
    gaps = np.zeros(present.shape) if suite == "paraphrase" else rng.integers(1, 3, present.shape)

    named = [np.full(size, BOS), language.verb_words[verbs], language.topic_words[topics], np.full(size, SEP)]
    tokens = np.hstack([np.column_stack(named), distractors])
    keep = np.hstack([np.ones((size, 4), bool), present])
    # A gap stands before the verb (0), between verb and topic (1) or after the topic (2).
    places = np.hstack([np.broadcast_to([-1, 0.5, 1.5, 3], (size, 4)), gaps])
    order = np.argsort(places, axis=1, kind="stable")
    tokens = _compact(np.take_along_axis(tokens, order, 1), np.take_along_axis(keep, order, 1))
    return Prompts(verbs, topics, tokens)


def sample_responses(
    language: TemplateLanguage, verbs: NDArray[np.int64], topics: NDArray[np.int64], rng: Generator
) -> NDArray[np.int64]:
    """Sample a response, ended by EOS, to each (verb, topic): [examples, max_response_length]."""
    size = len(topics)
    templates = rng.choice(language.template_lengths.shape[1], size, p=language.options.template_probabilities)
    thresholds = language.item_probabilities[topics, templates].cumsum(-1)[..., :-1]
    choices = (rng.random((*thresholds.shape[:-1], 1)) >= thresholds).sum(-1, keepdims=True)
    body = np.take_along_axis(language.item_words[topics, templates], choices, -1)[..., 0]
    lengths = language.template_lengths[topics, templates]
    body = _reverse(body, lengths, language.body_reversed[verbs])

    openers, last = language.openers[verbs], language.opener_last[verbs, None]
    words = np.hstack([openers, body, openers])
    present = np.hstack([~last, ~last, np.arange(body.shape[1]) < lengths[:, None], last, last])
    fillers = rng.choice(language.filler_words, words.shape)
    inserted = present & (rng.random(words.shape) < language.options.filler_probability)
    width = 2 * words.shape[1]
    tokens = np.stack([fillers, words], axis=-1).reshape(size, width)
    keep = np.stack([inserted, present], axis=-1).reshape(size, width)
    tokens = _compact(np.hstack([tokens, np.full((size, 1), EOS)]), np.hstack([keep, np.ones((size, 1), bool)]))
    return tokens[:, : language.max_response_length]


def parses(
    language: TemplateLanguage,
    responses: NDArray[np.int64],
    verbs: NDArray[np.int64],
    topics: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Whether each response [examples, any width], fillers removed, is one that the grammar allows for its prompt.

    It must hold EOS; what follows the first EOS is not read. Fillers may stand anywhere and in any number, so that
    some of the responses that parse have probability zero.
    """
    body, lengths, framed, _ = _read(language, responses, verbs, topics)
    return framed & _matches(language, body, lengths, topics).any(-1)


def log_probabilities(
    language: TemplateLanguage,
    responses: NDArray[np.int64],
    verbs: NDArray[np.int64],
    topics: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Exact log-probability, in nats, of each response [examples, any width] to its prompt; -inf if impossible."""
    body, lengths, framed, fillers = _read(language, responses, verbs, topics)
    matches = _matches(language, body, lengths, topics)
    template = matches.argmax(-1)
    chosen = language.item_words[topics, template] == body[..., None]
    items = (chosen * language.item_probabilities[topics, template]).sum(-1)
    items[np.arange(body.shape[1]) >= lengths[:, None]] = 1.0

    options, words = language.options, OPENER_WORDS + lengths
    possible = framed & matches.any(-1) & (fillers >= 0)
    values = (
        np.log(options.template_probabilities)[template]
        + np.log(np.where(possible[:, None], items, 1.0)).sum(-1)
        + xlogy(fillers, options.filler_probability / options.filler_words)
        + xlog1py(words - fillers, -options.filler_probability)
    )
    return np.where(possible, values, -np.inf)


def entropy_floor(language: TemplateLanguage, topics: NDArray[np.int64]) -> NDArray[np.float64]:
    """Exact entropy, in nats, of the response to a prompt on each topic: the least expected NLL of any model.

    The verb and the distractors choose nothing at random, so the prompt matters through its topic alone:
    H = H(template) + Σ_template π [Σ_items H(item) + words (H(filler?) + ρ log fillers)].
    """
    options = language.options
    rho = options.filler_probability
    per_word = entr(rho) + entr(1 - rho) + rho * np.log(options.filler_words)
    items = entr(language.item_probabilities).sum((-2, -1))
    words = OPENER_WORDS + language.template_lengths
    weights = np.asarray(options.template_probabilities)
    return (entr(weights).sum() + (items + words * per_word) @ weights)[topics]


def expected_length(language: TemplateLanguage, topics: NDArray[np.int64]) -> NDArray[np.float64]:
    """Expected tokens, EOS included, of the response to a prompt on each topic; the floor per token is the ratio."""
    words = OPENER_WORDS + language.template_lengths
    mean = words @ np.asarray(language.options.template_probabilities)
    return (mean * (1 + language.options.filler_probability) + 1)[topics]


def _draw_templates(
    rng: Generator, options: LanguageOptions, function_words: NDArray[np.int64], slot_words: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Lengths, item words and item probabilities of one topic's templates, drawn until no two of them overlap."""
    fewest, most = options.template_items
    templates, choices = len(options.template_probabilities), len(options.slot_probabilities)
    for _ in range(100):
        lengths = rng.integers(fewest, most + 1, templates)
        items = np.full((templates, most, choices), PAD)
        probabilities = np.zeros(items.shape)
        for template, length in enumerate(lengths):
            slots = rng.random(length) < options.slot_share
            items[template, :length, 0] = rng.permutation(function_words)[:length]
            probabilities[template, :length, 0] = 1.0
            for position in np.flatnonzero(slots):
                items[template, position] = rng.permutation(slot_words)[:choices]
                probabilities[template, position] = options.slot_probabilities
        if not _overlap(lengths, items):
            return lengths, items, probabilities
    raise ValueError("options leave too few words to draw templates that cannot produce the same response")


def _overlap(lengths: NDArray[np.int64], items: NDArray[np.int64]) -> bool:
    """Whether two templates can produce one body: equal lengths, and a common word at every position."""
    for first in range(len(lengths)):
        for second in range(first):
            length = lengths[first]
            pairs = zip(items[first, :length], items[second, :length], strict=True)
            if length == lengths[second] and all(set(a[a != PAD]) & set(b[b != PAD]) for a, b in pairs):
                return True
    return False


def _sample_combinations(
    language: TemplateLanguage, suite: str, size: int, rng: Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    weights = np.where(language.held_out == (suite == "held_out"), language.topic_probabilities, 0.0)
    if suite == "rare_topics":
        weights[:, : -max(1, weights.shape[1] // 4)] = 0.0
    drawn = rng.choice(weights.size, size, p=weights.ravel() / weights.sum())
    return np.divmod(drawn, weights.shape[1])


def _compact(tokens: NDArray[np.int64], keep: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Move the kept tokens of each row to the left, in order, and fill up with PAD."""
    order = np.argsort(~keep, axis=1, kind="stable")
    return np.take_along_axis(np.where(keep, tokens, PAD), order, 1)


def _reverse(body: NDArray[np.int64], lengths: NDArray[np.int64], reverse: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Reverse the first ``lengths`` tokens of the chosen rows."""
    columns = np.arange(body.shape[1])
    inside = reverse[:, None] & (columns < lengths[:, None])
    return np.take_along_axis(body, np.where(inside, lengths[:, None] - 1 - columns, columns), 1)


def _read(
    language: TemplateLanguage, responses: NDArray[np.int64], verbs: NDArray[np.int64], topics: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Undo what the verb and the fillers did.

    Returns the body in its template's order [examples, items] with its lengths, whether the frame is right (an EOS,
    the verb's opener at its end, a length that fits), and the number of fillers, or -1 where the process could not
    have placed them (two in a row, or one before EOS).
    """
    most = language.item_words.shape[2]
    # Room for every position that is read below, however narrow the responses are.
    missing = max(0, OPENER_WORDS + most - responses.shape[1])
    responses = np.pad(responses, ((0, 0), (0, missing)), constant_values=PAD)
    is_end = responses == EOS
    inside = ~np.logical_or.accumulate(is_end, axis=1)
    filler = inside & np.isin(responses, language.filler_words)
    misplaced = (filler[:, :-1] & (filler[:, 1:] | is_end[:, 1:])).any(1)
    fillers = np.where(misplaced, -1, filler.sum(1))

    kept = inside & ~filler
    words = _compact(responses, kept)
    lengths = kept.sum(1) - OPENER_WORDS
    fits = (lengths >= 1) & (lengths <= most)
    lengths = np.where(fits, lengths, 0)
    last = language.opener_last[verbs]
    columns = np.arange(most)
    start = np.where(last, lengths, 0)[:, None]
    opener = np.take_along_axis(words, start + np.arange(OPENER_WORDS), 1)
    body = np.take_along_axis(words, np.where(last, 0, OPENER_WORDS)[:, None] + columns, 1)
    body = np.where(columns < lengths[:, None], body, PAD)
    body = _reverse(body, lengths, language.body_reversed[verbs])
    framed = is_end.any(1) & fits & (opener == language.openers[verbs]).all(1)
    return body, lengths, framed, fillers


def _matches(
    language: TemplateLanguage, body: NDArray[np.int64], lengths: NDArray[np.int64], topics: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which templates of each topic [examples, templates] can produce the body."""
    # A padding token inside of the body would equal the padding among an item's choices.
    words = np.where(body == PAD, -1, body)
    allowed = (language.item_words[topics] == words[:, None, :, None]).any(-1)
    beyond = np.arange(body.shape[1]) >= lengths[:, None]
    return (language.template_lengths[topics] == lengths[:, None]) & (allowed | beyond[:, None]).all(-1)
