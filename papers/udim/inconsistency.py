"""The inconsistency of the loss landscape between source and unknown domain (UDIM, arXiv 2403.07329).

UDIM asks the loss around θ to be the same on the crafted domain x̃ as on the source x. To second order, and with the
Hessian approximated by the variance of per-sample gradients as in Fishr, this becomes a penalty R on quantities of the
linear classifier head alone, logits = W h + b on features h = f(x). With δ_i = p_i − onehot(y_i), the gradient of
sample i's cross-entropy is

    ∂L_i/∂W = δ_i h_iᵀ,    ∂L_i/∂b = δ_i,

a product, so that first and second moments over a batch need no per-sample gradient tensor:

    m = δᵀh/B,    s = (δ²)ᵀ(h²)/B,    variance about c:  s − 2 c m + c²    (squares and products elementwise).

R is differentiated through the whole network: the features must become stable, not only the head. B samples, D
features, C classes throughout.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

FORMS = ("squared", "norm", "variance", "gradient")


class _Moments(NamedTuple):
    """Moments over the batch of the per-sample gradients of one head tensor, W [C, D] or b [C]."""

    first: Tensor
    """m = mean_i G_i."""
    second: Tensor
    """s = mean_i G_i²."""


def head_gradient_variance(
    features: Tensor, logits: Tensor, labels: Tensor, center: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Variance over samples of the gradients of their cross-entropies with respect to the head (W, b).

    Args:
        features: h [B, D] floating, the head's input, B ≥ 1.
        logits: [B, C] floating.
        labels: [B] int64 in [0, C).
        center: (c_W [C, D], c_b [C]) to take the variance about; None for the samples' own mean.

    Returns:
        ([C, D], [C]), mean squared deviations (over B, not B − 1) of each coordinate, differentiable in all floating
        arguments; in the promoted dtype of features and logits, at least float32. Zero for one sample about its own
        mean, up to rounding.

    Raises:
        ValueError: wrong dimensions or lengths; an empty batch.
    """
    weight, bias = _moments(features, logits, labels)
    center_weight, center_bias = (weight.first, bias.first) if center is None else center
    for name, value, own in (("center[0]", center_weight, weight), ("center[1]", center_bias, bias)):
        if value.shape != own.first.shape:
            raise ValueError(f"{name} must have shape {tuple(own.first.shape)}, got {tuple(value.shape)}")
    return _variance(weight, center_weight), _variance(bias, center_bias)


