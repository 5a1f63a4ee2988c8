"""Names of what is sampled: DATE in its variants, baselines and controls.

==========================  ============================================================================================
name                        meaning
==========================  ============================================================================================
``fixed``                   the prompt's own embedding in all steps
``fixed-x2``                the same with twice as many sampler steps, or any other factor
``date/<schedule>``         DATE, updating the embedding in the steps of a schedule
``date-anchor/<schedule>``  every step starts from the prompt's own embedding
``date-raw/<schedule>``     the gradient is not normalised, only multiplied by a factor
``date-noisy/<schedule>``   the reward sees the next noisy latents in place of the clean prediction
``date-<reward>/<sched.>``  another reward: ``preference``, or ``plain``, a scorer that never saw degraded images
``date-sum/<schedule>``     several rewards, added with weights
``random/<schedule>``       steps of the same length in random directions
``universal``               Universal Guidance: the gradient moves the noisy latents instead, in all steps
``ebca``                    energy-based cross-attention: each attention layer moves the embedding, without a reward
==========================  ============================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FLAVOURS: dict[str, dict[str, Any]] = {
    "": {},
    "anchor": {"start": "anchor"},
    "raw": {"normalize": False},
    "noisy": {"scores_noisy": True},
    "preference": {"reward": "preference"},
    "plain": {"reward": "plain"},
    "sum": {"reward": "sum"},
}
ON_ALL_STEPS = ("universal", "ebca")
REWARDS = ("guidance", "preference", "plain")
"""What may be followed by itself or as part of a sum; the evaluator only judges."""


@dataclass(frozen=True)
class Variant:
    """One way to sample.

    Attributes:
        name: as in the table above.
        kind: ``fixed``, ``date``, ``random``, ``universal`` or ``ebca``.
        schedule: in which steps the embedding is updated; None for kinds that have no choice.
        step_factor: sampler steps, in parts of the usual number.
        reward: what is followed: one of :data:`REWARDS`, or ``sum``, several of them with weights.
        start: where steps start, ``previous`` or ``anchor``.
        normalize: whether the gradient is scaled to unit length.
        scores_noisy: whether the reward sees the next noisy latents.
    """

    name: str
    kind: str
    schedule: str | None = None
    step_factor: float = 1.0
    reward: str = "guidance"
    start: str = "previous"
    normalize: bool = True
    scores_noisy: bool = False


def parse_variant(name: str) -> Variant:
    """The variant of a name.

    Raises:
        ValueError: the name is none of the above.
    """
    if match := re.fullmatch(r"fixed(?:-x(\d+(?:\.\d+)?))?", name):
        return Variant(name, "fixed", step_factor=float(match[1] or 1))
    if name in ON_ALL_STEPS:
        return Variant(name, name)
    if match := re.fullmatch(r"(date|random)(?:-(\w+))?/(\w+)", name):
        kind, flavour, schedule = match[1], match[2] or "", match[3]
        if flavour in FLAVOURS and not (kind == "random" and flavour):
            return Variant(name, kind, schedule, **FLAVOURS[flavour])
    raise ValueError(f"variant: expected a name such as fixed-x2, date/all, random/all or ebca, got {name!r}")


def parse_schedules(texts: Sequence[str], num_steps: int) -> dict[str, tuple[int, ...]]:
    """Steps of each schedule by its name, counted from 0, the noisiest.

    Args:
        texts: ``<name>=<first>:<end>:<stride>``, or ``<name>=<step>,<step>,...`` for steps in no such order.
        num_steps: of the sampler.

    Raises:
        ValueError: another form, a name twice, or steps that the sampler does not make.
    """
    schedules: dict[str, tuple[int, ...]] = {}
    for text in texts:
        spaced = re.fullmatch(r"(\w+)=(\d+):(\d+):([1-9]\d*)", text)
        listed = re.fullmatch(r"(\w+)=(\d+(?:,\d+)*)", text)
        if spaced:
            name, steps = spaced[1], tuple(range(int(spaced[2]), int(spaced[3]), int(spaced[4])))
        elif listed:
            name, steps = listed[1], tuple(sorted({int(step) for step in listed[2].split(",")}))
        else:
            raise ValueError(f"schedules: expected <name>=<first>:<end>:<stride> or <name>=<step>,..., got {text!r}")
        if not steps or steps[-1] >= num_steps:
            raise ValueError(f"schedules: need some of the {num_steps} steps, got {text!r}")
        if name in schedules:
            raise ValueError(f"schedules: {name!r} is there twice")
        schedules[name] = steps
    return schedules


def parse_rewards(texts: Sequence[str]) -> dict[str, float]:
    """Weights of a sum of rewards by their names, from ``<reward>*<weight>``.

    Raises:
        ValueError: another form, a reward that is none of :data:`REWARDS` or is there twice, or a weight of 0.
    """
    weights: dict[str, float] = {}
    for text in texts:
        match = re.fullmatch(r"(\w+)\*(\d+(?:\.\d+)?)", text)
        if not match or match[1] not in REWARDS or match[1] in weights or not float(match[2]):
            raise ValueError(f"rewards: expected <reward>*<weight>, each of {', '.join(REWARDS)} once, got {text!r}")
        weights[match[1]] = float(match[2])
    return weights


def strength_source(variant: Variant, tuned: Sequence[str]) -> str | None:
    """The tuned variant whose strength another one takes: its own, so that none is compared at another one's best.

    Random directions and the gradient that is not normalised are to make steps as long as DATE's on the same schedule,
    so they take its strength.

    Args:
        variant: any; a fixed embedding has no strength, so None is returned.
        tuned: names of variants whose strength was selected.

    Raises:
        ValueError: that variant was not tuned.
    """
    if variant.kind == "fixed":
        return None
    as_long = variant.kind == "random" or not variant.normalize
    source = f"date/{variant.schedule}" if as_long else variant.name
    if source not in tuned:
        raise ValueError(f"tuned: lacks {source!r}, whose strength {variant.name!r} takes")
    return source
