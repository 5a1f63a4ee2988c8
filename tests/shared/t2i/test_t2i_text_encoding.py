import pytest
import torch
from safety_cases import tiny_pipeline

from shared.t2i.captions import WordTokenizer
from shared.t2i.testbed import text_of
from shared.t2i.text_encoding import PLACEHOLDER


@pytest.fixture(scope="module")
def system():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def text(system):
    return text_of(system)


def test_states_are_those_of_the_pipeline(system, text):
    captions = ["a red ring", "", "two tees and a zorp"]
    assert torch.equal(text.embed(captions), system.embed(captions))


def test_pooled_states_are_those_of_the_model(system, text):
    ids = WordTokenizer().encode(["a red ring", "a tee"])
    torch.testing.assert_close(text.pooled(["a red ring", "a tee"]), system.text_encoder(input_ids=ids).pooler_output)


def test_masked_prompts_lack_one_token_each(system, text):
    ids = WordTokenizer().encode(["a red ring"])
    for place, row in enumerate(text.masked_pooled("a red ring")):
        masked = ids.clone()
        masked[0, place + 1] = WordTokenizer.pad_id
        torch.testing.assert_close(row, system.text_encoder(input_ids=masked).pooler_output[0])


def test_a_word_of_ones_own_is_the_token_whose_vector_it_has(text):
    vector = text.table[WordTokenizer().encode(["zorp"])[0, 1]].detach()
    torch.testing.assert_close(text.embed([f"a {PLACEHOLDER}"], vector), text.embed(["a zorp"]))
    torch.testing.assert_close(text.pooled([f"a {PLACEHOLDER}"], vector), text.pooled(["a zorp"]))
    torch.testing.assert_close(text.masked_pooled(f"a {PLACEHOLDER}", vector), text.masked_pooled("a zorp"))
    assert torch.equal(text.embed(["a ring"], vector), text.embed(["a ring"]))  # a text without it


def test_only_the_word_gets_a_gradient(text):
    before = {name: value.clone() for name, value in text.model.state_dict().items()}
    word = torch.randn(64, requires_grad=True)
    text.states(text.tokenize([PLACEHOLDER]), word).sum().backward()
    assert word.grad.abs().sum() > 0
    assert all(value.grad is None for value in text.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in text.model.state_dict().items())
