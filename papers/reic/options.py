"""Options of REIC's stages, and the schema of one scale of ``config.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MODULES = ("end_to_end", "ecrim")


@dataclass(frozen=True)
class CorpusOptions:
    """The procedural corpus; see :mod:`papers.reic.corpus`."""

    train_bags: int
    """Pairs of entities with one to three text paths each, to train on."""
    dev_bags: int
    """Pairs to evaluate on."""
    test_bags: int = 10
    """Pairs of the test split, whose labels are hidden as in CodRED's."""
    candidates: int = 10
    """M: sentences of a document besides the target."""
    classes: int = 2
    """Trigger classes on either side; their square is the number of relations."""
    synonyms: int = 4
    """Trigger words of each class."""
    distractors: int = 4
    """Sentences with a bridge entity and no trigger."""
    negatives: int = 1
    """Sentences with a trigger and strangers."""
    mentions: int = 2
    """Sentences with the target entity and filler."""
    positive_bags: float = 0.75
    """Share of pairs with a relation."""
    adjacent: float = 0.2
    """Share of documents whose evidence is put beside the target; elsewhere it is put anywhere."""
    evidence_names_target: float = 1.0
    """Share of evidence sentences with the target entity. Where it equals the distractors' share, the bridge filter
    cannot tell evidence from distractors by it."""
    distractor_names_target: float = 1.0
    """Share of distractors with the target entity."""
    distant_documents: int = 20
    """Documents with a relation of their own, in the file of distant documents."""

    def __post_init__(self) -> None:
        if self.candidates < self.negatives + self.distractors + self.mentions + 2:
            raise ValueError(f"candidates: too few for the sentences asked for, got {self.candidates}")
        if not 1 <= self.classes <= 3 or not 1 <= self.synonyms <= 4:
            raise ValueError("classes, synonyms: must lie in [1, 3] and [1, 4]")
        if not 1 <= self.distractors <= 30 or not 0 <= self.negatives <= 4:
            raise ValueError("distractors, negatives: must lie in [1, 30] and [0, 4]")


@dataclass(frozen=True)
class EncoderOptions:
    """The encoder of a relation module."""

    name: str | None = None
    """Folder or hub name of a pretrained one; None: from scratch, a small BERT of the size below."""
    width: int = 64
    """Hidden size."""
    layers: int = 2
    """Transformer blocks."""
    heads: int = 4
    """Attention heads."""
    feedforward: int = 128
    """Hidden units of the feed-forward blocks."""


@dataclass(frozen=True)
class SelectorOptions:
    """The sentence selector."""

    hidden_dim: int = 64
    """Of the LSTM's state."""
    mlp_dim: int = 64
    """Of the scoring network."""
    dropout: float = 0.1
    """In training."""
    one_mask: bool = False
    """Whether dropout takes the same components of the embeddings in all steps of a run."""
    checkpoint: str | None = None
    """Safetensors file of a trained selector (lstm_cell, mlp1, mlp2) to start from."""


@dataclass(frozen=True)
class InputOptions:
    """From documents to the relation module's input."""

    block_length: int = 63
    """Longest block, in tokens."""
    picks: int = 6
    """K, blocks per document besides the target's."""
    head_budget: int = 254
    """Tokens of the head's document."""
    tail_budget: int = 255
    """Tokens of the tail's document."""
    order: Literal["selection", "document"] = "selection"
    """Of the blocks; see :func:`papers.reic.input_construction.assemble_document`."""
    most_paths: int = 8
    """Larger bags are subsampled in training."""