def inconsistency_penalty(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    perturbed_features: Tensor,
    perturbed_logits: Tensor,
    form: str = "squared",
    rho: float = 0.05,
) -> Tensor:
    """R between a batch of one source domain and the same batch perturbed.

    With m, v the mean and variance of the source's per-sample head gradients, G̃_i the perturbed ones and m̃ their mean:

        squared   ¼ mean_{W, b}(v − ṽ)² + Σ_{t ∈ {W, b}} mean_i |G̃_{i,t}|²/size(t),   ṽ about the *source* mean m
        norm      |v − ṽ|₂ + ρ |m̃|₂,                                                  ṽ about its own mean m̃

    "squared" is what the published experiments compute, "norm" the paper's formula. Their scales differ: "norm" wants
    a weight ten times smaller or less. "variance" and "gradient" are the two halves of "squared", for ablations.

    Args:
        features, logits, labels: [B, D], [B, C], [B] of the source, as in `head_gradient_variance`.
        perturbed_features, perturbed_logits: the same for x̃, with the same labels.
        form: "squared", "norm", "variance" or "gradient".
        rho: ρ ≥ 0 of "norm"; the others have none.

    Returns:
        R ≥ 0 (), at least float32, differentiable in features and logits of both batches. The gradient is finite where
        the variances agree.

    Raises:
        ValueError: wrong dimensions or sizes; an empty batch; unknown form; ρ negative or not finite.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}")
    if not (math.isfinite(rho) and rho >= 0):
        raise ValueError(f"rho must be finite and at least 0, got {rho}")
    for name, value, other in (
        ("perturbed_features", perturbed_features, features),
        ("perturbed_logits", perturbed_logits, logits),
    ):
        if value.shape != other.shape:
            raise ValueError(f"{name} must have the source's shape {tuple(other.shape)}, got {tuple(value.shape)}")
    source = _moments(features, logits, labels)
    perturbed = _moments(perturbed_features, perturbed_logits, labels)
    match form:
        case "squared":
            return _variance_gap(source, perturbed) + _gradient_size(perturbed)
        case "variance":
            return _variance_gap(source, perturbed)
        case "gradient":
            return _gradient_size(perturbed)
    return _norm_form(source, perturbed, rho)


def summed_over_domains(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    perturbed_features: Tensor,
    perturbed_logits: Tensor,
    domain_sizes: Sequence[int],
    form: str = "squared",
    rho: float = 0.05,
) -> Tensor:
    """Σ_d R_d: with several source domains each is compared with its own perturbation.

    Args:
        domain_sizes: samples of each domain, ≥ 1 each; the batch holds the domains one after the other. The other
            arguments, and the result, are those of `inconsistency_penalty`.

    Raises:
        ValueError: as `inconsistency_penalty`; sizes that do not sum to B; a domain without samples.
    """
    if not domain_sizes or min(domain_sizes) < 1 or sum(domain_sizes) != len(labels):
        raise ValueError(f"domain_sizes must be at least 1 each and sum to B = {len(labels)}, got {list(domain_sizes)}")
    batches = (features, logits, labels, perturbed_features, perturbed_logits)
    domains = zip(*(batch.split(list(domain_sizes)) for batch in batches), strict=True)
    return torch.stack([inconsistency_penalty(*domain, form=form, rho=rho) for domain in domains]).sum()


def _moments(features: Tensor, logits: Tensor, labels: Tensor) -> tuple[_Moments, _Moments]:
    """Moments of the gradients of W and of b."""
    _check_batch(features, logits, labels)
    dtype = torch.promote_types(torch.promote_types(features.dtype, logits.dtype), torch.float32)
    h = features.to(dtype)
    delta = logits.to(dtype).softmax(-1) - F.one_hot(labels, logits.shape[1])
    delta_squared = delta.square()
    # The mean is taken on the small factor, not on the product.
    weight = _Moments((delta / len(labels)).mT @ h, (delta_squared / len(labels)).mT @ h.square())
    return weight, _Moments(delta.mean(0), delta_squared.mean(0))


def _variance(moments: _Moments, center: Tensor) -> Tensor:
    """s − 2 c m + c², which rounding can make negative where all gradients agree."""
    return (moments.second + center * (center - 2 * moments.first)).clamp(min=0)


def _variance_gap(source: tuple[_Moments, _Moments], perturbed: tuple[_Moments, _Moments]) -> Tensor:
    """¼ mean(v − ṽ)². As v = s − m² and ṽ = s̃ − 2 m m̃ + m², the gap v − ṽ is (s − s̃) − 2 m (m − m̃)."""
    gaps = [
        torch.addcmul(p.second - q.second, p.first, p.first - q.first, value=-2)
        for p, q in zip(source, perturbed, strict=True)
    ]
    return sum((gap * gap).sum() for gap in gaps) / sum(gap.numel() for gap in gaps) / 4


def _gradient_size(perturbed: tuple[_Moments, _Moments]) -> Tensor:
    """Σ_t mean_i |G̃_{i,t}|²/size(t)."""
    return sum(q.second.mean() for q in perturbed)


def _norm_form(source: tuple[_Moments, _Moments], perturbed: tuple[_Moments, _Moments], rho: float) -> Tensor:
    gaps = [_variance(p, p.first) - _variance(q, q.first) for p, q in zip(source, perturbed, strict=True)]
    return _joint_norm(gaps) + rho * _joint_norm([q.first for q in perturbed])


def _joint_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm with gradient 0 at 0, where the square root of a sum of squares has none."""
    return torch.linalg.vector_norm(torch.cat([tensor.flatten() for tensor in tensors]))


def _check_batch(features: Tensor, logits: Tensor, labels: Tensor) -> None:
    for name, value, ndim in (("labels", labels, 1), ("features", features, 2), ("logits", logits, 2)):
        if value.ndim != ndim or len(value) != len(labels) or len(value) == 0:
            raise ValueError(
                f"{name} must have {ndim} dimension(s), the first as long as labels and at least 1, "
                f"got shape {tuple(value.shape)} with labels {tuple(labels.shape)}"
            )
    for name, value in (("features", features), ("logits", logits)):
        if not value.is_floating_point():
            raise ValueError(f"{name} must be floating, got {value.dtype}")
