"""Options of LiDAR's stages, and the schema of one scale of ``config.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from papers.lidar.runs import Run, parse_run
from shared.t2i.options import PipelineOptions


@dataclass(frozen=True)
class SamplerOptions:
    """The target sampler and the lookahead sampler, the same for every run."""

    num_steps: int
    """Steps of the target sampler, DDIM, τ."""
    guidance_scale: float
    """Scale of classifier-free guidance of the target sampler."""
    lookahead_guidance_scale: float
    """Scale of classifier-free guidance of the lookahead sampler, DPM-Solver++ of order 2."""
    lookahead_size: int
    """Lookahead samples that are drawn for each prompt; smaller sets are the first of them."""
    images_per_prompt: int
    """Images of each prompt, which share a lookahead set."""
    end_timestep: float
    """t_end of 0 to 999: LiDAR acts in steps before it."""
    eta: float = 1.0
    """Noise of the target sampler's steps: 1 as in ancestral sampling."""
    steering_steps: tuple[int, ...] = ()
    """Steps after which Feynman-Kac steering resamples, besides the last one; step 0 is the noisiest."""
    batch_size: int = 120
    """Images that are sampled together."""
    pictured: tuple[str, ...] = ()
    """Runs whose images are kept for the figures, of the first prompt of each task."""

    def __post_init__(self) -> None:
        for name in self.pictured:
            parse_run(name)
        if self.steering_steps and not 0 <= min(self.steering_steps) <= max(self.steering_steps) < self.num_steps:
            raise ValueError(f"steering_steps: must lie in 0..{self.num_steps - 1}, got {self.steering_steps}")


@dataclass(frozen=True)
class ScenePromptOptions:
    """Prompts of the testbed, of which each split and seed has its own."""

    prompts_per_task: int
    """Test prompts of each of the six tasks, in every seed."""
    dev_prompts_per_task: int
    """Development prompts of each task: strengths are selected on those of the tuning seed, lookahead samples judged on
    those of the reported seeds."""
    gate_prompts_per_task: int
    """Development prompts of each task and reported seed on which the target sampler is judged."""


@dataclass(frozen=True)
class TuneOptions:
    """The search for strengths, with as many candidates for every method."""

    reward_weights: tuple[float, ...]
    """λ of LiDAR, at s as below and at s = 1 alike."""
    scale: float
    """s of LiDAR, the paper's; runs ``exact/...`` have 1."""
    universal_scales: tuple[float, ...]
    """Scales of Universal Guidance."""
    step_sizes: tuple[float, ...]
    """Lengths ρ of DATE's steps."""
    steering_weights: tuple[float, ...]
    """λ of Feynman-Kac steering."""
    renoising_steps: tuple[int, ...]
    """Steps of the target sampler that finish a noised lookahead sample."""

    def __post_init__(self) -> None:
        sizes = {
            len(self.reward_weights),
            len(self.universal_scales),
            len(self.step_sizes),
            len(self.steering_weights),
            len(self.renoising_steps),
        }
        if len(sizes) > 1:
            raise ValueError(f"tune: every method needs as many candidates, got {sorted(sizes)}")


@dataclass(frozen=True)
class MixtureOptions:
    """Gaussian mixtures, whose expected future reward is known exactly."""

    dimensions: tuple[int, ...]
    """Dimensions d, one mixture for each."""
    sizes: tuple[int, ...]
    """Sizes n of lookahead sets."""
    replicates: int
    """Lookahead sets of each size."""
    points: int = 64
    """Noisy points at which the error is measured."""
    sigma: float = 1.0
    """Noise level of these points, where centres are a distance of √2 apart."""
    std: float = 0.02
    """Standard deviation of every component."""
    reward_weight: float = 2.0
    """λ of a linear reward of unit slope."""


@dataclass(frozen=True)
class SolverOptions:
    """A lookahead sampler of diffusers."""

    scheduler: str
    """Class of diffusers, such as ``DPMSolverMultistepScheduler``."""
    settings: tuple[str, ...] = ()
    """Arguments of the scheduler that differ from the model's own, ``<name>=<YAML value>``."""
    adapter: str = ""
    """LoRA weights by ``<hub name>/<file>``; empty: the model as it is."""
    adapter_weight: float = 1.0
    """Factor of these weights."""
    unet: str = ""
    """A U-Net that replaces the model's: a folder, or ``<hub name>[/<subfolder>]``; empty: the model's own."""
    timesteps: tuple[int, ...] = ()
    """Timesteps of the steps; empty: the scheduler's."""
    guidance_scale: float | None = None
    """Scale of classifier-free guidance, 1 without; None: the sampler's ``lookahead_guidance_scale``."""


