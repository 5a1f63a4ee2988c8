"""The selector's invariants, in float64 and by enumeration of all selections."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from papers.reic.policy_gradient import reinforce_loss
from papers.reic.selector import SentenceSelector, StatelessSelector, uniform_picks


@pytest.fixture(scope="module")
def selector() -> SentenceSelector:
    """D = 4, H = 3, five hidden units, scores that differ clearly; no dropout."""
    torch.manual_seed(0)
    found = SentenceSelector(4, 3, 5, dropout=0.0).double()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(3)
    return found


def documents(count=3, most=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return target, torch.randn(count, most, 4, generator=generator, dtype=torch.float64)


def enumerated(selector, target, sentences, steps):
    """All ordered selections of one document (N, K), with their log pi (N,)."""
    length = sentences.shape[1]
    rows = torch.tensor(list(itertools.permutations(range(length), steps)))
    scores = selector.score_actions(
        target.expand(len(rows), -1), sentences.expand(len(rows), -1, -1), torch.full((len(rows),), length), rows
    )
    return rows, scores.sum(1)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_probabilities_of_all_selections_sum_to_one(selector, steps):
    target, sentences = documents(1)
    _, log_pi = enumerated(selector, target, sentences, steps)
    assert log_pi.exp().sum().item() == pytest.approx(1, abs=1e-10)
    assert log_pi.exp().std() > 1e-3  # not the uniform policy


def test_an_exhausted_document_stops(selector):
    target, sentences = documents()
    lengths = torch.tensor([2, 0, 1])
    picked = selector(target, sentences.requires_grad_(), lengths, 4, greedy=False)
    assert (picked.indices == -1).tolist() == [[False] * 2 + [True] * 2, [True] * 4, [False] + [True] * 3]
    assert sorted(picked.indices[0, :2].tolist()) == [0, 1]
    # the last candidate of a document has probability 1, and afterwards log-probabilities are 0
    assert torch.all(picked.log_probs[:, 1:].masked_select(picked.indices[:, 1:] == -1) == 0)
    assert picked.log_probs[0, 1].item() == pytest.approx(0, abs=1e-12) == picked.log_probs[2, 0].item()
    assert picked.log_probs[0, 0] < 0
    picked.log_probs.sum().backward()
    assert sentences.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in selector.parameters() if parameter.grad is not None)
    selector.zero_grad()


def test_no_candidates_and_no_steps_are_legal(selector):
    target, sentences = documents()
    none = selector(target, sentences[:, :0], torch.zeros(3, dtype=torch.long), 2, greedy=True)
    assert none.indices.tolist() == [[-1, -1]] * 3 and none.log_probs.tolist() == [[0.0, 0.0]] * 3
    assert selector(target, sentences, torch.tensor([1, 2, 3]), 0, greedy=True).indices.shape == (3, 0)
    one = selector(target, sentences[:, :1], torch.ones(3, dtype=torch.long), 1, greedy=False)
    assert one.indices.tolist() == [[0]] * 3


@given(st.permutations(range(4)))
def test_a_permutation_of_candidates_permutes_picks(selector, order):
    target, sentences = documents()
    lengths = torch.full((3,), 4)
    before = selector(target, sentences, lengths, 3, greedy=True)
    after = selector(target, sentences[:, list(order)], lengths, 3, greedy=True)
    assert torch.equal(torch.tensor(order)[after.indices], before.indices)
    torch.testing.assert_close(after.log_probs, before.log_probs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("value", [1e6, math.nan])
def test_padding_changes_nothing(selector, value):
    target, sentences = documents()
    lengths = torch.tensor([2, 3, 4])
    plain = selector(target, sentences, lengths, 3, greedy=True)
    spoilt = torch.cat([sentences, torch.zeros(3, 2, 4)], 1)
    for row, length in enumerate(lengths):
        spoilt[row, length:] = value
    spoilt.requires_grad_()
    other = selector(target, spoilt, lengths, 3, greedy=True)
    assert torch.equal(plain.indices, other.indices)
    torch.testing.assert_close(plain.log_probs, other.log_probs, atol=1e-10, rtol=0)
    other.log_probs.sum().backward()
    assert spoilt.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in selector.parameters())
    selector.zero_grad()


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(0, 8), st.booleans(), st.sampled_from([0, 0.5]))
def test_picks_never_repeat(selector, lengths, steps, greedy, exploration):
    target, sentences = documents(len(lengths), 6)
    indices = selector(target, sentences, torch.tensor(lengths), steps, greedy=greedy, exploration=exploration).indices
    for row, length in zip(indices.tolist(), lengths, strict=True):
        real = [pick for pick in row if pick >= 0]
        assert len(real) == min(steps, length) == len(set(real)) and all(pick < length for pick in real)
        assert row[len(real) :] == [-1] * (steps - len(real))


def test_greedy_takes_the_most_probable_step_by_step(selector):
    target, sentences = documents(1)
    picked = selector(target, sentences, torch.tensor([4]), 3, greedy=True)
    prefix: list[int] = []
    for pick in picked.indices[0].tolist():
        left = [index for index in range(4) if index not in prefix]
        scores = [
            selector.score_actions(target, sentences, torch.tensor([4]), torch.tensor([[*prefix, index]]))[0, -1]
            for index in left
        ]
        assert pick == left[int(torch.stack(scores).argmax())]
        prefix.append(pick)
    selector.eval()
    assert torch.equal(picked.indices, selector(target, sentences, torch.tensor([4]), 3, greedy=True).indices)
    selector.train()


def test_a_zero_output_layer_is_the_uniform_policy():
    torch.manual_seed(1)
    uniform = SentenceSelector(4, 3, 5, dropout=0.0).double()
    torch.nn.init.zeros_(uniform.mlp2.weight)
    target, sentences = documents()
    lengths = torch.tensor([2, 3, 4])
    picked = uniform(target, sentences, lengths, 2, greedy=False)
    expected = [-math.log(length) - math.log(length - 1) for length in lengths.tolist()]
    torch.testing.assert_close(picked.log_probs.sum(1), torch.tensor(expected, dtype=torch.float64), atol=1e-10, rtol=0)


def test_exploration_is_uniform_and_carries_no_gradient(selector):
    target, sentences = documents(1)
    many = 6000
    picked = selector(
        target.expand(many, -1), sentences.expand(many, -1, -1), torch.full((many,), 4), 2, greedy=False,
        exploration=1.0, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    torch.testing.assert_close(picked.log_probs[0], -torch.tensor([4.0, 3.0]).double().log(), atol=1e-10, rtol=0)
    shares = torch.bincount(picked.indices[:, 0], minlength=4) / many
    assert (shares - 0.25).abs().max() < 0.03
    pairs = torch.bincount(picked.indices[:, 0] * 4 + picked.indices[:, 1], minlength=16)
    assert (pairs > 0).sum() == 12 and pairs.max() / many < 1 / 12 + 0.02
    (gradient,) = torch.autograd.grad(picked.log_probs.sum(), selector.mlp1.weight, allow_unused=True)
    assert gradient is None or torch.all(gradient == 0)


def test_scores_of_actions_are_those_of_the_forward_pass(selector):
    target, sentences = documents()
    lengths = torch.tensor([4, 1, 0])
    for greedy in (True, False):
        picked = selector(target, sentences, lengths, 3, greedy=greedy)
        again = selector.score_actions(target, sentences, lengths, picked.indices)
        torch.testing.assert_close(again, picked.log_probs, atol=1e-10, rtol=0)


def test_first_picks_follow_the_policy(selector):
    target, sentences = documents(1)
    many = 20_000
    picked = selector(
        target.expand(many, -1), sentences.expand(many, -1, -1), torch.full((many,), 4), 1, greedy=False,
        generator=torch.Generator().manual_seed(0),
    ).indices[:, 0]  # fmt: skip
    _, log_pi = enumerated(selector, target, sentences, 1)
    shares = torch.bincount(picked, minlength=4) / many
    assert (shares - log_pi.exp()).abs().max() < 0.02


@pytest.mark.parametrize("baseline", ["none", "mean", "leave_one_out"])
def test_the_policy_gradient_by_enumeration_and_by_sampling(selector, baseline):
    """sum pi R grad log pi = grad sum pi R; and the estimator finds it within its standard error."""
    target, sentences = documents(1)
    rows, log_pi = enumerated(selector, target, sentences, 2)
    rewards = torch.randn(len(rows), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = selector.mlp1.weight
    (exact,) = torch.autograd.grad((log_pi.exp() * rewards).sum(), weight, retain_graph=True)
    (score,) = torch.autograd.grad((log_pi.exp().detach() * rewards * log_pi).sum(), weight, retain_graph=True)
    torch.testing.assert_close(score, exact, atol=1e-9, rtol=0)
    # Estimates of 8 paths each, as batches would give them, from the gradients of every selection
    table = torch.stack([torch.autograd.grad(each, weight, retain_graph=True)[0].flatten() for each in log_pi])
    paths, repeats = 8, 4000
    drawn = torch.multinomial(
        log_pi.detach().exp(), paths * repeats, replacement=True, generator=torch.Generator().manual_seed(2)
    ).view(repeats, paths)
    estimates = []
    for batch in drawn[:20]:  # the loss itself, against the table that stands for it below
        log_probs = log_pi.detach()[batch].requires_grad_()
        reinforce_loss(log_probs, rewards[batch], baseline=baseline).backward()
        estimates.append(-log_probs.grad @ table[batch] / paths)
    earned = rewards[drawn]
    centered = earned - earned.mean(1, keepdim=True)
    advantage = {"none": earned, "mean": centered, "leave_one_out": centered * paths / (paths - 1)}[baseline]
    values = torch.einsum("rp,rpw->rw", advantage, table[drawn]) / paths
    torch.testing.assert_close(torch.stack(estimates), values[:20], atol=1e-10, rtol=0)
    factor = 1 - 1 / paths if baseline == "mean" else 1
    error = values.std(0) / repeats**0.5
    assert ((values.mean(0) - factor * exact.flatten()).abs() <= 4.5 * error + 1e-12).all()


def naive_log_probs(selector, target, sentences, indices):
    """The policy written down naively: one product with [z; h] per step and document, no padding."""
    hidden = cell = torch.zeros(1, selector.lstm_cell.hidden_size, dtype=torch.float64)
    last, result, left = target[None], [], list(range(len(sentences)))
    for pick in indices:
        hidden, cell = selector.lstm_cell(last, (hidden, cell))
        joined = torch.cat([sentences, hidden.expand(len(sentences), -1)], 1)
        scores = selector.mlp2(torch.tanh(selector.mlp1(joined)))[:, 0]
        result.append(scores[left].log_softmax(0)[left.index(pick)])
        left.remove(pick)
        last = sentences[pick][None]
    return torch.stack(result)


def test_the_split_product_is_the_naive_policy(selector):
    target, sentences = documents()
    picked = selector(target, sentences, torch.tensor([4, 4, 4]), 3, greedy=False)
    for row in range(3):
        expected = naive_log_probs(selector, target[row], sentences[row], picked.indices[row].tolist())
        torch.testing.assert_close(picked.log_probs[row], expected, atol=1e-10, rtol=0)


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    dropped = SentenceSelector(4, 3, 5, dropout=0.5).double()
    target, sentences = documents()
    lengths = torch.full((3,), 4)

    def values():
        return dropped(target, sentences, lengths, 3, greedy=True).log_probs

    assert not torch.equal(values(), values())
    dropped.eval()
    assert torch.equal(values(), values())
    one_mask = SentenceSelector(4, 3, 5, dropout=0.5, one_mask=True).double()
    one_mask.load_state_dict(dropped.state_dict())
    one_mask.eval()
    assert torch.equal(one_mask(target, sentences, lengths, 3, greedy=True).log_probs, values())


def test_without_state_greedy_picks_are_the_best_scores(selector):
    stateless = StatelessSelector(4, 3, 5, dropout=0.0).double()
    stateless.load_state_dict(selector.state_dict())
    target, sentences = documents()
    picked = stateless(target, sentences, torch.full((3,), 4), 4, greedy=True).indices
    zeros = torch.zeros(3, 4, 3, dtype=torch.float64)
    scores = stateless.mlp2(torch.tanh(stateless.mlp1(torch.cat([sentences, zeros], 2)))).squeeze(-1)
    assert torch.equal(picked, scores.argsort(1, descending=True))


def test_the_parameters_are_those_of_official_checkpoints():
    shapes = {name: tuple(value.shape) for name, value in SentenceSelector().state_dict().items()}
    assert shapes == {
        "lstm_cell.weight_ih": (2048, 768), "lstm_cell.weight_hh": (2048, 512),
        "lstm_cell.bias_ih": (2048,), "lstm_cell.bias_hh": (2048,),
        "mlp1.weight": (512, 1280), "mlp1.bias": (512,), "mlp2.weight": (1, 512), "mlp2.bias": (1,),
    }  # fmt: skip


def test_uniform_picks():
    lengths = torch.tensor([5, 2, 0])
    generator = torch.Generator().manual_seed(0)
    picks = torch.stack([uniform_picks(lengths, 3, generator) for _ in range(3000)])
    assert (
        (picks[:, 2] == -1).all()
        and (picks[:, 1, 2] == -1).all()
        and picks[:, 1, :2].sort(1).values.eq(torch.tensor([0, 1])).all()
    )
    shares = torch.bincount(picks[:, 0].flatten(), minlength=5) / 9000
    assert (shares - 0.2).abs().max() < 0.02 and picks[:, 0].sort(1).values.diff(dim=1).min() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": torch.zeros(3, 5).double()}, "target: need shape"),
        ({"sentences": torch.zeros(3, 4, 5).double()}, "sentences: need shape"),
        ({"sentences": torch.zeros(2, 4, 4).double()}, "sentences: need shape"),
        ({"lengths": torch.tensor([1, 2])}, "lengths: need integers"),
        ({"lengths": torch.tensor([1, 2, 5])}, r"lengths: must lie in \[0, 4\]"),
        ({"lengths": torch.tensor([1, -1, 3])}, r"lengths: must lie in \[0, 4\]"),
        ({"num_steps": -1}, "num_steps: must not be negative"),
        ({"exploration": 1.5}, "exploration: must lie in"),
    ],
)
def test_wrong_arguments(selector, changes, message):
    target, sentences = documents()
    arguments = {"target": target, "sentences": sentences, "lengths": torch.tensor([1, 2, 3]), "num_steps": 2}
    with pytest.raises(ValueError, match=message):
        selector(**arguments | changes, greedy=True)


@pytest.mark.parametrize(
    "indices", [[[0, 0], [0, 1]], [[0, 4], [0, 1]], [[0, -1], [0, 1]], [[0, 1], [0, 2]], [[-1, 0], [0, 1]], [[0, 1]]]
)
def test_unavailable_picks(selector, indices):
    target, sentences = documents(2)
    with pytest.raises(ValueError, match="indices"):
        selector.score_actions(target, sentences, torch.tensor([4, 2]), torch.tensor(indices))
