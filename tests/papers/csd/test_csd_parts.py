"""The response buffer, the teacher's offset, the grammar as a judge on texts, and the weighing of suites."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papers.csd.context_offset import context_offsets, token_levels
from papers.csd.evaluate import weigh_suites_equally, with_costs
from papers.csd.response_buffer import ResponseBuffer
from papers.csd.student_share import AdaptiveShare, choose_source
from papers.csd.template_language import SUITES, entropy_floor, expected_length, sample_prompts, sample_responses
from papers.csd.testbed import LANGUAGE, WORDS, floor_per_token, parse_rate, read_prompts, to_texts
from shared.lm.batches import append_responses, left_padded, right_padded
from shared.lm.rouge import rouge_l
from shared.lm.tokenizer import build_tokenizer


def test_the_buffer_keeps_the_newest_and_draws_without_replacement():
    buffer = ResponseBuffer(3)
    buffer.push([([index], [index, 1]) for index in range(5)])
    assert len(buffer) == 3 and buffer.is_full
    assert buffer.tokens_written == 10, "those that gave way count too"
    drawn = buffer.draw(10, np.random.default_rng(0))
    assert sorted(prompt[0] for prompt, _ in drawn) == [2, 3, 4]
    firsts = [buffer.draw(1, np.random.default_rng(seed))[0][0][0] for seed in range(60)]
    assert set(firsts) == {2, 3, 4}
    with pytest.raises(ValueError, match="capacity"):
        ResponseBuffer(0)


def test_a_restored_buffer_draws_the_same(tmp_path):
    buffer, other = ResponseBuffer(4), ResponseBuffer(4)
    buffer.push([([index], [index]) for index in range(6)])
    other.push([([9], [9])])
    other.load_state_dict(buffer.state_dict())
    assert other.draw(4, np.random.default_rng(1)) == buffer.draw(4, np.random.default_rng(1))
    assert other.tokens_written == buffer.tokens_written == 6


def test_a_buffer_is_full_at_its_capacity_only():
    buffer = ResponseBuffer(2)
    buffer.push([([1], [1])])
    assert not buffer.is_full
    buffer.push([([1], [1])])
    assert buffer.is_full


@given(st.lists(st.floats(0, 10, allow_nan=False), max_size=40), st.floats(0, 2))
@settings(max_examples=80, deadline=None)
def test_the_share_counts_the_rises_of_the_validation_loss(losses, margin):
    share = AdaptiveShare(margin)
    for loss in losses:
        share.observe(loss)
    rises = sum(after >= before + margin for before, after in pairwise(losses))
    assert share.value == min(rises, 10) / 10


def test_a_share_is_restored_with_what_it_compares_to():
    share, other = AdaptiveShare(0.1), AdaptiveShare(0.1)
    for loss in (1.0, 1.2, 1.1):
        share.observe(loss)
    other.load_state_dict(share.state_dict())
    assert other.value == share.value == 0.1
    other.observe(1.19)
    assert other.value == 0.1
    other.observe(1.3)
    assert other.value == 0.2
    with pytest.raises(ValueError, match="margin"):
        AdaptiveShare(-0.1)


@pytest.mark.parametrize(
    ("draw", "share", "progress", "full", "source"),
    [
        (0.0, 0.0, 0.0, True, "data"),
        (0.39, 0.4, 0.0, True, "fresh"),
        (0.4, 0.4, 0.0, False, "data"),
        (0.19, 0.4, 0.5, True, "fresh"),
        (0.2, 0.4, 0.5, True, "replay"),
        (0.39, 0.4, 0.5, False, "fresh"),
        (0.0, 1.0, 1.0, True, "replay"),
    ],
)
def test_the_source_of_a_step(draw, share, progress, full, source):
    assert choose_source(draw, share, progress=progress, buffer_is_full=full) == source


def test_costs_stand_beside_all_rows_of_their_run():
    rows = pd.DataFrame(
        {"setting": ["a", "a / suite", "b", "a"], "method": ["m", "m", "m", "other"], "seed": 0, "value": 1.0},
        index=[5, 6, 7, 8],
    )  # fmt: skip
    spent = pd.DataFrame(
        {"setting": ["b", "a"], "method": "m", "seed": 0, "wall_seconds": [2.0, 1.0], "tokens_written": [20.0, 10.0]}
    )
    found = with_costs(rows, spent)
    assert found["wall_seconds"].tolist()[:3] == [1.0, 1.0, 2.0] and found["cost"].tolist()[:3] == [10.0, 10.0, 20.0]
    assert found[["wall_seconds", "cost"]].iloc[3].isna().all()


def test_offsets_by_hand():
    batch = right_padded([[5, 6], [7]], [[8, 1], [9, 5, 1]], pad_id=0)
    levels = torch.arange(10.0)
    offsets = context_offsets(batch, levels, 2.0)
    assert offsets.shape == (2, 3)
    # Columns 1, 2 and 3 hold targets; each is predicted from the tokens before it.
    expected = [[5.0, 11 / 2**0.5, 19 / 3**0.5], [7.0, 16 / 2**0.5, 21 / 3**0.5]]
    torch.testing.assert_close(offsets, 2 * torch.tensor(expected))


def test_offsets_do_not_depend_on_the_side_of_padding():
    prompts, responses = [[5, 6, 7], [8]], [[9, 1], [4, 1]]
    levels = token_levels(10)
    right = right_padded(prompts, responses, pad_id=0)
    left = append_responses(left_padded(prompts, pad_id=0), torch.tensor(responses), torch.ones(2, 2).bool())
    found = [
        context_offsets(batch, levels, 1.0)[batch.response_mask[:, batch.response_start :]] for batch in (right, left)
    ]
    torch.testing.assert_close(*found)


def test_offsets_of_random_contexts_have_the_amplitude():
    tokens = np.random.default_rng(0).integers(0, 5000, (400, 9))
    batch = right_padded(tokens[:, :8], tokens[:, 8:], pad_id=0)
    offsets = context_offsets(batch, token_levels(5000), 3.0)
    assert offsets.std().item() == pytest.approx(3.0, rel=0.1)


def test_the_grammar_accepts_its_own_texts_and_nothing_else():
    rng = np.random.default_rng(0)
    for suite in SUITES:
        asked = sample_prompts(LANGUAGE, suite, 50, rng)
        prompts = to_texts(asked.tokens)
        answers = to_texts(sample_responses(LANGUAGE, asked.verbs, asked.topics, rng))
        verbs, topics = read_prompts(prompts)
        assert (verbs == asked.verbs).all() and (topics == asked.topics).all()
        assert parse_rate(prompts, answers, [True] * 50).all()
        assert not parse_rate(prompts, answers, [False] * 50).any()
        assert not parse_rate(prompts, [f"{answer} <unk>" for answer in answers], [True] * 50).any()
        assert not parse_rate(prompts, [""] * 50, [True] * 50).any()


def test_texts_survive_the_tokenizer():
    tokenizer = build_tokenizer(WORDS)
    prompts = to_texts(sample_prompts(LANGUAGE, "long_distractors", 20, np.random.default_rng(1)).tokens)
    rows = tokenizer(prompts).input_ids
    assert all(row[0] == tokenizer.bos_token_id and row[-1] == tokenizer.sep_token_id for row in rows)
    assert max(map(len, rows)) <= LANGUAGE.max_prompt_length
    assert tokenizer.batch_decode(rows) == prompts


def test_rouge_tells_all_words_apart_without_the_stemmer():
    names = [name.strip("<>") for name in LANGUAGE.words]
    matches = [rouge_l([name] * len(names), [[other] for other in names], stemmer=False) for name in names[::13]]
    assert np.sum(matches) == len(matches)


def test_the_floor_is_entropy_over_length():
    asked = sample_prompts(LANGUAGE, "in_distribution", 30, np.random.default_rng(2))
    floor = floor_per_token(to_texts(asked.tokens))
    total = entropy_floor(LANGUAGE, asked.topics).sum() / expected_length(LANGUAGE, asked.topics).sum()
    assert floor == pytest.approx(total)


def test_suites_count_the_same_whatever_their_size():
    values = pd.DataFrame(
        {"setting": "s", "method": "m", "seed": 0, "metric": "rouge_l", "suite": ["a"] * 3 + ["b"],
         "prompt_id": [0, 1, 2, 0], "value": [1.0, 2.0, 6.0, 11.0]}
    )  # fmt: skip
    weighed = weigh_suites_equally(values)
    assert weighed["value"].mean() == pytest.approx((3 + 11) / 2)
    assert weighed["unit"].is_unique
    equal = values[values["prompt_id"] == 0]
    assert weigh_suites_equally(equal)["value"].tolist() == [1.0, 11.0]
