import pytest
import torch

from papers.date.sampler_hooks import adaptive_embedding_hook, universal_guidance_hook
from shared.t2i.hooks import as_noise, as_output, noise_prediction
from shared.t2i.model import build_scheduler, build_unet
from shared.t2i.options import UNetOptions
from shared.t2i.pipeline import ScenePipeline
from shared.t2i.sampling import Step, initial_noise
from shared.t2i.scorer import build_text_encoder

CAPTIONS = ["a ring", "two red tees"]
ALL = range(4)


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    return ScenePipeline(build_unet(UNetOptions(channels=(16, 32)), seed=0), build_text_encoder(), build_scheduler())


def draw(pipeline, **hooks):
    return pipeline(CAPTIONS, initial_noise(0, range(2)), num_steps=4, guidance_scale=3.0, **hooks)


def redness(images):
    return images[:, 0].mean(dim=(1, 2)) - images[:, 1:].mean(dim=(1, 2, 3))


def universal(pipeline, scale, steps=ALL):
    embeddings = pipeline.embed(CAPTIONS), pipeline.embed([""])
    return universal_guidance_hook(pipeline.denoise, redness, *embeddings, steps=steps, scale=scale)


def test_adapting_raises_the_reward_and_no_step_changes_nothing(pipeline):
    plain = draw(pipeline)
    hook = adaptive_embedding_hook(pipeline.denoise, redness, steps=ALL, step_size=1.0)
    adapted = draw(pipeline, embedding_hook=hook)
    assert (redness(adapted) > redness(plain)).all()
    assert torch.equal(draw(pipeline, embedding_hook=hook), adapted)  # a run leaves nothing behind
    idle = adaptive_embedding_hook(pipeline.denoise, redness, steps=(), step_size=1.0)
    assert torch.equal(draw(pipeline, embedding_hook=idle), plain)


def test_the_anchor_is_the_prompts_own_embedding(pipeline):
    seen = []
    inner = adaptive_embedding_hook(pipeline.denoise, redness, steps=(1, 3), step_size=0.5, start="anchor")

    def hook(step, embedding):
        seen.append(inner(step, embedding))
        return seen[-1]

    draw(pipeline, embedding_hook=hook)
    distances = [(embedding - pipeline.embed(CAPTIONS)).flatten(1).norm(dim=1) for embedding in seen]
    expected = torch.tensor([0.0, 0.5, 0.5, 0.5])
    assert torch.allclose(torch.stack(distances), expected[:, None].expand(4, 2), atol=1e-5)


def test_universal_guidance_raises_the_reward_and_is_plain_at_its_limits(pipeline):
    plain = draw(pipeline)
    assert (redness(draw(pipeline, output_hook=universal(pipeline, 30.0))) > redness(plain)).all()
    assert torch.allclose(draw(pipeline, output_hook=universal(pipeline, 0.0)), plain, atol=1e-4)
    assert torch.equal(draw(pipeline, output_hook=universal(pipeline, 30.0, steps=())), plain)


def test_noise_and_output_are_two_views_of_one_prediction(pipeline):
    latents, output = torch.randn(2, 2, 12, 6, 6)
    step = Step(0, torch.tensor(500), latents, output, 3.0, 0.4)
    assert torch.allclose(as_output(step, as_noise(step, output)), output, atol=1e-5)
    cond, uncond = pipeline.embed(CAPTIONS), pipeline.embed([""])
    with torch.no_grad():
        guided = pipeline.denoise(latents, step.timestep, uncond.expand(2, -1, -1))
        guided = guided + 3.0 * (pipeline.denoise(latents, step.timestep, cond) - guided)
        noise = noise_prediction(pipeline.denoise, step, cond, uncond)(latents)
    assert torch.allclose(as_output(step, noise), guided, atol=1e-4)
