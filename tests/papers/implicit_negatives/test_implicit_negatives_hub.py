"""Images of the concept as latents of a tiny network; and the component."""

import numpy as np
import pytest
import torch
from diffusers_pipelines import draw, stable_diffusion
from PIL import Image

from papers.implicit_negatives.hub import concept_latents
from papers.implicit_negatives.pipeline import safe_latent_diffusion
from shared.errors import InputError


@pytest.fixture(scope="module")
def pipeline():
    return stable_diffusion()


def test_images_of_a_folder_become_latents(pipeline, tmp_path):
    rng = np.random.default_rng(0)
    for index, suffix in enumerate(("png", "jpg")):
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(tmp_path / f"{index}.{suffix}")
    latents = concept_latents(tmp_path, pipeline.vae, 8)
    assert latents.shape == (2, 4, 8, 8) and torch.isfinite(latents).all()
    (tmp_path / "2.png").write_bytes(b"none")
    with pytest.raises(InputError, match="not an image"):
        concept_latents(tmp_path, pipeline.vae, 8)
    with pytest.raises(InputError, match="no images"):
        concept_latents(tmp_path / "none", pipeline.vae, 8)


def test_safe_latent_diffusion_in_a_pipeline():
    pipeline = stable_diffusion()
    plain = draw(pipeline)
    negative = torch.randn(1, 5, 12)
    with safe_latent_diffusion(pipeline, negative, safety_scale=0.0, momentum_scale=0.0, warmup_steps=0):
        torch.testing.assert_close(draw(pipeline), plain, atol=1e-4, rtol=1e-4)
    with safe_latent_diffusion(pipeline, negative, threshold=10.0, warmup_steps=1):
        guided = draw(pipeline)
        again = draw(pipeline)
    assert not torch.allclose(guided, plain, atol=1e-3)
    assert torch.equal(guided, again)  # the momentum starts anew
    assert torch.equal(draw(pipeline), plain)
