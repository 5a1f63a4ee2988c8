"""What sampling costs: evaluations of the denoiser, a backward pass counted as two.

Only what is differentiated counts: of a batch, the samples that get a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

BACKWARD = 2
"""What a backward pass costs, in evaluations."""


def count_gradients(values: Tensor, rows: list[int]) -> None:
    """Append to a list, in every backward pass through values (B, ...), how many of the B samples get a gradient."""

    def count(gradient: Tensor) -> None:
        rows.append(int((gradient != 0).flatten(1).any(dim=1).sum()))

    if values.requires_grad:
        values.register_hook(count)


@contextmanager
def counted_gradients(network: nn.Module) -> Iterator[list[int]]:
    """Within the block, the list grows by the samples of every backward pass through an evaluation of the network."""
    rows: list[int] = []
    handle = network.register_forward_hook(lambda module, arguments, found: count_gradients(found[0], rows))
    try:
        yield rows
    finally:
        handle.remove()
