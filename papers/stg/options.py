"""Options of STG's stages, and the schema of one scale of ``config.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from papers.stg.runs import STRENGTHS, parse_run
from shared.t2i.options import HubOptions, UnlearnOptions

SAFE = "safe"
"""Name of the set of harmless prompts."""
SOLO = "solo"
"""Name of the set of prompts that ask for the unsafe concept alone, so that nothing of them can be kept."""
SETS = ("explicit", "synonym", SOLO, "implicit", SAFE)
"""The testbed's sets of prompts."""


@dataclass(frozen=True)
class PromptOptions:
    """Sizes of the testbed's sets of prompts."""

    test_prompts: int
    """Prompts of each set in every reported seed."""
    dev_prompts: int
    """Prompts of each set on which strengths are selected."""


@dataclass(frozen=True)
class DefenceOptions:
    """Sampling, and what defences have besides their strength; the same for all runs."""

    num_steps: int = 20
    """Sampler steps."""
    guidance_scale: float = 5.0
    """w of classifier-free guidance."""
    fraction: float = 0.8
    """gamma: the share of steps, in the middle, in which STG and SDG may act."""
    threshold: float = 0.1
    """tau: the least confidence of the guidance detector that flags an image."""
    start: Literal["previous", "anchor"] = "previous"
    """Where STG's steps start: at the current embedding or at the prompt's own."""
    prior_weight: float = 0.0
    """lambda of STG's penalty on moving away from the prompt's embedding."""
    sld_threshold: float = 0.01
    """lambda_S of SLD."""
    sld_momentum: float = 0.3
    """s_m of SLD."""
    sld_momentum_decay: float = 0.4
    """beta_m of SLD."""
    sld_warmup: float = 0.2
    """Share of steps that SLD leaves alone."""
    safree_filter: bool = False
    """Whether SAFREE's filtered embedding is used in the first steps only, as many as its self-validation says."""
    sdg_gated: bool = True
    """Whether SDG acts on flagged images alone, as STG does; without the gate on all, flagged or not."""
    uce_preserve: float = 1.0
    """Weight of the preserved words in UCE's edit."""
    batch_size: int = 256
    """Prompts that are sampled together."""
    traced: tuple[str, ...] = ()
    """Runs for which the detector's confidence in the predicted image is recorded at every step."""
    pictures_per_set: int = 0
    """Images of each set that are kept for the figures, of the first prompts and the first seed."""

    def __post_init__(self) -> None:
        for name in ("fraction", "threshold", "sld_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: must lie in [0, 1], got {getattr(self, name)}")
        for text in self.traced:
            parse_run(text)


@dataclass(frozen=True)
class ToyOptions:
    """The mixture in two dimensions, with exact scores."""

    samples: int
    """Points of each run."""
    steps: int = 50
    """Sampler steps."""
    scales: tuple[float, ...] = (1.0, 3.0, 10.0)
    """rho of SDG and of STG."""
    shown: int = 400
    """Points of the first seed that the figure shows."""


@dataclass(frozen=True, kw_only=True)
class GuidedHubOptions(HubOptions):
    """A pipeline of the hub with what guides STG and SDG, and unlearned models of it."""

    guidance: str
    """What guides, as `judge`; another model."""
    loras: tuple[str, ...] = ()
    """Unlearned models: ``<model>=<file>[*<weight>]``, safetensors; several entries of one model add up."""


@dataclass(frozen=True)
class Scale:
    """One scale of ``config.yaml``."""

    seeds: tuple[int, ...]
    """Sampling seeds: of the noise, and in the testbed of the prompts."""
    tuning_seed: int
    """The sampling seed on which strengths are selected, none of the above."""
    defence: DefenceOptions
    grid: dict[str, tuple[float, ...]]
    """Strengths of each method, from weak to strong, as many for all; all of them are sampled, one is selected."""
    groups: dict[str, tuple[str, ...]]
    """What one job samples: methods of the grid, or further runs by name."""
    toy: ToyOptions
    figures: tuple[str, ...]
    """Figures of the report."""
    system_seed: int = 0
    """Seed of the testbed's text-to-image system."""
    prompts: PromptOptions | None = None
    """The testbed's prompts; or else ``hub``."""
    unlearn: dict[str, UnlearnOptions] | None = None
    """Models from which the concept is trained out, by the name under which runs use them; on the hub, adapters are."""
    hub: GuidedHubOptions | None = None
    """A pipeline of the hub."""
    processes: int = 0
    """Processes that share the prompts of the hub, one per GPU, under accelerate; 0: one process."""

    def __post_init__(self) -> None:
        if self.tuning_seed in self.seeds:
            raise ValueError(f"tuning_seed: must not be a reported seed, got {self.tuning_seed}")
        if (self.prompts is None) == (self.hub is None):
            raise ValueError("prompts, hub: exactly one of them must be given")
        if len({len(strengths) for strengths in self.grid.values()}) > 1:
            raise ValueError(f"grid: every method needs as many strengths, got {self.grid}")
        if unknown := set(self.grid) - set(STRENGTHS):
            raise ValueError(f"grid: expected some of {', '.join(STRENGTHS)}, got {', '.join(sorted(unknown))}")
        runs = [text for group in self.groups for text in self.runs_of(group)]
        if len(set(runs)) < len(runs) or "base" not in runs:
            raise ValueError("groups: need base, and every run once")
        if missing := set(self.grid_runs) - set(runs):
            raise ValueError(f"groups: must hold every method of the grid, lack {', '.join(sorted(missing))}")
        models = {parse_run(text).model for text in runs} - {None}
        known = {entry.partition("=")[0] for entry in self.hub.loras} if self.hub else set(self.unlearn or {})
        if unknown := models - known:
            place = "hub.loras" if self.hub else "unlearn"
            raise ValueError(f"groups: no model {', '.join(sorted(unknown))} in {place}")

    def defence_of(self, seed: int) -> DefenceOptions:
        """The options of a seed: pictures are kept of the first one alone."""
        return self.defence if seed == self.seeds[0] else replace(self.defence, pictures_per_set=0)

    @property
    def grid_runs(self) -> tuple[str, ...]:
        """Every method at every strength of its grid."""
        return tuple(f"{method}:{strength:g}" for method, strengths in self.grid.items() for strength in strengths)

    def grid_of(self, group: str) -> tuple[str, ...]:
        """Those runs of a group that are of the grid."""
        return tuple(text for text in self.runs_of(group) if text in self.grid_runs)

    def runs_of(self, group: str) -> tuple[str, ...]:
        """The runs of a group, methods of the grid spelled out."""
        return tuple(
            text
            for entry in self.groups[group]
            for text in ([f"{entry}:{strength:g}" for strength in self.grid.get(entry, ())] or [entry])
        )
