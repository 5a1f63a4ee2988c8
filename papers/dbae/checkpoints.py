"""A trained method as one file: weights in half precision, and all that sampling must know, which must not differ."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from papers.dbae.autoencoders import Autoencoder, ChainAutoencoder, build_autoencoder
from papers.dbae.networks import ImageShape
from papers.dbae.options import MethodOptions, NetworkOptions
from shared.errors import InputError
from shared.options import from_mapping


def write_autoencoder(
    path: Path, model: Autoencoder, method: str, shape: ImageShape, network: NetworkOptions, options: MethodOptions
) -> None:
    """Write weights and buffers, floats as float16; method and options are the file's metadata."""
    tensors = {
        name: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in model.state_dict().items()
    }
    facts = {"method": method, "shape": shape, "network": asdict(network), "options": asdict(options)}
    # One entry: safetensors writes several in no fixed order, and the same model shall give the same bytes.
    save_file(tensors, path, metadata={"autoencoder": json.dumps(facts)})


def read_autoencoder(
    path: Path, *, network: NetworkOptions | None = None, options: MethodOptions | None = None
) -> tuple[str, Autoencoder]:
    """A trained method's name and module, in float32 and evaluation mode.

    Args:
        path: of `write_autoencoder`.
        network: what the caller believes the networks' sizes to be; None: whatever they are.
        options: the same for bridge and chain. Sampling with another schedule, T or σ than the training's gives images,
            and wrong ones.

    Raises:
        InputError: the file is missing, damaged or something else, or was made with other sizes or options.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["autoencoder"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        method, shape = facts["method"], tuple(facts["shape"])
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a trained autoencoder: {str(error).splitlines()[0]}") from None
    for expected, key in ((network, "network"), (options, "options")):
        for name, value in asdict(expected).items() if expected else ():
            found = facts[key].get(name)
            if found != (list(value) if isinstance(value, tuple) else value):
                raise InputError(f"{path}: trained with {name} = {found}, not with {value}")
    stored = from_mapping(facts["network"], NetworkOptions, where=f"{path}: network")
    used = from_mapping(facts["options"], MethodOptions, where=f"{path}: options")
    prior = build_autoencoder("ddpm", shape, stored, used, seed=0) if method == "pdae" else None
    assert prior is None or isinstance(prior, ChainAutoencoder)
    model = build_autoencoder(method, shape, stored, used, seed=0, prior=prior)
    model.load_state_dict({name: value.float() if value.dtype == torch.half else value
                           for name, value in tensors.items()})  # fmt: skip
    return method, model.eval()