@dataclass(frozen=True)
class TrainOptions:
    """Joint training of a relation module and of the selector: one forward pass gives the loss of the one, and the
    rewards of the other."""

    encoder: EncoderOptions
    selector: SelectorOptions
    inputs: InputOptions
    steps: int
    """Optimizer steps, the warm-up included; the same for all methods."""
    batch_size: int
    """Bags per step, over all processes and micro-batches."""
    learning_rate: float
    """Of AdamW for the relation module; linear schedule."""
    warmup_fraction: float = 0.1
    """Share of the steps in which that learning rate rises."""
    uniform_fraction: float = 0.0
    """Share of the steps in which picks are uniform and the selector rests: the relation module's head start."""
    na_weight: float = 0.1
    """Weight of n/a in the end-to-end module's cross-entropy."""
    aggregator: Literal["attention", "max", "mean"] = "attention"
    """From paths to a bag in the end-to-end module."""
    pair_layers: int = 4
    """Transformer blocks over the pair matrix of the ECRIM-like module."""
    pair_heads: int = 8
    """Their attention heads."""
    pair_feedforward: int = 1024
    """Their hidden units."""
    most_mentions: int = 8
    """Bridge entities per path in the pair matrix."""
    reward: Literal["margin", "threshold"] = "margin"
    """Of the end-to-end module; that of the ECRIM-like one is ``threshold``."""
    baseline: Literal["none", "mean", "leave_one_out"] = "none"
    """Of the reward, over the paths of a process's micro-batch."""
    threshold: float = 10.0
    """Of the threshold reward and of the two-threshold loss."""
    positive_weight: float = 10.0
    """w of paths with a relation; that of n/a is 1."""
    exploration: float = 0.0
    """Probability of a uniform pick."""
    selector_learning_rate: float = 0.003
    """Of AdamW for the selector."""
    selector_schedule: Literal["constant", "linear"] = "constant"
    """Of that learning rate."""
    selector_weight_decay: float = 0.01
    """Of that AdamW."""
    max_grad_norm: float = 1.0
    """Gradients of either network are clipped to it, each by itself."""
    intra_document_share: float = 0.0
    """Share of steps that add a group of eight intra-document examples to the relation module's loss."""
    accumulation: int = 1
    """Micro-batches per step and process."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Of the relation module; logits and rewards are float32."""
    sampled_evaluation: bool = False
    """Evaluate with drawn picks and the selector's dropout, as the official code does, instead of the most probable."""
    evaluated_picks: tuple[int, ...] = ()
    """Other K at which the trained modules are evaluated."""
    workers: int = 0
    """Processes of the data loader."""
    log_every: int = 20
    """Steps between rows of the history."""
    checkpoint_every: int = 1000
    """Steps between saved states, from which an interrupted training resumes."""

    def __post_init__(self) -> None:
        if not 0 <= self.uniform_fraction < 1:
            raise ValueError(f"uniform_fraction: must lie in [0, 1), got {self.uniform_fraction}")
        if self.steps < 1 or self.inputs.picks < 1:
            raise ValueError("steps, picks: must be at least 1")


@dataclass(frozen=True)
class PretrainOptions:
    """Masked-token training of the frozen encoder on sentences of the corpus."""

    steps: int
    """Optimizer steps."""
    batch_size: int
    """Pairs of sentences per step."""
    learning_rate: float = 0.003
    """Of AdamW, one cycle."""
    masked: float = 0.15
    """Share of tokens that are to be found."""
    bags: int = 400
    """Pairs of entities whose documents are read."""


@dataclass(frozen=True)
class HubOptions:
    """CodRED's files and a pretrained frozen encoder."""

    dataset: str
    """Folder with CodRED's files."""
    selector_encoder: str
    """Folder or hub name of the frozen encoder."""
    embedding_batch: int = 256
    """Pairs of blocks that the frozen encoder reads at once."""


@dataclass(frozen=True)
class Scale:
    """One scale of ``config.yaml``."""

    seeds: tuple[int, ...]
    """Each has a corpus, initial weights and an order of its own, which all methods share."""
    train: TrainOptions
    groups: dict[str, tuple[str, ...]]
    """Runs, by the names of :mod:`papers.reic.methods`, that one job makes."""
    figures: tuple[str, ...]
    """Figures of the report."""
    ranks: tuple[int, ...] = (500, 1000)
    """k of the precisions at k."""
    corpora: dict[str, CorpusOptions] | None = None
    """Corpora by the name that ends a run's setting."""
    pretrain: PretrainOptions | None = None
    """Of the frozen encoder."""
    hub: HubOptions | None = None
    """In place of procedural corpora."""
    tuning_seed: int = 100
    """Of the corpus on which hyperparameters are selected, and of the frozen encoder's."""
    tuned: dict[str, tuple[str, ...]] | None = None
    """Candidates, by the name under which the best of them is known to the groups."""
    processes: int = 0
    """Processes of each training, one per GPU, under accelerate; 0: one process, on whatever device there is."""

    def __post_init__(self) -> None:
        if (self.corpora is None) == (self.hub is None):
            raise ValueError("corpora: give either corpora or hub")
        if self.corpora is not None and self.pretrain is None:
            raise ValueError("pretrain: procedural corpora need it")
        if self.processes and self.train.batch_size % self.processes:
            raise ValueError(f"processes: must divide the batch size, {self.train.batch_size}")
        for group, runs in {**self.groups, **(self.tuned or {})}.items():
            if not runs or (self.corpora is not None and not self._corpora_of(runs) <= set(self.corpora)):
                raise ValueError(f"{group}: its runs need corpora that there are, got {', '.join(runs)}")
            if len(self._corpora_of(runs)) > 1:
                raise ValueError(f"{group}: its runs must share a corpus, got {', '.join(runs)}")

    def corpus_of(self, runs: tuple[str, ...]) -> CorpusOptions:
        """The corpus that runs of a group share."""
        return self.corpora[min(self._corpora_of(runs))]

    @staticmethod
    def _corpora_of(runs: tuple[str, ...]) -> set[str]:
        return {run.rpartition("/")[2] for run in runs}
