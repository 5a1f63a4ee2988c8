"""Mean token entropy: invariants 12 (padding) and 13."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papers.bpo.generation_metrics import mean_token_entropy


def random_case(seed: int, batch: int = 3, length: int = 5, vocabulary: int = 7):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(3 * rng.standard_normal((batch, length, vocabulary)))
    mask = torch.from_numpy(rng.random((batch, length)) < 0.6)
    mask[0, 0] = True
    return logits, mask


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), temperature=st.floats(0.3, 3))
def test_entropy_by_definition(seed, temperature):
    logits, mask = random_case(seed)
    entropies = []
    for row, kept in zip(logits.reshape(-1, 7).numpy(), mask.reshape(-1).numpy(), strict=True):
        weights = np.exp(row / temperature)
        p = weights / weights.sum()
        entropies += [-(p * np.log(p)).sum()] if kept else []
    got = mean_token_entropy(logits, mask, temperature=temperature).item()
    assert got == pytest.approx(np.mean(entropies), abs=1e-10)
    assert 0 <= got <= math.log(7)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_uniform_logits_have_the_entropy_of_the_vocabulary(temperature):
    logits = torch.full((2, 3, 46), 1.7, dtype=torch.float64)
    got = mean_token_entropy(logits, torch.ones(2, 3), temperature=temperature)
    assert got.item() == pytest.approx(math.log(46), abs=1e-10)


@pytest.mark.parametrize("other", [-math.inf, -1e4])
def test_a_certain_token_has_no_entropy(other):
    logits = torch.full((1, 2, 5), other, dtype=torch.float64)
    logits[:, :, 3] = 0.0
    assert mean_token_entropy(logits, torch.ones(1, 2)).item() == 0.0


def test_minus_inf_logits_contribute_nothing_and_leave_the_gradient_finite():
    logits = torch.tensor([[[0.0, 0.0, -math.inf, 0.0, -math.inf]]], dtype=torch.float64, requires_grad=True)
    got = mean_token_entropy(logits, torch.ones(1, 1))
    assert got.item() == pytest.approx(math.log(3), abs=1e-10)
    (gradient,) = torch.autograd.grad(got, logits)
    assert gradient.isfinite().all()


def test_gradient_against_finite_differences():
    logits, mask = random_case(1)
    assert torch.autograd.gradcheck(lambda x: mean_token_entropy(x, mask, temperature=0.7), logits.requires_grad_())


def test_low_temperature_lowers_entropy():
    logits, mask = random_case(2)
    values = [mean_token_entropy(logits, mask, temperature=t).item() for t in (0.2, 0.5, 1.0, 2.0)]
    assert values == sorted(values)
    tempered = mean_token_entropy(logits / 0.5, mask).item()
    assert values[1] == pytest.approx(tempered, abs=1e-12)


def test_tokens_weigh_equally_not_sequences():
    logits = torch.full((2, 4, 4), -math.inf, dtype=torch.float64)
    logits[:, :, 0] = 0.0
    logits[0] = 0.0  # the first sequence is uniform and has 3 tokens, the second certain and has 1
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    assert mean_token_entropy(logits, mask).item() == pytest.approx(0.75 * math.log(4), abs=1e-10)


@pytest.mark.parametrize("filler", [0.0, 1e30, -math.inf, math.nan])
def test_padding_and_prompt_positions_are_never_read(filler):
    logits, mask = random_case(3)
    expected = mean_token_entropy(logits, mask)
    filled = torch.where(mask[:, :, None], logits, filler)
    padded = torch.cat([filled, torch.full((3, 4, 7), filler, dtype=torch.float64)], dim=1)
    padded_mask = torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], dim=1)
    assert torch.equal(mean_token_entropy(padded, padded_mask), expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_mask_types_agree(dtype):
    logits, mask = random_case(4)
    assert torch.equal(mean_token_entropy(logits, mask.to(dtype)), mean_token_entropy(logits, mask))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_logits_are_reduced_in_float32(dtype):
    logits, mask = random_case(5)
    logits = logits.to(dtype)
    got = mean_token_entropy(logits, mask, temperature=0.7)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(mean_token_entropy(logits.double(), mask, temperature=0.7).item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_bad_temperature_is_named(temperature):
    with pytest.raises(ValueError, match=f"temperature.*{temperature}"):
        mean_token_entropy(torch.zeros(1, 1, 2), torch.ones(1, 1), temperature=temperature)


def test_empty_mask_is_refused():
    with pytest.raises(ValueError, match=r"response_mask.*empty"):
        mean_token_entropy(torch.zeros(2, 3, 4), torch.zeros(2, 3))


@pytest.mark.parametrize(("logits", "mask"), [((2, 3, 4), (2, 4)), ((2, 3, 4), (6,)), ((3, 4), (3,))])
def test_shapes_that_do_not_match_are_named(logits, mask):
    with pytest.raises(ValueError, match="logits must be"):
        mean_token_entropy(torch.zeros(logits), torch.ones(mask))
