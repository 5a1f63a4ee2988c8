import math

import pytest
import torch

from papers.bpo.bregman_losses import bregman_ratio_loss
from papers.bpo.f_po_losses import f_po_pair_loss
from papers.bpo.log_ratios import log_model_ratio, simpo_log_ratio
from papers.bpo.methods import Method, PairLogProbs, clipped_share, pair_losses, parse_method, ratio_bounds
from papers.bpo.options import LossOptions
from shared.errors import InputError

OPTIONS = LossOptions(beta=0.3)


@pytest.fixture
def pairs() -> PairLogProbs:
    generator = torch.Generator().manual_seed(0)
    log_probs = [-10 + 3 * torch.randn(50, generator=generator, dtype=torch.float64) for _ in range(4)]
    lengths = [torch.randint(1, 9, (50,), generator=generator) for _ in range(2)]
    return PairLogProbs(*log_probs, *lengths)


def of_policy(pairs: PairLogProbs) -> tuple[torch.Tensor, ...]:
    return pairs.policy_chosen, pairs.policy_rejected, pairs.reference_chosen, pairs.reference_rejected


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("dpo", Method("logistic", clipped=False)),
        ("dpo:0.1", Method("logistic", clipped=False, beta=0.1)),
        ("dpo-clipped", Method("logistic")),
        ("kliep", Method("kliep")),
        ("lsif", Method("lsif")),
        ("ba:2", Method("basu", lam=2.0)),
        ("sba:-0.5", Method("scaled_basu", lam=-0.5)),
        ("fdpo-fkl", Method("logistic", clipped=False, ratio="f_dpo", divergence="forward_kl")),
        ("fdpo-alpha:0.1", Method("logistic", clipped=False, ratio="f_dpo", divergence="alpha", alpha=0.1)),
        ("fpo-rkl", Method(None, clipped=False, divergence="reverse_kl")),
        ("fpo-alpha:0.3", Method(None, clipped=False, divergence="alpha", alpha=0.3)),
        ("simpo", Method("logistic", clipped=False, ratio="simpo")),
        ("sba:0.5@fdpo-js", Method("scaled_basu", lam=0.5, ratio="f_dpo", divergence="jensen_shannon")),
        ("kliep@fdpo-alpha:0.1", Method("kliep", ratio="f_dpo", divergence="alpha", alpha=0.1)),
        ("sba:-0.5@simpo", Method("scaled_basu", lam=-0.5, ratio="simpo")),
    ],
)
def test_names_give_methods(name, method):
    assert parse_method(name) == method


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ppo",
        "sba",
        "ba:-1",
        "sba:x",
        "kliep:1",
        "dpo:0",
        "dpo-clipped:1",
        "fdpo-rkl",
        "fdpo-alpha",
        "fdpo-fkl:0.1",
        "fpo-fkl",
        "fpo-alpha:1",
        "simpo:2",
        "dpo@simpo",
        "sba:0@dpo",
        "sba:0@fpo-js",
        "sba:0@kliep",
        "sft",
    ],
)
def test_wrong_names_are_named(name):
    with pytest.raises(InputError, match=f"method '{name.partition('@')[0]}"):
        parse_method(name)


def test_losses_are_those_of_the_pure_functions(pairs):
    log_ratio = log_model_ratio(*of_policy(pairs), beta=0.3)
    expected = {
        "dpo": torch.nn.functional.softplus(log_ratio),
        "dpo:0.7": torch.nn.functional.softplus(log_model_ratio(*of_policy(pairs), beta=0.7)),
        "dpo-clipped": bregman_ratio_loss(log_ratio, generator="logistic", ratio_min=0.01),
        "lsif": bregman_ratio_loss(log_ratio, generator="lsif", ratio_min=0.01),
        "ba:2": bregman_ratio_loss(log_ratio, generator="basu", lam=2.0, ratio_min=0.01),
        "sba:0.5": bregman_ratio_loss(log_ratio, generator="scaled_basu", lam=0.5, scale=4.0, ratio_min=0.01),
        "fpo-jeffreys": f_po_pair_loss(-log_ratio, divergence="jeffreys", label_smoothing=1e-3),
        "fdpo-chi2": torch.nn.functional.softplus(
            log_model_ratio(*of_policy(pairs), beta=0.3, divergence="chi_squared")
        ),
    }
    for name, losses in expected.items():
        torch.testing.assert_close(pair_losses(parse_method(name), OPTIONS, pairs)[0], losses, msg=name)


