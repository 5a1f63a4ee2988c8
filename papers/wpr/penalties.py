"""The methods that are compared, by name: each is a penalty on the sampled tokens of a rollout.

===============================  =====================================================================================
``supervised``                   no training: the model that all others start from
``none``                         PPO without a penalty
``rkl``                          reverse KL, the usual choice
``fkl-``, ``js-``, ``alpha-``,   the other f-divergences, in the form ``value`` that the paper's code adds to the reward
``tv-``, ``chi2-``               (``fkl-value``) and in the form whose policy gradient is the divergence's
                                 (``fkl-gradient``)
``wpr``                          the Wasserstein penalty; ``wpr-3`` with 3 Sinkhorn iterations
``idkernel``                     control: the same solver with every move between tokens forbidden
``permuted``                     control: the same costs between the wrong tokens
===============================  =====================================================================================
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from papers.wpr.costs import (
    EmbeddingCost,
    TokenCost,
    identity_cost,
    kernel_exponent,
    neighbor_radii,
    permuted_cost,
)
from papers.wpr.diagnostics import transport_diagnostics
from papers.wpr.divergences import f_divergence_penalty
from papers.wpr.options import PolicyOptions, WassersteinOptions
from papers.wpr.wasserstein import solve_transport, transport_penalty
from shared.errors import InputError
from shared.lm.ppo import Rollout

_DIVERGENCES = {"rkl": "reverse_kl", "fkl": "forward_kl", "js": "js", "alpha": "alpha", "tv": "tv", "chi2": "chi2"}
_NAME = re.compile(
    r"(?P<none>supervised|none)|(?P<divergence>rkl|(fkl|js|alpha|tv|chi2)-(?P<form>value|gradient))"
    r"|(?P<transport>wpr|idkernel|permuted)(-(?P<iterations>[1-9]\d*))?"
)


class Penalties(NamedTuple):
    """A penalty of every sampled token."""

    values: Tensor
    """(B, T), 0 outside the mask."""
    describe: Callable[[], dict[str, float]]
    """Diagnostics of the solver; empty where there is none."""


PenaltyFunction = Callable[[Rollout], Penalties]


def penalty_function(
    method: str, options: PolicyOptions, cost: TokenCost, *, exclude_ids: tuple[int, ...], include_ids: tuple[int, ...]
) -> PenaltyFunction:
    """The penalty of a method.

    Args:
        method: a name from the table above.
        options: of PPO; only those of the penalties are read.
        cost: of the reference model's tokens, in the unit of ``options.wasserstein``.
        exclude_ids, include_ids: tokens that never, or always, belong to the support.

    Raises:
        InputError: unknown method.
    """
    match = parse_method(method)
    if match["none"]:
        return lambda rollout: Penalties(torch.zeros_like(rollout.log_probs), dict)
    if match["divergence"]:
        divergence, form = _DIVERGENCES[method.partition("-")[0]], match["form"] or "value"

        def divergence_penalty(rollout: Rollout) -> Penalties:
            log_ratio = rollout.log_probs - rollout.reference_log_probs
            values = f_divergence_penalty(log_ratio, divergence, alpha=options.alpha, form=form)
            return Penalties(values.masked_fill(~rollout.mask, 0.0), dict)

        return divergence_penalty

    wasserstein = options.wasserstein
    iterations = int(match["iterations"] or wasserstein.iterations)
    cost = identity_cost if match["transport"] == "idkernel" else cost

    def transport_penalties(rollout: Rollout) -> Penalties:
        transport = solve_transport(
            _probabilities(rollout.policy_logits),
            _probabilities(rollout.reference_logits),
            rollout.actions,
            cost,
            reg=1.0 / wasserstein.inverse_strength,
            num_iters=iterations,
            top_k=wasserstein.support_size,
            mask=rollout.mask,
            exclude_ids=exclude_ids,
            include_ids=include_ids,
        )
        values = transport_penalty(transport, gauge=wasserstein.gauge)
        return Penalties(values, lambda: dataclasses.asdict(transport_diagnostics(transport)))

    return transport_penalties


def parse_method(method: str) -> re.Match[str]:
    """The parts of a method's name.

    Raises:
        InputError: unknown method.
    """
    match = _NAME.fullmatch(method)
    if match is None:
        raise InputError(
            f"method {method!r}: expected supervised, none, rkl, (fkl|js|alpha|tv|chi2)-(value|gradient), "
            "or (wpr|idkernel|permuted) with -<iterations> if not the default number"
        )
    return match


def is_clipped(method: str) -> bool:
    """Whether the method's weighted penalty is clipped: an f-divergence is, a Wasserstein penalty is not."""
    return parse_method(method)["divergence"] is not None


class NeighborDistances(NamedTuple):
    """Distances among the reference model's tokens that take a pass over all pairs of them."""

    nearest: Tensor
    """(V,) to the nearest other token."""
    radii: Tensor | None
    """(V,) to the k-th nearest other token; None where costs are not truncated."""


def neighbor_distances(embeddings: Tensor, options: WassersteinOptions) -> NeighborDistances:
    """Distances of the tokens with input embeddings (V, d) to their neighbours, in the metric of the options."""
    embeddings = embeddings.detach().float()
    radii = None if options.neighbors is None else neighbor_radii(embeddings, options.neighbors, metric=options.metric)
    return NeighborDistances(neighbor_radii(embeddings, 1, metric=options.metric), radii)


def reference_cost(
    embeddings: Tensor, options: WassersteinOptions, *, words: Tensor, distances: NeighborDistances | None = None
) -> TokenCost:
    """Cost of the reference model's tokens, computed on the support when it is asked for.

    Args:
        embeddings: (V, d) input embeddings of the reference model.
        options: metric, truncation, and whether costs are divided by the mean cost between distinct ``words``.
        words: ids of the ordinary tokens, for that mean.
        distances: of :func:`neighbor_distances` for the same embeddings and options; None: they are computed here.
    """
    embeddings = embeddings.detach().float()
    nearest, radii = distances or neighbor_distances(embeddings, options)
    unit = 1.0
    if options.normalize_cost:
        among_words = EmbeddingCost(embeddings, None, options.metric)(words)
        unit = (among_words.sum() / (len(words) * (len(words) - 1))).item()
    cost = EmbeddingCost(embeddings, radii, options.metric)
    kernel_exponent(nearest / unit, reg=1.0 / options.inverse_strength)
    return lambda token_ids: cost(token_ids) / unit


def method_cost(method: str, cost: TokenCost, *, vocabulary_size: int, seed: int) -> TokenCost:
    """The cost that a method is given: for ``permuted``, that of a random permutation of the vocabulary."""
    if parse_method(method)["transport"] != "permuted":
        return cost
    generator = torch.Generator().manual_seed(seed)
    return permuted_cost(cost, torch.randperm(vocabulary_size, generator=generator))


def _probabilities(logits: Tensor) -> Tensor:
    # float32 whatever the model's precision: in half precision probabilities below 6e-8 vanish.
    return logits.float().softmax(dim=-1)
