"""Steps of all kinds of pipelines as methods see them: U-Nets and transformers, diffusion and flow matching."""

from dataclasses import replace

import pytest
import torch
from diffusers import EDMEulerScheduler, FluxPipeline, PNDMScheduler
from diffusers_pipelines import (
    PIPELINES,
    draw,
    embeddings,
    flux,
    latent_consistency,
    network,
    pixart,
    stable_diffusion,
    stable_diffusion_3,
)  # fmt: skip

from shared.t2i.flow_matching import LARGEST_SIGMA, flow_step
from shared.t2i.guidance import (
    embedding_gradient,
    for_all,
    output_of_noise,
    predict_clean_latents,
    predict_noise,
    universal_guidance,
)
from shared.t2i.pipeline_calls import decoder, pack, unpack
from shared.t2i.pipeline_hooks import plugged_in
from shared.t2i.step_method import StepMethod

FLOWS = (stable_diffusion_3, flux)


# Flow matching


@pytest.mark.parametrize("sigma", [0.01, 0.3, 0.5, 0.99, LARGEST_SIGMA])
def test_a_flow_is_a_velocity(sigma):
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 4, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    level, flow = flow_step(sigma), noise - clean
    latents = ((1 - sigma) * clean + sigma * noise) / level.spread
    alpha = level.alpha_cumprod
    torch.testing.assert_close(latents, alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise, rtol=1e-10, atol=1e-10)
    velocity = level.velocity(latents, flow)
    torch.testing.assert_close(velocity, alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(level.flow(latents, velocity), flow, rtol=1e-10, atol=1e-10)
    found = predict_clean_latents(latents, velocity, alpha, "v_prediction")
    torch.testing.assert_close(found, level.spread * latents - sigma * flow, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found, clean, rtol=1e-10, atol=1e-10)


def test_pure_noise_has_a_signal_level_above_zero():
    assert flow_step(1.0).sigma == LARGEST_SIGMA and 0 < flow_step(1.0).alpha_cumprod < 1e-7
    for sigma in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"^sigma: "):
            flow_step(sigma)


# What a method sees


def spied(pipeline):
    """The clean latents that the pipeline's own steps stand for, (B, C, H, W), filled during a run."""
    found, original = [], pipeline.scheduler.step

    def step(output, timestep, sample, **options):
        own = pipeline.scheduler
        if hasattr(own, "alphas_cumprod"):
            found.append(predict_clean_latents(sample, output, float(own.alphas_cumprod[int(timestep)])))
        else:
            place = own.step_index if own.step_index is not None else 0
            found.append(sample - own.sigmas[place] * output)
        if found[-1].ndim == 3:
            found[-1] = FluxPipeline._unpack_latents(found[-1], 16, 16, 2)
        return original(output, timestep, sample, **options)

    pipeline.scheduler.step = step
    return found


