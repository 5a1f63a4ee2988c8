"""Files of denoisers: weights in half precision, and in their header what builds the network."""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from shared.diffusion.denoisers import EdmDenoiser
from shared.diffusion.options import DenoiserOptions
from shared.diffusion.training import build_denoiser
from shared.errors import InputError
from shared.options import from_mapping, plain


def save_denoiser(path: Path, denoiser: EdmDenoiser, options: DenoiserOptions, sample_shape: tuple[int, ...]) -> None:
    """Write a denoiser as safetensors, with its options and the shape of a sample.

    Args:
        path: where to.
        denoiser: of `build_denoiser`, not wrapped by accelerate.
        options: it was built with.
        sample_shape: of one sample.
    """
    weights = {name: value.detach().cpu().half().contiguous() for name, value in denoiser.state_dict().items()}
    # One entry: safetensors writes several in random order.
    header = json.dumps({"options": plain(options), "shape": sample_shape})
    save_file(weights, path, metadata={"denoiser": header})


def load_denoiser(path: Path) -> tuple[EdmDenoiser, tuple[int, ...]]:
    """A denoiser in single precision, frozen and in evaluation mode, and the shape of its samples.

    Raises:
        InputError: the file is not one of `save_denoiser`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["denoiser"])
        shape = tuple(header["shape"])
        denoiser = build_denoiser(from_mapping(header["options"], DenoiserOptions, where=str(path)), shape, seed=0)
        denoiser.load_state_dict(load_file(path))
    except Exception as error:  # safetensors, json and PyTorch each raise errors of their own
        raise InputError(f"{path}: no weights of a denoiser: {str(error).splitlines()[0]}") from error
    return denoiser.eval().requires_grad_(False), shape
