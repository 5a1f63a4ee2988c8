"""Methods that act in sampler steps, inside diffusers' text-to-image pipelines, without a pipeline of one's own.

A pipeline calls its network, a U-Net or a transformer, once a step. `plugged_in` steps in right before and after: it
sees what the network sees, so it needs to know neither the pipeline nor the scheduler::

    with plugged_in(pipeline, method):
        images = pipeline(prompts).images

==============================  ================================================================================
pipeline                        what a method meets
==============================  ================================================================================
Stable Diffusion, SDXL          an unconditional and a conditional half of the batch, combined by the pipeline
Latent Consistency Models       no unconditional half: the guidance scale is an input of the U-Net, and fixed
Stable Diffusion 3              flow matching; the sequence of text states is the embedding, the pooled ones are fixed
FLUX                            the same without unconditional half (guidance is an input); packed latents, unpacked
PixArt-α                        a text mask and learned variances, which are passed on as they are
==============================  ================================================================================

Schedulers that count noise in σ scale the latents for the network to unit variance at ᾱ = 1 / (1 + σ²), so ᾱ follows
from the timestep for them too. Flow matching is translated (`shared.t2i.flow_matching`): methods see the latents scaled
to unit variance and a v-prediction. The scheduler is only read, never stepped, so that its state stays right.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from shared.t2i.pipeline_calls import Arguments, NetworkCall, is_flow, named_arguments, signal_level, wide
from shared.t2i.step_method import StepMethod

__all__ = ["network_of", "plugged_in", "signal_level"]


@contextmanager
def plugged_in(pipeline: DiffusionPipeline, method: StepMethod) -> Iterator[None]:
    """Within the block, the method acts in each run of the pipeline; its images are decoded to about [0, 1].

    Where it changes the embedding, the network is evaluated once more without the prompt (if the pipeline does so),
    besides what the method evaluates; changes of the output cost nothing. A run in which the method returns what it was
    given has the very same images. The embedding is carried in single precision at least, and rounded to the network's
    where it is fed. The network is the only part that is touched, and is as before afterwards. The block is for one run
    at a time; blocks may stand inside each other, and the outer one's method acts first.

    Args:
        pipeline: one with `unet` or `transformer`, `vae` and `scheduler`; a network that predicts ε, v, x0 or a flow.
        method: what acts.

    Raises:
        ValueError: on entering, the pipeline has no network, VAE, or scheduler whose noise is known; in a run, it calls
            its network more than once in a step, or packs more than the image into the latents.
    """
    missing = [name for name in ("vae", "scheduler") if getattr(pipeline, name, None) is None]
    if missing or not (is_flow(pipeline.scheduler) or hasattr(pipeline.scheduler, "alphas_cumprod")):
        raise ValueError(f"pipeline: need a vae, and a scheduler with alphas_cumprod or of flows; lacks {missing}")
    network = network_of(pipeline)
    guide = _Guide(pipeline, method)
    handles = [
        network.register_forward_pre_hook(guide.before, with_kwargs=True),
        network.register_forward_hook(guide.after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def network_of(pipeline: DiffusionPipeline) -> nn.Module:
    """The network that a pipeline calls in its steps.

    Raises:
        ValueError: it has none.
    """
    for name in ("unet", "transformer"):
        if (network := getattr(pipeline, name, None)) is not None:
            return network
    raise ValueError("pipeline: need a unet or a transformer")


class _Guide:
    """The hooks: they count the steps of a run, and carry the embedding from one to the next."""

    def __init__(self, pipeline: DiffusionPipeline, method: StepMethod) -> None:
        self.pipeline, self.method = pipeline, method
        self.run: Tensor | None = None
        self.place: int | None = None
        self.index = 0
        self.embedding: Tensor | None = None
        self.guided, self.guidance_scale = False, 1.0

    def before(
        self, network: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._count()
        call = self._call(network, arguments, keywords)
        states = call.arguments.states
        anchor = wide(states[call.conditional]).detach()
        if self.method.change_embedding and self.method.acts_in(self.index):
            current = anchor if self.embedding is None else self.embedding
            step = call.step(self.index, current, call.unconditional_output())
            self.embedding = self.method.change_embedding(step, current, anchor).detach()
        if self.embedding is None:
            return arguments, keywords
        states = states.clone()
        states[call.conditional] = self.embedding.to(states.dtype)
        return (), call.arguments.named | {"encoder_hidden_states": states}

    def after(
        self, network: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], found: Any
    ) -> tuple[Tensor] | None:
        if not (self.method.change_output and self.method.acts_in(self.index)):
            return None
        call = self._call(network, arguments, keywords)
        embedding = call.arguments.states[call.conditional] if self.embedding is None else self.embedding
        uncond, cond, guided = call.guided_output(found[0])
        step = call.step(self.index, embedding, uncond)._replace(cond_output=cond)
        changed = self.method.change_output(step, guided)
        return None if changed is guided else (call.replaced_output(found[0], changed),)

    def _count(self) -> None:
        """Notice whether this is the first call of a run: then the scheduler has timesteps of its own."""
        scheduler = self.pipeline.scheduler
        place = getattr(scheduler, "step_index", None)
        if scheduler.timesteps is not self.run:
            self.run, self.index, self.embedding = scheduler.timesteps, -1, None
            self.guided = bool(_setting(self.pipeline, "do_classifier_free_guidance"))
            self.guidance_scale = float(_setting(self.pipeline, "guidance_scale")) if self.guided else 1.0
        elif hasattr(scheduler, "step_index") and place == self.place:
            raise ValueError(
                "pipeline: calls its network more than once in a step, as with true_cfg_scale or skip_guidance_layers"
            )
        self.index, self.place = self.index + 1, place

    def _call(self, network: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> NetworkCall:
        named: Arguments = named_arguments(network, arguments, keywords)
        return NetworkCall(self.pipeline, network, named, self.guided, self.guidance_scale)


def _setting(pipeline: DiffusionPipeline, name: str) -> Any:
    """A setting of the run that calls the hooks; None where there is none of this name.

    Most pipelines keep it as an attribute. PixArt's keeps it in a local variable of its call alone, and to ask users to
    say it again would invite two different answers.
    """
    if (value := getattr(pipeline, name, None)) is not None:
        return value
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_locals.get("self") is pipeline and name in frame.f_locals:
            return frame.f_locals[name]
        frame = frame.f_back
    return None
