import itertools

import pytest
import torch
from torch import nn
from transformers import NoRepeatNGramLogitsProcessor

from shared.lm.batches import left_padded
from shared.lm.generation import evaluation_mode, response_rows, sample_responses, sample_token_rows
from shared.lm.options import SamplingOptions

PROMPTS = [[2, 5, 3], [2, 5, 6, 7, 8, 3], [4]]
NEVER = 99


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _sample(model, prompts, options, *, eos_id=NEVER, seed=0, processors=()):
    return sample_responses(
        model,
        left_padded(prompts, pad_id=0),
        options,
        eos_id=eos_id,
        pad_id=0,
        generator=_generator(seed),
        processors=processors,
    )


def _greedy_by_recomputation(model, prompt, n_tokens):
    tokens = list(prompt)
    for _ in range(n_tokens):
        tokens.append(model(torch.tensor([tokens])).logits[0, -1].argmax().item())
    return tokens[len(prompt) :]


@torch.no_grad()
def test_cached_left_padded_greedy_equals_recomputation_without_padding(decoder):
    responses, mask = _sample(decoder, PROMPTS, SamplingOptions(6, temperature=0))
    assert mask.all()
    assert responses.tolist() == [_greedy_by_recomputation(decoder, prompt, 6) for prompt in PROMPTS]


class _RecordLogits:
    def __init__(self):
        self.seen = []

    def __call__(self, sequence, logits):
        self.seen.append((sequence.clone(), logits.clone()))
        return logits


@torch.no_grad()
def test_each_draw_sees_the_logits_of_the_full_forward(decoder):
    record = _RecordLogits()
    _sample(decoder, PROMPTS, SamplingOptions(5), processors=[record])
    assert len(record.seen) == 5
    for sequence, logits in record.seen:
        assert logits.dtype == torch.float32
        for row, prompt in enumerate(PROMPTS):
            tokens = sequence[row, max(map(len, PROMPTS)) - len(prompt) :]
            assert tokens[: len(prompt)].tolist() == prompt
            torch.testing.assert_close(logits[row], decoder(tokens[None]).logits[0, -1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (SamplingOptions(1), 13),
        (SamplingOptions(1, temperature=0.5), 13),
        (SamplingOptions(1, temperature=1.7, top_k=3), 3),
        (SamplingOptions(1, top_p=0.6), None),
    ],
)
def test_frequencies_match_the_softmax_whatever_the_padding(gpt2, options, kept):
    """Both prompts are drawn in one batch, so that the short one is padded."""
    n = 20_000
    responses, _ = _sample(gpt2, [PROMPTS[0]] * n + [PROMPTS[1]] * n, options)
    for prompt, tokens in zip(PROMPTS[:2], responses[:, 0].split(n), strict=True):
        logits = gpt2(torch.tensor([prompt])).logits[0, -1] / options.temperature
        expected = logits.softmax(-1)
        order = expected.argsort(descending=True)
        if kept is None:
            kept_here = int((expected[order].cumsum(0) < options.top_p).sum()) + 1
            assert 1 < kept_here < 13, "the case must cut something and keep something"
        else:
            kept_here = kept
        expected[order[kept_here:]] = 0
        expected /= expected.sum()
        frequencies = torch.bincount(tokens, minlength=13) / n
        assert (frequencies[expected == 0] == 0).all()
        error = (frequencies - expected).abs() / (expected * (1 - expected) / n).sqrt().clamp_min(1e-9)
        assert error[expected > 0].max() < 4.5


class _Scripted(nn.Module):
    """Says row r's script, one token per call."""

    def __init__(self, scripts):
        super().__init__()
        self.scripts = torch.tensor(scripts)
        self.calls = 0
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, **_):
        logits = nn.functional.one_hot(self.scripts[:, self.calls], 13).float() * 100
        self.calls += 1

        class Output:
            past_key_values = None

        Output.logits = logits[:, None]
        return Output


