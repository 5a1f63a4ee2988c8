"""Options of the stages, and the schema of one scale of ``config.yaml``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from papers.implicit_negatives.runs import BASE, STRENGTHS, Run, parse_run
from shared.t2i.options import HubOptions, UnlearnOptions
from shared.training_options import TrainingOptions

EXPLICIT, ATTACK, SOFT, SAFE, CONCEPT = "explicit", "attack", "soft", "safe", "concept"
"""Sets of prompts: by the word that defences know, by its synonyms, by a learned token, harmless ones, and the bare
word (or, in runs that prompt with it, the negative)."""
SETS = (EXPLICIT, ATTACK, SOFT, SAFE)
UCE = "uce"
"""The model that is unlearned in closed form."""


def with_loose_captions(setting: str) -> str:
    """The setting of results of the control's base models, which were trained on loose captions."""
    return f"{setting}, loose captions"


def on_development(setting: str) -> str:
    """The setting of what models draw on development prompts, which tells whether defences can be tested on them."""
    return f"{setting}, development prompts"


@dataclass(frozen=True)
class PromptOptions:
    """Sizes of the testbed's sets of prompts."""

    attack_prompts: int
    """Prompts that name the concept by a synonym, in every reported seed; an even number."""
    other_prompts: int
    """Prompts of every other set."""
    dev_prompts: int
    """Prompts of each set on which strengths are selected; an even number."""


@dataclass(frozen=True)
class GuidanceOptions:
    """Sampling, and what guidance has besides its strength; the same for explicit and implicit negatives."""

    num_steps: int = 20
    """Sampler steps."""
    guidance_scale: float = 2.5
    """w of classifier-free guidance."""
    sld_threshold: float = 0.01
    """lambda_S of SLD."""
    sld_momentum: float = 0.3
    """s_m of SLD."""
    sld_momentum_decay: float = 0.4
    """beta_m of SLD."""
    sld_warmup: float = 0.2
    """Share of steps that SLD leaves alone."""
    safree_alpha: float = 0.01
    """alpha of SAFREE's trigger rule."""
    safree_filter: bool = False
    """Whether SAFREE's filtered embedding is used in the first steps only, as many as its self-validation says."""
    safree_negative: bool = True
    """Whether SAFREE has its negative as negative prompt too, as its released code does, at the run's strength."""
    batch_size: int = 256
    """Prompts that are sampled together."""
    concept_prompts: int = 24
    """Images for which a negative is the prompt."""
    pictures_per_set: int = 0
    """Images of each set that are kept of the runs that sheets show, of the first prompts and the first seed."""


@dataclass(frozen=True)
class InversionOptions:
    """Concept inversion."""

    inversion_steps: int
    """Of Adam."""
    inversion_batch_size: int
    """Images in a step."""
    inversion_rate: float
    """Adam's learning rate."""
    inversion_images: int
    """Images of the concept."""
    inversion_first_timestep: int = 0
    """Least noisy timestep that is drawn."""
    inversion_target: Literal["token", "hidden"] = "token"
    """What is learned: one token's embedding, or the text encoder's output."""


@dataclass(frozen=True)
class UceOptions:
    """Unlearning in closed form."""

    erase_weight: float
    """Weight of the erased word."""
    preserve_weight: float = 1.0
    """Weight of the preserved captions."""


