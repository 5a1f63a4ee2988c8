import math
from typing import NamedTuple

import pytest
import torch
from torch.nn import functional as F

from papers.rent.importance_weighting import (
    backward_corrected_cross_entropy,
    forward_corrected_cross_entropy,
    transition_importance_weights,
)
from papers.rent.transition_matrix import symmetric_transition
from papers.rent.utilization import (
    WEIGHTINGS,
    Utilization,
    clean_weight_shares,
    sample_weights,
    utilization_losses,
)
from papers.rent.weight_sampling import resample_indices, sample_dirichlet_weights

TRANSITION = symmetric_transition(5, 0.3)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _batch(seed=0, size=16, dtype=torch.float64):
    generator = _generator(seed)
    logits = 2 * torch.randn(size, 5, dtype=torch.float64, generator=generator)
    return logits.to(dtype), torch.randint(5, (size,), generator=generator)


class _Step(NamedTuple):
    loss: torch.Tensor
    weights: torch.Tensor
    fell_back: bool


def _loss(text, logits, labels, seed=0, transition=TRANSITION):
    """The loss of a single member."""
    found = utilization_losses([Utilization.parse(text)], logits[None], labels, transition[None], [_generator(seed)])
    return _Step(found.loss, found.weights[0], bool(found.fell_back))


@pytest.mark.parametrize("text", ["ce", "rw", "rw_norm", "rent", "b0", "fl", "backward"])
def test_names_parse(text):
    assert Utilization.parse(text) == Utilization(text)


@pytest.mark.parametrize(
    ("text", "alpha"), [("dws:0.1", 0.1), ("dws:0", 0.0), ("dws:1e3", 1000.0), ("dws:inf", math.inf)]
)
def test_concentrations_parse(text, alpha):
    assert Utilization.parse(text) == Utilization("dws", alpha)


@pytest.mark.parametrize("text", ["", "dws", "dws:", "dws:-1", "dws:nan", "dws:a", "rent:1", "rent:", "RENT", "mae"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"^utilization: "):
        Utilization.parse(text)


def test_losses_with_a_known_value():
    logits, labels = _batch()
    w = transition_importance_weights(logits, labels, TRANSITION)
    cross_entropies = F.cross_entropy(logits, labels, reduction="none")
    expected = {
        "ce": cross_entropies.mean(),
        "rw": (w * cross_entropies).mean(),
        "rw_norm": (w * cross_entropies).sum() / w.sum(),
        "dws:inf": (w * cross_entropies).sum() / w.sum(),
        "fl": forward_corrected_cross_entropy(logits, labels, TRANSITION),
        "backward": backward_corrected_cross_entropy(logits, labels, TRANSITION),
    }
    for text, value in expected.items():
        torch.testing.assert_close(_loss(text, logits, labels).loss, value, msg=text)


def test_rent_is_plain_cross_entropy_on_the_drawn_samples():
    logits, labels = _batch()
    drawn = resample_indices(transition_importance_weights(logits, labels, TRANSITION), generator=_generator(3))
    torch.testing.assert_close(_loss("rent", logits, labels, 3).loss, F.cross_entropy(logits[drawn], labels[drawn]))
    drawn = resample_indices(torch.ones(16), generator=_generator(3))
    torch.testing.assert_close(_loss("b0", logits, labels, 3).loss, F.cross_entropy(logits[drawn], labels[drawn]))


def test_rent_gradient_counts_the_draws():
    logits, labels = _batch()
    logits.requires_grad_()
    step = _loss("rent", logits, labels, 4)
    step.loss.backward()
    drawn = resample_indices(transition_importance_weights(logits, labels, TRANSITION), generator=_generator(4))
    counts = torch.bincount(drawn, minlength=16)
    residual = logits.detach().softmax(1) - F.one_hot(labels, 5)
    torch.testing.assert_close(logits.grad, counts[:, None] / 16 * residual)
    torch.testing.assert_close(step.weights, counts / 16.0, check_dtype=False)


def test_dws_averages_as_many_draws_as_samples():
    logits, labels = _batch()
    w = transition_importance_weights(logits, labels, TRANSITION)
    draws = sample_dirichlet_weights(w, 0.7, 16, _generator(5))
    expected = (draws @ F.cross_entropy(logits, labels, reduction="none")).mean()
    torch.testing.assert_close(_loss("dws:0.7", logits, labels, 5).loss, expected)


def test_concentration_zero_is_rent():
    logits, labels = _batch()
    torch.testing.assert_close(_loss("dws:0", logits, labels, 6).loss, _loss("rent", logits, labels, 6).loss)


@pytest.mark.parametrize("text", ["rent", "dws:1", "b0"])
def test_random_weights_are_unbiased_with_the_stated_variance(text):
    w = torch.tensor([0.0, 0.2, 1.0, 1.5, 3.0], dtype=torch.float64)
    mean = torch.full((5,), 0.2).double() if text == "b0" else w / w.sum()
    generator, count = _generator(7), 3000
    draws = torch.stack([sample_weights(Utilization.parse(text), w, generator) for _ in range(count)])
    variance = (mean - mean**2) / (5 * (2 if text == "dws:1" else 1))
    assert ((draws.mean(0) - mean).abs() <= 5 * (variance / count).sqrt()).all()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.15, atol=1e-12)


