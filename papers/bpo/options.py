"""Options of BPO's stages, and the schema of one scale of ``config.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.lm.options import FinetuneOptions, SamplingOptions
from shared.training_options import TrainingOptions

SFT, PREFERRED = "sft", "preferred"
"""Names, among those of methods, of what is not optimised: the supervised model, and the data's own responses."""


@dataclass(frozen=True)
class DataOptions:
    """Sizes of the testbed's data."""

    preference_pairs: int
    """Pairs to learn from; the preferred responses are the supervised examples, too."""
    held_out_pairs: int
    """Pairs on which the margins of trained policies are measured."""
    references_per_prompt: int
    """Fresh preferred responses to each prompt, which policies are compared with."""


@dataclass(frozen=True)
class HubDataOptions:
    """A preference data set of the paper."""

    dataset: Literal["hh-rlhf", "tldr", "ultrafeedback"]
    """Its format: dialogues, summaries or instructions."""
    train: str
    """Training pairs: a local file, or ``<hub name>[#<configuration>]:<split>``."""
    test: str
    """Test pairs, likewise."""
    template: str = "\n\nHuman: <prompt>\n\nAssistant: "
    """What an instruction is put into, at ``<prompt>``; dialogues and summaries have cues of their own."""
    single_turn: bool = False
    """Whether dialogues of several turns are left out."""
    held_out_pairs: int = 512
    """Training pairs kept from training, on which margins are measured."""
    validation_prompts: int = 100
    """Held-out training prompts on which hyperparameters are selected."""
    test_prompts: int = 100
    """Test prompts; the paper's judge sees 100."""
    split_seed: int = 1234
    """Seed of the choice of held-out pairs and of test prompts."""

    def __post_init__(self) -> None:
        if "<prompt>" not in self.template:
            raise ValueError(f"template: needs <prompt>, where the instruction goes, got {self.template!r}")


@dataclass(frozen=True)
class LossOptions:
    """Constants of the losses; the method's name holds its own hyperparameter."""

    beta: float
    """Strength of the divergence to the reference model."""
    ratio_min: float = 0.01
    """R is clipped from below by it under every generator but the logistic one."""
    f_dpo_ratio_max: float = 1e4
    """f-DPO's ratio, an exponential of an exponential, is clipped from above as well, lest float32 overflow."""
    label_smoothing: float = 1e-3
    """Of f-PO."""
    simpo_beta: float = 2.0
    """Reward scale of SimPO's ratio."""
    simpo_gamma: float = 1.0
    """Target margin of SimPO's ratio, in nats."""
    simpo_ratio_max: float = 30.0
    """SimPO's ratio is clipped from above by it as well."""
    simpo_mixture: float = 0.5
    """Share of the Bregman loss on SimPO's ratio; the rest is the logistic loss, unclipped."""


@dataclass(frozen=True)
class OptimizeOptions:
    """Preference optimisation and sampling: the same for every method; only the loss changes."""

    training: TrainingOptions
    sampling: SamplingOptions
    loss: LossOptions
    optimizer: Literal["rmsprop", "adamw", "sgd"] = "rmsprop"
    """RMSprop and AdamW do not see a constant factor of the loss; SGD does."""
    max_prompt_tokens: int = 256
    """Longer prompts lose their beginning."""
    max_answer_tokens: int = 256
    """Longer responses lose their end."""
    gradient_checkpointing: bool = False
    """Whether activations are computed anew in the backward pass, to save memory."""
    judge: str | None = None
    """Hub name or folder of the reward model that judges responses; None: the testbed's gold reward."""
    validation_samples: int = 16
    """Responses to each validation prompt, at the sampling temperature."""
    test_samples: int = 48
    """Responses to each test prompt, at every temperature."""
    temperatures: tuple[float, ...] = ()
    """Further temperatures at which some methods are sampled."""
    tempered_methods: tuple[str, ...] = ()
    """The methods that are."""
    sampling_batch: int = 480
    """Prompts that are sampled, and pairs that are scored without gradient, together."""
    saved_policies: tuple[str, ...] = ()
    """Methods whose policy is written out."""
    weights: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the saved weights."""


@dataclass(frozen=True)
class EvaluationOptions:
    """How samples become numbers."""

    group: int = 5
    """Samples of a prompt among which self-BLEU is taken."""
    ngram: int = 4
    """Longest n-gram of self-BLEU."""
    final_steps: int = 10
    """Last steps of a training over which the spread of its margins is taken."""


@dataclass(frozen=True)
class TabularOptions:
    """The study of optima on problems small enough to be solved exactly."""

    problems: int = 20
    """Random problems of each seed, each with rewards and a reference policy of its own."""


@dataclass(frozen=True)
class Scale:
    """One scale of ``config.yaml``."""

    seeds: tuple[int, ...]
    """Training seeds: each has data, a supervised model and policies of its own."""
    settings: dict[str, float | None]
    """Sharpness kappa of the Bradley-Terry labels in each condition by name; null for real annotators."""
    supervised: FinetuneOptions
    optimize: OptimizeOptions
    families: dict[str, tuple[str, ...]]
    """Methods that one job trains one after another."""
    evaluation: EvaluationOptions
    figures: tuple[str, ...]
    """Figures of the report."""
    tabular: TabularOptions = TabularOptions()
    processes: int = 0
    """Processes of each training, one per GPU, under accelerate; 0: one process, on whatever device there is."""
    data: DataOptions | None = None
    """The testbed's data; or else ``hub``."""
    hub: HubDataOptions | None = None
    """A data set of the paper."""
