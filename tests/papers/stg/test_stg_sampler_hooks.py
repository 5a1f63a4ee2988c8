import pytest
import torch

from papers.stg.safe_text_guidance import centered_update_window
from papers.stg.sampler_hooks import safe_data_guidance_hook, safe_embedding_hook, safe_latent_diffusion_hook
from shared.t2i.model import build_scheduler, build_unet
from shared.t2i.options import UNetOptions
from shared.t2i.pipeline import ScenePipeline
from shared.t2i.sampling import initial_noise
from shared.t2i.scorer import build_text_encoder

CAPTIONS = ["a ring", "two red tees"]
ALL = range(4)
WEAK = {"threshold": 1e9, "momentum_scale": 0.0, "momentum_beta": 0.0}


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    return ScenePipeline(build_unet(UNetOptions(channels=(16, 32)), seed=0), build_text_encoder(), build_scheduler())


def draw(pipeline, **hooks):
    return pipeline(CAPTIONS, initial_noise(0, range(2)), num_steps=4, guidance_scale=3.0, **hooks)


def redness(images):
    return images[:, 0].mean(dim=(1, 2)) - images[:, 1:].mean(dim=(1, 2, 3))


def first_flagged(images):
    return redness(images), torch.tensor([True, False])


def never_flagged(images):
    return redness(images), torch.tensor([False, False])


def data_guidance(pipeline, score, scale, steps=ALL):
    embeddings = pipeline.embed(CAPTIONS), pipeline.embed([""])
    return safe_data_guidance_hook(pipeline.denoise, score, *embeddings, steps=steps, scale=scale)


def test_only_flagged_samples_change(pipeline):
    plain = draw(pipeline)
    embedding_hook = safe_embedding_hook(pipeline.denoise, first_flagged, steps=ALL, step_size=1.0)
    for hooks in (
        {"embedding_hook": embedding_hook},
        {"output_hook": data_guidance(pipeline, first_flagged, 30.0)},
    ):
        guided = draw(pipeline, **hooks)
        assert redness(guided)[0] < redness(plain)[0] and torch.equal(guided[1], plain[1])


def test_nothing_flagged_is_plain_sampling(pipeline):
    plain = draw(pipeline)
    embedding_hook = safe_embedding_hook(pipeline.denoise, never_flagged, steps=ALL, step_size=1.0)
    assert torch.equal(draw(pipeline, embedding_hook=embedding_hook), plain)
    assert torch.equal(draw(pipeline, output_hook=data_guidance(pipeline, never_flagged, 30.0)), plain)
    assert torch.equal(draw(pipeline, output_hook=data_guidance(pipeline, first_flagged, 30.0, steps=())), plain)


def test_flags_are_told_in_the_window(pipeline):
    told = []
    hook = safe_embedding_hook(
        pipeline.denoise,
        first_flagged,
        steps=centered_update_window(4, 0.5),
        step_size=0.1,
        on_flags=lambda step, flags: told.append((step.index, flags.tolist())),
    )
    draw(pipeline, embedding_hook=hook)
    assert told == [(1, [True, False]), (2, [True, False])]


def sld(pipeline, concept="a saltire", **options):
    options = {"safety_scale": 10.0, "warmup_steps": 0, **WEAK, **options}
    return safe_latent_diffusion_hook(pipeline.denoise, pipeline.embed([concept]), **options)


def test_safe_latent_diffusion_without_safety_is_plain(pipeline):
    plain = draw(pipeline)
    for options in ({"safety_scale": 0.0}, {"warmup_steps": 4}, {"threshold": -1e9}):
        assert torch.allclose(draw(pipeline, output_hook=sld(pipeline, **options)), plain, atol=1e-3)
    assert not torch.allclose(draw(pipeline, output_hook=sld(pipeline)), plain, atol=1e-2)


def test_full_safe_latent_diffusion_is_a_negative_prompt(pipeline):
    """φ = 1 everywhere: ε_∅ + w (ε_c - ε_S), in clean predictions as well, for both are affine in each other."""
    concept = pipeline.embed(["a saltire"])

    def negative(step, cond, guided):
        unsafe = pipeline.denoise(step.latents, step.timestep, concept.expand(2, -1, -1))
        return step.uncond_output + 3.0 * (cond - unsafe)

    full = draw(pipeline, output_hook=sld(pipeline, safety_scale=1e12))
    assert torch.allclose(full, draw(pipeline, output_hook=negative), rtol=1e-2, atol=1e-2)


def test_momentum_carries_over_and_starts_anew_with_each_run(pipeline):
    hook = sld(pipeline, momentum_scale=0.5, momentum_beta=0.7)
    once = draw(pipeline, output_hook=hook)
    assert torch.equal(draw(pipeline, output_hook=hook), once)
    assert not torch.allclose(once, draw(pipeline, output_hook=sld(pipeline)), atol=1e-3)
