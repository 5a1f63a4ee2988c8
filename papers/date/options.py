"""Options of DATE's stages, and the schema of one scale of ``config.yaml``."""

from __future__ import annotations

from dataclasses import dataclass

from papers.date.variants import parse_rewards, parse_schedules, parse_variant, strength_source
from shared.t2i.options import PipelineOptions


@dataclass(frozen=True)
class SamplerOptions:
    """Sampling, the same for every variant."""

    num_steps: int
    """Steps of the DDIM sampler, S."""
    guidance_scale: float
    """Scale of classifier-free guidance, w."""
    schedules: tuple[str, ...]
    """In which steps the embedding is updated: ``<name>=<first>:<end>:<stride>``, or ``<name>=<step>,<step>,...``; step
    0 is the noisiest."""
    num_updates: int = 1
    """Updates of the embedding in a step of its schedule, K, each with a gradient of its own."""
    prior_weight: float = 0.0
    """Weight λ of the penalty on the mean square distance from the prompt's own embedding."""
    rewards: tuple[str, ...] = ()
    """What variants ``date-sum`` follow: rewards with their weights in the sum, ``<reward>*<weight>``."""
    shown_per_task: int = 2
    """Test prompts of each task whose images and embeddings are kept for figures, the first ones."""
    batch_size: int = 120
    """Prompts that are sampled together."""

    def __post_init__(self) -> None:
        parse_schedules(self.schedules, self.num_steps)
        parse_rewards(self.rewards)
        if self.num_updates < 1 or not self.prior_weight >= 0:
            raise ValueError(
                "num_updates, prior_weight: need at least 1 and no less than 0, got "
                f"{self.num_updates} and {self.prior_weight}"
            )


@dataclass(frozen=True)
class ScenePromptOptions:
    """Prompts of the testbed, of which each split and seed has its own."""

    prompts_per_task: int
    """Prompts of each of the six tasks."""
    references_per_prompt: int = 6
    """Rendered scenes of each prompt, with which the set of images is compared."""


@dataclass(frozen=True, kw_only=True)
class HubOptions(PipelineOptions):
    """A model of the hub with its rewards and prompts."""

    guidance: str
    """Hub name of the CLIP model that guides."""
    evaluator: str
    """Hub name of the CLIP model that judges."""
    preference: str
    """Hub name of a CLIP model trained on human preferences."""
    dev_prompts: int
    """Prompts drawn for the selection of strengths."""
    test_prompts: int
    """Prompts drawn from the rest, on which results are reported."""
    split_seed: int = 0
    """Seed of both draws."""


@dataclass(frozen=True)
class TuneOptions:
    """The search for strengths, with as many candidates for every method; none for one that is not sampled."""

    step_sizes: tuple[float, ...]
    """Lengths ρ of DATE's steps."""
    universal_scales: tuple[float, ...] = ()
    """Scales of Universal Guidance."""
    energy_rates: tuple[float, ...] = ()
    """Rates of energy-based cross-attention."""

    def __post_init__(self) -> None:
        sizes = {len(self.step_sizes), len(self.universal_scales), len(self.energy_rates)} - {0}
        if len(sizes) > 1:
            raise ValueError(f"tune: every method needs as many candidates, got {sorted(sizes)}")


@dataclass(frozen=True)
class SelectOptions:
    """How strengths are selected."""

    criterion: str
    """Mean over development prompts that is highest at the selected strength; of equals, the least strength."""


@dataclass(frozen=True)
class Scale:
    """One scale of ``config.yaml``."""

    seeds: tuple[int, ...]
    """Sampling seeds; each draws prompts and noise of its own in the testbed."""
    tuning_seed: int
    """Seed of the development prompts and their noise, none of the above."""
    sampler: SamplerOptions
    tune: TuneOptions
    select: SelectOptions
    tuned: dict[str, tuple[str, ...]]
    """Variants whose strength is selected, by the job that tries them."""
    families: dict[str, tuple[str, ...]]
    """Variants that one job samples one after another."""
    figures: tuple[str, ...]
    """Figures of the report."""
    system: int = 0
    """Training seed of the testbed's networks."""
    scenes: ScenePromptOptions | None = None
    """The testbed's prompts; or else ``hub``."""
    hub: HubOptions | None = None
    """Models of the hub."""
    prompts: str | None = None
    """With ``hub``: GenEval's metadata (.jsonl), or a table with a column ``prompt`` or ``caption`` (.csv)."""
    processes: int = 0
    """Processes that share the prompts, one per GPU, under accelerate; 0: one process."""

    def __post_init__(self) -> None:
        if self.tuning_seed in self.seeds:
            raise ValueError(f"tuning_seed: must not be a reported seed, got {self.tuning_seed}")
        if (self.scenes is None) == (self.hub is None) or (self.hub is None) != (self.prompts is None):
            raise ValueError("scenes, hub: exactly one of them must be given, and prompts with hub")
        tuned = [name for names in self.tuned.values() for name in names]
        schedules = parse_schedules(self.sampler.schedules, self.sampler.num_steps)
        variants = [parse_variant(name) for name in [*tuned, *self.variants]]
        for variant in variants:
            strength_source(variant, tuned)
            if variant.schedule is not None and variant.schedule not in schedules:
                raise ValueError(f"schedules: there is none named {variant.schedule!r}")
        used = {
            "step_sizes": any(variant.kind == "date" for variant in variants),
            "universal_scales": "universal" in tuned,
            "energy_rates": "ebca" in tuned,
        }
        for key, asked in used.items():
            if asked != bool(getattr(self.tune, key)):
                raise ValueError(f"tune: {key} must be given where such variants are tuned, and only there")
        if any(variant.reward == "sum" for variant in variants) != bool(self.sampler.rewards):
            raise ValueError("rewards: must be given where variants follow a sum of them, and only there")

    @property
    def variants(self) -> list[str]:
        """All that is sampled on test prompts."""
        return [name for names in self.families.values() for name in names]
