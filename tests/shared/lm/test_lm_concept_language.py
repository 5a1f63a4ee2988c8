import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.lm.concept_language import ConceptLanguage
from shared.lm.tokenizer import build_tokenizer

LANGUAGE = ConceptLanguage()


def test_default_vocabulary_is_that_of_the_card():
    assert LANGUAGE.vocabulary_size == 40
    assert len(set(LANGUAGE.words())) == 36
    tokenizer = build_tokenizer(LANGUAGE.words())
    assert len(tokenizer) == LANGUAGE.vocabulary_size
    assert tokenizer.decode(LANGUAGE.token_ids(np.arange(9), 1)).split()[:2] == ["kitty", "hound"]


@given(st.integers(3, 12), st.integers(1, 6))
def test_ids_and_words_are_one_to_one(n_concepts, n_synonyms):
    language = ConceptLanguage(
        n_concepts, n_synonyms, prompt_length=2, synonym_probabilities=(1.0,) + (0.0,) * (n_synonyms - 1)
    )
    assert len(set(language.words())) == n_concepts * n_synonyms == language.vocabulary_size - 4
    ids = np.arange(language.vocabulary_size)
    concepts, synonyms = language.concept_of(ids), language.synonym_of(ids)
    assert (concepts[:4] == -1).all() and (synonyms[:4] == -1).all()
    np.testing.assert_array_equal(language.token_ids(concepts[4:], synonyms[4:]), ids[4:])
    assert concepts.max() == language.boilerplate_concept and synonyms.max() == n_synonyms - 1


def test_prompts_name_distinct_content_concepts_uniformly():
    prompts = LANGUAGE.prompts(20_000, np.random.default_rng(0))
    assert prompts.shape == (20_000, 6) and prompts.dtype == np.int64
    assert (prompts[:, 0] == 2).all() and (prompts[:, -1] == 3).all()
    concepts = LANGUAGE.concept_of(prompts[:, 1:-1])
    assert (np.diff(np.sort(concepts, axis=1), axis=1) > 0).all()
    counts = np.bincount(prompts[:, 1:-1].ravel(), minlength=40)
    assert (counts[:4] == 0).all() and (counts[36:] == 0).all()
    np.testing.assert_allclose(counts[4:36] / counts.sum(), 1 / 32, atol=0.003)


def test_answers_have_the_statistics_stated():
    rng = np.random.default_rng(1)
    prompts = LANGUAGE.prompts(50_000, rng)
    answers = LANGUAGE.answers(prompts, rng)
    assert answers.shape == (50_000, 5) and (answers[:, -1] == 1).all()
    asked, named = LANGUAGE.concept_of(prompts[:, 1:-1]), LANGUAGE.concept_of(answers[:, :-1])
    boilerplate = named == LANGUAGE.boilerplate_concept
    error = ~boilerplate & (named != asked)
    assert abs((named == asked).mean() - 0.82) < 0.005
    assert abs(boilerplate.mean() - 0.15) < 0.005
    assert abs(error.mean() - 0.03) < 0.002
    # errors are uniform over the seven other content concepts
    offsets = np.bincount((named - asked)[error] % 8, minlength=8)
    assert offsets[0] == 0
    np.testing.assert_allclose(offsets[1:] / offsets.sum(), 1 / 7, atol=0.02)
    synonyms = np.bincount(LANGUAGE.synonym_of(answers[:, :-1]).ravel())
    np.testing.assert_allclose(synonyms / synonyms.sum(), LANGUAGE.synonym_probabilities, atol=0.005)


def test_answer_entropy_is_that_of_the_samples():
    language = ConceptLanguage(n_concepts=4, prompt_length=1, boilerplate_rate=0.3, other_concept_rate=0.2)
    rng = np.random.default_rng(2)
    prompts = np.tile(language.prompts(1, rng), (200_000, 1))
    counts = np.bincount(language.answers(prompts, rng)[:, 0])
    frequencies = counts[counts > 0] / counts.sum()
    assert abs(-(frequencies * np.log(frequencies)).sum() / 2 - language.answer_entropy) < 0.005
    assert abs(LANGUAGE.answer_entropy - 1.170) < 0.001


def test_same_seed_same_samples():
    first, second = (LANGUAGE.prompts(5, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("argument", "kwargs"),
    [
        ("n_concepts", {"n_concepts": 2, "prompt_length": 1}),
        ("prompt_length", {"prompt_length": 9}),
        ("boilerplate_rate", {"boilerplate_rate": 0.99}),
        ("other_concept_rate", {"other_concept_rate": -0.1}),
        ("synonym_probabilities", {"synonym_probabilities": (0.5, 0.5)}),
        ("synonym_probabilities", {"synonym_probabilities": (0.5, 0.5, 0.5, -0.5)}),
    ],
)
def test_bad_parameters_are_named(argument, kwargs):
    with pytest.raises(ValueError, match=argument):
        ConceptLanguage(**kwargs)


def test_prompts_of_another_length_are_refused():
    with pytest.raises(ValueError, match="prompts"):
        LANGUAGE.answers(np.zeros((3, 5), dtype=int), np.random.default_rng(0))
