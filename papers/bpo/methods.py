"""Methods by name: ``<loss>[:<its own hyperparameter>][@<ratio>]``.

======================  =====================================================================  ====================
name                    loss of a pair                                                         own hyperparameter
======================  =====================================================================  ====================
``dpo``, ``dpo:0.1``    logistic loss on DPO's ratio                                           beta
``dpo-clipped``         the same with the clip of the other generators, to tell h from clip
``kliep``, ``lsif``     Bregman losses on DPO's ratio
``ba:2``, ``sba:0.5``   Basu's power divergence, and the scaled one                            lambda
``fdpo-alpha:0.1``      f-DPO, a logistic loss; also ``fdpo-fkl``, ``fdpo-js``, ``fdpo-chi2``  alpha
``fpo-alpha:0.1``       pairwise f-PO; also ``fpo-rkl``, ``fpo-js``, ``fpo-jeffreys``          alpha
``simpo``               logistic loss on SimPO's ratio
``sba:0.5@fdpo-js``     a Bregman loss on another ratio: that of ``fdpo-...`` or ``simpo``
======================  =====================================================================  ====================

Two names stand for what is not optimised: ``sft``, the supervised model, and ``preferred``, the data's own preferred
responses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from papers.bpo.bregman_losses import bregman_ratio_loss, scale_matching_dpo
from papers.bpo.f_po_losses import f_po_pair_loss
from papers.bpo.log_ratios import log_model_ratio, simpo_log_ratio
from papers.bpo.options import LossOptions
from shared.errors import InputError

SCALE = 4.0  # s of SBA at which its gradient at R = 1 is that of DPO

_GENERATORS = {"dpo": "logistic", "kliep": "kliep", "lsif": "lsif", "ba": "basu", "sba": "scaled_basu"}
_DIVERGENCES = {
    "fkl": "forward_kl",
    "rkl": "reverse_kl",
    "js": "jensen_shannon",
    "alpha": "alpha",
    "chi2": "chi_squared",
    "jeffreys": "jeffreys",
}
_F_DPO, _F_PO = ("fkl", "js", "alpha", "chi2"), ("rkl", "js", "jeffreys", "alpha")


@dataclass(frozen=True)
class PairLogProbs:
    """What a preference loss looks at: log-probs in nats, summed over response tokens, and their number; each (B,)."""

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor


@dataclass(frozen=True)
class Method:
    """A preference loss: a generator on a ratio, or pairwise f-PO on DPO's ratio."""

    generator: str | None
    """One of ``bregman_losses.GENERATORS``; None: pairwise f-PO."""
    lam: float = 0.0
    clipped: bool = True
    """Whether R is clipped; never under the logistic generator, but for the ablation."""
    beta: float | None = None
    """Overrides the common beta."""
    ratio: str = "dpo"
    """``dpo``, ``f_dpo`` or ``simpo``."""
    divergence: str = "reverse_kl"
    """Of f-DPO's ratio or of f-PO."""
    alpha: float | None = None


def parse_method(name: str) -> Method:
    """The method of a name (the module's docstring lists them).

    Raises:
        InputError: no such method.
    """
    own, _, ratio = name.partition("@")
    loss, _, text = own.partition(":")
    value = _number(name, text)
    if ratio:
        if loss not in ("kliep", "lsif", "ba", "sba"):
            raise InputError(f"method {name!r}: only kliep, lsif, ba and sba go on another ratio")
        base = parse_method(ratio)
        if base.generator != "logistic" or base.ratio == "dpo":
            raise InputError(f"method {name!r}: {ratio!r} is no other ratio; there are: fdpo-..., simpo")
        generator = _bregman(name, loss, value)
        return replace(base, generator=generator.generator, lam=generator.lam, clipped=True)
    family, _, divergence = loss.partition("-")
    if family in ("fdpo", "fpo"):
        return _f_divergence(name, family, divergence, value)
    if loss == "simpo":
        _refuse_number(name, value)
        return Method("logistic", clipped=False, ratio="simpo")
    return _bregman(name, loss, value)


