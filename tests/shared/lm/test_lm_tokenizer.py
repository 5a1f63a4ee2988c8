import pytest
from transformers import AutoTokenizer

from shared.lm.tokenizer import build_tokenizer

WORDS = ["cat", "kitty's", "concept0-1", "don't", "."]


def test_ids_follow_the_order_given(tmp_path):
    build_tokenizer(WORDS).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id] == [
        0,
        1,
        2,
        3,
    ]
    assert tokenizer.convert_tokens_to_ids(WORDS) == [4, 5, 6, 7, 8]
    assert len(tokenizer) == 9


def test_decoding_inverts_encoding_and_nothing_is_added(tmp_path):
    build_tokenizer(WORDS).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "<bos> don't cat . <sep> kitty's concept0-1 <eos>"
    ids = tokenizer(text).input_ids
    assert ids == [2, 7, 4, 8, 3, 5, 6, 1]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == "don't cat . kitty's concept0-1"


def test_batches_are_padded_on_the_left():
    batch = build_tokenizer(WORDS)(["cat", "cat . cat"], padding=True)
    assert batch.input_ids == [[0, 0, 4], [4, 8, 4]]
    assert batch.attention_mask == [[0, 0, 1], [1, 1, 1]]


def test_an_unknown_word_is_an_error():
    with pytest.raises(Exception, match="UNK"):
        build_tokenizer(WORDS)("cat dog")


@pytest.mark.parametrize("words", [["a", "a"], ["<eos>"], ["two words"], [""]])
def test_bad_words_are_named(words):
    with pytest.raises(ValueError, match="words"):
        build_tokenizer(words)


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        build_tokenizer(WORDS).save_pretrained(tmp_path / folder)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
