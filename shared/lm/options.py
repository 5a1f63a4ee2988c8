"""Options of models, sampling and fine-tuning, apart from the code that uses them: reading a configuration needs no
PyTorch."""

from dataclasses import dataclass
from typing import Literal

from shared.training_options import TrainingOptions


@dataclass(frozen=True)
class DecoderOptions:
    """Size and initialisation of a decoder-only language model trained from scratch."""

    architecture: Literal["gpt2", "llama"] = "gpt2"
    """Family of the model."""
    layers: int = 2
    """Transformer blocks."""
    width: int = 64
    """Size of the hidden states."""
    heads: int = 4
    """Attention heads per block; divides the width."""
    tie_embeddings: bool = False
    """Whether the output layer shares the input embeddings."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weight matrices."""
    embedding_std: float | None = None
    """Standard deviation of the initial input embeddings; None: that of the other matrices."""
    dropout: float = 0.0
    """Dropout probability everywhere."""


@dataclass(frozen=True)
class SamplingOptions:
    """How responses are drawn from a language model."""

    max_new_tokens: int
    """Longest response, EOS included."""
    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most probable token."""
    top_k: int | None = None
    """Draw from the k most probable tokens only; None: from all."""
    top_p: float = 1.0
    """Draw from the smallest set of most probable tokens that holds this probability."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: must be at least 1, got {self.max_new_tokens}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature: must not be negative, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: must be at least 1, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: must lie in (0, 1], got {self.top_p}")


@dataclass(frozen=True)
class FinetuneOptions:
    """Supervised fine-tuning of a pretrained model, or of a small decoder from scratch."""

    training: TrainingOptions
    base_model: str | None = None
    """Folder or hub name of a pretrained model; None: train a decoder from scratch."""
    decoder: DecoderOptions = DecoderOptions()
    """The decoder to train where there is no base model."""
    max_prompt_tokens: int = 512
    """Longer prompts lose their beginning."""
    max_answer_tokens: int = 512
    """Longer answers lose their end."""
    weights: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the saved weights."""
