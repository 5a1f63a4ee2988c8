"""Options of CSD's stages, and the schema of one scale of ``config.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.lm.options import FinetuneOptions, SamplingOptions

VALIDATION = "validation"
"""Name, among those of suites, of the prompts on which learning rates are selected."""


@dataclass(frozen=True)
class DataOptions:
    """Sizes of the testbed's data."""

    teacher_examples: int
    """Prompts with a response, on which the teacher is trained."""
    distillation_examples: int
    """Prompts with a response, on which the student is initialised and distilled."""
    validation_prompts: int
    """Prompts on which learning rates are selected."""
    suite_prompts: int
    """Prompts of each test suite."""
    references: int = 3
    """Reference responses to each prompt."""


@dataclass(frozen=True)
class HubDataOptions:
    """The paper's instruction data. A source is a local file or ``hf://datasets/<owner>/<name>/<file>``."""

    training: str
    """Source of databricks-dolly-15k, one JSON object a line."""
    suites: tuple[str, ...] = ()
    """Further test suites, ``<name>=<self-instruct|instruction>:<source>``."""
    validation_prompts: int = 1000
    """Examples of the training source on which learning rates are selected."""
    test_prompts: int = 500
    """Examples of the training source that make the suite ``dolly``."""
    max_suite_prompts: int = 10_000
    """Prompts of each further suite, at most; the first in the file."""
    split_seed: int = 10
    """Seed of the split of the training source."""
    plain_text: str | None = None
    """Source of plain text, a parquet file with the column text; None: there is none."""
    max_plain_texts: int = 100_000
    """Texts of the plain text source, at most; the first in the file."""


@dataclass(frozen=True)
class DistillOptions:
    """Distillation and sampling: the same for every method but for the learning rate and the loss."""

    sampling: SamplingOptions
    """Of on-policy responses and of the samples that are evaluated."""
    epochs: float
    """Passes over the distillation set."""
    batch_size: int
    """Examples per step, over all processes and micro-batches."""
    accumulation: int = 1
    """Micro-batches per step and process."""
    schedule: Literal["one_cycle", "cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate over the steps."""
    warmup_fraction: float = 0.0
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices."""
    max_grad_norm: float | None = 1.0
    """The gradient's L2 norm is clipped to it; None: never."""
    teacher_fraction: float = 0.15
    """The alpha of the weight M, the teacher's share in it."""
    max_prompt_tokens: int = 256
    """Longer prompts lose their beginning."""
    max_answer_tokens: int = 256
    """Longer answers lose their end."""
    pretrained_student: str | None = None
    """Hub name or folder from which off-policy students start; None: from the fine-tuned student, as on-policy ones."""
    teacher_weights: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision in which the teacher runs; losses are always computed in float32."""
    cache_teacher: bool = False
    """Whether the teacher's logits on the distillation set are computed once and kept in memory."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the student's forward and backward passes."""
    generate_every: int = 1
    """ImitKD and GKD: steps between two generations of a batch of responses."""
    buffer_sequences: int = 1000
    """On-policy: responses kept, the newest."""
    share_margin: float = 0.1
    """DistiLLM: rise of the validation loss over an epoch (nats per token) that raises the share of own responses."""
    plain_text_weight: float = 0.0
    """On-policy: weight of the next-token loss on plain text beside the distillation loss."""
    checkpoint_every: int = 1000
    """Steps between saved states."""
    evaluation_batch: int = 512
    """Prompts that are sampled together."""
    sampling_seeds: tuple[int, ...] = (10, 20, 30, 40, 50)
    """One sample of every prompt for each."""
    no_repeat_ngram: int = 0
    """In evaluation no n-gram of this length is sampled twice; 0: all are allowed."""
    saved_students: tuple[str, ...] = ()
    """Runs whose student is written out."""
    weights: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the saved weights."""


@dataclass(frozen=True)
class TuneOptions:
    """The search for learning rates, equal for all methods."""

    learning_rates: tuple[float, ...]
    """Largest learning rates tried."""


@dataclass(frozen=True)
class CostOptions:
    """The measurement of what losses cost."""

    vocabularies: tuple[int, ...]
    """Sizes of the vocabulary."""
    elements: int = 2**21
    """Logits of one case, tokens times vocabulary, rounded down to whole tokens."""
    rounds: int = 7
    """Times that every loss is measured; medians are kept."""


@dataclass(frozen=True)
class ScoreOptions:
    """How samples become numbers."""

    stemmer: bool = True
    """Whether ROUGE-L compares Porter stems."""


@dataclass(frozen=True)
class Scale:
    """One scale of ``config.yaml``."""

    seeds: tuple[int, ...]
    """Training seeds: each gives data, a teacher, an initial student and distilled students of its own."""
    tuning_seed: int
    """A seed for the selection of learning rates, none of the above."""
    teacher: FinetuneOptions
    student: FinetuneOptions
    """The initial student that all methods of a seed share."""
    distill: DistillOptions
    tune: TuneOptions
    score: ScoreOptions
    cost: CostOptions
    families: dict[str, tuple[str, ...]]
    """Runs, ``<setting>/<method>``, that one job makes one after another."""
    figures: tuple[str, ...]
    """Figures of the report."""
    processes: int = 0
    """Processes of each training, one per GPU, under accelerate; 0: one process, on whatever device there is."""
    data: DataOptions | None = None
    """The testbed's data; or else ``hub``."""
    hub: HubDataOptions | None = None
    """The paper's data."""

    def __post_init__(self) -> None:
        if self.tuning_seed in self.seeds:
            raise ValueError(f"tuning_seed: must not be a reported seed, got {self.tuning_seed}")
        if (self.data is None) == (self.hub is None):
            raise ValueError("data, hub: exactly one of them must be given")
        if self.hub and self.hub.plain_text is None and self.distill.plain_text_weight:
            raise ValueError("distill.plain_text_weight: needs a source hub.plain_text")
