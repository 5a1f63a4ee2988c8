"""One call of a pipeline's network, seen alike in all of diffusers' pipelines, and repeated with other latents or text.

What differs between them is told by the call itself: a network names its latents first, and takes `timestep` and
`encoder_hidden_states`; `img_ids` tell where packed latents belong; channels beyond those of the latents are masks
where they go in, and learned variances where they come out. Flow matching is told by the scheduler.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from torch import Tensor, nn

from shared.t2i.flow_matching import FlowStep, flow_step
from shared.t2i.sampling import classifier_free_guidance
from shared.t2i.step_method import NetworkStep

FLOW_SCHEDULERS = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)


@dataclass(frozen=True)
class Arguments:
    """What a pipeline calls its network with.

    Attributes:
        latents_name: of the first argument.
        named: all arguments by name.
    """

    latents_name: str
    named: dict[str, Any]

    @property
    def inputs(self) -> Tensor:
        return self.named[self.latents_name]

    @property
    def states(self) -> Tensor:
        """Text states of the whole batch."""
        return self.named["encoder_hidden_states"]

    @property
    def timestep(self) -> float:
        return float(torch.as_tensor(self.named["timestep"]).flatten()[0])

    def conditional(self, guided: bool) -> slice:
        """The rows with the prompt: all, or under classifier-free guidance the second half."""
        total = len(self.inputs)
        return slice(total // 2 if guided else 0, total)


def named_arguments(network: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Arguments:
    """The arguments of a call by the names that the network's class gives them."""
    signature = inspect.signature(type(network).forward)
    bound = signature.bind(network, *arguments, **keywords).arguments
    itself, latents_name, *_ = signature.parameters
    return Arguments(latents_name, {name: value for name, value in bound.items() if name != itself})


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is one of flow matching, and not of diffusion with a signal level ᾱ."""
    config = scheduler.config
    by_option = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    return isinstance(scheduler, FLOW_SCHEDULERS) or bool(by_option)


def flow_sigma(scheduler: Any) -> float:
    """σ of flow matching where the scheduler stands, which its next step is taken from."""
    place = scheduler.step_index
    return float(scheduler.sigmas[place if place is not None else scheduler.begin_index or 0])


def signal_level(alphas_cumprod: Tensor, timestep: float) -> float:
    """ᾱ at a timestep; between whole ones σ = √((1-ᾱ)/ᾱ) is interpolated linearly, as schedulers in σ do."""
    sigmas = ((1 - alphas_cumprod.double()) / alphas_cumprod.double()).sqrt()
    low = min(max(int(timestep), 0), len(sigmas) - 1)
    high = min(low + 1, len(sigmas) - 1)
    share = timestep - low
    sigma = float((1 - share) * sigmas[low] + share * sigmas[high])
    return 1 / (1 + sigma**2)


class NetworkCall:
    """One call of the network by the pipeline.

    Latents and outputs are given to methods in single precision at least, as (B, C, H, W), and where the network is one
    of flow matching as what they stand for in a variance-preserving model; see `shared.t2i.flow_matching`.

    Args:
        pipeline: that calls.
        network: that is called.
        arguments: of the call.
        guided: whether the batch has an unconditional half before the conditional one.
        guidance_scale: w; 1 where the batch has no such half.

    Raises:
        ValueError: packed latents that are not the image of the call alone.
    """

    def __init__(
        self, pipeline: DiffusionPipeline, network: nn.Module, arguments: Arguments, guided: bool, guidance_scale: float
    ) -> None:
        self.pipeline, self.network, self.arguments = pipeline, network, arguments
        self.guided, self.guidance_scale = guided, guidance_scale
        self.conditional = arguments.conditional(guided)
        self.unconditional = slice(0, self.conditional.start)
        self.channels = pipeline.vae.config.latent_channels
        self.grid = _grid(arguments)
        scheduler = pipeline.scheduler
        self.flow: FlowStep | None = flow_step(flow_sigma(scheduler)) if is_flow(scheduler) else None
        inputs, self.others = self._split(arguments.inputs)
        inputs = wide(inputs) / self.flow.spread if self.flow else wide(inputs)
        self.latents = inputs[self.conditional].detach()

    def evaluate(self, latents: Tensor, states: Tensor, rows: slice) -> Tensor:
        """Output for some rows of the batch, with other latents and text states."""
        arguments, total = self.arguments, len(self.arguments.inputs)
        inputs = self.flow.spread * latents if self.flow else latents
        replaced = {
            arguments.latents_name: self._join(inputs.to(arguments.inputs.dtype), self.others[rows]),
            "encoder_hidden_states": states.to(arguments.states.dtype),
            "return_dict": False,
        }
        kept = {name: value for name, value in arguments.named.items() if name not in replaced}
        # `forward`, not a call: that would run the hooks again.
        return self.seen(self.network.forward(**_rows(kept, rows, total), **replaced)[0], latents)

    def seen(self, output: Tensor, latents: Tensor) -> Tensor:
        """An output of the network as methods see it."""
        found = wide(self._split(output)[0])
        return self.flow.velocity(latents, found) if self.flow else found

    def guided_output(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the whole batch's output what it is without prompt, with it, and under classifier-free guidance."""
        cond = self.seen(output[self.conditional], self.latents)
        uncond = self.seen(output[self.unconditional], self.latents) if self.guided else torch.zeros_like(cond)
        return uncond, cond, classifier_free_guidance(uncond, cond, self.guidance_scale)

    def replaced_output(self, output: Tensor, changed: Tensor) -> Tensor:
        """The whole batch's output from which the pipeline gets just what a method made of the guided one."""
        found = self.flow.flow(self.latents, changed) if self.flow else changed
        # The pipeline combines both halves again: from equal ones it gets just what they are.
        halves = torch.cat([found.detach().to(output.dtype)] * (2 if self.guided else 1))
        return self._join(halves, self._split(output)[1])

    @torch.no_grad()
    def unconditional_output(self) -> Tensor:
        """Output without prompt; zeros where the pipeline runs without classifier-free guidance."""
        if not self.guided:
            return torch.zeros_like(self.latents)
        return self.evaluate(self.latents, self.arguments.states[self.unconditional], self.unconditional)

    def step(self, index: int, embedding: Tensor, uncond_output: Tensor) -> NetworkStep:
        """The call as a step of a sampler.

        Args:
            index: of the step.
            embedding: of the prompts in this step.
            uncond_output: as `unconditional_output`.
        """

        def denoise(latents: Tensor, states: Tensor) -> Tensor:
            return self.evaluate(latents, states, self.conditional)

        def predict(latents: Tensor) -> Tensor:
            output = denoise(latents, embedding)
            if not self.guided:
                return output
            without = self.evaluate(latents, self.arguments.states[self.unconditional], self.unconditional)
            return classifier_free_guidance(without, output, self.guidance_scale)

        return NetworkStep(
            index=index,
            latents=self.latents,
            denoise=denoise,
            predict=predict,
            uncond_output=uncond_output,
            guidance_scale=self.guidance_scale,
            decode=decoder(self.pipeline),
            **self._noise(),
        )

    def _noise(self) -> dict[str, Any]:
        config = self.pipeline.scheduler.config
        if self.flow:
            return {
                "timestep": self.flow.sigma * config.num_train_timesteps,
                "alpha_cumprod": self.flow.alpha_cumprod,
                "prediction_type": "v_prediction",
            }
        return {
            "timestep": self.arguments.timestep,
            "alpha_cumprod": signal_level(self.pipeline.scheduler.alphas_cumprod, self.arguments.timestep),
            "prediction_type": config.prediction_type,
        }

    def _split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs or outputs as those of the latents (B, C, H, W), and further channels as they are."""
        if self.grid is None:
            return values[:, : self.channels], values[:, self.channels :]
        return unpack(values[..., : 4 * self.channels], *self.grid), values[..., 4 * self.channels :]

    def _join(self, latents: Tensor, others: Tensor) -> Tensor:
        if self.grid is None:
            return torch.cat([latents, others], dim=1)
        return torch.cat([pack(latents), others], dim=-1)


def decoder(pipeline: DiffusionPipeline) -> Callable[[Tensor], Tensor]:
    """From latents (B, C, H, W) to images in about [0, 1], by the pipeline's VAE."""
    vae = pipeline.vae
    shift = getattr(vae.config, "shift_factor", None) or 0.0

    def decode(latents: Tensor) -> Tensor:
        scaled = latents / vae.config.scaling_factor + shift
        return vae.decode(scaled.to(vae.dtype), return_dict=False)[0] / 2 + 0.5

    return decode


