"""Low-rank adapters of the hub, merged into a U-Net's weights: how unlearned models such as DUO's come."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.errors import InputError

NAME = re.compile(
    r"(?:unet\.)?(?P<layer>.+?)(?:\.processor)?\.(?P<matrix>to_[a-z]+)(?P<index>\.0)?[._]lora[._](?P<part>down|up|A|B)\.weight"
)
"""Of both formats of diffusers: ``...attn1.processor.to_q_lora.down.weight`` and ``...attn1.to_q.lora_A.weight``."""


@torch.no_grad()
def merge_lora(unet: nn.Module, weights: Mapping[str, Tensor], weight: float = 1.0) -> None:
    """Add weight · up · down to each of the U-Net's matrices that the adapter is for.

    Raises:
        ValueError: an entry that is no part of an adapter, a matrix with one factor alone, or one that the U-Net lacks.
    """
    factors: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        match = NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name}: no factor of a low-rank adapter of a U-Net's attention")
        # The output projection is followed by dropout, and called to_out.0 in the network.
        index = ".0" if match["matrix"] == "to_out" else ""
        part = {"A": "down", "B": "up"}.get(match["part"], match["part"])
        factors.setdefault(f"{match['layer']}.{match['matrix']}{index}.weight", {})[part] = value
    parameters = dict(unet.named_parameters())
    for name, pair in factors.items():
        if name not in parameters or set(pair) != {"down", "up"}:
            raise ValueError(f"{name}: need a matrix of the U-Net with both factors, got {', '.join(sorted(pair))}")
        parameters[name] += weight * (pair["up"].float() @ pair["down"].float()).to(parameters[name])


def adapted_unet(unet: nn.Module, entries: Sequence[str], model: str) -> nn.Module:
    """A copy of a U-Net with all adapters of a model, which add up.

    Args:
        unet: the original one.
        entries: ``<model>=<file>[*<weight>]``, safetensors.
        model: whose adapters are wanted.

    Raises:
        InputError: there is no adapter of the model, or one that cannot be read or is of another network.
    """
    wanted = [entry.partition("=")[2] for entry in entries if entry.partition("=")[0] == model]
    if not wanted:
        raise InputError(f"loras: none of model {model!r}")
    found = copy.deepcopy(unet)
    for entry in wanted:
        path, _, weight = entry.partition("*")
        try:
            merge_lora(found, load_file(path), float(weight or 1))
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(f"loras {model}={entry}: {error}") from None
    return found
