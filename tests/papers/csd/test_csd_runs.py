"""Names of runs, the losses they stand for, and the selection of learning rates."""

import pandas as pd
import pytest
import torch
from csd_cases import random_logits

from papers.csd.distillation_objectives import concrete_score_loss, direct_logit_loss, token_divergence
from papers.csd.methods import logit_loss
from papers.csd.runs import DIVERGENCES, Run, parse_run, tuned_runs
from papers.csd.select import select_rates
from shared.errors import InputError


def test_a_run_says_its_setting_and_method():
    run = parse_run("offset-2.5/csd-TS:1.5")
    assert (run.setting, run.method, str(run)) == ("offset-2.5", "csd-TS:1.5", "offset-2.5/csd-TS:1.5")
    assert (run.offset, run.student_fraction, run.is_trained) == (2.5, 0.0, True)
    assert [parse_run(f"{name}/dld-U").student_fraction for name in ("off-policy", "gkd", "imitkd")] == [0, 0.5, 1]
    assert parse_run("distillm/csd-SS").student_fraction is None
    on_policy = ("gkd", "imitkd", "distillm")
    assert all(parse_run(f"{name}/dld-U").is_on_policy for name in on_policy)
    assert not any(parse_run(f"{name}/dld-U").is_on_policy for name in ("off-policy", "offset-6"))
    assert not parse_run("off-policy/teacher").is_trained


@pytest.mark.parametrize(
    "text",
    ["csd-SS", "off-policy", "online/csd-SS", "offset-/csd-SS", "offset--1/csd-SS", "off-policy/csd-S",
     "off-policy/csd-SX", "off-policy/dld-SS", "off-policy/csd-SS:0", "off-policy/csd-SS:", "off-policy/dld-S:2",
     "off-policy/kl"],
)  # fmt: skip
def test_other_names_are_refused(text):
    with pytest.raises(InputError, match="unknown"):
        parse_run(text)


@pytest.mark.parametrize(
    ("text", "tuned_as"),
    [
        ("off-policy/csd-SS", "off-policy/csd-SS"),
        ("off-policy/reverse_kl", "off-policy/csd-SS"),
        ("imitkd/reverse_kl", "imitkd/csd-SS"),
        ("off-policy/csd-SS:2", "off-policy/csd-SS"),
        ("off-policy/csd-TS:2", "off-policy/csd-TS:2"),
        ("offset-6/dld-S", "off-policy/dld-S"),
    ],
)
def test_whose_learning_rate_a_run_takes(text, tuned_as):
    assert str(parse_run(text).tuned_as) == tuned_as


def test_what_is_tuned():
    runs = ("off-policy/teacher", "off-policy/csd-SS", "off-policy/reverse_kl", "offset-2/csd-SS", "gkd/dld-S")
    assert tuned_runs(runs) == ["off-policy/csd-SS", "gkd/dld-S"]


def test_names_stand_for_their_losses():
    f, t = random_logits(5, 7)
    assert torch.equal(logit_loss("csd-TS")(f, t), concrete_score_loss(f, t, weighting=("teacher", "student")))
    assert torch.equal(
        logit_loss("csd-SS:1.5")(f, t), concrete_score_loss(f, t, weighting=("student", "student"), temperature=1.5)
    )
    assert torch.equal(
        logit_loss("csd-MU", teacher_fraction=0.2)(f, t),
        concrete_score_loss(f, t, weighting=("mixture", "uniform"), teacher_fraction=0.2),
    )
    assert torch.equal(logit_loss("dld-T")(f, t), direct_logit_loss(f, t, weighting="teacher"))
    for kind in DIVERGENCES:
        assert torch.equal(logit_loss(kind)(f, t), token_divergence(f, t, kind))
    with pytest.raises(ValueError, match="one that compares logits"):
        logit_loss("sft")


def test_the_best_rate_is_selected_and_borrowed():
    results = pd.DataFrame(
        [("off-policy/csd-SS", 0.1, 3.0), ("off-policy/csd-SS", 0.2, 5.0), ("off-policy/dld-S", 0.2, 4.0),
         ("off-policy/dld-S", 0.1, 4.0)],
        columns=["run", "learning_rate", "rouge_l"],
    )  # fmt: skip
    runs = ("off-policy/csd-SS", "off-policy/reverse_kl", "offset-6/dld-S", "off-policy/initial")
    assert select_rates(runs, results) == {
        "off-policy/csd-SS": 0.2,
        "off-policy/reverse_kl": 0.2,
        "offset-6/dld-S": 0.1,  # of equal ones the smaller
    }
    with pytest.raises(InputError, match="off-policy/csd-TT"):
        select_rates(("off-policy/csd-TT",), results)


def test_runs_are_hashable_and_compare_by_name():
    assert Run("off-policy", "sft") == parse_run("off-policy/sft")