@pytest.mark.parametrize("make", PIPELINES)
def test_the_clean_prediction_is_the_pipelines_and_steps_are_counted(make):
    pipeline, predicted, seen = make(), [], []
    expected = spied(pipeline)

    def update(step, embedding, anchor):
        seen.append((step.index, step.timestep))
        output = step.denoise(step.latents, embedding)
        guided = step.uncond_output + step.guidance_scale * (output - step.uncond_output)
        predicted.append(predict_clean_latents(step.latents, guided, step.alpha_cumprod, step.prediction_type))
        return embedding

    with plugged_in(pipeline, StepMethod(update)):
        draw(pipeline)
        draw(pipeline)
    assert [index for index, _ in seen] == 2 * [0, 1, 2, 3]
    times = [time for _, time in seen[:4]]
    assert times == sorted(times, reverse=True) and 0 < times[-1] < times[0] < 1000
    for ours, theirs in zip(predicted, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("make", PIPELINES)
def test_an_update_changes_the_updated_samples_alone(make):
    pipeline = make()
    plain = draw(pipeline)

    def update(step, embedding, anchor):
        return torch.cat([embedding[:1] + 1, embedding[1:]])

    with plugged_in(pipeline, StepMethod(update, steps=(1,))):
        moved = draw(pipeline)
    assert torch.equal(moved[1], plain[1]) and not torch.allclose(moved[0], plain[0], atol=1e-4)


@pytest.mark.parametrize("make", PIPELINES)
def test_an_update_in_the_first_step_is_another_prompt(make):
    pipeline = make()
    other = embeddings(pipeline)
    other["prompt_embeds"] = other["prompt_embeds"] + 1  # pooled embeddings stay
    with plugged_in(pipeline, StepMethod(lambda step, embedding, anchor: anchor + 1, steps=(0,))):
        found = draw(pipeline)
    assert torch.equal(found, draw(pipeline, **other))


@pytest.mark.parametrize("make", PIPELINES)
def test_the_pipeline_steps_to_what_a_method_makes_of_the_output(make):
    """A method that wants one clean image gets it, through guidance, packing, variances and flows."""
    pipeline, wanted = make(), torch.linspace(-1, 1, 512).view(2, 4, 8, 8)
    found = spied(pipeline)

    def change(step, output):
        noise = predict_noise(step.latents, wanted, step.alpha_cumprod, "sample")
        return output_of_noise(step.latents, noise, step.alpha_cumprod, step.prediction_type)

    with plugged_in(pipeline, StepMethod(change_output=change, steps=(0, 2))):
        draw(pipeline)
    for index, clean in enumerate(found):
        assert torch.allclose(clean, wanted, atol=3e-3) == (index in (0, 2))


@pytest.mark.parametrize("make", [stable_diffusion_3, flux, pixart])
def test_the_gradient_is_that_of_the_pipelines_own_step(make):
    pipeline = make().to(torch.float64)
    decode = decoder(pipeline)
    generator = torch.Generator().manual_seed(1)
    prompts = {name: value.double() if value.is_floating_point() else value
               for name, value in embeddings(pipeline).items()}  # fmt: skip
    weights = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)
    direction = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64)
    first, gradients = spied(pipeline), []

    def reward(images):
        return (weights * images).sum(dim=(1, 2, 3))

    def update(step, embedding, anchor):
        assert embedding.dtype == torch.float64
        found = embedding_gradient(step.denoise, for_all(reward), step.latents, embedding, **step.guidance)
        gradients.append(found.gradient)
        return embedding

    with plugged_in(pipeline, StepMethod(update, steps=(0,))):
        draw(pipeline, **prompts)
    values, size = [], 1e-4
    for sign in (1, -1):
        first.clear()
        draw(pipeline, **prompts | {"prompt_embeds": prompts["prompt_embeds"] + sign * size * direction})
        values.append(reward(decode(first[0])))
    expected = (values[0] - values[1]) / (2 * size)
    assert expected.abs().min() > 1e-3
    torch.testing.assert_close((gradients[0] * direction).sum(dim=(1, 2)), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("make", [*FLOWS, pixart, latent_consistency])
def test_guidance_in_data_space_acts_too(make):
    pipeline = make()

    def brightness(images):
        return images.mean(dim=(1, 2, 3))

    decode, plain = decoder(pipeline), draw(pipeline)
    # Not in the first step: from pure noise its change of the clean latents, s (1-ᾱ) / √ᾱ, has no bound.
    with plugged_in(pipeline, replace(universal_guidance(brightness, 30.0), steps=(1, 2, 3))):
        guided = draw(pipeline)
    with torch.no_grad():
        assert (brightness(decode(guided)) > brightness(decode(plain))).all()
    assert all(parameter.grad is None for parameter in network(pipeline).parameters())


# Layouts, precision and decoding


def test_latents_are_packed_as_flux_packs_them():
    latents = torch.arange(2.0 * 4 * 6 * 10).view(2, 4, 6, 10)
    packed = FluxPipeline._pack_latents(latents, 2, 4, 6, 10)
    assert torch.equal(pack(latents), packed) and torch.equal(unpack(packed, 3, 5), latents)


@pytest.mark.parametrize("make", PIPELINES)
def test_latents_are_decoded_as_the_pipeline_decodes_them(make):
    pipeline = make()
    images = pipeline(
        **embeddings(pipeline), num_inference_steps=1, guidance_scale=3.0, height=16, width=16, output_type="pt",
        generator=torch.Generator().manual_seed(0),
        **({"negative_prompt": None, "use_resolution_binning": False} if make is pixart else {}),
    ).images  # fmt: skip
    with torch.no_grad():
        found = decoder(pipeline)(draw(pipeline, num_inference_steps=1))
    torch.testing.assert_close(found.clamp(0, 1), images)


@pytest.mark.parametrize("make", [stable_diffusion, *FLOWS])
def test_half_precision_is_the_networks_alone(make):
    pipeline = make().to(torch.bfloat16)
    prompts = {name: value.bfloat16() for name, value in embeddings(pipeline).items()}
    plain, seen = draw(pipeline, **prompts), []

    def update(step, embedding, anchor):
        output = step.denoise(step.latents, embedding)
        assert {each.dtype for each in (step.latents, embedding, anchor, output)} == {torch.float32}
        seen.append(embedding)
        return embedding + 1e-4

    with plugged_in(pipeline, StepMethod(lambda step, embedding, anchor: embedding, lambda step, output: output)):
        assert torch.equal(draw(pipeline, **prompts), plain)
    with plugged_in(pipeline, StepMethod(update)):
        draw(pipeline, **prompts)
    torch.testing.assert_close(seen[3] - seen[0], torch.full_like(seen[0], 3e-4), rtol=0, atol=1e-6)


# What is refused, and what is not


def test_a_scheduler_that_repeats_timesteps_makes_one_run():
    pipeline, seen = stable_diffusion(kind=PNDMScheduler, skip_prk_steps=True), []
    with plugged_in(pipeline, StepMethod(lambda step, embedding, anchor: seen.append(step) or embedding + 1)):
        draw(pipeline)
    assert [step.index for step in seen] == [0, 1, 2, 3, 4] and seen[1].timestep == seen[2].timestep


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (flux, {"true_cfg_scale": 2.0, "negative_prompt_embeds": torch.ones(2, 5, 12),
                "negative_pooled_prompt_embeds": torch.ones(2, 10)}),
        (stable_diffusion_3, {"skip_guidance_layers": [0], "skip_layer_guidance_start": -0.1,
                              "skip_layer_guidance_stop": 1.0}),
    ],
)  # fmt: skip
def test_more_than_one_call_in_a_step_is_refused(make, options):
    pipeline = make()
    with (
        pytest.raises(ValueError, match=r"^pipeline: calls its network more than once in a step"),
        plugged_in(pipeline, StepMethod()),
    ):
        draw(pipeline, **options)
    assert not network(pipeline)._forward_pre_hooks and not network(pipeline)._forward_hooks


