"""What the methods' hooks into `shared.t2i.sampling.sample` have in common: the denoiser at one step of the sampler."""

from collections.abc import Callable

from torch import Tensor

from shared.t2i.guidance import predict_clean_latents, predict_noise
from shared.t2i.sampling import Denoiser, Step, classifier_free_guidance

PREDICTION_TYPE = "sample"
"""The testbed's denoiser predicts the clean latents."""


def conditional_output(denoiser: Denoiser, step: Step) -> Callable[[Tensor, Tensor], Tensor]:
    """`(latents, embedding) -> output` at the timestep of a step."""
    return lambda latents, embedding: denoiser(latents, step.timestep, embedding)


def noise_prediction(
    denoiser: Denoiser, step: Step, cond_embedding: Tensor, uncond_embedding: Tensor
) -> Callable[[Tensor], Tensor]:
    """`latents -> ε` with classifier-free guidance at the timestep of a step, differentiable through both branches."""

    def predict(latents: Tensor) -> Tensor:
        uncond, cond = (
            denoiser(latents, step.timestep, embedding.expand(len(latents), -1, -1))
            for embedding in (uncond_embedding, cond_embedding)
        )
        output = classifier_free_guidance(uncond, cond, step.guidance_scale)
        return predict_noise(latents, output, step.alpha_cumprod, PREDICTION_TYPE)

    return predict


def as_noise(step: Step, output: Tensor) -> Tensor:
    """The noise ε that an output of the denoiser stands for in a step."""
    return predict_noise(step.latents, output, step.alpha_cumprod, PREDICTION_TYPE)


def as_output(step: Step, noise: Tensor) -> Tensor:
    """The denoiser's output that stands for noise ε in a step."""
    return predict_clean_latents(step.latents, noise, step.alpha_cumprod, "epsilon")
