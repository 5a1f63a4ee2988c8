"""Low-rank adapters in the hub's formats, on a tiny U-Net."""

import pytest
import torch
from diffusers_pipelines import stable_diffusion
from safetensors.torch import save_file

from shared.errors import InputError
from shared.t2i.lora import adapted_unet, merge_lora

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def unet():
    return stable_diffusion().unet


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
def test_adapters_of_every_format_are_merged(unet, tmp_path, up_name, down_name):
    up, down = factors(unet, "to_q")
    save_file({up_name.format(LAYER): up, down_name.format(LAYER): down}, tmp_path / "lora.safetensors")
    before = matrix(unet, "to_q").clone()
    found = adapted_unet(unet, (f"duo={tmp_path}/lora.safetensors*0.5", f"duo={tmp_path}/lora.safetensors"), "duo")
    torch.testing.assert_close(matrix(found, "to_q"), before + 1.5 * up @ down)
    assert torch.equal(matrix(unet, "to_q"), before)


def test_output_projections_have_their_own_name():
    unet = stable_diffusion().unet
    before = matrix(unet, "to_out.0").clone()
    up, down = factors(unet, "to_out.0")
    merge_lora(
        unet, {f"{LAYER}.processor.to_out_lora.up.weight": up, f"{LAYER}.processor.to_out_lora.down.weight": down}
    )
    merge_lora(unet, {f"unet.{LAYER}.to_out.0.lora_B.weight": up, f"unet.{LAYER}.to_out.0.lora_A.weight": down})
    torch.testing.assert_close(matrix(unet, "to_out.0"), before + 2 * up @ down)


def test_other_adapters_are_refused(unet, tmp_path):
    up, _ = factors(unet, "to_q")
    with pytest.raises(ValueError, match="both factors, got up"):
        merge_lora(unet, {f"{LAYER}.to_q.lora_B.weight": up})
    with pytest.raises(ValueError, match="no factor of a low-rank adapter"):
        merge_lora(unet, {"text_encoder.weight": up})
    with pytest.raises(InputError, match="none of model 'esd'"):
        adapted_unet(unet, ("duo=x",), "esd")
    with pytest.raises(InputError, match="loras duo="):
        adapted_unet(unet, (f"duo={tmp_path}/missing.safetensors",), "duo")
