"""Images of the concept as latents of a tiny network; and the component."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers_pipelines import draw, stable_diffusion
from PIL import Image
from safetensors.torch import save_file
from safety_cases import tiny_bench

from papers.implicit_negatives import hub
from papers.implicit_negatives.hub import concept_latents, open_unlearned, unlearned_unet, with_weights
from papers.implicit_negatives.options import UnlearnedHubOptions
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


HUB = UnlearnedHubOptions(
    model="m", judge="clip=c", judge_threshold=0.2, features="c", prompts=("safe=geneval:f",), concepts=("a saltire",),
    images="images",
)  # fmt: skip


def test_unlearned_models_are_edited_or_have_weights_or_adapters(tmp_path):
    bench = tiny_bench()
    before = {name: value.clone() for name, value in bench.unet.state_dict().items()}
    attention = [name for name in before if "attn2.to_k" in name]
    layer = attention[0].removesuffix(".to_k.weight")
    save_file({attention[0]: before[attention[0]] + 1}, tmp_path / "trained")
    rows, columns = before[attention[0]].shape
    factors = {"up": torch.ones(rows, 1), "down": torch.ones(1, columns)}
    save_file({f"{layer}.processor.to_k_lora.{part}.weight": value for part, value in factors.items()},
              tmp_path / "adapter")  # fmt: skip
    options = replace(
        HUB,
        loras=(f"duo={tmp_path / 'adapter'}*0.5",) * 2,
        unets=(f"esd={tmp_path / 'trained'}",),
        uce_erase_weight=0.5,
    )
    assert options.models == ("uce", "duo", "esd")
    networks = {model: unlearned_unet(bench, options, model).state_dict() for model in options.models}
    expected = bench.edited(0.5, 1.0).unet.state_dict()
    assert all(torch.equal(networks["uce"][name], expected[name]) for name in before)
    assert not torch.equal(networks["uce"][attention[0]], before[attention[0]])
    for model in ("duo", "esd"):
        changed = [name for name in before if not torch.equal(networks[model][name], before[name])]
        assert changed == attention[:1]
        torch.testing.assert_close(networks[model][attention[0]], before[attention[0]] + 1)
    assert all(torch.equal(value, before[name]) for name, value in bench.unet.state_dict().items())
    with pytest.raises(InputError, match="loras: none of model 'spm'"):
        unlearned_unet(bench, options, "spm")


@pytest.mark.parametrize(("weights", "complaint"), [
    ({"conv_in.weight": torch.zeros(1)}, "not weights of this U-Net: .*size mismatch for conv_in.weight"),
    ({"conv.weight": torch.zeros(1)}, "the U-Net has no 'conv.weight'"),
    (None, "not weights of this U-Net"),
])  # fmt: skip
def test_weights_of_another_network_are_refused(tmp_path, weights, complaint):
    if weights:
        save_file(weights, tmp_path / "weights")
    with pytest.raises(InputError, match=complaint) as caught:
        with_weights(tiny_bench().unet, str(tmp_path / "weights"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("change", "complaint"), [
    ({"loras": ("duo",)}, "loras: expected <model>=<file>, got 'duo'"),
    ({"unets": ("=file",)}, "unets: expected <model>=<file>, got '=file'"),
    ({"loras": ("a=f",), "unets": ("a=g",)}, "more than one of them gives model 'a'"),
    ({"unets": ("a=f", "a=g")}, "more than one of them gives model 'a'"),
    ({"unets": ("uce=f",), "uce_erase_weight": 1.0}, "more than one of them gives model 'uce'"),
])  # fmt: skip
def test_every_unlearned_model_comes_from_one_place(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        replace(HUB, **change)


def test_the_hub_opens_the_models_and_the_images(pipeline, tmp_path, monkeypatch):
    Image.new("RGB", (16, 16)).save(tmp_path / "0.png")
    monkeypatch.setattr(hub, "open_pipeline", lambda options: pipeline)
    monkeypatch.setattr("shared.t2i.hub.text_of", lambda *_: None)
    name = next(name for name in pipeline.unet.state_dict() if name.endswith("attn2.to_q.weight"))
    save_file({name: torch.zeros_like(pipeline.unet.state_dict()[name])}, tmp_path / "esd")
    options = replace(HUB, images=str(tmp_path), unets=(f"esd={tmp_path / 'esd'}",))
    bench, latents = open_unlearned(options, ["esd"])
    assert set(bench.models) == {"esd"} and not bench.models["esd"].state_dict()[name].any()
    assert latents.shape == (1, 4, 8, 8)


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
