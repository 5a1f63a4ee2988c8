"""The noise transition matrix: what it is here, and the matrices of synthetic noise.

    T[j, k] = P(noisy label = k | true label = j)            row = true class, every row sums to one

The paper (Bae et al., ICLR 2024, arXiv 2403.02690) writes the transpose. For symmetric noise the two are the same
matrix, for any other noise the transpose silently gives wrong weights. So everything in this package that takes a T
checks its rows: the transpose of an asymmetric T does not pass.

C classes, B samples in a batch, N in a data set.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

ROW_SUM_TOLERANCE = 1e-4

# Who is taken for whom under asymmetric noise: {true class: noisy class}. All others keep their labels.
CIFAR10_FLIPS = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}  # truck > automobile, bird > airplane, deer > horse, cat <> dog
DIGIT_FLIPS = {1: 7, 7: 1, 2: 8, 8: 2, 3: 5, 5: 3, 4: 9, 9: 4}  # digits of similar shape

# The superclass of each of CIFAR-100's classes, in the order of their names.
CIFAR100_SUPERCLASSES = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7,
    6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
    16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16,
    12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
)  # fmt: skip


def check_transition(transition: Tensor, num_classes: int, batch_size: int | None = None) -> None:
    """Refuse what is no row-stochastic transition matrix of this many classes.

    Args:
        transition: (C, C) floats, or (B, C, C), one matrix per sample, where `batch_size` is given.
        num_classes: C.
        batch_size: B.

    Raises:
        ValueError: another shape or dtype, a negative entry, or a row that does not sum to 1 within 1e-4.
    """
    shapes = [(num_classes, num_classes)]
    if batch_size is not None:
        shapes.append((batch_size, num_classes, num_classes))
    if tuple(transition.shape) not in shapes:
        raise ValueError(f"transition: need shape {' or '.join(map(str, shapes))}, got {tuple(transition.shape)}")
    if not transition.is_floating_point():
        raise ValueError(f"transition: need floats, got {transition.dtype}")
    values = transition.detach().double()
    if (values < 0).any():
        raise ValueError(f"transition: need entries >= 0, got {values.min().item():.4g}")
    sums = values.sum(-1)
    if not ((sums - 1).abs() <= ROW_SUM_TOLERANCE).all():  # not (all <=) instead of any >, so that NaN is refused
        raise ValueError(
            f"transition: every row (one per true class) must sum to 1, got sums from {sums.min().item():.4g} "
            f"to {sums.max().item():.4g}; is it transposed?"
        )


def check_labels(labels: Tensor, num_classes: int, name: str = "labels") -> None:
    """Refuse what is not one class index per sample.

    Raises:
        ValueError: not a 1-D tensor of integers in [0, num_classes).
    """
    if labels.ndim != 1:
        raise ValueError(f"{name}: need shape (samples,), got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name}: need integers, got {labels.dtype}")
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(f"{name}: need classes in [0, {num_classes}), got {labels.min()} to {labels.max()}")


def symmetric_transition(num_classes: int, rate: float) -> Tensor:
    """T of labels flipped with probability `rate`, to every other class alike; (C, C) float64.

    Raises:
        ValueError: fewer than two classes, or a rate outside [0, 1].
    """
    if num_classes < 2:
        raise ValueError(f"num_classes: need at least 2, got {num_classes}")
    _check_rate(rate)
    transition = torch.full((num_classes, num_classes), rate / (num_classes - 1), dtype=torch.float64)
    return transition.fill_diagonal_(1 - rate)


def asymmetric_transition(num_classes: int, rate: float, flips: Mapping[int, int]) -> Tensor:
    """T of labels flipped with probability `rate` to the class that `flips` names, if any; (C, C) float64.

    Raises:
        ValueError: a class of `flips` outside [0, num_classes) or mapped to itself, or a rate outside [0, 1].
    """
    _check_rate(rate)
    transition = torch.eye(num_classes, dtype=torch.float64)
    for source, target in flips.items():
        if source == target or not (0 <= source < num_classes and 0 <= target < num_classes):
            raise ValueError(f"flips: need two different classes in [0, {num_classes}), got {source}: {target}")
        transition[source, source] = 1 - rate
        transition[source, target] = rate
    return transition


def superclass_transition(superclasses: Sequence[int], rate: float) -> Tensor:
    """T of labels flipped with probability `rate` to the other classes of their superclass alike (CIFAR-100).

    Args:
        superclasses: C integers, the superclass of each class. A class alone in its superclass is never flipped.
        rate: probability of a flip.

    Returns:
        (C, C) float64.

    Raises:
        ValueError: a rate outside [0, 1].
    """
    _check_rate(rate)
    groups = torch.as_tensor(superclasses)
    siblings = (groups[:, None] == groups[None]).double().fill_diagonal_(0)
    count = siblings.sum(1, keepdim=True)
    flipped = rate * siblings / count.clamp(min=1)
    return flipped + torch.diag(1 - flipped.sum(1))


def empirical_transition(true_labels: Tensor, noisy_labels: Tensor, num_classes: int) -> Tensor:
    """Share of each noisy label among the samples of each true class: the T that happened; (C, C) float64.

    For instance-dependent noise this is the true T averaged within the classes.

    Raises:
        ValueError: labels of different number or outside [0, num_classes), or a class without samples.
    """
    check_labels(true_labels, num_classes, "true_labels")
    check_labels(noisy_labels, num_classes, "noisy_labels")
    if len(true_labels) != len(noisy_labels):
        raise ValueError(f"noisy_labels: need {len(true_labels)}, one per true label, got {len(noisy_labels)}")
    return label_frequencies(true_labels, noisy_labels, num_classes, name="true_labels")


def label_frequencies(groups: Tensor, labels: Tensor, num_classes: int, *, name: str) -> Tensor:
    """Share of each label within each group, (C, C) float64, row = group.

    Raises:
        ValueError: a group of the C without a sample; `name` is what the message calls the groups.
    """
    pairs = groups.long() * num_classes + labels.long()
    counts = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes).double()
    sizes = counts.sum(1, keepdim=True)
    if (sizes == 0).any():
        raise ValueError(f"{name}: need a sample of every class, none of {(sizes[:, 0] == 0).nonzero()[:, 0].tolist()}")
    return counts / sizes


def _check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: need a probability in [0, 1], got {rate}")
