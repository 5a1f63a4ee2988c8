"""Synthetic label noise: symmetric, by a transition matrix (asymmetric), and depending on the sample itself.

Noise is a function of the true labels, the rate and the generator: drawn once per data set and seed, and shared by all
methods that are compared. N samples, C classes, D values per input.
"""

import torch
from torch import Tensor

from papers.rent.transition_matrix import check_labels, check_transition

FLIP_RATE_STD = 0.1


def symmetric_noise(labels: Tensor, num_classes: int, rate: float, generator: torch.Generator) -> Tensor:
    """Labels of which a share `rate` is flipped, to every other class alike.

    As the paper's code does it, r C/(C−1) of the samples get a label drawn from all C classes, 1/C of which is the true
    one: the number of samples chosen is exact, that of flips is r N on average.

    Args:
        labels: (N,) integers in [0, C).
        num_classes: C >= 2.
        rate: r in [0, (C−1)/C], where (C−1)/C leaves no information.
        generator: source of randomness.

    Returns:
        (N,) int64.

    Raises:
        ValueError: labels outside [0, C), or a rate out of range.
    """
    check_labels(labels, num_classes)
    if num_classes < 2:
        raise ValueError(f"num_classes: need at least 2, got {num_classes}")
    largest = (num_classes - 1) / num_classes
    if not 0 <= rate <= largest:
        raise ValueError(f"rate: need a number in [0, {largest:.4g}] for {num_classes} classes, got {rate}")
    chosen = torch.randperm(len(labels), generator=generator)[: round(len(labels) * rate / largest)]
    noisy = labels.long().clone()
    noisy[chosen] = torch.randint(num_classes, (len(chosen),), generator=generator)
    return noisy


def class_conditional_noise(labels: Tensor, transition: Tensor, generator: torch.Generator) -> Tensor:
    """Each label drawn from the row of T that its true class has, independently.

    Args:
        labels: (N,) integers in [0, C).
        transition: (C, C), rows sum to one; for asymmetric noise from `asymmetric_transition`.
        generator: source of randomness.

    Returns:
        (N,) int64.

    Raises:
        ValueError: labels outside [0, C), or T is no transition matrix.
    """
    check_transition(transition, len(transition))
    check_labels(labels, len(transition))
    return _draw(transition[labels.long()], generator)


def instance_dependent_noise(
    inputs: Tensor, labels: Tensor, num_classes: int, rate: float, generator: torch.Generator
) -> Tensor:
    """Labels flipped with a probability of each sample's own, to classes that random projections of its input favour.

    Flip probabilities q_i come from `flip_rates`, the classes from `instance_label_distributions` with W standard
    normal (the generator of Xia et al., NeurIPS 2020, "Part-dependent label noise").

    Args:
        inputs: (N, ...) floats. Their scale matters: larger inputs make the class that a sample flips to more certain.
        labels: (N,) integers in [0, C).
        num_classes: C >= 2.
        rate: mean flip probability before truncation to [0, 1].
        generator: source of randomness.

    Returns:
        (N,) int64.

    Raises:
        ValueError: shapes, labels outside [0, C), or a rate outside [0, 1].
    """
    inputs = inputs.flatten(1).double()
    rates = flip_rates(len(inputs), rate, generator)
    shape = (num_classes, inputs.shape[1], num_classes)
    projections = torch.randn(shape, generator=generator, dtype=torch.float64)
    return _draw(instance_label_distributions(inputs, labels, rates, projections), generator)


def flip_rates(count: int, rate: float, generator: torch.Generator, std: float = FLIP_RATE_STD) -> Tensor:
    """Draws from the normal distribution of mean `rate` truncated to [0, 1]; (count,) float64.

    Raises:
        ValueError: a rate outside [0, 1], or std <= 0.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: need a probability in [0, 1], got {rate}")
    if not std > 0:
        raise ValueError(f"std: need a number above 0, got {std}")
    low, high = torch.special.ndtr((torch.tensor([0.0, 1.0], dtype=torch.float64) - rate) / std)
    quantiles = low + (high - low) * torch.rand(count, dtype=torch.float64, generator=generator)
    return (rate + std * torch.special.ndtri(quantiles)).clamp(0, 1)


def instance_label_distributions(inputs: Tensor, labels: Tensor, rates: Tensor, projections: Tensor) -> Tensor:
    """P(noisy label | x_i, y_i): 1 − q_i on the true class, q_i softmax_{k ≠ y_i}(x_iᵀ W[y_i])_k on the others.

    Args:
        inputs: x (N, D) floats.
        labels: y (N,) integers in [0, C).
        rates: q (N,) in [0, 1].
        projections: W (C, D, C), C >= 2: for every true class a score of every class.

    Returns:
        (N, C), rows sum to one.

    Raises:
        ValueError: shapes, or labels outside [0, C).
    """
    num_classes = len(projections)
    if inputs.ndim != 2 or projections.shape != (num_classes, inputs.shape[-1], num_classes) or num_classes < 2:
        raise ValueError(
            f"projections: need shape (C, D, C) for inputs (N, D) and C >= 2, got {tuple(projections.shape)} "
            f"for {tuple(inputs.shape)}"
        )
    check_labels(labels, num_classes)
    if not len(inputs) == len(labels) == len(rates):
        raise ValueError(f"labels: need {len(inputs)} labels and rates, got {len(labels)} and {len(rates)}")
    labels = labels.long()
    scores = inputs.new_empty(len(inputs), num_classes)
    for label in range(num_classes):  # one product per class, instead of a copy of W for every sample
        members = labels == label
        scores[members] = inputs[members] @ projections[label]
    scores.scatter_(1, labels[:, None], -torch.inf)
    return (rates[:, None] * scores.softmax(1)).scatter(1, labels[:, None], 1 - rates[:, None])


def _draw(distributions: Tensor, generator: torch.Generator) -> Tensor:
    """One index per row of (N, C), int64 (N,)."""
    return torch.multinomial(distributions, 1, generator=generator).squeeze(1)
