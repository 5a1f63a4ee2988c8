import pytest
import torch

from papers.rent.corruption import (
    NUM_CLASSES,
    Setting,
    corrupted_labels,
    parse_setting,
    transition_error,
    true_transition,
)
from papers.rent.transition_matrix import CIFAR10_FLIPS, CIFAR100_SUPERCLASSES, DIGIT_FLIPS, empirical_transition
from shared.errors import InputError

LABELS = torch.arange(6000) % 10
IMAGES = torch.rand(6000, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_settings_parse():
    assert parse_setting("sym50") == Setting("sym", 50) and parse_setting("sym50").rate == 0.5
    assert parse_setting("asym5") == Setting("asym", 5)
    assert parse_setting("idn40") == Setting("idn", 40)
    assert parse_setting("human-worse_label") == Setting("human", column="worse_label")


@pytest.mark.parametrize("name", ["sym", "sym0.5", "sym100", "50", "human-", "pair20", " sym20"])
def test_other_settings_are_refused(name):
    with pytest.raises(InputError, match=r"^setting '.*': need sym<percent>, "):
        parse_setting(name)


@pytest.mark.parametrize("name", ["sym20", "sym50", "asym40", "idn40"])
def test_noise_has_its_rate_and_its_transition(name):
    setting = parse_setting(name)
    noisy = corrupted_labels(setting, "digits", IMAGES, LABELS, seed=1)
    truth = true_transition(setting, "digits", LABELS, noisy)
    torch.testing.assert_close(truth.sum(1), torch.ones(10, dtype=torch.float64))
    happened = empirical_transition(LABELS, noisy, 10)
    assert (happened - truth).abs().max() < 0.08
    flipped = (noisy != LABELS).double().mean().item()
    # Asymmetric noise leaves the classes 0 and 6 alone.
    assert flipped == pytest.approx(setting.rate * (0.8 if setting.kind == "asym" else 1), abs=0.02)
    if setting.kind == "asym":
        assert {c: truth[c].argsort()[-2].item() for c in DIGIT_FLIPS} == DIGIT_FLIPS
        assert truth[0, 0] == truth[6, 6] == 1


def test_noise_is_a_function_of_setting_and_seed():
    def drawn(name, seed):
        return corrupted_labels(parse_setting(name), "digits", IMAGES, LABELS, seed)

    assert torch.equal(drawn("sym50", 1), drawn("sym50", 1))
    assert not torch.equal(drawn("sym50", 1), drawn("sym50", 2))
    # Rates and kinds do not share their random numbers: which samples are flipped is unrelated.
    first, second = drawn("sym50", 1) != LABELS, drawn("sym40", 1) != LABELS
    assert (first & second).double().mean().item() == pytest.approx(0.2, abs=0.02)


def test_flips_of_the_cifars():
    truth = true_transition(Setting("asym", 40), "cifar10", LABELS, LABELS)
    assert truth.count_nonzero().item() == 10 + len(CIFAR10_FLIPS)
    assert all(truth[source, target] == 0.4 for source, target in CIFAR10_FLIPS.items())
    assert sorted(CIFAR100_SUPERCLASSES) == sorted(list(range(20)) * 5)
    # apple, orange, pear, mushroom and sweet pepper; wolf with the bear and the leopard
    assert {CIFAR100_SUPERCLASSES[each] for each in (0, 51, 53, 57, 83)} == {4}
    assert {CIFAR100_SUPERCLASSES[each] for each in (3, 42, 97)} == {8}
    truth = true_transition(Setting("asym", 40), "cifar100", LABELS, LABELS)
    assert truth.shape == (100, 100) and truth[0, 51].item() == pytest.approx(0.1) and truth[0, 0] == 0.6
    assert NUM_CLASSES["cifar100"] == 100


def test_noise_of_people_has_the_transition_that_happened():
    noisy = LABELS.clone()
    noisy[::20] = 7  # every second label 0
    truth = true_transition(Setting("human", column="worse"), "digits", LABELS, noisy)
    assert truth[0, 7] == truth[0, 0] == 0.5 and truth[7, 7] == 1


def test_transition_error_is_a_distance_of_rows():
    truth = torch.eye(3)
    estimates = torch.stack([truth, torch.full((3, 3), 1 / 3), truth.roll(1, 0)])
    assert transition_error(estimates, truth).tolist() == pytest.approx([0.0, 2 / 3, 1.0])
