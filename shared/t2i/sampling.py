"""One sampler with classifier-free guidance and hooks, into which every method and baseline plugs.

So that all of them share noise, networks and solver, a method is a function that is called in every step: it may
replace the text embedding (`EmbeddingHook`) or the guided output (`OutputHook`).
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shared.data_order import generator_for
from shared.t2i.model import LATENT_SHAPE, LatentCodec

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(latents (B, C, H, W), timestep (), embedding (B, L, D)) -> output (B, C, H, W)`."""


class Step(NamedTuple):
    """Where the sampler is when it calls a hook.

    Attributes:
        index: of the step, from 0, the noisiest.
        timestep: of the step, a scalar tensor.
        latents: (B, C, H, W), noisy, detached.
        uncond_output: of the denoiser without caption, (B, C, H, W), detached.
        guidance_scale: w.
        alpha_cumprod: ᾱ of the step in (0, 1].
    """

    index: int
    timestep: Tensor
    latents: Tensor
    uncond_output: Tensor
    guidance_scale: float
    alpha_cumprod: float


EmbeddingHook = Callable[[Step, Tensor], Tensor]
"""`(step, embedding (B, L, D)) -> embedding` for this and all later steps. It may differentiate the denoiser."""

OutputHook = Callable[[Step, Tensor, Tensor], Tensor]
"""`(step, cond_output, guided_output) -> guided_output`, all (B, C, H, W), for this step."""

StepCallback = Callable[[Step, Tensor], None]
"""`(step, guided_output)`: looks on."""


def classifier_free_guidance(uncond_output: Tensor, cond_output: Tensor, scale: float) -> Tensor:
    """u + w (c - u)."""
    return uncond_output + scale * (cond_output - uncond_output)


def initial_noise(seed: int, prompts: Iterable[int], shape: tuple[int, ...] = LATENT_SHAPE) -> Tensor:
    """Noise (B, *shape) for the prompts of these numbers: a function of seed and number, whatever else is sampled."""
    return torch.stack([torch.randn(shape, generator=generator_for(seed, prompt)) for prompt in prompts])


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    scheduler: Any,
    cond_embedding: Tensor,
    uncond_embedding: Tensor,
    *,
    initial_noise: Tensor,
    num_steps: int = 20,
    guidance_scale: float = 5.0,
    eta: float = 0.0,
    step_noise: Callable[[int], Tensor] | None = None,
    decode: Callable[[Tensor], Tensor] = LatentCodec.decode,
    embedding_hook: EmbeddingHook | None = None,
    output_hook: OutputHook | None = None,
    step_callback: StepCallback | None = None,
) -> Tensor:
    """Images (B, 3, 12, 12) in about [-1, 1], sampled with classifier-free guidance.

    Each step evaluates the denoiser without caption, lets the embedding hook choose the embedding, evaluates the
    denoiser with it, combines the two, lets the output hook correct the result, and takes the scheduler's step.

    Args:
        denoiser: the network; its output is of the scheduler's prediction type.
        scheduler: a `DDIMScheduler`, or another one of diffusers' if eta is 0.
        cond_embedding: (B, L, D), of the captions.
        uncond_embedding: (B, L, D) or (1, L, D), of the empty caption; no hook changes it.
        initial_noise: (B, C, H, W).
        num_steps: of the scheduler.
        guidance_scale: w.
        eta: 0 is deterministic; with 1 the steps are as noisy as those of ancestral sampling.
        step_noise: from a step's index to its noise (B, C, H, W); needed where eta is not 0.
        decode: from latents to images.

    Raises:
        ValueError: batches of different sizes, fewer than one step, or eta without noise.
    """
    if len(cond_embedding) != len(initial_noise) or len(uncond_embedding) not in (1, len(initial_noise)):
        raise ValueError(
            "initial_noise: need as many as embeddings, got "
            f"{len(initial_noise)}, {len(cond_embedding)} and {len(uncond_embedding)}"
        )
    if num_steps < 1:
        raise ValueError(f"num_steps: must be at least 1, got {num_steps}")
    if eta != 0 and step_noise is None:
        raise ValueError(f"step_noise: needed with eta={eta}")
    scheduler.set_timesteps(num_steps, device=initial_noise.device)
    latents, embedding = initial_noise, cond_embedding
    uncond_embedding = uncond_embedding.expand(len(latents), -1, -1)
    for index, timestep in enumerate(scheduler.timesteps):
        uncond_output = denoiser(latents, timestep, uncond_embedding)
        alpha_cumprod = float(scheduler.alphas_cumprod[timestep])
        step = Step(index, timestep, latents, uncond_output, guidance_scale, alpha_cumprod)
        if embedding_hook is not None:
            embedding = embedding_hook(step, embedding).detach()
        cond_output = denoiser(latents, timestep, embedding)
        output = classifier_free_guidance(uncond_output, cond_output, guidance_scale)
        if output_hook is not None:
            output = output_hook(step, cond_output, output).detach()
        if step_callback is not None:
            step_callback(step, output)
        randomness = {"eta": eta, "variance_noise": step_noise(index)} if eta else {}
        latents = scheduler.step(output, timestep, latents, **randomness).prev_sample
    return decode(latents)
