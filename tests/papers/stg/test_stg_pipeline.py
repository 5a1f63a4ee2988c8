import pytest
import torch
from diffusers_pipelines import PIPELINES, draw, stable_diffusion

from papers.stg.pipeline import safe_text_embedding
from papers.stg.safe_text_guidance import centered_update_window
from shared.t2i.pipeline_calls import decoder


def redness(images):
    return images[:, 0].mean(dim=(1, 2)) - images[:, 1:].mean(dim=(1, 2, 3))


def scoring(*flags):
    return lambda images: (redness(images), torch.tensor(flags))


def shown(pipeline, latents):
    with torch.no_grad():
        return decoder(pipeline)(latents)


@pytest.mark.parametrize("make", PIPELINES)
def test_flagged_images_get_safer_and_others_stay_the_same(make):
    pipeline = make()
    plain = draw(pipeline)
    with safe_text_embedding(pipeline, scoring(True, False), step_size=3.0, steps=range(4)):
        guided = draw(pipeline)
    assert redness(shown(pipeline, guided))[0] < redness(shown(pipeline, plain))[0]
    assert torch.equal(guided[1], plain[1])


def test_a_run_without_flags_is_the_pipeline():
    pipeline = stable_diffusion()
    plain = draw(pipeline)
    with safe_text_embedding(pipeline, scoring(False, False), step_size=3.0, steps=range(4)):
        assert torch.equal(draw(pipeline), plain)


def test_only_steps_of_the_window_are_scored():
    pipeline, calls = stable_diffusion(), []

    def score(images):
        calls.append(images.shape)
        return scoring(True, True)(images)

    with safe_text_embedding(pipeline, score, step_size=0.1, steps=centered_update_window(4, 0.5)):
        draw(pipeline)
    assert calls == [(2, 3, 16, 16)] * 2


def test_it_starts_from_the_prompt_if_asked():
    pipeline = stable_diffusion()
    found = []
    for start in ("previous", "anchor"):
        with safe_text_embedding(pipeline, scoring(True, True), step_size=1.0, steps=(0, 1), start=start):
            found.append(draw(pipeline))
    assert not torch.allclose(*found, atol=1e-3)