def test_simpo_mixes_with_its_logistic_loss_and_matches_its_gradient_at_the_start(pairs):
    log_ratio = simpo_log_ratio(
        pairs.policy_chosen, pairs.policy_rejected, pairs.chosen_lengths, pairs.rejected_lengths, beta=2.0, gamma=1.0
    )
    logistic, same = pair_losses(parse_method("simpo"), OPTIONS, pairs)
    torch.testing.assert_close(same, log_ratio)
    scale = 4 * math.cosh(0.5)  # the card's closed form at lambda = -1/2, gamma = 1
    bregman = bregman_ratio_loss(
        log_ratio, generator="scaled_basu", lam=-0.5, scale=scale, ratio_min=0.01, ratio_max=30.0
    )
    mixed, _ = pair_losses(parse_method("sba:-0.5@simpo"), OPTIONS, pairs)
    torch.testing.assert_close(mixed, 0.5 * bregman + 0.5 * logistic)

    equal = torch.full((1,), -5.0, dtype=torch.float64, requires_grad=True)
    one = torch.ones(1)
    at_start = PairLogProbs(equal, equal.detach(), equal.detach(), equal.detach(), one, one)
    slopes = [
        torch.autograd.grad(pair_losses(parse_method(name), OPTIONS, at_start)[0].sum(), equal)[0].item()
        for name in ("simpo", "sba:-0.5@simpo")
    ]
    assert slopes[1] == pytest.approx(slopes[0], rel=1e-12)


def test_clipped_share_counts_the_pairs_without_gradient():
    chosen = torch.tensor([-1.0, 0.0, 20.0, -20.0], requires_grad=True)
    zero = torch.zeros(4)
    pairs = PairLogProbs(chosen, zero, zero, zero, zero + 1, zero + 1)
    for name, share in (("sba:0.5", 0.25), ("dpo", 0.0), ("dpo-clipped", 0.25), ("fpo-js", 0.0)):
        losses, log_ratio = pair_losses(parse_method(name), OPTIONS, pairs)
        (slope,) = torch.autograd.grad(losses.sum(), chosen)
        assert clipped_share(parse_method(name), OPTIONS, log_ratio).item() == share == (slope == 0).float().mean()
    log_ratio = torch.tensor([0.0, math.log(31), math.log(0.009), math.log(29)])
    assert clipped_share(parse_method("sba:0@simpo"), OPTIONS, log_ratio).item() == 0.5


def test_only_generators_other_than_the_logistic_are_clipped_by_default():
    bounds = {name: ratio_bounds(parse_method(name), OPTIONS) for name in ("dpo", "kliep", "sba:0@simpo", "fpo-js")}
    assert bounds == {"dpo": (None, None), "kliep": (0.01, None), "sba:0@simpo": (0.01, 30.0), "fpo-js": (None, None)}
    assert ratio_bounds(parse_method("fdpo-fkl"), OPTIONS) == (None, None)


def test_sba_on_the_forward_kl_ratio_stays_finite_in_float32():
    chosen = torch.tensor([-9.0, -30.0, 0.0], requires_grad=True)
    zero = torch.zeros(3)
    pairs = PairLogProbs(chosen, zero, zero, zero, zero + 1, zero + 1)
    losses, _ = pair_losses(parse_method("sba:2@fdpo-fkl"), OPTIONS, pairs)
    (slope,) = torch.autograd.grad(losses.sum(), chosen)
    assert losses.isfinite().all() and slope.isfinite().all()
    assert slope[0] == slope[1] == 0 > slope[2]