@dataclass(frozen=True, kw_only=True)
class HubOptions(PipelineOptions):
    """A pipeline of the hub, which samples by its scheduler as target sampler, with rewards and prompts."""

    reward: str
    """Hub name of the CLIP model that guides, such as PickScore."""
    evaluator: str
    """Hub name of the CLIP model that judges."""
    reward_weight: float
    """λ of LiDAR."""
    scale: float
    """s of LiDAR."""
    universal_scale: float
    """Scale of Universal Guidance."""
    step_size: float
    """Length ρ of DATE's steps."""
    steering_weight: float
    """λ of Feynman-Kac steering."""
    renoising_steps: int
    """Steps of the target sampler that finish a noised lookahead sample."""
    test_prompts: int
    """Prompts of the file, drawn at random."""
    precision: Literal["float32", "bfloat16", "float16"] = "float16"
    """Of the pipeline; rewards, and the guidance of latents, are always computed in float32."""
    unet: str = ""
    """A U-Net that replaces the model's in both samplers, likewise."""
    float32_decoder: bool = False
    """Whether the VAE runs in float32, as that of Stable Diffusion XL has to."""
    decode_batch: int = 8
    """Latents that are decoded and scored together."""
    split_seed: int = 0
    """Seed by which prompts are drawn."""


@dataclass(frozen=True)
class Scale:
    """One scale of ``config.yaml``."""

    seeds: tuple[int, ...]
    """Sampling seeds; each draws prompts and noise of its own in the testbed."""
    tuning_seed: int
    """Seed of the development prompts on which strengths are selected, none of the above."""
    sampler: SamplerOptions
    families: dict[str, tuple[str, ...]]
    """Runs that one job samples one after another."""
    figures: tuple[str, ...]
    """Figures of the report."""
    mixture: MixtureOptions
    matched: str = "lidar/d5-n27"
    """The LiDAR run with whose cost best of N is compared."""
    criterion: str = "gold_share"
    """Mean over development prompts that is highest at the selected strength; of equals, the first."""
    tune: TuneOptions | None = None
    tuned: dict[str, tuple[str, ...]] | None = None
    """By job, the runs whose strengths it tries."""
    system: int = 0
    """Training seed of the testbed's networks."""
    scenes: ScenePromptOptions | None = None
    """The testbed's prompts; or else ``hub``."""
    hub: HubOptions | None = None
    """Models of the hub."""
    solvers: dict[str, SolverOptions] | None = None
    """With ``hub``: lookahead samplers by the names that runs use, such as ``d5`` or ``d4@lcm``."""
    prompts: str | None = None
    """With ``hub``: GenEval's metadata (.jsonl), or a table with a column ``prompt`` or ``caption`` (.csv)."""
    processes: int = 0
    """Processes that share the prompts, one per GPU, under accelerate; 0: one process."""

    def __post_init__(self) -> None:
        if self.tuning_seed in self.seeds:
            raise ValueError(f"tuning_seed: must not be a reported seed, got {self.tuning_seed}")
        if (self.scenes is None) == (self.hub is None):
            raise ValueError("scenes, hub: exactly one of them must be given")
        if {self.tune is None, self.tuned is None} != {self.scenes is None}:
            raise ValueError("tune, tuned: go with scenes")
        if {self.solvers is None, self.prompts is None} != {self.hub is None}:
            raise ValueError("solvers, prompts: go with hub")
        names = [name for family in self.families.values() for name in family]
        if len(set(names)) < len(names):
            raise ValueError("families: every run may stand in one of them alone")
        for family in self.families if self.hub is not None else ():
            solver = self.solver_of(family)
            if solver is not None and solver not in self.solvers:
                raise ValueError(f"solvers: there is none named {solver!r}")
        for run in self.all_runs:
            if run.lookahead_size > self.sampler.lookahead_size:
                raise ValueError(f"lookahead_size: must be at least that of {run.name}")
            if run.kind in ("renoised", "smc") and self.hub is not None and self.hub.scheduler == "own":
                raise ValueError(f"families: {run.name} needs the scheduler ddim")
            if run.ending and self.scenes is not None:
                raise ValueError(f"families: {run.name}: the testbed has one solver of {run.lookahead_steps} steps")

    @property
    def all_runs(self) -> list[Run]:
        """All that is sampled on test prompts."""
        return [parse_run(name) for family in self.families.values() for name in family]

    def solver_of(self, family: str) -> str | None:
        """Name of the lookahead sampler that a family's runs use; None for one without.

        Raises:
            ValueError: they use several.
        """
        names = {parse_run(name).solver for name in self.families[family]} - {None}
        if len(names) > 1:
            raise ValueError(f"families: {family} needs one lookahead sampler, has {', '.join(sorted(names))}")
        return next(iter(names), None)
