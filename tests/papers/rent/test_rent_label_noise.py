import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from papers.rent.label_noise import (
    class_conditional_noise,
    flip_rates,
    instance_dependent_noise,
    instance_label_distributions,
    symmetric_noise,
)
from papers.rent.transition_matrix import (
    CIFAR10_FLIPS,
    asymmetric_transition,
    empirical_transition,
    symmetric_transition,
)

PROPERTY = settings(deadline=None, max_examples=50)
COUNT = 20_000
LABELS = torch.arange(COUNT) % 10


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _assert_follows(noisy, transition):
    """The frequencies of noisy labels per true class are T's, within 5 standard deviations."""
    deviation = (transition * (1 - transition) / (COUNT / 10)).sqrt()
    assert ((empirical_transition(LABELS, noisy, 10) - transition).abs() <= 5 * deviation).all()


# Symmetric and class-conditional


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_symmetric_follows_its_transition(rate):
    _assert_follows(symmetric_noise(LABELS, 10, rate, _generator()), symmetric_transition(10, rate))


def test_symmetric_chooses_an_exact_number_of_samples():
    # 0.5 · 10/9 of 90 labels are chosen: 50. Two classes, rate 0.5: all are chosen, and half of them flip.
    labels = torch.full((90,), 3)
    assert all((symmetric_noise(labels, 10, 0.5, _generator(seed)) != 3).sum() <= 50 for seed in range(50))
    flips = [(symmetric_noise(labels, 10, 0.5, _generator(seed)) != 3).sum().item() for seed in range(400)]
    # 50 chosen, each flipped with probability 0.9: the variance is that of the second draw alone.
    assert sum(flips) / 400 == pytest.approx(45, abs=5 * math.sqrt(50 * 0.09 / 400))
    assert torch.tensor(flips).double().var().item() == pytest.approx(50 * 0.09, rel=0.4)


def test_asymmetric_follows_its_transition():
    transition = asymmetric_transition(10, 0.4, CIFAR10_FLIPS)
    noisy = class_conditional_noise(LABELS, transition, _generator())
    _assert_follows(noisy, transition)
    assert torch.equal(noisy[LABELS == 1], LABELS[LABELS == 1])
    assert set(noisy[LABELS == 9].tolist()) == {1, 9}


@pytest.mark.parametrize(
    "noise",
    [
        lambda labels, generator: symmetric_noise(labels, 10, 0.4, generator),
        lambda labels, generator: class_conditional_noise(labels, symmetric_transition(10, 0.4), generator),
        lambda labels, generator: instance_dependent_noise(
            torch.linspace(0, 1, 3 * len(labels)).view(-1, 3), labels, 10, 0.4, generator
        ),
    ],
)
def test_noise_is_a_function_of_the_generator_and_leaves_the_labels_alone(noise):
    labels = LABELS[:500].clone()
    noisy = noise(labels, _generator(1))
    assert noisy.dtype == torch.int64 and noisy.shape == labels.shape
    assert torch.equal(noisy, noise(labels, _generator(1)))
    assert not torch.equal(noisy, noise(labels, _generator(2)))
    assert torch.equal(labels, LABELS[:500])
    assert torch.equal(noisy, noise(labels.to(torch.uint8), _generator(1)))


def test_no_noise_at_rate_zero():
    assert torch.equal(symmetric_noise(LABELS, 10, 0.0, _generator()), LABELS)
    assert torch.equal(class_conditional_noise(LABELS, torch.eye(10), _generator()), LABELS)


# Instance-dependent


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.4, 0.98, 1.0])
def test_flip_rates_are_truncated_normal(rate):
    rates = flip_rates(5000, rate, _generator())
    assert rates.dtype == torch.float64 and rates.min() >= 0 and rates.max() <= 1
    truth = stats.truncnorm((0 - rate) / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1)
    assert stats.kstest(rates.numpy(), truth.cdf).pvalue > 1e-3


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_flip_rates_stay_probabilities_at_the_ends(monkeypatch, uniform):
    monkeypatch.setattr(torch, "rand", lambda count, **_: torch.full((count,), uniform, dtype=torch.float64))
    for percent in range(101):
        assert 0 <= flip_rates(1, percent / 100, _generator()).item() <= 1


