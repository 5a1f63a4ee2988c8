"""Estimators of the transition matrix T[j, k] = P(noisy k | true j) from noisy labels alone.

The paper (Bae et al., ICLR 2024, arXiv 2403.02690) takes T from existing estimators and asks how to use it:

- anchors (Patrini et al., CVPR 2017, "Forward"): a sample that surely is of class c shows row c of T in the
  posterior of a network that was trained on noisy labels;
- Dual-T (Yao et al., NeurIPS 2020): T = A S, the anchor estimate up to the network's own predictions, then counts;
- VolMinNet (Li et al., ICML 2021): T is a parameter, learned together with the network, of the least volume |det T|;
- TV (Zhang et al., ICML 2021): a parameter too, of another form;
- Cycle (Cheng et al., NeurIPS 2022): learned with a second matrix, of true labels given noisy ones, that leads back.

N samples, C classes. Here every T has the true class in its rows; the paper's own code mixes this up for those that are
learned.
"""

import math

import torch
from torch import Tensor, nn

from papers.rent.importance_weighting import forward_corrected_cross_entropy
from papers.rent.transition_matrix import ROW_SUM_TOLERANCE, check_labels, check_transition, label_frequencies

LEARNED = ("volminnet", "tv", "cycle")
VOLUME_INITIAL = -2.0  # of every entry of V: T starts with 0.48 on the diagonal for C = 10
TOTAL_VARIATION_INITIAL = 1.0  # of every entry of U: T starts with 0.5 on the diagonal


@torch.no_grad()
def estimate_transition_from_anchors(probabilities: Tensor, noisy_labels: Tensor, top_fraction: float = 0.03) -> Tensor:
    """T from the samples that the network is surest of: row c is the whole vector of class c's anchor.

    The anchor of class c is, among the n_c samples *labelled* c, the one with the k-th largest probability of c,
    k = max(1, floor(n_c · top_fraction)): not the very first, which is often an outlier.

    Args:
        probabilities: (N, C) softmax outputs of a network trained on the noisy labels.
        noisy_labels: (N,) integers in [0, C).
        top_fraction: in (0, 1]; 0.03 is the 97 % quantile of the official code.

    Returns:
        (C, C) in the dtype of the probabilities, rows taken unchanged.

    Raises:
        ValueError: shapes or dtypes, rows that are no distribution (sum 1 within 1e-4), labels outside [0, C), a class
            without samples, or top_fraction outside (0, 1].
    """
    _check_probabilities(probabilities)
    num_classes = probabilities.shape[1]
    check_labels(noisy_labels, num_classes, "noisy_labels")
    if len(noisy_labels) != len(probabilities):
        raise ValueError(f"noisy_labels: need {len(probabilities)}, one per row, got {len(noisy_labels)}")
    if not 0 < top_fraction <= 1:
        raise ValueError(f"top_fraction: need a number in (0, 1], got {top_fraction}")
    anchors = []
    for label in range(num_classes):
        members = (noisy_labels == label).nonzero()[:, 0]
        if len(members) == 0:
            raise ValueError(f"noisy_labels: need a sample of every class, none of {label}")
        rank = max(1, math.floor(len(members) * top_fraction))
        surest_first = probabilities[members, label].argsort(descending=True, stable=True)
        anchors.append(members[surest_first[rank - 1]])
    return probabilities[torch.stack(anchors)]


def dual_transition(anchor_transition: Tensor, predictions: Tensor, noisy_labels: Tensor) -> Tensor:
    """Dual-T: T = A S through the network's own predictions as intermediate class.

    A[j, l] = P(predicted l | true j) is the anchor estimate, S[l, k] the share of noisy label k among the samples
    predicted as l. A class that is never predicted has no such share; it keeps its mass in T = A S (S[l] is the
    identity's row), which leaves the anchor estimate in force there and every row of T summing to one.

    Args:
        anchor_transition: (C, C), rows sum to one.
        predictions: (N,) integers in [0, C), the network's most probable class in evaluation mode.
        noisy_labels: (N,) integers in [0, C).

    Returns:
        (C, C) in the dtype of `anchor_transition`.

    Raises:
        ValueError: shapes, dtypes, ranges, or numbers of samples that differ.
    """
    num_classes = len(anchor_transition)
    check_transition(anchor_transition, num_classes)
    check_labels(predictions, num_classes, "predictions")
    check_labels(noisy_labels, num_classes, "noisy_labels")
    if len(predictions) != len(noisy_labels):
        raise ValueError(f"predictions: need {len(noisy_labels)}, one per noisy label, got {len(predictions)}")
    unseen = torch.bincount(predictions, minlength=num_classes).eq(0).nonzero()[:, 0]
    shares = label_frequencies(
        torch.cat([predictions, unseen]), torch.cat([noisy_labels, unseen]), num_classes, name="predictions"
    )
    return anchor_transition @ shares.to(anchor_transition)


def volume_transition(parameters: Tensor) -> Tensor:
    """VolMinNet's T: rows of I + sigmoid(V) off the diagonal, divided by their sums; every T_cc is the row's largest.

    Args:
        parameters: V (C, C), its diagonal unused; the method starts from `VOLUME_INITIAL`.

    Returns:
        (C, C), rows sum to one; differentiable.

    Raises:
        ValueError: V is not square.
    """
    identity = _identity_like(parameters)
    unnormalized = identity + parameters.sigmoid() * (1 - identity)
    return unnormalized / unnormalized.sum(1, keepdim=True)


