"""The training loop: phases, pairing of members, estimates of T, and what is measured."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from papers.rent import learning
from papers.rent.corruption import transition_error
from papers.rent.learning import WEIGHT_BIN_WIDTH, WEIGHT_BINS, EpochLog, Training
from papers.rent.methods import parse_method
from papers.rent.train import open_problem
from papers.rent.transition_estimation import dual_transition, estimate_transition_from_anchors
from papers.rent.utilization import StepLosses
from shared.data_order import BatchOrder
from shared.vision.models import build_classifier
from shared.vision.options import ClassifierOptions

METHODS = ("ce", "b0", "fl/forward", "rw/true", "rent/forward", "dws:0.5/dual_t", "rent/volminnet", "fl/tv",
           "backward/true", "rw_norm/cycle")  # fmt: skip


@pytest.fixture(scope="module")
def problem(tiny_data):
    return open_problem("digits", "sym50", 3, tiny_data["images"], tiny_data["labels"], torch.device("cpu"))[0]


def training_of(problem, options, names, seed=3):
    return Training([parse_method(name) for name in names], problem, options, seed, Accelerator())


def outcome_of(problem, options, names, folder):
    return training_of(problem, options, names).run(folder)


@pytest.fixture(scope="module")
def together(problem, tiny_options, tmp_path_factory):
    return outcome_of(problem, tiny_options, METHODS, tmp_path_factory.mktemp("together"))


def history_of(outcome):
    return pd.DataFrame(outcome.history).set_index(["method", "epoch"])


@pytest.mark.parametrize("names", [*[(name,) for name in METHODS], ("rent/forward", "b0", "rent/volminnet")])
def test_a_method_gives_the_same_numbers_whatever_is_trained_beside_it(
    problem, tiny_options, together, names, tmp_path
):
    alone = outcome_of(problem, tiny_options, names, tmp_path)
    for position, name in enumerate(names):
        member = METHODS.index(name)
        pd.testing.assert_frame_equal(history_of(alone).loc[[name]], history_of(together).loc[[name]], check_exact=True)
        assert torch.equal(alone.transitions[position], together.transitions[member])
        assert torch.equal(alone.correct[position], together.correct[member])


def test_cross_entropy_is_the_plain_loop(problem, tiny_options, together):
    """An independent few lines with torch's Adam give CE's accuracy after every epoch."""
    model = build_classifier(tiny_options.classifier, channels=1, size=8, num_classes=10, seed=3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    order = BatchOrder(160, 32, 3)
    for epoch in range(4):
        for step in range(5 * epoch, 5 * epoch + 5):
            rows = torch.tensor(order.indices(step))
            optimizer.zero_grad()
            F.cross_entropy(model(problem.train.images[rows]), problem.noisy_labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            right = model(problem.test.images).argmax(1) == problem.test.labels
        assert history_of(together).loc["ce", "accuracy"][epoch + 1] == pytest.approx(
            right.double().mean().item(), abs=2e-3
        )
    assert (right == together.correct[0]).double().mean() > 0.995


def test_warm_ups_are_shared_and_then_methods_part(together):
    accuracy = history_of(together)["accuracy"].unstack()
    warmed = [name for name in METHODS if name not in ("rent/volminnet", "fl/tv")]
    for epoch in (1, 2):
        assert (accuracy.loc[warmed, epoch] == accuracy.loc["ce", epoch]).all()
    assert accuracy.loc["rent/volminnet", 1] != accuracy.loc["ce", 1] != accuracy.loc["fl/tv", 1]
    assert (accuracy.loc[warmed, 4] != accuracy.loc["ce", 4]).sum() >= 6


def test_transitions_are_estimated_when_the_warm_up_ends(problem, together):
    errors = history_of(together)["transition_error"].unstack()
    of_identity = transition_error(torch.eye(10)[None], problem.transition).item()
    assert errors.loc[["ce", "b0"]].isna().all(axis=None)
    assert (errors.loc[["rw/true", "backward/true"]] == 0).all(axis=None)
    for name in ("fl/forward", "rent/forward", "dws:0.5/dual_t"):
        assert errors.loc[name, 1] == pytest.approx(of_identity)
        assert errors.loc[name, 2] == errors.loc[name, 3] == errors.loc[name, 4] != errors.loc[name, 1]
    assert errors.loc["fl/forward", 4] == errors.loc["rent/forward", 4] != errors.loc["dws:0.5/dual_t", 4]
    assert (errors.loc["rent/volminnet"].diff().dropna() != 0).all()  # learned in every step
    assert errors.loc["rw_norm/cycle", 1] == errors.loc["rw_norm/cycle", 2] != errors.loc["rw_norm/cycle", 4]


def test_estimates_are_those_of_what_the_network_said(problem, tiny_options):
    options = dataclasses.replace(tiny_options, dual_warmup_epochs=1)
    training = training_of(problem, options, ("rw/forward", "rw/dual_t"))
    log = training.train_epoch(0)
    training.estimate(0, log)
    seen, probabilities = torch.cat(log.indices), torch.cat(log.probabilities)
    assert torch.equal(seen.sort().values, torch.arange(160)) and probabilities.shape == (160, 2, 10)
    anchors = estimate_transition_from_anchors(probabilities[:, 1], problem.noisy_labels[seen], 0.03)
    predicted = training.predictions(problem.train.images)[1]
    assert torch.equal(training.transitions[1], dual_transition(anchors, predicted, problem.noisy_labels))
    assert torch.equal(training.transitions[0], torch.eye(10))  # its warm-up is longer
    training.estimate(1, training.train_epoch(1))
    assert not torch.equal(training.transitions[0], torch.eye(10))


def test_true_transitions_are_used_and_learned_ones_are_kept_current(problem, tiny_options):
    training = training_of(problem, tiny_options, ("rent/true", "rent/tv"))
    assert torch.equal(training.transitions[0], problem.transition)
    training.train_epoch(0)
    learned = training.learner.learned["1"]()[0]
    assert (training.transitions[1] - learned).abs().max() < 0.02  # one update behind
    assert not torch.equal(training.transitions[1], learned) and not training.transitions.requires_grad


def hand_made_log(training):
    """Two batches of two samples: the first of each pair is clean, the second mislabelled."""
    problem = training.problem
    clean, wrong = problem.is_clean.nonzero()[:2, 0], (~problem.is_clean).nonzero()[:2, 0]
    log = EpochLog()
    for batch, weights in enumerate(([[0.75, 0.25], [math.nan, math.nan]], [[0.5, 0.5], [math.nan, math.nan]])):
        rows = torch.stack([clean[batch], wrong[batch]])
        logits = torch.zeros(2, 2, 10)
        logits[0, [0, 1], problem.noisy_labels[rows]] = 9.0  # the first member fits both labels,
        logits[1, :, problem.noisy_labels[rows[0]]] = 9.0  # the second the right one alone
        importance = torch.tensor([[1.0, 0.25], [1.0, 1.0]]) + batch
        fell_back = torch.tensor([batch == 1, False])
        losses = StepLosses(torch.tensor(0.0), importance, torch.tensor(weights), fell_back)
        log.add(rows, logits, losses, problem)
    return log


def test_measurements_of_an_epoch(problem, tiny_options):
    training = training_of(problem, tiny_options, ("rw/forward", "fl/forward"))
    measured = training.measure(hand_made_log(training))
    wrong = (~problem.is_clean).nonzero()[:2, 0]
    same = [(problem.noisy_labels[problem.is_clean.nonzero()[b, 0]] == problem.noisy_labels[wrong[b]]).item() for b in
            range(2)]  # fmt: skip
    assert measured["fit_mislabelled"].tolist() == [1.0, np.mean(same)]
    assert measured["purity"][0].item() == 0.625 and measured["purity"][1].isnan()
    assert measured["fell_back"].tolist() == [1, 0]
    with torch.no_grad():
        right = (training.learner(problem.test.images)[0].argmax(-1) == problem.test.labels).float().mean(1)
    assert torch.equal(measured["accuracy"], right)


def test_weights_are_counted_by_the_rightness_of_labels(problem, tiny_options):
    training = training_of(problem, tiny_options, ("rw/forward", "fl/forward"))
    log = hand_made_log(training)
    assert training.count_weights(1, log) == []
    for epoch in (2, 3):
        table = pd.DataFrame(training.count_weights(epoch, log))
        assert set(table["method"]) == {"rw/forward"} and set(table["epoch"]) == {epoch + 1}
        assert len(table) == 2 * WEIGHT_BINS
        counted = table[table["count"] > 0]
        bins = [(row.clean, round(row.weight / WEIGHT_BIN_WIDTH), row.count) for row in counted.itertuples(name="Row")]
        assert [each[:2] for each in bins] == [(False, 1), (False, 6), (True, 5), (True, 10)]
        assert (counted["count"] == 1).all()


def test_larger_weights_are_in_the_last_bin(problem, tiny_options):
    training = training_of(problem, tiny_options, ("rw/forward",))
    losses = StepLosses(torch.tensor(0.0), torch.tensor([[1e6, 0.0]]), torch.full((1, 2), 0.5), torch.tensor([False]))
    log = EpochLog()
    log.add(torch.tensor([0, 1]), torch.zeros(1, 2, 10), losses, problem)
    counts = pd.DataFrame(training.count_weights(3, log)).groupby("weight")["count"].sum()
    assert counts.iloc[0] == counts.iloc[-1] == 1 and counts.sum() == 2


def test_histograms_are_of_the_first_epoch_with_a_transition_and_of_the_last(together):
    table = pd.DataFrame(together.weight_counts)
    epochs = table.groupby("method")["epoch"].unique().map(list).to_dict()
    assert epochs == {"rw/true": [3, 4], "rent/forward": [3, 4], "dws:0.5/dual_t": [3, 4], "rent/volminnet": [1, 4],
                      "rw_norm/cycle": [3, 4]}  # fmt: skip
    assert (table.groupby(["method", "epoch"])["count"].sum() == 160).all()


def test_images_are_augmented_only_where_asked(problem, tiny_options, monkeypatch):
    seen = []
    original = learning.random_crop_and_flip
    monkeypatch.setattr(learning, "random_crop_and_flip", lambda *args: seen.append(args) or original(*args))
    training_of(problem, tiny_options, ("ce",)).train_epoch(0)
    assert not seen
    options = dataclasses.replace(tiny_options, augment=True)
    training_of(problem, options, ("ce",)).train_epoch(0)
    assert len(seen) == 5
    assert len({tuple(args[1].get_state().tolist()) for args in seen}) == 5  # every step its own draws


def test_a_convolutional_network_is_trained_alone(problem, tiny_options, tmp_path):
    classifier = ClassifierOptions("cnn", (8, 16))
    options = dataclasses.replace(tiny_options, classifier=classifier, epochs=12, mixed_precision="bf16")
    outcome = outcome_of(problem, options, ("rent/volminnet",), tmp_path)
    assert outcome.correct.shape == (1, 1637) and outcome.transitions.dtype == torch.float32
    history = history_of(outcome)
    assert history["accuracy"].iloc[-1] > 0.2 and (history["fell_back"] == 0).all()
    assert history["purity"].between(0.4, 1).all()