def pack(latents: Tensor) -> Tensor:
    """Latents (B, C, 2h, 2w) with each square of four as one token, (B, h w, 4C)."""
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(batch, (height // 2) * (width // 2), 4 * channels)


def unpack(packed: Tensor, rows: int, columns: int) -> Tensor:
    """Latents (B, C, 2 rows, 2 columns) from (B, rows · columns, 4C): the inverse of `pack`."""
    batch, _, channels = packed.shape
    squares = packed.reshape(batch, rows, columns, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(batch, channels // 4, 2 * rows, 2 * columns)


def wide(values: Tensor) -> Tensor:
    """In single precision at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _grid(arguments: Arguments) -> tuple[int, int] | None:
    """Rows and columns of packed latents; None where latents are (B, C, H, W)."""
    if arguments.inputs.ndim == 4:
        return None
    places = arguments.named.get("img_ids")
    rows, columns = (0, 0) if places is None else (int(places[..., axis].max()) + 1 for axis in (1, 2))
    if rows * columns != arguments.inputs.shape[1]:
        raise ValueError(f"pipeline: latents of shape {tuple(arguments.inputs.shape)} are not those of one image each")
    return rows, columns


def _rows(value: Any, rows: slice, total: int) -> Any:
    """What belongs to some rows of the batch, in nested keyword arguments."""
    if isinstance(value, dict):
        return {name: _rows(entry, rows, total) for name, entry in value.items()}
    if isinstance(value, Tensor) and value.ndim and len(value) == total:
        return value[rows]
    return value
