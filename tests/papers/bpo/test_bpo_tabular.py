"""The tabular study (claim C1): fitted optima against optima known in closed form or by root finding."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize_scalar

from papers.bpo.f_po_losses import f_po_pair_loss
from papers.bpo.tabular import (
    TabularProblem,
    bpo_loss,
    expected_loss,
    f_dpo_loss,
    f_po_loss,
    fitted_logps,
    optimality_gaps,
    random_problem,
    study_losses,
)

SEEDS = (0, 1, 2)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_odds(logps: torch.Tensor) -> float:
    return (logps[0] - logps[1]).item()


@pytest.mark.parametrize("seed", SEEDS)
def test_bregman_losses_have_the_optimum_of_dpo_and_the_others_do_not(seed):
    gaps = optimality_gaps(random_problem(seed))
    same_as_dpo = {name for name in gaps if name.startswith("bpo/")} | {"f_dpo/reverse_kl"}
    assert {name: gap for name, gap in gaps.items() if name in same_as_dpo and abs(gap) > 1e-8} == {}
    # f-PO's forward KL differs by its label smoothing alone; f-DPO's alpha = 0.1 is close to the reverse KL, alpha = 0.
    nearly = {"f_po/forward_kl": 1e-8, "f_dpo/alpha_0.1": 1e-5}
    others = {name: gap for name, gap in gaps.items() if name not in same_as_dpo}
    assert {name: gap for name, gap in others.items() if gap < nearly.get(name, 1e-3)} == {}
    assert gaps["f_po/forward_kl"] < 1e-4


def test_the_study_covers_every_family():
    names = study_losses(beta=0.5)
    assert sum(name.startswith("bpo/") for name in names) == 13
    assert sum(name.startswith("f_dpo/") for name in names) == 6
    assert sum(name.startswith("f_po/") for name in names) == 6


def test_optimal_policy_satisfies_the_ratio_of_proposition_1():
    problem = random_problem(3, responses=4, beta=0.3)
    logps = problem.optimal_logps
    assert logps.exp().sum().item() == pytest.approx(1, abs=1e-12)
    p = torch.sigmoid(problem.rewards[0] - problem.rewards[2])
    expected = problem.ref_logps[0] - problem.ref_logps[2] + torch.log(p / (1 - p)) / problem.beta
    assert (logps[0] - logps[2]).item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize(
    ("divergence", "alpha", "inverse"),
    [  # u = pi / pi_ref from f'(u) = y, up to the constants the code leaves out
        ("forward_kl", None, lambda y: -1 / y),
        ("jensen_shannon", None, lambda y: math.exp(y) / (1 - math.exp(y))),
        ("alpha", 0.5, lambda y: (-0.5 * y) ** (-1 / 0.5)),
        ("chi_squared", None, lambda y: brentq(lambda u: u + math.log(u) - y, 1e-12, 1e3, xtol=1e-15)),
    ],
)
def test_f_dpo_finds_the_optimum_of_its_own_regulariser(divergence, alpha, inverse):
    problem = random_problem(4)
    rewards = (problem.rewards / problem.beta).tolist()
    reference = problem.ref_logps.exp().tolist()

    def policy(shift: float) -> list[float]:
        return [p * inverse(r - max(rewards) + shift) for p, r in zip(reference, rewards, strict=True)]

    high = 5.0 if divergence == "chi_squared" else -1e-9  # the other f' are negative
    shift = brentq(lambda c: sum(policy(c)) - 1, -20.0, high, xtol=1e-14)
    fitted = fitted_logps(f_dpo_loss(problem.beta, divergence, alpha), problem)
    torch.testing.assert_close(fitted.exp(), torch.tensor(policy(shift), dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("divergence", ["reverse_kl", "jensen_shannon", "jeffreys"])
def test_f_po_of_two_responses_against_a_scalar_search(divergence):
    problem = random_problem(5, responses=2)
    p = sigmoid((problem.rewards[0] - problem.rewards[1]).item())

    def objective(m: float) -> float:
        losses = f_po_pair_loss(torch.tensor([m, -m], dtype=torch.float64), divergence=divergence).tolist()
        return p * losses[0] + (1 - p) * losses[1]

    grid = np.linspace(-20, 20, 4001)
    start = grid[np.argmin([objective(m) for m in grid])]
    best = minimize_scalar(objective, bounds=(start - 0.02, start + 0.02), method="bounded", options={"xatol": 1e-10})
    fitted = fitted_logps(f_po_loss(problem.beta, divergence), problem)
    margin = problem.beta * (log_odds(fitted) - log_odds(problem.ref_logps))
    assert margin == pytest.approx(best.x, abs=1e-5)


def test_f_po_forward_kl_fits_the_smoothed_preference():
    problem = random_problem(6, responses=2)
    p = sigmoid((problem.rewards[0] - problem.rewards[1]).item())
    smoothed = p * (1 - 1e-3) + (1 - p) * 1e-3
    fitted = fitted_logps(f_po_loss(problem.beta, "forward_kl"), problem)
    margin = problem.beta * (log_odds(fitted) - log_odds(problem.ref_logps))
    assert margin == pytest.approx(math.log(smoothed / (1 - smoothed)), abs=1e-7)


def test_a_clip_tighter_than_the_preferences_is_reported_not_fitted():
    # logit p = 3 lies outside R >= 0.3, i.e. m <= 1.2: the minimum is then a kink, where no gradient vanishes.
    ref_logps = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    problem = TabularProblem(ref_logps, torch.tensor([1.5, -1.5], dtype=torch.float64), beta=0.5)
    wide, tight = (
        {"clipped": bpo_loss(0.5, generator="scaled_basu", lam=0.5, ratio_min=bound)} for bound in (0.01, 0.3)
    )
    assert optimality_gaps(problem, wide)["clipped"] < 1e-8
    with pytest.raises(ArithmeticError, match="L-BFGS stopped at a gradient of"):
        optimality_gaps(problem, tight)


def test_expected_loss_sums_both_orders_of_every_pair():
    problem = random_problem(7, responses=3)
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64)
    logps, ref = torch.log_softmax(logits, 0).tolist(), problem.ref_logps.tolist()
    expected = 0.0
    for i in range(3):
        for j in range(3):
            if i != j:
                preference = sigmoid((problem.rewards[i] - problem.rewards[j]).item())
                margin = problem.beta * ((logps[i] - ref[i]) - (logps[j] - ref[j]))
                expected += preference * math.log1p(math.exp(-margin))
    got = expected_loss(bpo_loss(problem.beta, generator="logistic"), logits, problem)
    assert got.item() == pytest.approx(expected, abs=1e-12)


def test_the_gap_is_the_divergence_from_the_optimum_to_the_fit():
    problem = random_problem(8)
    loss = f_dpo_loss(problem.beta, "jensen_shannon")
    fitted, target = fitted_logps(loss, problem).exp(), problem.optimal_logps.exp()
    expected = sum(p * math.log(p / q) for p, q in zip(target.tolist(), fitted.tolist(), strict=True))
    assert optimality_gaps(problem, {"loss": loss}) == {"loss": pytest.approx(expected, abs=1e-12)}


def test_the_study_is_deterministic_and_depends_on_the_seed():
    losses = {"f_dpo/forward_kl": f_dpo_loss(0.5, "forward_kl")}
    assert optimality_gaps(random_problem(0), losses) == optimality_gaps(random_problem(0), losses)
    assert optimality_gaps(random_problem(0), losses) != optimality_gaps(random_problem(1), losses)


def test_random_problem_draws_rewards_at_the_stated_scale():
    problem = random_problem(0, responses=20_000, reward_scale=0.7)
    assert problem.rewards.dtype == problem.ref_logps.dtype == torch.float64
    assert problem.rewards.std().item() == pytest.approx(0.7, abs=0.02)
    assert problem.ref_logps.std().item() == pytest.approx(1.0, abs=0.03)
    assert problem.ref_logps.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_a_single_response_is_refused():
    with pytest.raises(ValueError, match=r"responses.*1"):
        random_problem(0, responses=1)