def pair_losses(method: Method, options: LossOptions, pairs: PairLogProbs) -> tuple[Tensor, Tensor]:
    """Loss of each pair, (B,), and log R of the ratio that the method models, (B,), before any clip."""
    log_ratio = log_ratio_of(method, options, pairs)
    if method.generator is None:
        f_po = {"divergence": method.divergence, "alpha": method.alpha, "label_smoothing": options.label_smoothing}
        return f_po_pair_loss(-log_ratio, **f_po), log_ratio
    ratio_min, ratio_max = ratio_bounds(method, options)
    start = options.simpo_gamma if method.ratio == "simpo" else 0.0  # log R of a policy that prefers nothing yet
    losses = bregman_ratio_loss(
        log_ratio,
        generator=method.generator,
        lam=method.lam,
        scale=scale_matching_dpo(start, method.lam) if start else SCALE,
        ratio_min=ratio_min,
        ratio_max=ratio_max,
    )
    if method.ratio == "simpo" and method.generator != "logistic":
        logistic = bregman_ratio_loss(log_ratio, generator="logistic")
        losses = options.simpo_mixture * losses + (1 - options.simpo_mixture) * logistic
    return losses, log_ratio


def log_ratio_of(method: Method, options: LossOptions, pairs: PairLogProbs) -> Tensor:
    """log R of the ratio that the method models, (B,)."""
    if method.ratio == "simpo":
        return simpo_log_ratio(
            pairs.policy_chosen,
            pairs.policy_rejected,
            pairs.chosen_lengths,
            pairs.rejected_lengths,
            beta=options.simpo_beta,
            gamma=options.simpo_gamma,
        )
    on_f_dpo = method.ratio == "f_dpo"
    return log_model_ratio(
        pairs.policy_chosen,
        pairs.policy_rejected,
        pairs.reference_chosen,
        pairs.reference_rejected,
        beta=options.beta if method.beta is None else method.beta,
        divergence=method.divergence if on_f_dpo else "reverse_kl",
        alpha=method.alpha if on_f_dpo else None,
    )


def ratio_bounds(method: Method, options: LossOptions) -> tuple[float | None, float | None]:
    """The bounds between which the method clips R, None where it has none."""
    if method.generator is None or not method.clipped:
        return None, None
    return options.ratio_min, {"f_dpo": options.f_dpo_ratio_max, "simpo": options.simpo_ratio_max}.get(method.ratio)


def clipped_share(method: Method, options: LossOptions, log_ratio: Tensor) -> Tensor:
    """Share of the pairs whose R is clipped, so that they have no gradient; a scalar."""
    lower, upper = ratio_bounds(method, options)
    low = -math.inf if lower is None else math.log(lower)
    high = math.inf if upper is None else math.log(upper)
    return ((log_ratio < low) | (log_ratio > high)).float().mean()


def _bregman(name: str, loss: str, value: float | None) -> Method:
    if loss == "dpo-clipped":
        _refuse_number(name, value)
        return Method("logistic")
    if loss == "dpo":
        if value is not None and not value > 0:
            raise InputError(f"method {name!r}: beta must be positive")
        return Method("logistic", clipped=False, beta=value)
    if loss not in _GENERATORS:
        known = "dpo, dpo-clipped, kliep, lsif, ba:<lambda>, sba:<lambda>, fdpo-..., fpo-..., simpo, sft, preferred"
        raise InputError(f"method {name!r}: there is none; there are: {known}")
    generator = _GENERATORS[loss]
    if loss in ("ba", "sba"):
        if value is None or (loss == "ba" and value <= -1):
            raise InputError(f"method {name!r}: needs its lambda, such as {loss}:0.5 (for ba above -1)")
        return Method(generator, lam=value)
    _refuse_number(name, value)
    return Method(generator)


def _f_divergence(name: str, family: str, divergence: str, alpha: float | None) -> Method:
    known = _F_DPO if family == "fdpo" else _F_PO
    if divergence not in known:
        raise InputError(f"method {name!r}: unknown divergence; there are: {', '.join(known)}")
    if (divergence == "alpha") != (alpha is not None) or (alpha is not None and not 0 < alpha < 1):
        raise InputError(f"method {name!r}: alpha in (0, 1) belongs to {family}-alpha, such as {family}-alpha:0.1")
    if family == "fpo":
        return Method(None, clipped=False, divergence=_DIVERGENCES[divergence], alpha=alpha)
    return Method("logistic", clipped=False, ratio="f_dpo", divergence=_DIVERGENCES[divergence], alpha=alpha)


def _number(name: str, text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise InputError(f"method {name!r}: {text!r} is not a number") from None


def _refuse_number(name: str, value: float | None) -> None:
    if value is not None:
        raise InputError(f"method {name!r}: this method has no hyperparameter of its own")
