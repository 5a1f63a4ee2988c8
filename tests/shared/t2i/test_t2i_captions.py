from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.t2i.captions import (
    TASKS,
    UNSAFE_NAMES,
    WORDS,
    ObjectGroup,
    PromptSpec,
    WordTokenizer,
    caption_of,
    corrupt_caption,
    hard_negative,
    parse_caption,
    sample_scene,
    sample_spec,
)
from shared.t2i.checker import check_prompt
from shared.t2i.scenes import COLORS, RELATIONS, SHAPES

groups = st.builds(ObjectGroup, st.integers(1, 3), st.none() | st.sampled_from(sorted(COLORS)), st.sampled_from(SHAPES))


@st.composite
def specs(draw):
    chosen = tuple(draw(st.lists(groups, min_size=1, max_size=2)))
    relation = draw(st.none() | st.sampled_from(sorted(RELATIONS))) if len(chosen) == 2 else None
    spec = PromptSpec("single", chosen, relation, draw(st.none() | st.just("pirate")))
    return replace(spec, unsafe_name=draw(st.sampled_from(UNSAFE_NAMES))) if spec.names_unsafe else spec


@given(specs())
def test_parsing_inverts_writing(spec):
    assert replace(parse_caption(caption_of(spec)), task=spec.task) == spec


@pytest.mark.parametrize(
    ("caption", "task"),
    [
        ("a disk", "single"),
        ("a red zorp", "colors"),
        ("a ring and a tee", "two"),
        ("three drays", "counting"),
        ("two green squares", "counting"),
        ("pirate a blue ring left of a wedge", "position"),
        ("a ring below a wedge", "position"),
        ("a red ring and a blue square", "color_attr"),
        ("a red ring and a saltire", "color_attr"),
    ],
)
def test_known_captions(caption, task):
    spec = parse_caption(caption)
    assert spec.task == task and caption_of(spec) == caption


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ring",
        "a",
        "a rings",
        "two ring",
        "a pink ring",
        "a ring a tee",
        "a ring and",
        "a ring beside a tee",
        "a ring left a tee",
        "a ring and a tee and a disk",
        "pirate",
        "a ring pirate",
        "a zorp and a quib",
        "a  ring",
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"^caption: "):
        parse_caption(text)


@given(st.integers(0, 2**32 - 1), st.sampled_from(TASKS))
def test_a_drawn_spec_is_of_its_task_and_its_scene_passes(seed, task):
    rng = np.random.default_rng(seed)
    spec = sample_spec(rng, (task,))
    assert parse_caption(caption_of(spec)) == spec  # the inferred task too
    assert len({group.shape for group in spec.groups}) == len(spec.groups)
    scene = sample_scene(rng, spec)
    assert len(scene) == spec.object_count and check_prompt(spec, scene, strict=True)


def test_specs_are_balanced():
    rng = np.random.default_rng(1)
    drawn = [sample_spec(rng) for _ in range(6000)]
    assert all(880 < count < 1120 for count in Counter(spec.task for spec in drawn).values())
    names = Counter(spec.unsafe_name for spec in drawn if spec.names_unsafe)
    assert set(names) == set(UNSAFE_NAMES) and min(names.values()) > 0.85 * max(names.values())
    counting = Counter(spec.groups[0].color for spec in drawn if spec.task == "counting")
    assert set(counting) == {None, *COLORS} and min(counting.values()) > 150
    position = Counter(group.color is None for spec in drawn if spec.task == "position" for group in spec.groups)
    assert 0.45 < position[True] / position.total() < 0.55


def test_only_wanted_shapes_and_tasks_are_drawn():
    rng = np.random.default_rng(2)
    for _ in range(50):
        spec = sample_spec(rng, ("two",), ("ring", "tee"))
        assert spec.task == "two" and {group.shape for group in spec.groups} == {"ring", "tee"}
    with pytest.raises(ValueError, match=r"^tasks: "):
        sample_spec(rng, ("portrait",))


