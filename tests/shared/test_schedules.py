import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from shared.schedules import constant, cosine, linear, named_schedule, one_cycle, set_learning_rate


def _rates(scheduler_of, steps, lr=0.5):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = scheduler_of(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"] / lr)
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("steps", "warmup"), [(20, 5), (20, 0), (7, 7), (3, 1), (1, 0)])
def test_schedules_are_those_of_transformers(steps, warmup):
    pairs = [
        (constant(warmup_steps=warmup), lambda o: get_constant_schedule_with_warmup(o, warmup)),
        (linear(steps, warmup_steps=warmup), lambda o: get_linear_schedule_with_warmup(o, warmup, steps)),
        (cosine(steps, warmup_steps=warmup), lambda o: get_cosine_schedule_with_warmup(o, warmup, steps)),
    ]
    for schedule, reference in pairs:
        assert [schedule(step) for step in range(steps)] == pytest.approx(_rates(reference, steps))


@pytest.mark.parametrize(("steps", "fraction"), [(500, 0.3), (60, 0.1), (11, 0.5), (4, 0.3)])
def test_one_cycle_is_that_of_torch(steps, fraction):
    def reference(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.5, total_steps=steps + 1, pct_start=fraction, cycle_momentum=False
        )

    def exact(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.5, total_steps=steps, pct_start=fraction, cycle_momentum=False
        )

    schedule = one_cycle(steps, warmup_fraction=fraction)
    # torch refuses to step past the end, so its last rate is read without stepping on
    assert [schedule(step) for step in range(steps - 1)] == pytest.approx(_rates(exact, steps - 1))
    assert schedule(steps - 1) == pytest.approx(4e-6)
    assert len(_rates(reference, steps)) == steps


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_short_cycles_are_defined(steps):
    for fraction in (0.1, 0.3, 0.5, 1.0):
        assert all(0 < one_cycle(steps, warmup_fraction=fraction)(step) <= 1 for step in range(steps))


def test_cosine_ends_at_its_final_factor():
    schedule = cosine(10, warmup_steps=2, final_factor=0.1)
    assert schedule(2) == 1.0 and schedule(10) == pytest.approx(0.1)
    assert schedule(6) == pytest.approx(0.55)


def test_factors_multiply_each_groups_own_rate():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1], "lr": 0.5}, {"params": weights[1:], "lr": 2.0}])
    for factor in (0.5, 0.0, 1.0):
        set_learning_rate(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == [0.5 * factor, 2.0 * factor]


def test_schedules_by_name():
    assert named_schedule("constant", 10)(3) == 1.0
    assert named_schedule("linear", 10, warmup_fraction=0.2)(1) == 0.5
    assert named_schedule("cosine", 10, warmup_fraction=0.2)(6) == pytest.approx(cosine(10, warmup_steps=2)(6))
    assert named_schedule("one_cycle", 10)(5) == pytest.approx(one_cycle(10)(5))
    with pytest.raises(ValueError, match="schedule: unknown name 'step'"):
        named_schedule("step", 10)