def test_responses_end_after_eos_and_sampling_stops_when_all_have_ended():
    model = _Scripted([[5, 1, 7, 7, 7, 7], [1, 1, 1, 1, 1, 1], [5, 6, 7, 1, 8, 8]])
    responses, mask = _sample(model, [[2], [2], [2]], SamplingOptions(6), eos_id=1)
    assert responses.tolist() == [[5, 1, 0, 0], [1, 0, 0, 0], [5, 6, 7, 1]]
    assert mask.int().tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert mask.dtype == torch.bool
    assert model.calls == 4


def test_a_response_without_eos_is_cut_off():
    model = _Scripted([[5, 6, 7, 8, 9, 10], [5, 1, 7, 7, 7, 7]])
    responses, mask = _sample(model, [[2], [2]], SamplingOptions(3), eos_id=1)
    assert responses.tolist() == [[5, 6, 7], [5, 1, 0]]
    assert mask.int().tolist() == [[1, 1, 1], [1, 1, 0]]


def test_eos_may_be_the_pad_token():
    model = _Scripted([[5, 0, 7], [5, 6, 0]])
    responses, mask = _sample(model, [[2], [2]], SamplingOptions(3), eos_id=0)
    assert mask.int().tolist() == [[1, 1, 0], [1, 1, 1]]
    assert responses.tolist() == [[5, 0, 0], [5, 6, 0]]


def test_samples_depend_on_the_generator_alone(gpt2):
    options = SamplingOptions(6, top_k=8, top_p=0.9)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, _ = _sample(gpt2, PROMPTS, options, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(_sample(gpt2, PROMPTS, options, seed=3)[0], first)
    assert not torch.equal(_sample(gpt2, PROMPTS, options, seed=4)[0], first)


def test_transformers_processors_can_be_used(gpt2):
    options = SamplingOptions(12, temperature=0)
    plain, _ = _sample(gpt2, PROMPTS[:1], options)
    blocked, _ = _sample(gpt2, PROMPTS[:1], options, processors=[NoRepeatNGramLogitsProcessor(2)])

    def repeats(tokens):
        pairs = list(itertools.pairwise(tokens))
        return len(pairs) - len(set(pairs))

    assert repeats(plain[0].tolist()) > 0 and repeats(blocked[0].tolist()) == 0


def test_rows_of_any_number_come_back_in_order(gpt2):
    prompts = [[2, 3 + i % 5] for i in range(7)]
    options = SamplingOptions(4, temperature=0)
    rows = sample_token_rows(gpt2, prompts, options, eos_id=1, pad_id=0, generator=_generator(), batch_size=3)
    assert len(rows) == 7
    for prompt, row in zip(prompts, rows, strict=True):
        expected = _greedy_by_recomputation(gpt2, prompt, 4)
        assert row == (expected[: expected.index(1) + 1] if 1 in expected else expected)


def test_evaluation_mode_is_undone():
    training, evaluating = nn.Linear(1, 1).train(), nn.Linear(1, 1).eval()
    with pytest.raises(RuntimeError), evaluation_mode(training, evaluating):
        assert not training.training and not torch.is_grad_enabled()
        raise RuntimeError
    assert training.training and not evaluating.training and torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("argument", "kwargs"),
    [
        ("max_new_tokens", {"max_new_tokens": 0}),
        ("temperature", {"max_new_tokens": 1, "temperature": -1.0}),
        ("top_k", {"max_new_tokens": 1, "top_k": 0}),
        ("top_p", {"max_new_tokens": 1, "top_p": 0.0}),
        ("top_p", {"max_new_tokens": 1, "top_p": 1.1}),
    ],
)
def test_bad_options_are_named(argument, kwargs):
    with pytest.raises(ValueError, match=argument):
        SamplingOptions(**kwargs)


def test_rows_end_where_their_mask_ends():
    responses = torch.tensor([[5, 1, 0], [6, 7, 8]])
    assert response_rows(responses, torch.tensor([[True, True, False], [True] * 3])) == [[5, 1], [6, 7, 8]]