def test_packed_latents_of_more_than_the_image_are_refused():
    pipeline, states = flux(), torch.zeros(2, 5, 12)
    tokens, places = torch.zeros(2, 16, 16), torch.zeros(16, 3)
    with (
        pytest.raises(ValueError, match=r"^pipeline: latents of shape \(2, 16, 16\)"),
        plugged_in(pipeline, StepMethod()),
    ):
        pipeline.transformer(hidden_states=tokens, encoder_hidden_states=states, timestep=torch.ones(2), img_ids=places)


@pytest.mark.parametrize("lacking", ["transformer", "vae", "scheduler"])
def test_pipelines_that_lack_a_part_are_refused(lacking):
    pipeline = flux()
    setattr(pipeline, lacking, None)
    with pytest.raises(ValueError, match=r"^pipeline: need a "), plugged_in(pipeline, StepMethod()):
        pass


def test_schedulers_of_unknown_noise_are_refused():
    pipeline = stable_diffusion()
    pipeline.scheduler = EDMEulerScheduler()
    with pytest.raises(ValueError, match="alphas_cumprod or of flows"), plugged_in(pipeline, StepMethod()):
        pass


def test_blocks_inside_each_other_act_from_the_outside_in():
    pipeline, seen = stable_diffusion_3(), []
    outer = StepMethod(lambda step, embedding, anchor: embedding + 1, steps=(0,))
    inner = StepMethod(lambda step, embedding, anchor: seen.append(anchor) or embedding, steps=(0,))
    with plugged_in(pipeline, outer), plugged_in(pipeline, inner):
        draw(pipeline)
    assert torch.equal(seen[0], embeddings(pipeline)["prompt_embeds"] + 1)
