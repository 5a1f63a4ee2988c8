import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers_pipelines import PIPELINES, draw, embeddings, scheduler, stable_diffusion

from shared.t2i.guidance import predict_clean_latents
from shared.t2i.pipeline_hooks import plugged_in, signal_level
from shared.t2i.step_method import StepMethod

ALL = (0, 1, 2, 3)


def keep(step, embedding, anchor):
    return embedding


def embedding_updates(pipeline, update, steps):
    return plugged_in(pipeline, StepMethod(change_embedding=update, steps=steps))


@pytest.mark.parametrize("make", PIPELINES)
def test_updates_that_keep_the_embedding_change_nothing(make):
    pipeline = make()
    plain = draw(pipeline)
    with embedding_updates(pipeline, keep, ALL):
        assert torch.equal(draw(pipeline), plain)
    with embedding_updates(pipeline, lambda *_: 1 / 0, ()):
        assert torch.equal(draw(pipeline), plain)


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_step_is_seen_as_the_scheduler_sees_it(kind, prediction_type):
    pipeline = stable_diffusion(kind=kind, prediction_type=prediction_type)
    predicted, expected = [], []

    def update(step, embedding, anchor):
        output = step.denoise(step.latents, embedding)
        guided = step.uncond_output + step.guidance_scale * (output - step.uncond_output)
        predicted.append(predict_clean_latents(step.latents, guided, step.alpha_cumprod, step.prediction_type))
        return embedding

    # What the scheduler itself takes for the clean latents, from the output that the pipeline gives it.
    original = pipeline.scheduler.step

    def spied(output, timestep, sample, **options):
        if kind is DPMSolverMultistepScheduler:
            if pipeline.scheduler.step_index is None:
                pipeline.scheduler._init_step_index(timestep)
            expected.append(pipeline.scheduler.convert_model_output(output, sample=sample))
            return original(output, timestep, sample, **options)
        options.pop("return_dict", None)
        found = original(output, timestep, sample, **options)
        expected.append(found.pred_original_sample)
        return (found.prev_sample,)

    pipeline.scheduler.step = spied
    with embedding_updates(pipeline, update, ALL):
        draw(pipeline)
    assert len(predicted) == len(expected) == 4
    for ours, theirs in zip(predicted, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max())


def test_an_update_stays_for_later_steps_and_ends_with_its_run():
    pipeline, seen = stable_diffusion(), []

    def update(step, embedding, anchor):
        seen.append((step.index, embedding.clone(), anchor.clone()))
        return embedding + 1

    with embedding_updates(pipeline, update, (1, 3)):
        moved = draw(pipeline)
        again = draw(pipeline)
    prompt = embeddings(pipeline)["prompt_embeds"]
    assert [index for index, _, _ in seen] == [1, 3, 1, 3]
    assert all(torch.equal(anchor, prompt) for _, _, anchor in seen)
    assert torch.equal(seen[0][1], prompt) and torch.equal(seen[1][1], prompt + 1) and torch.equal(seen[2][1], prompt)
    assert torch.equal(moved, again) and not torch.equal(moved, draw(pipeline))


def test_a_shift_from_the_first_step_on_is_another_prompt():
    pipeline = stable_diffusion()
    with embedding_updates(pipeline, lambda step, embedding, anchor: anchor + 1, (0,)):
        shifted = draw(pipeline)
    other = embeddings(pipeline)
    other["prompt_embeds"] = other["prompt_embeds"] + 1
    assert torch.equal(shifted, draw_with(pipeline, other))


def draw_with(pipeline, prompts):
    return pipeline(
        **prompts,
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="latent",
        height=16,
        width=16,
        generator=torch.Generator().manual_seed(0),
    ).images


def test_a_pipeline_without_guidance_is_all_conditional():
    pipeline = stable_diffusion()

    def update(step, embedding, anchor):
        assert step.guidance_scale == 1.0 and len(embedding) == 2 and not step.uncond_output.any()
        return embedding

    plain = draw(pipeline, guidance_scale=1.0)
    with embedding_updates(pipeline, update, ALL):
        assert torch.equal(draw(pipeline, guidance_scale=1.0), plain)


