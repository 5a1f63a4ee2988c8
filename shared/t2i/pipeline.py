"""The trained text-to-image system in diffusers' format: one folder with denoiser, text encoder and scheduler."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from shared.errors import InputError
from shared.t2i.captions import WordTokenizer
from shared.t2i.model import embed_tokens
from shared.t2i.sampling import sample


class ScenePipeline(DiffusionPipeline):
    """From captions to images of scenes; saved and loaded by `save_pretrained` and `from_pretrained`."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, scheduler: DDIMScheduler):
        super().__init__()
        self.register_modules(unet=unet, text_encoder=text_encoder, scheduler=scheduler)
        for network in (unet, text_encoder):
            network.eval().requires_grad_(False)
        self.tokenizer = WordTokenizer()
        self.set_progress_bar_config(disable=True)

    def embed(self, captions: Sequence[str]) -> Tensor:
        """Text embeddings (B, 12, 64) of captions; that of "" is the unconditional one.

        Raises:
            ValueError: a caption with unknown words or too many of them.
        """
        return embed_tokens(self.text_encoder, self.tokenizer.encode(list(captions)).to(self.device))

    def denoise(self, latents: Tensor, timestep: Tensor, embedding: Tensor) -> Tensor:
        """Predicted clean latents (B, 12, 6, 6) of noisy ones at a timestep () or (B,), for embeddings (B, 12, 64)."""
        return self.unet(latents, timestep, encoder_hidden_states=embedding).sample

    def __call__(self, captions: Sequence[str], initial_noise: Tensor, **options: Any) -> Tensor:
        """Images (B, 3, 12, 12) of captions, one for each noise (B, 12, 6, 6); options as in `sample`.

        Raises:
            ValueError: no captions, unknown words in one, or not one noise for each.
        """
        if not captions:
            raise ValueError("captions: need at least one")
        return sample(
            self.denoise,
            self.scheduler,
            self.embed(captions),
            self.embed([""]),
            initial_noise=initial_noise.to(self.device),
            **options,
        )


def load_pipeline(folder: Path) -> ScenePipeline:
    """The pipeline from its folder, frozen and in evaluation mode.

    Raises:
        InputError: the folder does not hold one.
    """
    try:
        return ScenePipeline.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no text-to-image pipeline: {str(error).splitlines()[0]}") from error
