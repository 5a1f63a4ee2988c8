"""Options of WPR's stages, and the schema of one scale of ``config.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.lm.options import FinetuneOptions, SamplingOptions
from shared.training_options import TrainingOptions


@dataclass(frozen=True)
class DataOptions:
    """Sizes of the testbed's data."""

    supervised_examples: int
    """Prompts with an answer, for supervised fine-tuning."""
    preference_pairs: int
    """Prompts with two answers, for the reward model."""
    training_prompts: int
    """Prompts that PPO samples responses to."""
    validation_prompts: int
    """Prompts on which the penalty weight is selected."""
    test_prompts: int
    """Prompts on which results are reported."""


@dataclass(frozen=True)
class HubDataOptions:
    """A preference data set of the paper, split for the three training stages as the paper splits it."""

    dataset: Literal["tldr", "hh-rlhf"]
    """Format of the records: posts with summaries, or dialogues."""
    train: str
    """Pairs that are divided among the three trainings: a local file, or ``<hub name>[#<configuration>]:<split>``."""
    evaluation: str
    """Pairs whose prompts are evaluated on, likewise."""
    supervised_share: float = 0.2
    """Share of the training split used for supervised fine-tuning."""
    reward_share: float = 0.4
    """Share used for the reward model; PPO prompts take the rest."""
    split_seed: int = 1234
    """Seed of the split and of the choice of evaluation prompts, the same for all training seeds."""
    validation_prompts: int = 1000
    """Prompts on which the penalty weight is selected."""
    test_prompts: int = 2000
    """Prompts on which results are reported."""


@dataclass(frozen=True)
class AnnotationOptions:
    """How the testbed's annotators compare two answers."""

    sharpness: float = 12.0
    """Bradley-Terry choices follow sigmoid(sharpness * difference of utility)."""


@dataclass(frozen=True)
class RewardOptions:
    """Training of the reward model on preference pairs, from the supervised model."""

    training: TrainingOptions
    max_prompt_tokens: int = 512
    """Longer prompts lose their beginning."""
    max_answer_tokens: int = 512
    """Longer answers lose their end."""
    held_out_pairs: int = 256
    """Pairs kept from training, on which accuracy is measured."""
    standardize: bool = False
    """Whether scores are shifted and scaled to mean 0 and standard deviation 1 over the chosen and rejected answers."""
    weights: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the saved weights."""


@dataclass(frozen=True)
class WassersteinOptions:
    """The Wasserstein penalty: cost, entropic regularisation, solver and support."""

    inverse_strength: float
    """The paper's lambda: 1/lambda is the entropic regularisation, in the unit of the cost."""
    iterations: int = 10
    """Sinkhorn iterations."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """Distance of two embeddings."""
    normalize_cost: bool = False
    """Whether costs are divided by the mean cost between distinct words (the testbed's unit)."""
    neighbors: int | None = None
    """The paper's k1: costs beyond this many nearest neighbours are infinite; None: keep all."""
    support_size: int | None = None
    """The paper's k2: support of the top-k tokens of both distributions; None: the whole vocabulary."""
    gauge: Literal["none", "support_mean", "policy", "value"] = "none"
    """Additive constant of the potential."""


@dataclass(frozen=True)
class PolicyOptions:
    """PPO: the same for every method; only the penalty changes."""

    sampling: SamplingOptions
    wasserstein: WassersteinOptions
    epochs: float = 1.0
    """Passes over the training prompts."""
    batch_size: int = 64
    """Prompts per update, over all processes and micro-batches."""
    accumulation: int = 1
    """Micro-batches per update and process."""
    actor_learning_rate: float = 1.5e-5
    """Largest learning rate of the policy."""
    critic_learning_rate: float = 1.5e-5
    """Largest learning rate of the critic."""
    warmup_fraction: float = 0.05
    """Share of the updates in which the learning rates rise; then they fall linearly to 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices."""
    score_clip: float | None = 2.5
    """Scores of the reward model are clipped to plus or minus this; None: never."""
    divergence_clip: float | None = 2.5
    """Weighted f-divergence penalties are clipped to plus or minus this; Wasserstein penalties never are."""
    alpha: float = 0.5
    """The alpha of the alpha-divergence."""
    max_prompt_tokens: int = 512
    """Longer prompts lose their beginning."""
    min_response_tokens: int = 1
    """Shorter responses, EOS included, are left out of the update."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of forward and backward passes; the penalty is always computed in float64."""
    checkpoint_every: int = 1000
    """Updates between saved states."""
    evaluation_batch: int = 512
    """Prompts per batch when the final policy is sampled."""
    saved_policies: tuple[str, ...] = ()
    """Methods whose policy at the selected penalty weight is written out."""
    weights: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the saved weights."""


@dataclass(frozen=True)
class AnalysisOptions:
    """What is measured on finished policies."""

    top_candidates: int = 4
    """Candidates among which the mean embedding distance is taken."""
    convergence_iterations: int = 50
    """Iterations of the solver's convergence trace."""


@dataclass(frozen=True)
class Scale:
    """One scale of ``config.yaml``."""

    seeds: tuple[int, ...]
    """Training seeds: each gives a supervised model, reward models and policies of its own."""
    settings: dict[str, float | None]
    """Reward regimes: the annotators' bias towards boilerplate by name; null for real annotators."""
    supervised: FinetuneOptions
    reward: RewardOptions
    policy: PolicyOptions
    analysis: AnalysisOptions
    grids: dict[str, tuple[float, ...]]
    """Penalty weights (beta) tried for each method; the best on validation prompts is reported."""
    families: dict[str, tuple[str, ...]]
    """Methods that one job trains one after another."""
    plan: dict[str, tuple[str, ...]]
    """Families trained in each setting."""
    analysed: tuple[str, ...]
    """Settings whose saved policies are analysed."""
    figures: tuple[str, ...]
    """Figures of the report."""
    processes: int = 0
    """Processes of each training, one per GPU, under accelerate; 0: one process, on whatever device there is."""
    data: DataOptions | None = None
    """The testbed's data; or else ``hub``."""
    hub: HubDataOptions | None = None
    """A data set of the paper."""
    annotation: AnnotationOptions = AnnotationOptions()
