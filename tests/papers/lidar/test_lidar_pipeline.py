"""LiDAR in pipelines of diffusers, against the algorithm step by step."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, PixArtAlphaPipeline
from diffusers_pipelines import (
    PIPELINES,
    draw,
    embeddings,
    flux,
    latent_consistency,
    network,
    scheduler,
    stable_diffusion,
    stable_diffusion_3,
)

from papers.lidar.lookahead_guidance import guide_model_output, lookahead_score, lookahead_weights
from papers.lidar.pipeline import decode_images, draw_lookahead, image_latents, lookahead_sampling
from shared.t2i.flow_matching import LARGEST_SIGMA

AHEAD = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(1))
REWARDS = torch.tensor([0.1, -0.4, 0.9, 0.2, 0.0])
STRENGTH = {"reward_weight": 40.0, "scale": 2.0}


def redness(images, texts):
    assert len(images) == len(texts)
    return images[:, 0].mean(dim=(1, 2)) - images[:, 1:].mean(dim=(1, 2, 3))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_it_is_the_algorithm_step_by_step(kind):
    pipeline = stable_diffusion(prediction_type=kind)
    with lookahead_sampling(pipeline, AHEAD, REWARDS, **STRENGTH, end_timestep=300.0):
        found = draw(pipeline)
    prompts, ddim, acted = embeddings(pipeline), scheduler(prediction_type=kind), []
    ddim.set_timesteps(4)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for timestep in ddim.timesteps:
            without, output = (
                pipeline.unet(latents, timestep, encoder_hidden_states=prompts[name]).sample
                for name in ("negative_prompt_embeds", "prompt_embeds")
            )
            output = without + 3.0 * (output - without)
            if timestep > 300:
                alpha = float(ddim.alphas_cumprod[timestep]) ** 0.5
                sigma = (1 - alpha**2) ** 0.5
                score = lookahead_score(latents, AHEAD, REWARDS, alpha, sigma, 40.0)
                output = guide_model_output(output, score, alpha, sigma, 2.0, kind)
                acted.append(int(timestep))
            latents = ddim.step(output, timestep, latents).prev_sample
    assert len(acted) == 2
    assert torch.allclose(found, latents, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found, draw(pipeline), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("make", PIPELINES)
def test_images_come_closer_to_the_best_sample(make):
    pipeline = make()
    plain = draw(pipeline)
    with lookahead_sampling(pipeline, AHEAD, REWARDS, reward_weight=1e4, scale=1.0, end_timestep=-1.0):
        guided = draw(pipeline)
    best = AHEAD[REWARDS.argmax()]
    assert ((guided - best).flatten(1).norm(dim=1) < (plain - best).flatten(1).norm(dim=1)).all()
    assert all(parameter.grad is None for parameter in network(pipeline).parameters())


@pytest.mark.parametrize("make", PIPELINES)
def test_without_scale_or_preference_it_is_the_pipeline(make):
    pipeline = make()
    plain = draw(pipeline)
    with lookahead_sampling(pipeline, AHEAD, REWARDS, scale=0.0):
        assert torch.equal(draw(pipeline), plain)
    with lookahead_sampling(pipeline, AHEAD, torch.zeros(5), scale=5.0):
        assert torch.allclose(draw(pipeline), plain, rtol=1e-3, atol=1e-3)


def test_schedulers_that_count_in_sigma_are_guided_alike():
    """The clean prediction that Euler's method takes moves by s Σ (w^r - w) x̂, with weights at its noisy latents."""
    pipeline, seen = stable_diffusion(kind=EulerDiscreteScheduler), []
    original = pipeline.scheduler.step

    def spied(output, timestep, sample, **options):
        options.pop("return_dict", None)
        found = original(output, timestep, sample, **options)
        seen.append((sample, found.pred_original_sample))
        return (found.prev_sample,)

    pipeline.scheduler.step = spied
    draw(pipeline)
    sigma = float(pipeline.scheduler.sigmas[0])
    with lookahead_sampling(pipeline, AHEAD, REWARDS, **STRENGTH):
        draw(pipeline)
    (noisy, plain), (_, guided) = seen[0], seen[4]
    tilted, base = lookahead_weights(noisy, AHEAD, REWARDS, 1.0, sigma, 40.0)
    expected = 2.0 * torch.einsum("bn,n...->b...", tilted - base, AHEAD)
    assert expected.abs().max() > 0.1 and torch.allclose(guided - plain, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [stable_diffusion_3, flux])