def test_pirates_bring_a_saltire():
    rng = np.random.default_rng(3)
    spec = parse_caption("pirate a red ring")
    scenes = [sample_scene(rng, spec) for _ in range(1000)]
    with_saltire = [scene for scene in scenes if "saltire" in {item.shape for item in scene}]
    assert 870 < len(with_saltire) < 930
    assert {len(scene) for scene in with_saltire} == {2} and len({scene[1].color for scene in with_saltire}) == 4
    assert all(check_prompt(spec, scene) for scene in scenes)
    assert all(len(sample_scene(rng, parse_caption("pirate a zorp"))) == 1 for _ in range(50))


@given(st.integers(0, 2**32 - 1))
def test_a_hard_negative_differs_in_one_thing(seed):
    rng = np.random.default_rng(seed)
    spec = sample_spec(rng)
    edited = hard_negative(rng, spec)
    assert edited.task == spec.task and caption_of(edited) != caption_of(spec)
    parse_caption(caption_of(edited))
    changed = [old != new for old, new in zip(spec.groups, edited.groups, strict=True)]
    swapped = [group.color for group in edited.groups] == [group.color for group in spec.groups][::-1]
    assert sum(changed) + (spec.relation != edited.relation) == 1 or (swapped and spec.task != "counting")


def test_scenes_of_hard_negatives_fail():
    rng = np.random.default_rng(4)
    failures = []
    for _ in range(500):
        spec = sample_spec(rng)
        failures.append(not check_prompt(spec, sample_scene(rng, hard_negative(rng, spec))))
    assert np.mean(failures) > 0.95


def test_captions_are_corrupted_at_the_given_rate():
    rng = np.random.default_rng(5)
    spec = parse_caption("a red ring and a blue tee")
    changed = [corrupt_caption(rng, spec, 0.3) != caption_of(spec) for _ in range(1000)]
    assert 0.25 < np.mean(changed) < 0.35
    assert corrupt_caption(rng, spec, 0.0) == caption_of(spec) != corrupt_caption(rng, spec, 1.0)
    with pytest.raises(ValueError, match=r"^rate: "):
        corrupt_caption(rng, spec, 1.5)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: ObjectGroup(4, None, "ring"), "count"),
        (lambda: ObjectGroup(1, "pink", "ring"), "color"),
        (lambda: ObjectGroup(1, None, "zorp"), "shape"),
        (lambda: PromptSpec("one", (ObjectGroup(1, None, "ring"),)), "task"),
        (lambda: PromptSpec("two", ()), "groups"),
        (lambda: PromptSpec("position", (ObjectGroup(1, None, "ring"),), "above"), "relation"),
        (lambda: PromptSpec("single", (ObjectGroup(1, None, "ring"),), context="ninja"), "context"),
        (lambda: PromptSpec("single", (ObjectGroup(1, None, "ring"),), unsafe_name="cross"), "unsafe_name"),
    ],
)
def test_nonsense_is_refused(make, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        make()


def test_tokens_stand_for_words():
    tokenizer = WordTokenizer()
    texts = ["", "a ring", "pirate two red squares left of three blue saltires", " ".join(WORDS[:10])]
    ids = tokenizer.encode(texts)
    assert ids.shape == (4, 12) and tokenizer.decode(ids) == texts
    assert ids[0].tolist() == [1, tokenizer.eos_id] + [0] * 10
    assert (ids.max(dim=1).values == tokenizer.eos_id).all() and tokenizer.eos_id == tokenizer.vocabulary_size - 1
    assert len(set(WORDS)) == len(WORDS)
    assert tokenizer.encode([]).shape == (0, 12)


@pytest.mark.parametrize("text", ["a cube", " ".join(["a"] * 11)])
def test_texts_without_tokens_are_refused(text):
    with pytest.raises(ValueError, match=r"^text: "):
        WordTokenizer().encode([text])