@PROPERTY
@given(st.integers(0, 2**32), st.integers(2, 6))
def test_distributions_written_out(seed, num_classes):
    generator = _generator(seed)
    inputs = torch.randn(7, 3, dtype=torch.float64, generator=generator)
    labels = torch.randint(num_classes, (7,), generator=generator)
    rates = torch.rand(7, dtype=torch.float64, generator=generator)
    projections = torch.randn(num_classes, 3, num_classes, dtype=torch.float64, generator=generator)
    distributions = instance_label_distributions(inputs, labels, rates, projections)
    for i, label in enumerate(labels.tolist()):
        scores = [
            sum(inputs[i, d].item() * projections[label, d, k].item() for d in range(3)) for k in range(num_classes)
        ]
        total = sum(math.exp(score) for k, score in enumerate(scores) if k != label)
        for k in range(num_classes):
            expected = 1 - rates[i] if k == label else rates[i] * math.exp(scores[k]) / total
            assert distributions[i, k].item() == pytest.approx(float(expected), rel=1e-9)


def test_instance_noise_depends_on_the_instance():
    # Two clouds of one class: each flips to its own favourite classes, at the same rate.
    inputs = torch.zeros(COUNT, 2)
    inputs[: COUNT // 2, 0] = 4.0
    inputs[COUNT // 2 :, 1] = 4.0
    labels = torch.full((COUNT,), 3)
    noisy = instance_dependent_noise(inputs, labels, 10, 0.4, _generator(7))
    first, second = (torch.bincount(part, minlength=10).double() / (COUNT // 2) for part in noisy.chunk(2))
    assert first[3].item() == pytest.approx(0.6, abs=0.03) and second[3].item() == pytest.approx(0.6, abs=0.03)
    assert (first - second).abs().max() > 0.1


def test_images_are_flattened():
    inputs = torch.rand(50, 1, 4, 4, generator=_generator())
    labels = LABELS[:50]
    noisy = instance_dependent_noise(inputs, labels, 10, 0.4, _generator())
    assert torch.equal(noisy, instance_dependent_noise(inputs.view(50, 16), labels, 10, 0.4, _generator()))


# Bad input


def test_bad_rates():
    for rate in (-0.1, 0.91, math.nan):
        with pytest.raises(ValueError, match=r"^rate: "):
            symmetric_noise(LABELS, 10, rate, _generator())
    for rate in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"^rate: "):
            flip_rates(3, rate, _generator())
    with pytest.raises(ValueError, match=r"^std: "):
        flip_rates(3, 0.4, _generator(), std=0.0)


def test_bad_labels_and_shapes():
    with pytest.raises(ValueError, match=r"^num_classes: "):
        symmetric_noise(torch.zeros(3, dtype=torch.int64), 1, 0.0, _generator())
    with pytest.raises(ValueError, match=r"^labels: "):
        symmetric_noise(LABELS, 9, 0.1, _generator())
    with pytest.raises(ValueError, match=r"^labels: "):
        class_conditional_noise(LABELS, torch.eye(9), _generator())
    with pytest.raises(ValueError, match=r"^transition: "):
        class_conditional_noise(LABELS, asymmetric_transition(10, 0.4, {0: 1}).T, _generator())
    inputs, labels, rates, projections = torch.zeros(4, 3), torch.zeros(4).long(), torch.zeros(4), torch.zeros(2, 3, 2)
    for bad in (torch.zeros(2, 4, 2), torch.zeros(2, 3, 3), torch.zeros(1, 3, 1)):
        with pytest.raises(ValueError, match=r"^projections: "):
            instance_label_distributions(inputs, labels, rates, bad)
    with pytest.raises(ValueError, match=r"^projections: "):
        instance_label_distributions(inputs[None], labels, rates, projections)
    for bad_labels in (labels[:3], labels + 2):
        with pytest.raises(ValueError, match=r"^labels: "):
            instance_label_distributions(inputs, bad_labels, rates, projections)
