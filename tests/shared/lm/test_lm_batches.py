import pytest
import torch

from shared.lm.batches import append_responses, left_padded, right_padded

PROMPTS = [[2, 5, 3], [2, 5, 6, 7, 3]]
RESPONSES = [[8, 9, 1], [8, 1]]


def test_right_padding():
    batch = right_padded(PROMPTS, RESPONSES, pad_id=0)
    assert batch.input_ids.tolist() == [[2, 5, 3, 8, 9, 1, 0], [2, 5, 6, 7, 3, 8, 1]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1, 1, 0], [1] * 7]
    assert batch.response_mask.int().tolist() == [[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1]]
    assert batch.response_start == 3
    assert batch.response_lengths.tolist() == [3, 2]
    assert batch.input_ids.dtype == torch.int64 and batch.response_mask.dtype == torch.bool


def test_left_padding_ends_prompts_together():
    prompts = left_padded(PROMPTS, pad_id=0)
    assert prompts.input_ids.tolist() == [[0, 0, 2, 5, 3], [2, 5, 6, 7, 3]]
    assert prompts.attention_mask.tolist() == [[0, 0, 1, 1, 1], [1] * 5]
    assert prompts.position_ids.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]


def test_appended_responses_start_in_one_column_and_continue_the_positions():
    responses = torch.tensor([[8, 9, 1], [8, 1, 0]])
    batch = append_responses(left_padded(PROMPTS, pad_id=0), responses, responses != 0)
    assert batch.input_ids.tolist() == [[0, 0, 2, 5, 3, 8, 9, 1], [2, 5, 6, 7, 3, 8, 1, 0]]
    assert batch.response_mask.int().tolist() == [[0] * 5 + [1, 1, 1], [0] * 5 + [1, 1, 0]]
    assert batch.position_ids.tolist() == [[0, 0, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 6]]
    assert batch.response_start == 5
    assert batch.response_lengths.tolist() == [3, 2]


def test_rows_can_be_selected():
    batch = right_padded(PROMPTS, RESPONSES, pad_id=0)
    for rows in (slice(1, 2), torch.tensor([1])):
        part = batch[rows]
        assert len(part) == 1 and part.response_start == 3
        assert part.input_ids.tolist() == [batch.input_ids[1].tolist()]
        assert part.response_lengths.tolist() == [2]


def test_pad_id_may_be_any_token():
    batch = right_padded([[5], [5, 5]], [[7], [7, 7]], pad_id=7)
    assert batch.input_ids.tolist() == [[5, 7, 7, 7], [5, 5, 7, 7]]
    assert batch.response_lengths.tolist() == [1, 2]


@pytest.mark.parametrize("prompts", [[], [[1], []]])
def test_a_prompt_is_needed(prompts):
    with pytest.raises(ValueError, match="prompts"):
        left_padded(prompts, pad_id=0)
    with pytest.raises(ValueError, match="prompts"):
        right_padded(prompts, [[1]] * len(prompts), pad_id=0)


def test_mismatched_responses_are_refused():
    with pytest.raises(ValueError, match="responses"):
        right_padded(PROMPTS, RESPONSES[:1], pad_id=0)
    with pytest.raises(ValueError, match="responses"):
        append_responses(left_padded(PROMPTS, pad_id=0), torch.zeros(2, 3), torch.ones(2, 4))
