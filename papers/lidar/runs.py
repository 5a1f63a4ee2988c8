"""Names of what is sampled: methods, baselines and controls.

============================  ==========================================================================================
name                          meaning
============================  ==========================================================================================
``vanilla``                   the target sampler alone
``bon/<N>``                   best of N: of N target samples the one with the highest reward is kept
``lidar/d<δ>-n<n>``           LiDAR with the first n lookahead samples of a solver with δ steps
``exact/d<δ>-n<n>``           the same at s = 1, which is exact for a model that equals its lookahead samples
``permuted/d<δ>-n<n>``        LiDAR with the rewards of each prompt's lookahead samples shuffled: a control
``oracle/d<δ>-n<n>``          LiDAR with the checker's verdicts on the lookahead samples, 1 or 0, as rewards: a control
``lidar/target-n<n>``         LiDAR with lookahead samples of the target sampler itself: a control
``best/d<δ>-n<n>``            the best lookahead sample itself
``renoised/d<δ>-n<n>``        the best lookahead sample, noised again and finished by the target sampler
``universal``                 Universal Guidance: the reward's gradient moves the noisy latents, in all steps
``universal-reward``          the same at the scale at which its own reward is highest
``date/<k>``                  DATE: the reward's gradient moves the text embedding, in every k-th step
``smc-<potential>/k<K>``      Feynman-Kac steering of K particles for each prompt; the images are the first of them
============================  ==========================================================================================

On models of the hub an ending may tell solvers of as many steps apart: that of ``lidar/d4-n50@lcm`` is ``d4@lcm``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TARGET = "target"
"""Stands for δ where the target sampler draws the lookahead samples."""
_AHEAD = re.compile(r"(lidar|exact|permuted|oracle|best|renoised)/(?:d(\d+)|target)-n(\d+)(?:@([a-z0-9]+))?")
_STEERED = re.compile(r"smc-(difference|max|sum)/k(\d+)")


@dataclass(frozen=True)
class Run:
    """One way to sample.

    Attributes:
        name: as in the table above.
        kind: what stands before the slash, without the potential.
        lookahead_steps: δ; None for the target sampler, and for kinds without lookahead samples.
        lookahead_size: n; 0 for kinds without lookahead samples.
        count: N of `bon`, K of `smc`, k of `date`.
        potential: of `smc`.
        ending: that tells lookahead samplers of as many steps apart.
    """

    name: str
    kind: str
    lookahead_steps: int | None = None
    lookahead_size: int = 0
    count: int = 1
    potential: str | None = None
    ending: str = ""

    @property
    def solver(self) -> str | None:
        """Name of the lookahead sampler, ``d<δ>``, ``d<δ>@<ending>`` or ``target``; None for runs without one."""
        if not self.lookahead_size:
            return None
        name = f"d{self.lookahead_steps}" if self.lookahead_steps else TARGET
        return f"{name}@{self.ending}" if self.ending else name

    @property
    def tuned(self) -> str | None:
        """Whose strength the run takes; None for runs without one."""
        strengths = {"permuted": "lidar", "oracle": "lidar", "date": "date", "smc": f"smc-{self.potential}"}
        has_none = self.kind in ("vanilla", "bon", "best")
        return None if has_none else strengths.get(self.kind, self.kind)


def parse_run(name: str) -> Run:
    """The run of a name.

    Raises:
        ValueError: the name is none of the above.
    """
    if name in ("vanilla", "universal", "universal-reward"):
        return Run(name, name)
    if match := _AHEAD.fullmatch(name):
        kind, steps, size, ending = match.groups()
        if int(size) > 0 and steps != "0":
            return Run(name, kind, int(steps) if steps else None, int(size), ending=ending or "")
    if (match := re.fullmatch(r"(bon|date)/(\d+)", name)) and int(match[2]) > 0:
        return Run(name, match[1], count=int(match[2]))
    if (match := _STEERED.fullmatch(name)) and int(match[2]) > 0:
        return Run(name, "smc", count=int(match[2]), potential=match[1])
    raise ValueError(f"run: expected a name such as vanilla, bon/4, lidar/d5-n9 or smc-max/k4, got {name!r}")