def volume_minimization_loss(
    logits: Tensor, noisy_labels: Tensor, transition: Tensor, volume_weight: float = 1e-4
) -> Tensor:
    """What VolMinNet's T is learned by: the forward loss with constant logits, + volume_weight · log |det T|.

    Args:
        logits: (B, C), no gradient goes to them.
        noisy_labels: (B,) integers in [0, C).
        transition: (C, C), as from `volume_transition`.
        volume_weight: 0 is the loss by which TV's T is learned.

    Returns:
        Scalar.

    Raises:
        ValueError: as `forward_corrected_cross_entropy`.
    """
    fit = forward_corrected_cross_entropy(logits.detach(), noisy_labels, transition)
    return fit + volume_weight * torch.linalg.slogdet(transition).logabsdet


def total_variation_transition(parameters: Tensor) -> Tensor:
    """TV's T: softmax over the row of −log 2 on the diagonal, U · log(0.5 / (C − 1)) off it.

    The regulariser that gives the method its name acts on the classifier's outputs; the paper's code computes it on
    constants, where it does nothing, and it is left out.

    Args:
        parameters: U (C, C), its diagonal unused; the method starts from `TOTAL_VARIATION_INITIAL`.

    Returns:
        (C, C), rows sum to one; differentiable.

    Raises:
        ValueError: U is not square or has fewer than two classes.
    """
    identity = _identity_like(parameters)
    if len(parameters) < 2:
        raise ValueError(f"parameters: need at least 2 classes, got {len(parameters)}")
    scores = parameters * math.log(0.5 / (len(parameters) - 1)) * (1 - identity) - math.log(2) * identity
    return scores.softmax(1)


def cycle_consistency_loss(
    logits: Tensor, noisy_labels: Tensor, transition: Tensor, return_transition: Tensor, consistency_weight: float = 0.3
) -> Tensor:
    """What Cycle's two matrices are learned by: each fits its direction, and together they lead back to the start.

    T fits the noisy labels given the posterior p (the forward loss), T' the posterior given the noisy labels, and
    KL(p || p T T') asks the detour through the noisy labels to end where it began, in place of VolMinNet's volume. The
    paper's code adds these terms to the classifier's loss as well; here they are an estimator's alone, so
    that methods differ in what they use T for and nothing else.

    Args:
        logits: (B, C), no gradient goes to them.
        noisy_labels: (B,) integers in [0, C).
        transition: T (C, C), row = true class.
        return_transition: T' (C, C), row = noisy class, with entries above 0.
        consistency_weight: of the KL divergence.

    Returns:
        Scalar.

    Raises:
        ValueError: as `forward_corrected_cross_entropy`, for either matrix.
    """
    check_transition(return_transition, logits.shape[1])
    log_posterior = logits.detach().log_softmax(1)
    posterior = log_posterior.exp()
    forward_fit = forward_corrected_cross_entropy(logits.detach(), noisy_labels, transition)
    return_fit = -(posterior * return_transition[noisy_labels].log()).sum(1).mean()
    there_and_back = (posterior @ transition @ return_transition).log()
    consistency = (posterior * (log_posterior - there_and_back)).sum(1).mean()
    return forward_fit + return_fit + consistency_weight * consistency


class LearnedTransition(nn.Module):
    """T as a parameter: of VolMinNet, TV or Cycle."""

    def __init__(self, estimator: str, num_classes: int):
        """Parameters at the method's start.

        Raises:
            ValueError: an estimator that is not in `LEARNED`.
        """
        super().__init__()
        if estimator not in LEARNED:
            raise ValueError(f"estimator: need one of {', '.join(LEARNED)}, got {estimator!r}")
        self.estimator = estimator
        initial = TOTAL_VARIATION_INITIAL if estimator == "tv" else VOLUME_INITIAL
        count = 2 if estimator == "cycle" else 1
        self.parameters_of = nn.ParameterList(torch.full((num_classes, num_classes), initial) for _ in range(count))

    def forward(self) -> list[Tensor]:
        """T (C, C), and for Cycle the matrix that leads back."""
        form = total_variation_transition if self.estimator == "tv" else volume_transition
        return [form(parameters) for parameters in self.parameters_of]

    def loss(self, logits: Tensor, noisy_labels: Tensor, matrices: list[Tensor]) -> Tensor:
        """What the parameters are learned by, on a batch of logits (B, C); `matrices` as `forward` gives them."""
        if self.estimator == "cycle":
            return cycle_consistency_loss(logits, noisy_labels, *matrices)
        volume_weight = {"volume_weight": 0.0} if self.estimator == "tv" else {}
        return volume_minimization_loss(logits, noisy_labels, *matrices, **volume_weight)


def _identity_like(parameters: Tensor) -> Tensor:
    if parameters.ndim != 2 or parameters.shape[0] != parameters.shape[1]:
        raise ValueError(f"parameters: need shape (C, C), got {tuple(parameters.shape)}")
    return torch.eye(len(parameters), dtype=parameters.dtype, device=parameters.device)


def _check_probabilities(probabilities: Tensor) -> None:
    if probabilities.ndim != 2 or not probabilities.is_floating_point():
        raise ValueError(
            f"probabilities: need floats of shape (N, C), got {probabilities.dtype} of {tuple(probabilities.shape)}"
        )
    sums = probabilities.double().sum(1)
    if (probabilities < 0).any() or not ((sums - 1).abs() <= ROW_SUM_TOLERANCE).all():
        raise ValueError("probabilities: every row must be a distribution, entries >= 0 with the sum 1 within 1e-4")
