"""What an image costs: evaluations of the network, counted where they happen."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

BACKWARD = 2
"""What a backward pass costs, in forward passes."""


@dataclass
class Meter:
    """Counts what a network evaluates.

    Attributes:
        evaluations: of the network for one sample each; a backward pass counts as two.
    """

    evaluations: int = 0


@contextmanager
def metered(network: nn.Module) -> Iterator[Meter]:
    """Within the block, the meter counts every evaluation of the network, whoever asks for it.

    One rule: a forward pass for one sample counts 1, and where its output can be differentiated the backward pass that
    follows counts 2. What layers do besides (energy-based cross-attention), what gradient checkpointing computes anew,
    rewards and decoders do not count.

    Args:
        network: whose output's first entry is (B, ...).
    """
    meter, original = Meter(), network.forward
    replaced = vars(network).get("forward")

    def forward(*arguments: Any, **keywords: Any) -> Any:
        found = original(*arguments, **keywords)
        meter.evaluations += len(found[0]) * (1 + BACKWARD * found[0].requires_grad)
        return found

    # Not a hook: pipelines' methods call `forward` itself, which runs none.
    network.forward = forward
    try:
        yield meter
    finally:
        if replaced is None:
            del network.forward
        else:
            network.forward = replaced
