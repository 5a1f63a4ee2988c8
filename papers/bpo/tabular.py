"""Where each loss puts its optimum, without sampling or network: claim C1 of the replication.

arXiv:2505.19601, Table 1: every Bregman loss has the optimum of DPO, pi* ~ pi_ref exp(r / beta), whatever its
generator; f-DPO (but for the reverse KL) and pairwise f-PO (but for the forward KL) have others.

One prompt, K responses, a policy with one free logit per response, Bradley-Terry labels with reward r. The expected
loss over ordered pairs is then a finite sum,

    L(theta) = sum_{i != j} sigma(r_i - r_j) loss(y_w = i, y_l = j),

and is minimised to machine precision. For a Bregman loss the stationary point is unique, so the minimiser found
cannot depend on the start: each pair's derivative in theta_i - theta_j has the sign of that margin's distance to its
optimum, so all terms push down the response that is most over-weighted, unless the policy is optimal everywhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from papers.bpo.bregman_losses import bregman_ratio_loss
from papers.bpo.f_po_losses import f_po_pair_loss
from papers.bpo.log_ratios import log_model_ratio

PairLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(policy chosen, policy rejected, reference chosen, reference rejected) log-probs (P,) -> loss per pair (P,)."""


@dataclass(frozen=True)
class TabularProblem:
    """One prompt with K responses: reference log-probs (K,) in nats, rewards (K,), divergence strength beta."""

    ref_logps: Tensor
    rewards: Tensor
    beta: float

    @property
    def optimal_logps(self) -> Tensor:
        """log pi* (K,), pi* ~ pi_ref exp(r / beta): DPO's optimum (Prop. 1)."""
        return torch.log_softmax(self.ref_logps + self.rewards / self.beta, dim=0)


def random_problem(seed: int, *, responses: int = 5, reward_scale: float = 0.7, beta: float = 0.5) -> TabularProblem:
    """Standard-normal reference logits, rewards reward_scale * N(0, 1); float64, the same for the same seed."""
    if responses < 2:
        raise ValueError(f"responses must be at least 2, got {responses}")
    rng = np.random.default_rng(seed)
    ref_logits = torch.from_numpy(rng.standard_normal(responses))
    rewards = torch.from_numpy(reward_scale * rng.standard_normal(responses))
    return TabularProblem(torch.log_softmax(ref_logits, dim=0), rewards, beta)


def bpo_loss(beta: float, **generator_options: float | str) -> PairLoss:
    """BPO on DPO's ratio; options as in `bregman_ratio_loss`."""
    return lambda *logps: bregman_ratio_loss(log_model_ratio(*logps, beta=beta), **generator_options)


def f_dpo_loss(beta: float, divergence: str, alpha: float | None = None) -> PairLoss:
    """f-DPO: the logistic loss on f-DPO's ratio."""
    ratio = partial(log_model_ratio, beta=beta, divergence=divergence, alpha=alpha)
    return lambda *logps: bregman_ratio_loss(ratio(*logps), generator="logistic")


def f_po_loss(beta: float, divergence: str, alpha: float | None = None) -> PairLoss:
    """Pairwise f-PO on DPO's margin, with the default label smoothing."""
    loss = partial(f_po_pair_loss, divergence=divergence, alpha=alpha)
    return lambda *logps: loss(-log_model_ratio(*logps, beta=beta))


def study_losses(beta: float) -> dict[str, PairLoss]:
    """The losses of Table 1 by name: BPO members ("bpo/..."), f-DPO ("f_dpo/...") and pairwise f-PO ("f_po/...")."""
    bregman: dict[str, dict[str, float | str]] = {name: {"generator": name} for name in ("logistic", "kliep", "lsif")}
    for lam in (-0.5, 0.5, 2.0):
        bregman[f"basu_{lam:g}"] = {"generator": "basu", "lam": lam}
    for lam in (-1.5, -0.5, 0.0, 0.5, 1.0, 2.0):
        bregman[f"scaled_basu_{lam:g}"] = {"generator": "scaled_basu", "lam": lam}
    bregman["scaled_basu_0.5_clipped"] = {"generator": "scaled_basu", "lam": 0.5, "ratio_min": 0.01}
    losses = {f"bpo/{name}": bpo_loss(beta, **options) for name, options in bregman.items()}
    for name in ("reverse_kl", "forward_kl", "jensen_shannon", "chi_squared"):
        losses[f"f_dpo/{name}"] = f_dpo_loss(beta, name)
    for name in ("forward_kl", "reverse_kl", "jensen_shannon", "jeffreys"):
        losses[f"f_po/{name}"] = f_po_loss(beta, name)
    for alpha in (0.1, 0.5):
        losses[f"f_dpo/alpha_{alpha:g}"] = f_dpo_loss(beta, "alpha", alpha)
        losses[f"f_po/alpha_{alpha:g}"] = f_po_loss(beta, "alpha", alpha)
    return losses


def expected_loss(pair_loss: PairLoss, policy_logits: Tensor, problem: TabularProblem) -> Tensor:
    """L(theta): the loss summed over all ordered pairs, each weighted by its Bradley-Terry probability; scalar."""
    chosen, rejected = (~torch.eye(len(problem.rewards), dtype=torch.bool)).nonzero(as_tuple=True)
    preference = torch.sigmoid(problem.rewards[chosen] - problem.rewards[rejected])
    logps = torch.log_softmax(policy_logits, dim=0)
    ref_logps = problem.ref_logps
    losses = pair_loss(logps[chosen], logps[rejected], ref_logps[chosen], ref_logps[rejected])
    return (preference * losses).sum()


def fitted_logps(pair_loss: PairLoss, problem: TabularProblem) -> Tensor:
    """log pi_hat (K,): the policy that minimises the expected loss, by L-BFGS in float64 from pi_ref.

    Raises:
        ArithmeticError: the gradient at the end is not small, so that pi_hat is no minimiser of anything.
    """

    def value_and_gradient(logits: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.from_numpy(logits).requires_grad_()
        loss = expected_loss(pair_loss, theta, problem)
        (gradient,) = torch.autograd.grad(loss, theta)
        return loss.item(), gradient.numpy()

    start = problem.ref_logps.double().numpy()
    options = {"ftol": 0.0, "gtol": 1e-12, "maxiter": 10_000, "maxfun": 100_000, "maxcor": 20}
    solution = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
    slope = float(np.abs(solution.jac).max())
    if not slope < 1e-5 * max(1.0, abs(solution.fun)):  # the line search cannot resolve less in float64
        raise ArithmeticError(f"L-BFGS stopped at a gradient of {slope:.1e}: {solution.message}")
    return torch.log_softmax(torch.from_numpy(solution.x), dim=0)


def optimality_gaps(problem: TabularProblem, losses: Mapping[str, PairLoss] | None = None) -> dict[str, float]:
    """KL(pi* || pi_hat) in nats per loss, pi_hat the minimiser of its exact expected loss; 0 where it is pi*.

    `losses` defaults to `study_losses(problem.beta)`. Deterministic.
    """
    target = problem.optimal_logps
    losses = study_losses(problem.beta) if losses is None else losses
    gaps = {}
    for name, pair_loss in losses.items():
        fitted = fitted_logps(pair_loss, problem)
        gaps[name] = (target.exp() * (target - fitted)).sum().item()
    return gaps
