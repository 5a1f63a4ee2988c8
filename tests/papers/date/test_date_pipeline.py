import pytest
import torch
from diffusers_pipelines import PIPELINES, draw, embeddings, network, scheduler, stable_diffusion

from papers.date.pipeline import adaptive_text_embedding
from papers.date.text_embedding_guidance import adapt_text_embedding
from shared.t2i.pipeline_calls import decoder

STEPS = (0, 2)


def redness(images):
    return images[:, 0].mean(dim=(1, 2)) - images[:, 1:].mean(dim=(1, 2, 3))


def decoded(pipeline, latents):
    with torch.no_grad():
        return decoder(pipeline)(latents)


@pytest.mark.parametrize("make", PIPELINES)
def test_the_reward_rises(make):
    pipeline = make()
    plain = redness(decoded(pipeline, draw(pipeline)))
    with adaptive_text_embedding(pipeline, redness, step_size=3.0, steps=(0, 1, 2, 3)):
        adapted = redness(decoded(pipeline, draw(pipeline)))
    with adaptive_text_embedding(pipeline, lambda images: -redness(images), step_size=3.0, steps=(0, 1, 2, 3)):
        opposed = redness(decoded(pipeline, draw(pipeline)))
    assert (adapted > plain).all() and (opposed < plain).all()
    assert all(parameter.grad is None for parameter in network(pipeline).parameters())


@pytest.mark.parametrize("options", [{}, {"num_updates": 2}, {"start": "anchor", "prior_weight": 0.5}])
def test_it_is_the_algorithm_step_by_step(options):
    pipeline = stable_diffusion()
    with adaptive_text_embedding(pipeline, redness, step_size=1.0, steps=STEPS, **options):
        found = draw(pipeline)
    prompts = embeddings(pipeline)
    anchor, uncond = prompts["prompt_embeds"], prompts["negative_prompt_embeds"]
    ddim = scheduler()
    ddim.set_timesteps(4)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    embedding = anchor
    with torch.no_grad():
        for index, timestep in enumerate(ddim.timesteps):

            def denoise(noisy, condition, timestep=timestep):
                return pipeline.unet(noisy, timestep, encoder_hidden_states=condition).sample

            without = denoise(latents, uncond)
            if index in STEPS:
                embedding, _ = adapt_text_embedding(
                    denoise,
                    redness,
                    latents,
                    embedding,
                    uncond_output=without,
                    guidance_scale=3.0,
                    alpha_cumprod=float(ddim.alphas_cumprod[timestep]),
                    step_size=1.0,
                    decode=lambda clean: pipeline.vae.decode(clean / 0.18215).sample / 2 + 0.5,
                    anchor_embedding=anchor,
                    **options,
                )
            output = without + 3.0 * (denoise(latents, embedding) - without)
            latents = ddim.step(output, timestep, latents).prev_sample
    assert torch.allclose(found, latents, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, draw(pipeline), rtol=1e-3, atol=1e-2)


def test_without_steps_it_is_the_pipeline():
    pipeline = stable_diffusion()
    with adaptive_text_embedding(pipeline, redness, step_size=1.0, steps=()):
        assert torch.equal(draw(pipeline), draw(pipeline))


def test_mistakes_come_out_of_the_run():
    pipeline = stable_diffusion()
    with (
        pytest.raises(ValueError, match=r"^start: "),
        adaptive_text_embedding(pipeline, redness, step_size=1.0, steps=(0,), start="origin"),
    ):
        draw(pipeline)
