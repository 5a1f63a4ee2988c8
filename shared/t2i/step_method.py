"""One interface for methods that act inside a sampler, whatever the sampler.

A `StepMethod` may change the text embedding before the network is evaluated with it, and the network's guided output
before the scheduler takes its step. Written once, it plugs into the testbed's sampler by `sampler_hooks`, and into any
of diffusers' pipelines that `shared.t2i.pipeline_hooks.plugged_in` names::

    method = StepMethod(change_output=lambda step, output: output + 0.1 * step.latents)
    images = sample(denoiser, scheduler, cond, uncond, **sampler_hooks(method, ...), ...)
    with plugged_in(pipeline, method):
        images = pipeline(prompts).images

"""

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

from torch import Tensor

from shared.t2i.model import LatentCodec
from shared.t2i.sampling import Denoiser, EmbeddingHook, OutputHook, Step, classifier_free_guidance


class NetworkStep(NamedTuple):
    """One sampler step as the network sees it.

    Attributes:
        index: of the step, from 0, the noisiest.
        timestep: t, 0 to 1000.
        latents: (B, C, H, W), noisy, scaled to √ᾱ x0 + √(1-ᾱ) ε.
        denoise: `(latents, embedding (B, L, D)) -> conditional output`, differentiable.
        predict: `latents -> output under classifier-free guidance` with the step's own embedding, differentiable.
        uncond_output: (B, C, H, W); zeros in a pipeline that runs without classifier-free guidance.
        guidance_scale: w; 1 without classifier-free guidance.
        alpha_cumprod: ᾱ of the step.
        prediction_type: of the outputs; that of a flow-matching network is translated to `v_prediction`.
        decode: from latents to images, of the range that the sampler's images have.
        cond_output: of the network with the step's embedding; None before it has been evaluated.
    """

    index: int
    timestep: float
    latents: Tensor
    denoise: Callable[[Tensor, Tensor], Tensor]
    predict: Callable[[Tensor], Tensor]
    uncond_output: Tensor
    guidance_scale: float
    alpha_cumprod: float
    prediction_type: str
    decode: Callable[[Tensor], Tensor]
    cond_output: Tensor | None = None

    @property
    def guidance(self) -> dict[str, Any]:
        """What `shared.t2i.guidance.embedding_gradient` takes of a step by name."""
        names = ("uncond_output", "guidance_scale", "alpha_cumprod", "prediction_type", "decode")
        return {name: getattr(self, name) for name in names}


EmbeddingUpdate = Callable[[NetworkStep, Tensor, Tensor], Tensor]
"""`(step, embedding (B, L, D), the prompt's own embedding (B, L, D)) -> embedding` for this and all later steps."""

OutputUpdate = Callable[[NetworkStep, Tensor], Tensor]
"""`(step, guided output (B, C, H, W)) -> guided output`, of the network's prediction type, for this step."""


@dataclass(frozen=True)
class StepMethod:
    """What a method does in a sampler's steps; without any part it does nothing.

    Attributes:
        change_embedding: called before the network is evaluated with the embedding. It may differentiate the network.
        change_output: called with the output under classifier-free guidance, before the scheduler's step.
        steps: indices of the steps in which the method acts; None: all.
    """

    change_embedding: EmbeddingUpdate | None = None
    change_output: OutputUpdate | None = None
    steps: Container[int] | None = None

    def acts_in(self, index: int) -> bool:
        """Whether the method acts in the step of this index."""
        return self.steps is None or index in self.steps


class Hooks(TypedDict):
    """The hooks of `shared.t2i.sampling.sample`, by name."""

    embedding_hook: EmbeddingHook | None
    output_hook: OutputHook | None


def sampler_hooks(
    method: StepMethod,
    denoiser: Denoiser,
    cond_embedding: Tensor,
    uncond_embedding: Tensor,
    *,
    prediction_type: str = "sample",
    decode: Callable[[Tensor], Tensor] = LatentCodec.decode,
) -> Hooks:
    """A method as hooks of `shared.t2i.sampling.sample`, for one run with the same arguments.

    Args:
        method: what acts.
        denoiser: the network.
        cond_embedding: (B, L, D), the prompts' own.
        uncond_embedding: (B, L, D) or (1, L, D).
        prediction_type: of the network.
        decode: from latents to images.
    """
    current = cond_embedding

    def network_step(step: Step, cond_output: Tensor | None = None) -> NetworkStep:
        def denoise(latents: Tensor, embedding: Tensor) -> Tensor:
            return denoiser(latents, step.timestep, embedding)

        def predict(latents: Tensor) -> Tensor:
            without = denoise(latents, uncond_embedding.expand(len(latents), -1, -1))
            return classifier_free_guidance(without, denoise(latents, current), step.guidance_scale)

        return NetworkStep(
            index=step.index,
            timestep=float(step.timestep),
            latents=step.latents,
            denoise=denoise,
            predict=predict,
            uncond_output=step.uncond_output,
            guidance_scale=step.guidance_scale,
            alpha_cumprod=step.alpha_cumprod,
            prediction_type=prediction_type,
            decode=decode,
            cond_output=cond_output,
        )

    def embedding_hook(step: Step, embedding: Tensor) -> Tensor:
        nonlocal current
        current = embedding
        if method.acts_in(step.index):
            current = method.change_embedding(network_step(step), embedding, cond_embedding).detach()
        return current

    def output_hook(step: Step, cond_output: Tensor, guided_output: Tensor) -> Tensor:
        if not method.acts_in(step.index):
            return guided_output
        return method.change_output(network_step(step, cond_output), guided_output)

    return {
        "embedding_hook": embedding_hook if method.change_embedding else None,
        "output_hook": output_hook if method.change_output else None,
    }