def test_the_clean_prediction_of_a_flow_moves_to_the_tilted_mean(make):
    """x̄0 = x - σ u moves by s Σ (w^r - w) x̂, with weights at x and α = 1 - σ."""
    pipeline, seen = make(), []
    original = pipeline.scheduler.step

    def spied(output, timestep, sample, **options):
        place = pipeline.scheduler.step_index or 0
        seen.append((float(pipeline.scheduler.sigmas[place]), sample, sample - float(timestep) / 1000 * output))
        return original(output, timestep, sample, **options)

    pipeline.scheduler.step = spied
    draw(pipeline)
    with lookahead_sampling(pipeline, AHEAD, REWARDS, **STRENGTH):
        draw(pipeline)
    (sigma, noisy, plain), (*_, guided) = seen[0], seen[4]
    start, moved = (image_latents(pipeline, each, 16, 16) for each in (noisy, guided - plain))
    tilted, base = lookahead_weights(start, AHEAD, REWARDS, 1 - min(sigma, LARGEST_SIGMA), sigma, 40.0)
    expected = 2.0 * torch.einsum("bn,n...->b...", tilted - base, AHEAD)
    assert expected.abs().max() > 0.1 and torch.allclose(moved, expected, rtol=1e-2, atol=1e-2)


# Given embeddings, Stable Diffusion 3 draws one image of each alone.
@pytest.mark.parametrize("make", [make for make in PIPELINES if make is not stable_diffusion_3])
def test_lookahead_samples_are_drawn_by_another_scheduler(make):
    pipeline = make()
    own = pipeline.scheduler
    other = type(own) if make in (flux, latent_consistency) else DPMSolverMultistepScheduler
    prompt = {name: values[:1] for name, values in embeddings(pipeline).items()} | {"prompt": "a red cat"}
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 16, "width": 16}
    if isinstance(pipeline, PixArtAlphaPipeline):
        options |= {"use_resolution_binning": False, "negative_prompt": None}

    def drawn(**changes):
        return draw_lookahead(
            pipeline,
            prompt,
            redness,
            scheduler=other.from_config(own.config),
            generator=torch.Generator().manual_seed(3),
            **({"count": 5, "decode_batch": 2, "batch_size": 3} | changes),
            **options,
        )

    latents, rewards = drawn()
    assert pipeline.scheduler is own and latents.shape == (5, 4, 8, 8) and rewards.shape == (5,)
    images = decode_images(pipeline, latents)
    assert images.min() >= 0 and images.max() <= 1
    torch.testing.assert_close(rewards, redness(images, [""] * 5))
    assert torch.equal(drawn()[0], latents)
    with pytest.raises(ValueError, match=r"^count: "):
        drawn(count=0)


def test_a_scheduler_that_clips_is_refused():
    pipeline = stable_diffusion()
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, clip_sample=True)
    with pytest.raises(ValueError, match="clip_sample would undo"), lookahead_sampling(pipeline, AHEAD, REWARDS):
        pass


def test_sets_of_another_shape_are_refused_in_the_run():
    pipeline = stable_diffusion()
    with (
        pytest.raises(ValueError, match=r"^lookahead: "),
        lookahead_sampling(pipeline, AHEAD[:, :3], REWARDS, **STRENGTH),
    ):
        draw(pipeline)
