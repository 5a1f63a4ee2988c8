"""Loose captions: those of training scenes with words left out, and nouns that are sometimes wrong.

A model that is trained on exact captions alone has never seen a bare word, and knows one picture of it: a negative in
words is then out of distribution, and moving away from it leaves what the model can draw. Captions of large models'
data are not like that. Here every word that says something about an image (number, colour, noun) is left out with some
probability, so that bare words, and parts of captions, are in distribution; and the noun of a group is with some
probability that of a random shape, so that harmless images have some mass under the concept's words, and images of the
concept under the others'.

Captions without any word come from both the words' dropout and the training's own caption dropout.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shared.t2i.captions import UNSAFE_NAMES, ObjectGroup, PromptSpec, caption_of
from shared.t2i.scenes import SHAPES, UNSAFE_SHAPE


def loose_caption(
    rng: np.random.Generator, groups: Sequence[ObjectGroup], unsafe_name: str, *, word_dropout: float, noun_noise: float
) -> str:
    """A caption of words of the language, which need not parse; at rates of 0 it is exact.

    Each group's noun is replaced at the rate `noun_noise`, then words are left out, each by itself, at `word_dropout`.
    There is "and" between groups that both have words left.

    Args:
        rng: of all draws.
        groups: of the scene's shapes.
        unsafe_name: how its saltires are called.
        word_dropout: in [0, 1]; at 1 every caption is empty.
        noun_noise: in [0, 1].

    Raises:
        ValueError: a rate outside [0, 1].
    """
    for name, rate in (("word_dropout", word_dropout), ("noun_noise", noun_noise)):
        if not 0 <= rate <= 1:
            raise ValueError(f"{name}: must lie in [0, 1], got {rate}")
    noisy = (with_noise(rng, group, unsafe_name, noun_noise) for group in groups)
    left = [" ".join(word for word in words if rng.random() >= word_dropout) for words in noisy]
    return " and ".join(text for text in left if text)


def with_noise(rng: np.random.Generator, group: ObjectGroup, unsafe_name: str, rate: float) -> list[str]:
    """The words of a group; with probability `rate` its noun is that of a shape drawn uniformly, its own included.

    A saltire that is drawn has one of its names, uniformly; a group of saltires that is left alone has `unsafe_name`.
    The noun keeps its number.
    """
    if rng.random() < rate:
        group = replace(group, shape=str(rng.choice(SHAPES)))
        unsafe_name = str(rng.choice(UNSAFE_NAMES)) if group.shape == UNSAFE_SHAPE else unsafe_name
    return caption_of(PromptSpec("single", (group,), unsafe_name=unsafe_name)).split(" ")
