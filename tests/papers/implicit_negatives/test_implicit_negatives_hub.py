"""Unlearned models and images of the concept in the hub's formats, with tiny networks; and the component."""

import numpy as np
import pytest
import torch
from diffusers_pipelines import draw, stable_diffusion
from PIL import Image
from safetensors.torch import save_file

from papers.implicit_negatives.hub import concept_latents, unlearned
from papers.implicit_negatives.lora import merge_lora
from papers.implicit_negatives.pipeline import safe_latent_diffusion
from shared.errors import InputError

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def pipeline():
    return stable_diffusion()


def matrix(unet, name):
    return dict(unet.named_parameters())[f"{LAYER}.{name}.weight"]


def factors(unet, name, rank=2, seed=0):
    rows, columns = matrix(unet, name).shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)


@pytest.mark.parametrize(
    ("up_name", "down_name"),
    [
        ("unet.{}.to_q.lora_B.weight", "unet.{}.to_q.lora_A.weight"),
        ("unet.{}.processor.to_q_lora.up.weight", "unet.{}.processor.to_q_lora.down.weight"),
        ("{}.to_q.lora.up.weight", "{}.to_q.lora.down.weight"),
    ],
)
def test_adapters_of_every_format_are_merged(pipeline, tmp_path, up_name, down_name):
    up, down = factors(pipeline.unet, "to_q")
    save_file({up_name.format(LAYER): up, down_name.format(LAYER): down}, tmp_path / "lora.safetensors")
    before = matrix(pipeline.unet, "to_q").clone()
    found = unlearned(
        pipeline.unet, (f"duo={tmp_path}/lora.safetensors*0.5", f"duo={tmp_path}/lora.safetensors"), "duo"
    )
    torch.testing.assert_close(matrix(found, "to_q"), before + 1.5 * up @ down)
    assert torch.equal(matrix(pipeline.unet, "to_q"), before)


def test_output_projections_have_their_own_name(pipeline):
    unet = stable_diffusion().unet
    before = matrix(unet, "to_out.0").clone()
    up, down = factors(unet, "to_out.0")
    merge_lora(
        unet, {f"{LAYER}.processor.to_out_lora.up.weight": up, f"{LAYER}.processor.to_out_lora.down.weight": down}
    )
    merge_lora(unet, {f"unet.{LAYER}.to_out.0.lora_B.weight": up, f"unet.{LAYER}.to_out.0.lora_A.weight": down})
    torch.testing.assert_close(matrix(unet, "to_out.0"), before + 2 * up @ down)


def test_other_adapters_are_refused(pipeline, tmp_path):
    up, _ = factors(pipeline.unet, "to_q")
    with pytest.raises(ValueError, match="both factors, got up"):
        merge_lora(pipeline.unet, {f"{LAYER}.to_q.lora_B.weight": up})
    with pytest.raises(ValueError, match="no factor of a low-rank adapter"):
        merge_lora(pipeline.unet, {"text_encoder.weight": up})
    with pytest.raises(InputError, match="none of model 'esd'"):
        unlearned(pipeline.unet, ("duo=x",), "esd")
    with pytest.raises(InputError, match="loras duo="):
        unlearned(pipeline.unet, (f"duo={tmp_path}/missing.safetensors",), "duo")


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
