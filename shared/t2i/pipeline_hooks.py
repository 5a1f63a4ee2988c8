"""Updates of the text embedding inside any of diffusers' pipelines with a U-Net, without a pipeline of one's own.

A pipeline calls its U-Net once a step, on the unconditional and the conditional half of a batch. `embedding_updates`
steps in right before: it sees what the network sees, so it needs to know neither the pipeline (Stable Diffusion,
Stable Diffusion XL, inpainting, ...) nor the scheduler. Schedulers that count noise in σ scale the latents for the
network to unit variance at ᾱ = 1 / (1 + σ²), so ᾱ follows from the timestep for them too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch import Tensor


class NetworkStep(NamedTuple):
    """One sampler step as the network sees it.

    Attributes:
        index: of the step, from 0, the noisiest.
        latents: (B, C, H, W), noisy, scaled to the network.
        denoise: `(latents, embedding (B, L, D)) -> conditional output`, differentiable.
        uncond_output: (B, C, H, W); zeros in a pipeline that runs without classifier-free guidance.
        guidance_scale: w; 1 without classifier-free guidance.
        alpha_cumprod: ᾱ of the step.
        prediction_type: of the network.
        decode: from latents to images (B, 3, H', W') in about [0, 1].
    """

    index: int
    latents: Tensor
    denoise: Callable[[Tensor, Tensor], Tensor]
    uncond_output: Tensor
    guidance_scale: float
    alpha_cumprod: float
    prediction_type: str
    decode: Callable[[Tensor], Tensor]

    @property
    def guidance(self) -> dict[str, Any]:
        """What `shared.t2i.guidance.embedding_gradient` takes of a step by name."""
        names = ("uncond_output", "guidance_scale", "alpha_cumprod", "prediction_type", "decode")
        return {name: getattr(self, name) for name in names}


EmbeddingUpdate = Callable[[NetworkStep, Tensor, Tensor], Tensor]
"""`(step, embedding (B, L, D), the prompt's own embedding (B, L, D)) -> embedding` for this and all later steps."""


@contextmanager
def embedding_updates(pipeline: DiffusionPipeline, update: EmbeddingUpdate, steps: tuple[int, ...]) -> Iterator[None]:
    """Within the block, each run of the pipeline updates its text embedding in some steps.

    In such a step the network is evaluated once more without the prompt, besides what `update` evaluates; the other
    steps cost nothing, and a run whose embedding never changes gives the very same images. The U-Net is the only part
    that is touched, and is as before afterwards. The block is for one run at a time.

    Args:
        pipeline: one with `unet`, `vae` and `scheduler`; a U-Net that predicts ε, v or x0.
        update: called in those steps.
        steps: indices of sampler steps, from 0.

    Raises:
        ValueError: the pipeline has no U-Net, VAE or scheduler with a noise schedule.
    """
    missing = [name for name in ("unet", "vae", "scheduler") if getattr(pipeline, name, None) is None]
    if missing or not hasattr(pipeline.scheduler, "alphas_cumprod"):
        raise ValueError(f"pipeline: need a unet, a vae and a scheduler with alphas_cumprod; lacks {missing}")
    guide = _Guide(pipeline, update, frozenset(steps))
    handle = pipeline.unet.register_forward_pre_hook(guide, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _Guide:
    """The hook: it counts the steps of a run, and carries the embedding from one to the next."""

    def __init__(self, pipeline: DiffusionPipeline, update: EmbeddingUpdate, steps: frozenset[int]) -> None:
        self.pipeline, self.update, self.steps = pipeline, update, steps
        self.last_timestep = float("-inf")
        self.index = 0
        self.embedding: Tensor | None = None

    def __call__(
        self, unet: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        inputs, timestep, *rest = arguments
        states = keywords["encoder_hidden_states"]
        # Timesteps fall during a run: one that does not is the first of a new run.
        if float(timestep) >= self.last_timestep:
            self.index, self.embedding = -1, None
        self.index, self.last_timestep = self.index + 1, float(timestep)
        guided = bool(self.pipeline.do_classifier_free_guidance)
        count = len(states) // 2 if guided else len(states)
        if self.index in self.steps:
            current = states[-count:] if self.embedding is None else self.embedding
            step = self._step(unet, inputs, timestep, keywords, count, guided)
            self.embedding = self.update(step, current.detach(), states[-count:].detach()).detach()
        if self.embedding is None:
            return arguments, keywords
        states = torch.cat([states[:-count], self.embedding.to(states.dtype)])
        return (inputs, timestep, *rest), keywords | {"encoder_hidden_states": states}

    def _step(
        self,
        unet: torch.nn.Module,
        inputs: Tensor,
        timestep: Tensor,
        keywords: dict[str, Any],
        count: int,
        guided: bool,
    ) -> NetworkStep:
        total = len(inputs)

        def evaluate(latents: Tensor, states: Tensor, rows: slice) -> Tensor:
            others = _rows(keywords | {"encoder_hidden_states": None, "return_dict": False}, rows, total)
            # `forward`, not a call: that would run this hook again.
            return unet.forward(latents, timestep, **others | {"encoder_hidden_states": states})[0]

        channels = self.pipeline.vae.config.latent_channels  # inpainting has the mask in further channels
        conditional = slice(total - count, total)
        extra = inputs[conditional, channels:]

        def denoise(latents: Tensor, states: Tensor) -> Tensor:
            return evaluate(torch.cat([latents, extra], dim=1), states, conditional)

        latents = inputs[conditional, :channels].detach()
        if guided:
            with torch.no_grad():
                uncond = evaluate(inputs[:count], keywords["encoder_hidden_states"][:count], slice(0, count))
        else:
            uncond = torch.zeros_like(latents)
        return NetworkStep(
            index=self.index,
            latents=latents,
            denoise=denoise,
            uncond_output=uncond,
            guidance_scale=float(self.pipeline.guidance_scale) if guided else 1.0,
            alpha_cumprod=signal_level(self.pipeline.scheduler.alphas_cumprod, float(timestep)),
            prediction_type=self.pipeline.scheduler.config.prediction_type,
            decode=self._decode,
        )

    def _decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return vae.decode(latents / vae.config.scaling_factor + shift, return_dict=False)[0] / 2 + 0.5


def signal_level(alphas_cumprod: Tensor, timestep: float) -> float:
    """ᾱ at a timestep; between whole ones σ = √((1-ᾱ)/ᾱ) is interpolated linearly, as schedulers in σ do."""
    sigmas = ((1 - alphas_cumprod.double()) / alphas_cumprod.double()).sqrt()
    low = min(max(int(timestep), 0), len(sigmas) - 1)
    high = min(low + 1, len(sigmas) - 1)
    share = timestep - low
    sigma = float((1 - share) * sigmas[low] + share * sigmas[high])
    return 1 / (1 + sigma**2)


def _rows(value: Any, rows: slice, total: int) -> Any:
    """What belongs to some rows of the batch, in nested keyword arguments."""
    if isinstance(value, dict):
        return {name: _rows(entry, rows, total) for name, entry in value.items()}
    if isinstance(value, Tensor) and value.ndim and len(value) == total:
        return value[rows]
    return value
