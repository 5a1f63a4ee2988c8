"""Size of a small decoder, apart from the code that builds it, so that a configuration can be read without PyTorch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DecoderOptions:
    """Size and initialisation of a decoder-only language model trained from scratch."""

    vocabulary_size: int
    """Number of token ids."""
    max_positions: int
    """Longest sequence, prompt and response together."""
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
