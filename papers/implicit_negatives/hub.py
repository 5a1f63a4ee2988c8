"""Unlearned models of a Stable Diffusion pipeline, and latents of images of the concept."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from papers.implicit_negatives.options import UCE, UnlearnedHubOptions
from shared.errors import InputError
from shared.t2i.bench import Bench
from shared.t2i.hub import bench_of
from shared.t2i.hub_pipeline import open_pipeline
from shared.t2i.lora import adapted_unet

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def open_unlearned(options: UnlearnedHubOptions, models: Sequence[str]) -> tuple[Bench, Tensor]:
    """The pipeline with those of its unlearned models that are asked for, and latents of the concept's images.

    Raises:
        InputError: weights or an image that cannot be read.
    """
    pipeline = open_pipeline(options)
    bench = bench_of(pipeline, options, None)
    unets = {name: unlearned_unet(bench, options, name) for name in models}
    latents = concept_latents(Path(options.images), pipeline.vae, pipeline.unet.config.sample_size)
    return replace(bench, models=unets), latents


def unlearned_unet(bench: Bench, options: UnlearnedHubOptions, model: str) -> nn.Module:
    """The U-Net of an unlearned model: by UCE's edit, from weights of its own, or by adapters, which add up.

    Raises:
        InputError: there is none of this name, or its weights cannot be read or are of another network.
    """
    if model == UCE and options.uce_erase_weight:
        return bench.edited(options.uce_erase_weight, options.uce_preserve_weight).unet
    files = dict(entry.split("=", 1) for entry in options.unets)
    return with_weights(bench.unet, files[model]) if model in files else adapted_unet(bench.unet, options.loras, model)


def with_weights(unet: nn.Module, path: str) -> nn.Module:
    """A copy of a U-Net with the weights of a safetensors file in the place of its own; the others stay.

    Raises:
        InputError: a file that cannot be read, or is of another network.
    """
    found = copy.deepcopy(unet)
    try:
        unknown = found.load_state_dict(load_file(path), strict=False).unexpected_keys
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"unets {path}: not weights of this U-Net: {' '.join(str(error).split())}") from None
    if unknown:
        raise InputError(f"unets {path}: the U-Net has no {unknown[0]!r}")
    return found


@torch.no_grad()
def concept_latents(folder: Path, vae: AutoencoderKL, size: int) -> Tensor:
    """Latents (M, C, size, size), float32, of all images of a folder, cropped to squares and resized.

    Raises:
        InputError: no images there, or one that cannot be read.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"{folder}: no images ({', '.join(SUFFIXES)})")
    pixels = size * 2 ** (len(vae.config.block_out_channels) - 1)
    latents = []
    for path in paths:
        try:
            with Image.open(path) as image:
                fitted = ImageOps.fit(image.convert("RGB"), (pixels, pixels))
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"{path}: not an image: {error}") from None
        values = torch.from_numpy(np.asarray(fitted, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        encoded = vae.encode(values.to(vae.device, vae.dtype)).latent_dist.mean
        latents.append(encoded.float() * vae.config.scaling_factor)
    return torch.cat(latents)
