"""Training: limit cases, the warm-up, the selection rule, and resuming."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from udim_cases import CORRUPTIONS, OPTIONS, STYLED, image_set

from papers.udim import training
from papers.udim.measurements import Probe
from papers.udim.methods import TERMS, Hyperparameters, parse_run
from papers.udim.networks import build_network
from papers.udim.options import TrainOptions
from papers.udim.tasks import Task, make_tasks
from papers.udim.training import SourceBatches, Trained, train_run
from papers.udim.update import Update
from shared.vision.evaluation import accuracy, predict_logits

SETTINGS = Hyperparameters(learning_rate=0.01)


@pytest.fixture(scope="module")
def task() -> Task:
    return make_tasks(image_set(), CORRUPTIONS, seed=0)[0]


@pytest.fixture(scope="module")
def two_sources() -> Task:
    return make_tasks(image_set(), STYLED, seed=0)[0]


def trained(
    task: Task,
    name: str,
    folder: Path,
    options: TrainOptions = OPTIONS,
    settings: Hyperparameters = SETTINGS,
    seed: int = 0,
) -> Trained:
    accelerator = Accelerator(cpu=True)
    return train_run(
        options, task, parse_run(name), settings, seed=seed, accelerator=accelerator,
        probe=Probe(options, task, accelerator.device), state=folder / name,
    )  # fmt: skip


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_erm_is_adam_on_the_batches(task, tmp_path):
    got = trained(task, "erm", tmp_path).last
    model = build_network(OPTIONS.network, channels=1, size=8, classes=task.classes, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=SETTINGS.learning_rate, fused=True)
    batches = SourceBatches(OPTIONS, task, 0, Accelerator(cpu=True))
    for step in range(OPTIONS.steps):
        batch = batches(step)
        optimizer.zero_grad()
        F.cross_entropy(model(batch.inputs), batch.labels).backward()
        optimizer.step()
    torch.testing.assert_close(weights(got), weights(model), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("base", ["sam", "asam", "sagm"])
def test_radius_zero_is_erm(task, tmp_path, base):
    settings = replace(SETTINGS, rho=0.0)
    expected = weights(trained(task, "erm", tmp_path).last)
    got = weights(trained(task, base, tmp_path, settings=settings).last)
    torch.testing.assert_close(got, expected, rtol=0, atol=0.02 if base == "sagm" else 1e-6)


@pytest.mark.parametrize("name", ["sam+udim", "sam+cross_entropy", "gam+udim"])
def test_weight_zero_is_the_base(task, tmp_path, name):
    options = replace(OPTIONS, warmup_fraction=0.0)
    got = trained(task, name, tmp_path, options, replace(SETTINGS, weight=0.0))
    assert torch.equal(weights(got.last), weights(trained(task, name.split("+")[0], tmp_path, options).last))


@pytest.mark.parametrize("term", sorted(TERMS))
def test_every_term_trains_and_differs_from_its_base(two_sources, tmp_path, term):
    settings = replace(SETTINGS, data_radius=0.0 if term == "zero" else 1.0)
    base = trained(two_sources, "sam", tmp_path).last
    got = trained(two_sources, f"sam+{term}", tmp_path, settings=settings)
    assert not torch.allclose(weights(got.last), weights(base), atol=1e-4)
    assert got.curve[-1]["penalty"] > 0


def test_terms_differ_from_each_other(task, tmp_path):
    found = [weights(trained(task, f"sam+{term}", tmp_path).last) for term in TERMS if term != "fishr"]
    distances = [(a - b).abs().max() for index, a in enumerate(found) for b in found[:index]]
    # "zero" has the radius of its settings here, and is UDIM.
    assert sum(distance < 1e-6 for distance in distances) == 1


def test_the_warm_up_is_the_base_and_ends_at_its_best_step(task, tmp_path, monkeypatch):
    options = replace(OPTIONS, warmup_fraction=0.6, evaluate_every=2)
    accuracies = iter([0.5, 0.9, 0.7, 0.8, 0.8])  # after steps 2, 4, 6 (the end of the warm-up), 8, 10
    monkeypatch.setattr(training, "accuracy", lambda logits, labels: next(accuracies))
    seen = []
    original = training.udim_update

    def watched(model, *arguments, term, **values):
        seen.append((term.weight, weights(model).clone()))
        return original(model, *arguments, term=term, **values)

    monkeypatch.setattr(training, "udim_update", watched)
    got = trained(task, "sam+udim", tmp_path, options)
    assert [weight for weight, _ in seen] == [0.0] * 6 + [1.0] * 4
    torch.testing.assert_close(seen[6][1], seen[4][1], rtol=0, atol=0)  # the weights after step 4
    assert not torch.equal(seen[5][1], seen[4][1])
    assert got.selected_step == 4 and torch.equal(weights(got.selected), seen[4][1])
    assert [record["step"] for record in got.curve] == [2, 4, 6, 8, 10]


def test_a_base_has_no_warm_up(task, tmp_path, monkeypatch):
    monkeypatch.setattr(training._State, "copy_from", lambda self, other: None)
    options = replace(OPTIONS, warmup_fraction=0.6)
    assert [record["step"] for record in trained(task, "sam", tmp_path, options).curve] == [3, 6, 9, 10]


@pytest.mark.parametrize(("values", "step"), [([0.5, 0.7, 0.6, 0.6], 6), ([0.5, 0.5, 0.5, 0.4], 9)])
def test_the_best_step_is_kept_and_the_last_of_equal_ones(task, tmp_path, monkeypatch, values, step):
    remaining = iter(values)
    monkeypatch.setattr(training, "accuracy", lambda logits, labels: next(remaining))
    got = trained(task, "erm", tmp_path)
    assert (got.selected_step, got.validation_accuracy) == (step, max(values))
    short = replace(OPTIONS, steps=step)
    monkeypatch.setattr(training, "accuracy", lambda logits, labels: 0.0)
    assert torch.equal(weights(got.selected), weights(trained(task, "erm", tmp_path / "short", short).last))
    assert not torch.equal(weights(got.selected), weights(got.last))


def test_selection_does_not_see_the_targets(task, tmp_path):
    other = replace(task, targets=tuple(replace(t, data=replace(t.data, labels=1 - t.data.labels.clamp(max=1)))
                                        for t in task.targets))  # fmt: skip
    first, second = (trained(each, "sam+udim", tmp_path / str(index)) for index, each in enumerate((task, other)))
    assert torch.equal(weights(first.selected), weights(second.selected))
    assert first.selected_step == second.selected_step
    assert first.curve[-1]["unseen_loss"] != second.curve[-1]["unseen_loss"]
    logits = predict_logits(first.selected, task.validation.images)
    assert first.validation_accuracy == accuracy(logits, task.validation.labels)


def test_a_domain_is_compared_with_its_own_perturbation(two_sources, tmp_path, monkeypatch):
    sizes = []
    original = training.udim_update
    monkeypatch.setattr(
        training,
        "udim_update",
        lambda *args, **values: sizes.append(values["domain_sizes"]) or original(*args, **values),
    )
    trained(two_sources, "sam+udim", tmp_path)
    assert sizes == [[8, 8]] * OPTIONS.steps


def test_fishr_needs_two_sources(task, tmp_path):
    with pytest.raises(ValueError, match=r"run erm\+fishr: needs at least 2 source domains, got 1"):
        trained(task, "erm+fishr", tmp_path)


@pytest.mark.parametrize(
    ("name", "killed_in"), [("sam+udim", 1), ("sam+udim", 5), ("sam+random", 9), ("erm+fishr", 5), ("erm+fishr", 9)]
)
def test_a_resumed_training_ends_the_same(two_sources, tmp_path, monkeypatch, name, killed_in):
    """Killed before a state, between the warm-up's end and the next state, and near the end."""
    options = replace(OPTIONS, warmup_fraction=0.4, checkpoint_every=2, evaluate_every=2)
    whole = trained(two_sources, name, tmp_path / "whole", options)
    calls = 0
    original = training._check_finite

    def failing(update: Update, step: int) -> None:
        nonlocal calls
        calls += 1
        if calls == killed_in + 1:
            raise KeyboardInterrupt
        original(update, step)

    monkeypatch.setattr(training, "_check_finite", failing)
    with pytest.raises(KeyboardInterrupt):
        trained(two_sources, name, tmp_path / "killed", options)
    monkeypatch.setattr(training, "_check_finite", original)
    resumed = trained(two_sources, name, tmp_path / "killed", options)
    assert torch.equal(weights(whole.last), weights(resumed.last))
    assert torch.equal(weights(whole.selected), weights(resumed.selected))
    assert whole.curve == resumed.curve and whole[2:5] == resumed[2:5]


def test_seeds_differ_and_runs_of_one_seed_share_batches(task):
    accelerator = Accelerator(cpu=True)
    batches = [SourceBatches(OPTIONS, task, seed, accelerator)(3) for seed in (0, 0, 1)]
    assert torch.equal(batches[0].inputs, batches[1].inputs)
    assert not torch.equal(batches[0].inputs, batches[2].inputs)


def test_a_loss_that_is_not_finite_stops(task, tmp_path):
    with pytest.raises(FloatingPointError, match=r"step \d: the (loss|penalty) is (nan|inf)"):
        trained(task, "sam+udim", tmp_path, settings=replace(SETTINGS, learning_rate=1e20))


def test_copies_do_not_share_tensors(task):
    accelerator = Accelerator(cpu=True)
    first, second = (training._new_state(OPTIONS, task, SETTINGS, 0, accelerator) for _ in range(2))
    gradients = [torch.ones_like(parameter) for parameter in first.model.parameters()]
    first.apply(gradients)
    second.copy_from(first)
    kept = copy.deepcopy(second.optimizer.state_dict()["state"])
    before = weights(second.model).clone()
    first.apply(gradients)
    assert torch.equal(weights(second.model), before)
    for index, state in second.optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(value, kept[index][name]), name
