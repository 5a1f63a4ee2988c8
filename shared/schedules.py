"""Learning-rate schedules as functions of the step alone: nothing to save, nothing to resume."""

import math
from collections.abc import Callable

import torch

Schedule = Callable[[int], float]
"""Factor of the learning rate in step t = 0, 1, ..."""


def constant(*, warmup_steps: int = 0) -> Schedule:
    """Linear warm-up from 0 in `warmup_steps` steps, then 1."""
    return lambda step: step / warmup_steps if step < warmup_steps else 1.0


def linear(total_steps: int, *, warmup_steps: int = 0) -> Schedule:
    """Linear warm-up from 0, then linearly to 0 at `total_steps`."""
    warmup = constant(warmup_steps=warmup_steps)
    return lambda step: warmup(step) * (1.0 - _progress(step, warmup_steps, total_steps))


def cosine(total_steps: int, *, warmup_steps: int = 0, final_factor: float = 0.0) -> Schedule:
    """Linear warm-up from 0, then half a cosine to `final_factor` at `total_steps`."""
    warmup = constant(warmup_steps=warmup_steps)

    def factor(step: int) -> float:
        falling = 0.5 * (1.0 + math.cos(math.pi * _progress(step, warmup_steps, total_steps)))
        return warmup(step) * (final_factor + (1.0 - final_factor) * falling)

    return factor


def one_cycle(total_steps: int, *, warmup_fraction: float = 0.3) -> Schedule:
    """Half a cosine up from 1/25 to 1, another down to 4e-6 in the last step: torch's `OneCycleLR` by default."""
    peak = warmup_fraction * total_steps - 1
    low, final = 1 / 25, 1 / 25 / 1e4

    def factor(step: int) -> float:
        if step < peak:
            return _cosine_between(low, 1.0, step / peak)
        return _cosine_between(1.0, final, (step - peak) / (total_steps - 1 - peak or 1.0))

    return factor


def _cosine_between(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _progress(step: int, warmup_steps: int, total_steps: int) -> float:
    """Share of the steps after the warm-up that is behind `step`, in [0, 1]."""
    return min(max(step - warmup_steps, 0) / max(total_steps - warmup_steps, 1), 1.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's learning rate to `factor` times the one the optimizer was made with."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def named_schedule(name: str, total_steps: int, *, warmup_fraction: float = 0.0) -> Schedule:
    """A schedule by its name in a configuration, its warm-up a share of the steps.

    Raises:
        ValueError: unknown name.
    """
    warmup_steps = round(warmup_fraction * total_steps)
    match name:
        case "constant":
            return constant(warmup_steps=warmup_steps)
        case "linear":
            return linear(total_steps, warmup_steps=warmup_steps)
        case "cosine":
            return cosine(total_steps, warmup_steps=warmup_steps)
        case "one_cycle":
            return one_cycle(total_steps, warmup_fraction=warmup_fraction or 0.3)
    raise ValueError(f"schedule: unknown name {name!r}; there are: constant, linear, cosine, one_cycle")
