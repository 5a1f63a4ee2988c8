import pytest
import torch
from torch import nn
from torch.nn import functional as F

from papers.rent.networks import Learner, MLPMembers, OneMember
from papers.rent.transition_estimation import LEARNED, total_variation_transition, volume_transition
from shared.vision.models import build_classifier
from shared.vision.options import ClassifierOptions

IMAGES = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(24) % 10


def _classifier(architecture="mlp", widths=(48, 32)):
    return build_classifier(ClassifierOptions(architecture, widths), channels=1, size=8, num_classes=10, seed=2)


def _trained(members, steps=30):
    """Members after some steps of training, in which member m has a loss m + 1 times as large."""
    network = MLPMembers(_classifier(), members)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    for _ in range(steps):
        logits = network(IMAGES)
        losses = F.cross_entropy(logits.flatten(0, 1), LABELS.repeat(members), reduction="none").view(members, -1)
        (losses.mean(1) * torch.arange(1, members + 1)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return network(IMAGES)


@pytest.mark.parametrize("widths", [(48, 32), (16,), (40,)])
def test_members_start_as_copies_of_the_classifier(widths):
    classifier = _classifier(widths=widths)
    logits = MLPMembers(classifier, 3)(IMAGES)
    assert logits.shape == (3, 24, 10)
    for member in logits:
        torch.testing.assert_close(member, classifier(IMAGES), rtol=1e-5, atol=1e-6)


def test_a_member_learns_the_same_numbers_whatever_is_beside_it():
    alone = _trained(1)
    for members in (2, 5, 9):
        beside = _trained(members)
        assert torch.equal(beside[0], alone[0])
        assert not torch.allclose(beside[1], alone[0], atol=1e-3)  # another loss, other weights
    assert torch.equal(_trained(5)[3], _trained(9)[3])


def test_a_member_learns_what_the_classifier_alone_would():
    classifier = _classifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(30):
        F.cross_entropy(classifier(IMAGES), LABELS).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(_trained(2)[0], classifier(IMAGES).detach(), rtol=1e-3, atol=1e-4)


def test_any_classifier_is_one_member():
    classifier = _classifier("cnn", (4, 4))
    assert torch.equal(OneMember(classifier)(IMAGES), classifier(IMAGES)[None])


def test_a_learner_holds_the_matrices_of_those_that_learn_theirs():
    estimators = [None, "volminnet", "forward", "tv", "cycle", "true"]
    learner = Learner(ClassifierOptions("mlp", (16,)), estimators, IMAGES.shape[1:], 10, seed=0)
    logits, matrices = learner(IMAGES)
    assert logits.shape == (6, 24, 10)
    assert {member: len(each) for member, each in matrices.items()} == {1: 1, 3: 1, 4: 2}
    assert torch.equal(matrices[1][0], volume_transition(torch.full((10, 10), -2.0)))
    assert torch.equal(matrices[3][0], total_variation_transition(torch.ones(10, 10)))
    assert {estimators[member] for member in matrices} == set(LEARNED)
    convolutional = Learner(ClassifierOptions("cnn", (4, 4)), ["cycle"], IMAGES.shape[1:], 10, seed=0)
    assert isinstance(convolutional.network, OneMember) and isinstance(convolutional, nn.Module)
    assert convolutional(IMAGES)[0].shape == (1, 24, 10)
