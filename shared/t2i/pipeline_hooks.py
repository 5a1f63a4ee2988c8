"""Methods that act in sampler steps, inside any of diffusers' pipelines with a U-Net, without a pipeline of one's own.

A pipeline calls its U-Net once a step, on the unconditional and the conditional half of a batch. `plugged_in` steps in
right before and after: it sees what the network sees, so it needs to know neither the pipeline (Stable Diffusion,
Stable Diffusion XL, inpainting, ...) nor the scheduler. Schedulers that count noise in σ scale the latents for the
network to unit variance at ᾱ = 1 / (1 + σ²), so ᾱ follows from the timestep for them too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from shared.t2i.sampling import classifier_free_guidance
from shared.t2i.step_method import NetworkStep, StepMethod


@contextmanager
def plugged_in(pipeline: DiffusionPipeline, method: StepMethod) -> Iterator[None]:
    """Within the block, the method acts in each run of the pipeline; its images are decoded to about [0, 1].

    Where it changes the embedding, the network is evaluated once more without the prompt, besides what the method
    evaluates; changes of the output cost nothing. A run in which the method returns what it was given has the very same
    images. The U-Net is the only part that is touched, and is as before afterwards. The block is for one run at a time.

    Args:
        pipeline: one with `unet`, `vae` and `scheduler`; a U-Net that predicts ε, v or x0.
        method: what acts.

    Raises:
        ValueError: the pipeline has no U-Net, VAE or scheduler with a noise schedule.
    """
    missing = [name for name in ("unet", "vae", "scheduler") if getattr(pipeline, name, None) is None]
    if missing or not hasattr(pipeline.scheduler, "alphas_cumprod"):
        raise ValueError(f"pipeline: need a unet, a vae and a scheduler with alphas_cumprod; lacks {missing}")
    guide = _Guide(pipeline, method)
    handles = [
        pipeline.unet.register_forward_pre_hook(guide.before, with_kwargs=True),
        pipeline.unet.register_forward_hook(guide.after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Guide:
    """The hooks: they count the steps of a run, and carry the embedding from one to the next."""

    def __init__(self, pipeline: DiffusionPipeline, method: StepMethod) -> None:
        self.pipeline, self.method = pipeline, method
        self.last_timestep = float("-inf")
        self.index = 0
        self.embedding: Tensor | None = None

    @property
    def guided(self) -> bool:
        return bool(self.pipeline.do_classifier_free_guidance)

    def before(
        self, unet: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        inputs, timestep, *rest = arguments
        states = keywords["encoder_hidden_states"]
        # Timesteps fall during a run: one that does not is the first of a new run.
        if float(timestep) >= self.last_timestep:
            self.index, self.embedding = -1, None
        self.index, self.last_timestep = self.index + 1, float(timestep)
        count = len(states) // 2 if self.guided else len(states)
        if self.method.change_embedding and self.method.acts_in(self.index):
            current = states[-count:] if self.embedding is None else self.embedding
            call = _Call(self, unet, inputs, timestep, keywords)
            step = call.step(call.unconditional_output())
            self.embedding = self.method.change_embedding(step, current.detach(), states[-count:].detach()).detach()
        if self.embedding is None:
            return arguments, keywords
        states = torch.cat([states[:-count], self.embedding.to(states.dtype)])
        return (inputs, timestep, *rest), keywords | {"encoder_hidden_states": states}

    def after(
        self, unet: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], found: Any
    ) -> tuple[Tensor] | None:
        if not (self.method.change_output and self.method.acts_in(self.index)):
            return None
        inputs, timestep, *_ = arguments
        output = found[0]
        call = _Call(self, unet, inputs, timestep, keywords)
        uncond = output[: call.count] if self.guided else torch.zeros_like(output)
        cond = output[-call.count :]
        guided = classifier_free_guidance(uncond, cond, call.guidance_scale)
        changed = self.method.change_output(call.step(uncond)._replace(cond_output=cond), guided)
        if changed is guided:
            return None
        # The pipeline combines both halves again: from equal ones it gets just what they are.
        return (torch.cat([changed.detach().to(output.dtype)] * (2 if self.guided else 1)),)


class _Call:
    """One call of the U-Net by the pipeline, which can be repeated with other latents or embeddings.

    Args:
        guide: of the run.
        unet: the network.
        inputs: latents of both halves, and for inpainting further channels.
        timestep: of the call.
        keywords: the call's other arguments.
    """

    def __init__(
        self, guide: _Guide, unet: torch.nn.Module, inputs: Tensor, timestep: Any, keywords: dict[str, Any]
    ) -> None:
        self.guide, self.pipeline, self.unet = guide, guide.pipeline, unet
        self.inputs, self.timestep, self.keywords = inputs, timestep, keywords
        self.states = keywords["encoder_hidden_states"]
        self.total = len(inputs)
        self.count = self.total // 2 if guide.guided else self.total
        self.guidance_scale = float(self.pipeline.guidance_scale) if guide.guided else 1.0
        self.channels = self.pipeline.vae.config.latent_channels  # inpainting has the mask in further channels
        self.conditional = slice(self.total - self.count, self.total)

    def evaluate(self, latents: Tensor, states: Tensor, rows: slice) -> Tensor:
        """Output for some rows of the batch."""
        keywords = self.keywords | {"encoder_hidden_states": None, "return_dict": False}
        others = _rows(keywords, rows, self.total)
        full = torch.cat([latents, self.inputs[rows, self.channels :]], dim=1)
        # `forward`, not a call: that would run the hooks again.
        return self.unet.forward(full, self.timestep, **others | {"encoder_hidden_states": states})[0]

    @torch.no_grad()
    def unconditional_output(self) -> Tensor:
        latents = self.inputs[: self.count, : self.channels]
        if not self.guide.guided:
            return torch.zeros_like(latents)
        return self.evaluate(latents, self.states[: self.count], slice(0, self.count))

    def step(self, uncond_output: Tensor) -> NetworkStep:
        def denoise(latents: Tensor, states: Tensor) -> Tensor:
            return self.evaluate(latents, states, self.conditional)

        def predict(latents: Tensor) -> Tensor:
            current = self.states[self.conditional] if self.guide.embedding is None else self.guide.embedding
            output = denoise(latents, current)
            if not self.guide.guided:
                return output
            without = self.evaluate(latents, self.states[: self.count], slice(0, self.count))
            return classifier_free_guidance(without, output, self.guidance_scale)

        return NetworkStep(
            index=self.guide.index,
            timestep=float(self.timestep),
            latents=self.inputs[self.conditional, : self.channels].detach(),
            denoise=denoise,
            predict=predict,
            uncond_output=uncond_output,
            guidance_scale=self.guidance_scale,
            alpha_cumprod=signal_level(self.pipeline.scheduler.alphas_cumprod, float(self.timestep)),
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