@pytest.mark.parametrize("text", [*(name.replace("dws", "dws:0.5") for name in WEIGHTINGS)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_weights_are_detached_and_at_least_float32(text, dtype):
    logits, labels = _batch(dtype=dtype)
    step = _loss(text, logits.requires_grad_(), labels)
    assert step.weights.shape == (16,) and not step.weights.requires_grad and not step.fell_back
    assert step.weights.dtype == step.loss.dtype == torch.promote_types(dtype, torch.float32)
    if text != "rw":
        assert step.weights.sum().item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("text", ["rw", "rw_norm", "dws:1", "rent"])
def test_without_any_weight_the_batch_falls_back_to_cross_entropy(text):
    logits, labels = torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64)
    logits[:, 0] = -1e4  # every label's probability underflows
    step = _loss(text, logits, labels)
    assert step.fell_back
    torch.testing.assert_close(step.loss, F.cross_entropy(logits, labels))


def test_ce_and_b0_do_not_look_at_the_transition():
    logits, labels = _batch()
    for name in ("ce", "b0"):
        assert _loss(name, logits, labels, 8, torch.zeros(5, 5)).loss == _loss(name, logits, labels, 8).loss


def test_corrections_have_no_weights():
    logits, labels = _batch()
    assert _loss("fl", logits, labels).weights.isnan().all()
    for name in ("fl", "backward"):
        with pytest.raises(ValueError, match=r"^utilization: .* no per-sample weights"):
            sample_weights(Utilization(name), torch.ones(3))


def test_purity():
    weights = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.25, 0.25, 0.25, 0.25]])
    is_clean = torch.tensor([True, False, False, True])
    assert clean_weight_shares(weights, is_clean).tolist() == pytest.approx([0.5, 0.5])
    assert clean_weight_shares(weights, torch.tensor([False, False, False, True])).tolist() == pytest.approx(
        [0.4, 0.25]
    )
    with pytest.raises(ValueError, match=r"^is_clean: "):
        clean_weight_shares(weights, torch.tensor([True]))


ALL = ["ce", "fl", "rw", "rent", "backward", "b0", "dws:0.5", "rw_norm", "dws:3"]


def test_members_do_not_see_each_other():
    """Each member has the loss, gradient and weights that it has alone, to the last bit."""
    labels = _batch(size=24)[1]
    logits = torch.stack([_batch(seed, 24, torch.float32)[0] for seed in range(len(ALL))]).requires_grad_()
    transitions = torch.stack([symmetric_transition(5, 0.1 + 0.05 * i) for i in range(len(ALL))])
    utilizations = [Utilization.parse(text) for text in ALL]
    together = utilization_losses(utilizations, logits, labels, transitions, [_generator(9) for _ in ALL])
    together.loss.backward()
    total = 0.0
    for index, text in enumerate(ALL):
        own = logits[index].detach().clone().requires_grad_()
        alone = _loss(text, own, labels, 9, transitions[index])
        alone.loss.backward()
        total += alone.loss.item()
        assert torch.equal(own.grad, logits.grad[index]), text
        assert torch.equal(alone.weights.nan_to_num(), together.weights[index].nan_to_num()), text
    assert together.loss.item() == pytest.approx(total, rel=1e-6)
    expected = transition_importance_weights(logits[3], labels, transitions[3])
    assert torch.equal(together.importance[3], expected)
    assert (together.importance[[0, 1, 4, 5]] == 1).all()


def test_a_fallback_is_that_of_one_member_alone():
    logits, labels = torch.zeros(2, 4, 5), torch.zeros(4, dtype=torch.int64)
    logits[1, :, 0] = -1e4
    utilizations = [Utilization("rent"), Utilization("rent")]
    found = utilization_losses(utilizations, logits, labels, TRANSITION.expand(2, 5, 5), [_generator(), _generator()])
    assert found.fell_back.tolist() == [False, True]
    assert found.weights[1].tolist() == [0.25] * 4


def test_a_batch_of_one():
    logits, labels = _batch(size=1)
    for text in ("ce", "rw_norm", "dws:0.1", "rent", "b0"):
        torch.testing.assert_close(_loss(text, logits, labels).loss, F.cross_entropy(logits, labels))


@pytest.mark.parametrize("text", ["ce", "rw", "rw_norm", "dws:1", "rent", "b0"])
def test_weights_are_detached_from_importance_weights_with_a_gradient(text):
    importance = torch.rand(6, generator=_generator(), requires_grad=True)
    assert not sample_weights(Utilization.parse(text), importance, _generator()).requires_grad
