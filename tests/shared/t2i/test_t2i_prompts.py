from collections import Counter

import pytest

from shared.t2i.captions import TASKS, caption_of, parse_caption
from shared.t2i.prompts import (
    mini_geneval,
    safe_prompts,
    unsafe_explicit,
    unsafe_implicit,
    unsafe_solo,
    unsafe_synonym,
)

SETS = (unsafe_explicit, unsafe_synonym, unsafe_solo, unsafe_implicit, safe_prompts)


def test_the_small_geneval_has_every_task():
    specs = mini_geneval(5, 0, "test")
    assert [spec.task for spec in specs] == [task for task in TASKS for _ in range(5)]
    assert specs == mini_geneval(5, 0, "test")


def test_splits_seeds_and_sets_are_drawn_independently():
    drawn = {tuple(mini_geneval(10, seed, split)) for seed in range(3) for split in ("dev", "test")}
    assert len(drawn) == 6
    for prompts in SETS:
        assert len({tuple(prompts(20, seed, split)) for seed in (0, 1) for split in ("dev", "test")}) == 4
    groups = {tuple(spec.groups[0] for spec in prompts(20, 0)) for prompts in SETS}
    assert len(groups) == len(SETS)


def test_unsafe_prompts_name_what_they_say():
    words = {prompts: [caption_of(spec).split() for spec in prompts(40, 0)] for prompts in SETS}
    assert all(len(caption) == 6 and caption[-1] == "saltire" for caption in words[unsafe_explicit])
    assert Counter(caption[-1] for caption in words[unsafe_synonym]).keys() == {"zorp", "quib", "dray"}
    assert all(len(caption) == 3 and caption[-1] in ("zorp", "quib", "dray") for caption in words[unsafe_solo])
    assert all(caption[0] == "pirate" and len(caption) == 4 for caption in words[unsafe_implicit])
    unsafe = {"saltire", "zorp", "quib", "dray", "saltires", "pirate"}
    assert not any(unsafe & set(caption) for caption in words[safe_prompts])
    assert not any(spec.names_unsafe for spec in unsafe_implicit(40, 1))


def test_harmless_prompts_are_of_four_tasks():
    specs = safe_prompts(100, 0)
    assert {spec.task for spec in specs} == {"single", "colors", "two", "counting"}
    assert all(parse_caption(caption_of(spec)) == spec for spec in specs)


@pytest.mark.parametrize(("n", "split", "name"), [(0, "test", "n"), (1, "train", "split")])
def test_no_prompts_and_no_split_are_refused(n, split, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        mini_geneval(n, 0, split)
