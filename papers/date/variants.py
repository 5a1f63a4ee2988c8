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
}
ON_ALL_STEPS = ("universal", "ebca")
BACKWARD = 2
"""What a backward pass costs, in forward passes."""


@dataclass(frozen=True)
class Variant:
    """One way to sample.

    Attributes:
        name: as in the table above.
        kind: ``fixed``, ``date``, ``random``, ``universal`` or ``ebca``.
        schedule: in which steps the embedding is updated; None for kinds that have no choice.
        step_factor: sampler steps, in parts of the usual number.
        reward: what is followed: ``guidance``, ``preference`` or ``plain``.
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
    """Steps of each schedule by its name, from ``<name>=<first>:<end>:<stride>``, counted from 0, the noisiest.

    Raises:
        ValueError: another form, a name twice, or steps that the sampler does not make.
    """
    schedules: dict[str, tuple[int, ...]] = {}
    for text in texts:
        match = re.fullmatch(r"(\w+)=(\d+):(\d+):([1-9]\d*)", text)
        if not match:
            raise ValueError(f"schedules: expected <name>=<first>:<end>:<stride>, got {text!r}")
        steps = tuple(range(int(match[2]), int(match[3]), int(match[4])))
        if not steps or steps[-1] >= num_steps:
            raise ValueError(f"schedules: need some of the {num_steps} steps, got {text!r}")
        if match[1] in schedules:
            raise ValueError(f"schedules: {match[1]!r} is there twice")
        schedules[match[1]] = steps
    return schedules


def strength_source(variant: Variant, tuned: Sequence[str], default: str) -> str | None:
    """The tuned variant whose strength another one takes: itself, or DATE with the same schedule, or the default.

    Args:
        variant: any; a fixed embedding has no strength, so None is returned.
        tuned: names of variants whose strength was selected.
        default: for schedules that were not tuned.

    Raises:
        ValueError: a baseline with a strength of its own that was not tuned.
    """
    if variant.kind == "fixed":
        return None
    if variant.name in tuned and variant.normalize:
        return variant.name
    if variant.kind in ON_ALL_STEPS:
        raise ValueError(f"tuned: lacks {variant.name!r}, which has a strength of its own")
    same_schedule = f"date/{variant.schedule}"
    return same_schedule if same_schedule in tuned else default


def evaluations_per_image(variant: Variant, num_steps: int, updates: int) -> float:
    """Evaluations of the denoiser for one image, a backward pass counted as two.

    Args:
        variant: any.
        num_steps: of the usual sampler.
        updates: steps in which the embedding is updated.
    """
    steps = round(num_steps * variant.step_factor)
    plain = 2 * steps  # with and without the prompt
    if variant.kind == "date":
        return plain + updates * (1 + BACKWARD)
    return plain + (2 * BACKWARD * steps if variant.kind == "universal" else 0)