def test_images_are_decoded_to_the_unit_range():
    pipeline = stable_diffusion()

    def update(step, embedding, anchor):
        expected = pipeline.vae.decode(step.latents / 0.18215).sample / 2 + 0.5
        assert torch.equal(step.decode(step.latents), expected) and expected.shape == (2, 3, 16, 16)
        return embedding

    with embedding_updates(pipeline, update, (0,)), torch.no_grad():
        draw(pipeline)


def test_the_network_is_left_as_it_was():
    pipeline = stable_diffusion()
    with pytest.raises(ZeroDivisionError), embedding_updates(pipeline, lambda *_: 1 / 0, ALL):
        draw(pipeline)
    assert not pipeline.unet._forward_pre_hooks and not pipeline.unet._forward_hooks


def test_signal_levels_between_timesteps():
    alphas = scheduler().alphas_cumprod
    assert signal_level(alphas, 500.0) == pytest.approx(float(alphas[500]), rel=1e-6)
    low, middle, high = (signal_level(alphas, t) for t in (500, 500.5, 501))
    sigma = [(1 / level - 1) ** 0.5 for level in (low, middle, high)]
    assert sigma[1] == pytest.approx((sigma[0] + sigma[2]) / 2)
    assert signal_level(alphas, 999.0) == pytest.approx(float(alphas[-1]), rel=1e-6)


def test_a_pipeline_without_a_network_is_refused():
    pipeline = stable_diffusion()
    pipeline.unet = None
    with pytest.raises(ValueError, match=r"^pipeline: "), embedding_updates(pipeline, keep, ALL):
        pass


# Changes of the output


def manual(pipeline, change, *, guidance_scale=3.0):
    """The pipeline's DDIM sampling by hand, with `change(index, guided output, latents)` before every step."""
    prompts, ddim = embeddings(pipeline), scheduler(prediction_type=pipeline.scheduler.config.prediction_type)
    ddim.set_timesteps(4)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for index, timestep in enumerate(ddim.timesteps):
            without, output = (
                pipeline.unet(latents, timestep, encoder_hidden_states=prompts[name]).sample
                for name in ("negative_prompt_embeds", "prompt_embeds")
            )
            guided = without + guidance_scale * (output - without)
            latents = ddim.step(change(index, guided, latents), timestep, latents).prev_sample
    return latents


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance_scale", [3.0, 1.0])
def test_the_output_is_changed_after_guidance(prediction_type, guidance_scale):
    pipeline = stable_diffusion(prediction_type=prediction_type)
    method = StepMethod(change_output=lambda step, output: output + 0.5 * step.latents, steps=(1, 2))
    with plugged_in(pipeline, method):
        found = draw(pipeline, guidance_scale=guidance_scale)
    expected = manual(
        pipeline,
        lambda index, guided, latents: guided + 0.5 * latents if index in (1, 2) else guided,
        guidance_scale=guidance_scale,
    )
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, draw(pipeline, guidance_scale=guidance_scale), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("make", PIPELINES)
def test_an_output_that_is_kept_changes_nothing(make):
    pipeline = make()
    plain = draw(pipeline)
    with plugged_in(pipeline, StepMethod(change_output=lambda step, output: output)):
        assert torch.equal(draw(pipeline), plain)
    with plugged_in(pipeline, StepMethod()):
        assert torch.equal(draw(pipeline), plain)


@pytest.mark.parametrize("make", PIPELINES)
def test_a_step_can_predict_again_with_the_embedding_of_the_step(make):
    pipeline = make()

    def change_output(step, output):
        assert torch.allclose(step.predict(step.latents), output, rtol=1e-4, atol=1e-5)
        assert 0 <= step.timestep < 1000
        return output

    for method in (
        StepMethod(change_output=change_output),
        StepMethod(lambda step, embedding, anchor: embedding + 1, change_output),
    ):
        with plugged_in(pipeline, method):
            draw(pipeline)
