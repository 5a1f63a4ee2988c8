"""Options that every training shares, apart from the code that trains, so that a configuration needs no PyTorch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is optimised: AdamW, a learning-rate schedule, clipping, precision and checkpoints."""

    epochs: float
    """Passes over the data; a fraction trains on a part of it."""
    batch_size: int
    """Examples per optimizer step, over all processes and micro-batches."""
    learning_rate: float
    """Largest learning rate of the schedule."""
    schedule: Literal["one_cycle", "cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate over the steps."""
    warmup_fraction: float = 0.0
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices."""
    embedding_weight_decay: float | None = None
    """Weight decay of embedding tables; None: that of matrices."""
    max_grad_norm: float | None = 1.0
    """The gradient's L2 norm is clipped to it; None: never."""
    accumulation: int = 1
    """Micro-batches per step and process."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of forward and backward passes."""
    checkpoint_every: int = 1000
    """Steps between saved states, from which an interrupted training resumes."""
