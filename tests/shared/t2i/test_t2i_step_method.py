"""Methods plug into the testbed's sampler as they do into diffusers' pipelines."""

import pytest
import torch
from diffusers_pipelines import draw, embeddings, scheduler, stable_diffusion

from shared.t2i.defences import sld
from shared.t2i.guidance import (
    ascend_text_embedding,
    for_all,
    output_of_noise,
    predict_clean_latents,
    predict_noise,
    universal_guidance,
)
from shared.t2i.pipeline_hooks import plugged_in
from shared.t2i.sampling import sample
from shared.t2i.step_method import NetworkStep, StepMethod, sampler_hooks

STEPS = 4
SCALE = 3.0


def brightness(images):
    return images.flatten(1).mean(dim=1)


def pull(step, output):
    """Towards a clean image of ones, whatever the network predicts."""
    clean = predict_clean_latents(step.latents, output, step.alpha_cumprod, step.prediction_type)
    noise = predict_noise(step.latents, (clean + 1) / 2, step.alpha_cumprod, "sample")
    return output_of_noise(step.latents, noise, step.alpha_cumprod, step.prediction_type)


def climb(step, embedding, anchor):
    return ascend_text_embedding(
        step.denoise, for_all(brightness), step.latents, embedding, step_size=1.0, **step.guidance
    ).embedding


def in_the_testbed(pipeline, method):
    prompts = embeddings(pipeline)
    cond, uncond = prompts["prompt_embeds"], prompts["negative_prompt_embeds"]

    def denoiser(latents, timestep, states):
        return pipeline.unet(latents, timestep, encoder_hidden_states=states).sample

    kind = pipeline.scheduler.config.prediction_type
    hooks = sampler_hooks(
        method,
        denoiser,
        cond,
        uncond,
        prediction_type=kind,
        decode=lambda latents: pipeline.vae.decode(latents / 0.18215).sample / 2 + 0.5,
    )
    return sample(
        denoiser,
        scheduler(prediction_type=kind),
        cond,
        uncond,
        initial_noise=torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        num_steps=STEPS,
        guidance_scale=SCALE,
        decode=lambda latents: latents,
        **hooks,
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "method",
    [
        StepMethod(change_output=pull, steps=(0, 2)),
        StepMethod(change_embedding=climb, steps=range(0, STEPS, 2)),
        StepMethod(climb, pull),
        universal_guidance(brightness, 5.0),
        sld(
            torch.linspace(-1, 1, 8 * 12).view(1, 8, 12),
            safety_scale=5.0,
            threshold=0.1,
            warmup_steps=1,
            momentum_scale=0.3,
            momentum_beta=0.4,
        ),
    ],
    ids=["output", "embedding", "both", "universal", "sld"],
)
def test_both_samplers_draw_the_same(kind, method):
    pipeline = stable_diffusion(prediction_type=kind)
    with plugged_in(pipeline, method):
        found = draw(pipeline)
    expected = in_the_testbed(pipeline, method)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found, draw(pipeline), rtol=1e-3, atol=1e-2)


def test_a_method_without_parts_has_no_hooks():
    hooks = sampler_hooks(StepMethod(), None, torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
    assert hooks == {"embedding_hook": None, "output_hook": None}


def test_methods_act_in_their_steps_alone():
    assert [StepMethod(steps=(1, 3)).acts_in(index) for index in range(4)] == [False, True, False, True]
    assert StepMethod().acts_in(7) and not StepMethod(steps=()).acts_in(0)


def network_step(kind, alpha, latents, predict):
    return NetworkStep(
        index=0,
        timestep=500.0,
        latents=latents,
        denoise=None,
        predict=predict,
        uncond_output=torch.zeros_like(latents),
        guidance_scale=1.0,
        alpha_cumprod=alpha,
        prediction_type=kind,
        decode=lambda clean: clean,
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_universal_guidance_moves_the_prediction_up_the_gradient(kind):
    latents = torch.randn(2, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, scale = 0.4, 0.7

    def reward(images):
        return -(images - 1).square().flatten(1).sum(dim=1)

    def predict(noisy):
        return output_of_noise(noisy, predict_noise(noisy, 0.5 * noisy, alpha, "sample"), alpha, kind)

    step = network_step(kind, alpha, latents, predict)
    output = universal_guidance(reward, scale).change_output(step, predict(latents))
    gradient = -2 * (0.5 * latents - 1) * 0.5  # of the reward with respect to the noisy latents
    found = predict_clean_latents(latents, output, alpha, kind)
    torch.testing.assert_close(found, 0.5 * latents + scale * (1 - alpha) / alpha**0.5 * gradient)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_outputs_and_noises_are_inverse(kind):
    noisy, output = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    alpha = torch.tensor([0.3, 0.8], dtype=torch.float64)
    noise = predict_noise(noisy, output, alpha, kind)
    torch.testing.assert_close(output_of_noise(noisy, noise, alpha, kind), output)
    with pytest.raises(ValueError, match=r"^prediction_type: "):
        output_of_noise(noisy, output, 0.5, "velocity")