@dataclass(frozen=True)
class LooseOptions:
    """Training scenes, and how their captions are loosened beside the training's own dropout of whole captions."""

    scenes: int
    """Of each base model."""
    word_dropout: float = 0.3
    """Share of words (numbers, colours, nouns) that are left out, each by itself."""
    noun_noise: float = 0.35
    """Share of groups that have the noun of a random shape."""

    def __post_init__(self) -> None:
        for name in ("word_dropout", "noun_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: must lie in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class ControlOptions:
    """The control: for every seed a base model of its own, trained on loose captions, and unlearned models of it."""

    captions: LooseOptions
    """Of the training scenes."""
    training: TrainingOptions
    """With them, from the shared base model on."""
    guidance_scale: float
    """w."""
    prompts: PromptOptions
    gate_prompts: int
    """Development prompts of a kind, in every seed, on which models are looked at."""
    uce: UceOptions
    unlearn: dict[str, UnlearnOptions]
    """Models that are unlearned by training, by the name under which runs use them."""
    runs: tuple[str, ...]
    """What is sampled, at strengths that are selected on a base model of the tuning seed."""
    pictures_per_set: int = 0
    """Images of each set that are kept, of the first prompts and the first seed."""

    def __post_init__(self) -> None:
        if len(set(self.runs)) < len(self.runs) or "none" not in self.runs:
            raise ValueError("runs: need none, and every run once")
        if self.gate_prompts < 1:
            raise ValueError(f"gate_prompts: need at least one, got {self.gate_prompts}")
        check_models(self.runs, (BASE, UCE, *self.unlearn), "runs")

    @property
    def models(self) -> tuple[str, ...]:
        """The original model, and those that were unlearned."""
        return (BASE, UCE, *self.unlearn)


def check_models(runs: Iterable[str], known: Sequence[str], key: str) -> None:
    """Raise a ValueError that names `key` if a run, or the negative it uses, is of a model that is not known."""
    for run in map(parse_run, runs):
        for model in (run.model, run.inverted_on or BASE):
            if model not in known:
                raise ValueError(f"{key}: run {run.name!r}: no model {model!r}; there are: {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class UnlearnedHubOptions(HubOptions):
    """A pipeline of the hub with unlearned models of it, and images of the concept."""

    images: str
    """Folder of images of the concept, from which it is inverted."""
    loras: tuple[str, ...] = ()
    """``<model>=<file>[*<weight>]``, safetensors; several entries of one model add up."""
    unets: tuple[str, ...] = ()
    """``<model>=<file>``, safetensors: a U-Net's weights, or those that were trained, as ESD's come."""
    uce_erase_weight: float = 0.0
    """Weight of the erased phrase in UCE's edit, which makes a model called uce; 0: there is none."""
    uce_preserve_weight: float = 1.0
    """Weight of the preserved phrases in it."""

    def __post_init__(self) -> None:
        for key in ("loras", "unets"):
            for entry in getattr(self, key):
                if not all(entry.partition("=")):
                    raise ValueError(f"{key}: expected <model>=<file>, got {entry!r}")
        for model in self.models:
            if self.models.count(model) > 1:
                raise ValueError(f"loras, unets, uce_erase_weight: more than one of them gives model {model!r}")

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the unlearned models."""
        adapted, whole = ([entry.partition("=")[0] for entry in entries] for entries in (self.loras, self.unets))
        edited = [UCE] if self.uce_erase_weight else []
        return (*edited, *dict.fromkeys(adapted), *whole)


@dataclass(frozen=True)
class Scale:
    """One scale of ``config.yaml``."""

    seeds: tuple[int, ...]
    """Seeds of unlearning, inversion, prompts and noise."""
    tuning_seed: int
    """The seed on which strengths are selected, none of the above."""
    guidance: GuidanceOptions
    inversion: InversionOptions
    grid: dict[str, tuple[float, ...]]
    """Candidate strengths of each method, from weak to strong, as many for all; one is selected for both negatives."""
    groups: dict[str, tuple[str, ...]]
    """What one job samples: runs, all of them from one model."""
    figures: tuple[str, ...]
    """Figures of the report."""
    system_seed: int = 0
    """Seed of the testbed's text-to-image system."""
    testbed: str | None = None
    """Scale of the testbed; None: the one of this scale's name."""
    own_systems: bool = False
    """Whether every seed has a system of its own, with the seed's number; strengths are selected on the one above."""
    prompts: PromptOptions | None = None
    """The testbed's prompts; or else ``hub``."""
    gate_prompts: int = 0
    """With ``prompts``: development prompts of a kind, in every seed, on which models are looked at; an even number."""
    uce: UceOptions | None = None
    """With ``prompts``: unlearning in closed form."""
    unlearn: dict[str, UnlearnOptions] | None = None
    """Models that are unlearned by training, by the name under which runs use them."""
    hub: UnlearnedHubOptions | None = None
    """A pipeline of the hub."""
    processes: int = 0
    """Processes that share the prompts of the hub, one per GPU, under accelerate; 0: one process."""
    control: ControlOptions | None = None
    """The same on base models that were trained on loose captions; not of the hub."""

    def __post_init__(self) -> None:
        if self.tuning_seed in self.seeds:
            raise ValueError(f"tuning_seed: must not be a reported seed, got {self.tuning_seed}")
        if (self.prompts is None) == (self.hub is None):
            raise ValueError("prompts, hub: exactly one of them must be given")
        if self.own_systems and (self.hub or self.system_seed in self.seeds):
            raise ValueError("own_systems: are the testbed's, and system_seed must be none of the seeds")
        if self.processes and not self.hub:
            raise ValueError("processes: share prompts of the hub, and there is none")
        if self.control and self.hub:
            raise ValueError("control: its base models are the testbed's, not the hub's")
        if (self.prompts is None) != (self.gate_prompts == 0):
            raise ValueError("gate_prompts: goes with prompts")
        if self.gate_prompts < 0 or self.gate_prompts % 2:
            raise ValueError(f"gate_prompts: need an even number, got {self.gate_prompts}")
        if (self.prompts is None) != (self.uce is None):
            raise ValueError("uce: goes with prompts; the hub has uce_erase_weight")
        if set(self.grid) != set(STRENGTHS) or len({len(strengths) for strengths in self.grid.values()}) > 1:
            raise ValueError(f"grid: need as many strengths for each of {', '.join(STRENGTHS)}, got {self.grid}")
        runs = [text for group in self.groups.values() for text in group]
        if len(set(runs)) < len(runs) or "none" not in runs:
            raise ValueError("groups: need none, and every run once")
        closed_form, hub_models = (UCE,) if self.uce else (), self.hub.models if self.hub else ()
        check_models(runs, (BASE, *closed_form, *(self.unlearn or {}), *hub_models), "groups")

    @property
    def models(self) -> tuple[str, ...]:
        """All models of the testbed: the original one, and those that runs use."""
        used = {run.model for run in self.runs} | {run.inverted_on for run in self.runs}
        return tuple(model for model in (BASE, UCE, *(self.unlearn or {})) if model in used)

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(parse_run(text) for group in self.groups.values() for text in group)

    @property
    def candidates(self) -> tuple[str, ...]:
        """The runs among which strengths are selected: with the concept's words, on the original model."""
        return tuple(
            Run(method, strength, EXPLICIT).name for method, strengths in self.grid.items() for strength in strengths
        )

    def guidance_of(self, seed: int) -> GuidanceOptions:
        """The options of a seed: pictures are kept of the first one alone."""
        return self.guidance if seed == self.seeds[0] else replace(self.guidance, pictures_per_set=0)

    def control_guidance_of(self, seed: int) -> GuidanceOptions:
        """The same for the control, which has its own w and keeps fewer pictures."""
        kept = self.control.pictures_per_set if seed == self.seeds[0] else 0
        return replace(self.guidance, guidance_scale=self.control.guidance_scale, pictures_per_set=kept)
