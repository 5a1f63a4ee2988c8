"""What the testbed's small convolutional networks have in common: their layer, and their files."""

from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from shared.errors import InputError

Network = TypeVar("Network", bound=nn.Module)


def conv_block(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolution, normalisation over 4 groups of channels, SiLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.GroupNorm(4, outputs), nn.SiLU())


def refuse_several_processes(accelerator: Accelerator) -> None:
    """Raise an InputError in a distributed training: its gradients are averaged in `forward` only, which some losses
    here do without."""
    if accelerator.num_processes > 1:
        raise InputError(f"accelerate: this network trains in one process, got {accelerator.num_processes}")


def save_network(path: Path, network: nn.Module, **size: int) -> None:
    """Write the weights in half precision as safetensors, and in their header the arguments of the network's class."""
    weights = {name: value.detach().cpu().half().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, path, metadata={name: str(value) for name, value in size.items()})


def load_network(path: Path, network_class: type[Network]) -> Network:
    """A network of a class from its file: in single precision, frozen and in evaluation mode.

    Raises:
        InputError: the file is not of safetensors, or of another class.
    """
    try:
        with safe_open(path, framework="pt") as file:
            size = {name: int(value) for name, value in (file.metadata() or {}).items()}
        network = network_class(**size)
        network.load_state_dict(load_file(path))
    except Exception as error:  # safetensors, the constructor and PyTorch each raise errors of their own
        raise InputError(f"{path}: no weights of a {network_class.__name__}: {str(error).splitlines()[0]}") from error
    return network.eval().requires_grad_(False)
