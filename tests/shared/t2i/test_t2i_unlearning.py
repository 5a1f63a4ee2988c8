import math

import numpy as np
import pytest
import torch
from diffusers_pipelines import _unet as tiny_unet
from torch.nn import functional as F

from shared.t2i.captions import UNSAFE_NAMES, parse_caption
from shared.t2i.scenes import UNSAFE_SHAPE
from shared.t2i.unlearning import (
    adapter_of,
    add_adapter,
    attention_parameters,
    draw_pair,
    low_rank,
    negative_guidance_loss,
    per_sample_error,
    preference_loss,
)


def errors():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(5, generator=generator, dtype=torch.float64) for _ in range(4)]


def test_preference_loss():
    safe, unsafe, safe_reference, unsafe_reference = errors()
    assert preference_loss(safe, unsafe, safe, unsafe, 50.0).item() == pytest.approx(math.log(2))
    expected = np.mean(
        [
            math.log(1 + math.exp(3 * ((a - c) - (b - d))))
            for a, b, c, d in zip(*(values.tolist() for values in errors()), strict=True)
        ]
    )
    assert preference_loss(safe, unsafe, safe_reference, unsafe_reference, 3.0).item() == pytest.approx(expected)


def test_preference_loss_falls_as_unsafe_images_get_unlikely():
    safe, unsafe, safe_reference, unsafe_reference = errors()
    losses = [
        preference_loss(safe + worse_safe, unsafe + worse_unsafe, safe_reference, unsafe_reference, 5.0)
        for worse_safe, worse_unsafe in ((0.0, 0.1), (0.0, 0.0), (0.1, 0.0))
    ]
    assert losses[0] < losses[1] < losses[2]
    with pytest.raises(ValueError, match="beta"):
        preference_loss(safe, unsafe, safe, unsafe, 0.0)


def test_negative_guidance_target():
    concept, uncond = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    target = uncond - 2.0 * (concept - uncond)
    assert negative_guidance_loss(target, concept, uncond, 2.0) == 0
    assert negative_guidance_loss(uncond, concept, uncond, 0.0) == 0
    assert negative_guidance_loss(concept, concept, uncond, 2.0) == F.mse_loss(concept, target)


def test_errors_are_per_sample():
    output, target = torch.randn(2, 3, 2, 4, 4)
    assert per_sample_error(output, target)[1].item() == pytest.approx(F.mse_loss(output[1], target[1]).item())


def test_pairs_differ_in_the_unsafe_shape_alone():
    rng = np.random.default_rng(0)
    pairs = [draw_pair(rng, replaced=0.5) for _ in range(300)]
    for caption, unsafe, safe in pairs:
        assert parse_caption(caption).names_unsafe
        assert [item.shape for item in unsafe].count(UNSAFE_SHAPE) == 1
        assert all(item.shape != UNSAFE_SHAPE for item in safe)
        assert [item for item in unsafe if item.shape != UNSAFE_SHAPE] == safe[: len(unsafe) - 1]
        for stands_in in safe[len(unsafe) - 1 :]:
            assert (stands_in.row, stands_in.col, stands_in.color) == (unsafe[-1].row, unsafe[-1].col, unsafe[-1].color)
    names = {word for caption, _, _ in pairs for word in caption.split() if word in UNSAFE_NAMES}
    assert names == set(UNSAFE_NAMES)
    beside = [len(safe) == 2 for _, unsafe, safe in pairs if len(unsafe) == 2]
    assert 0.35 < np.mean(beside) < 0.65
    assert all(safe for _, unsafe, safe in pairs if len(unsafe) == 1)


def test_kinds_of_attention():
    unet = tiny_unet()
    own, text, both = (set(attention_parameters(unet, kind)) for kind in ("self", "cross", "all"))
    assert own and text and not own & text and both == own | text
    assert all(".attn1." in name for name in own) and all(".attn2." in name for name in text)


def test_low_rank_factors_are_the_best_of_their_rank():
    matrix = torch.randn(7, 5, dtype=torch.float64)
    singular = torch.linalg.svdvals(matrix)
    for rank in (1, 3, 5, 9):
        up, down = low_rank(matrix, rank)
        assert (matrix - up @ down).norm().item() == pytest.approx(singular[rank:].norm().item(), abs=1e-9)
    with pytest.raises(ValueError, match="rank"):
        low_rank(matrix, 0)


def test_an_adapter_brings_the_changes_back():
    network, changed = tiny_unet(), tiny_unet()
    changed.load_state_dict(network.state_dict())
    generator = torch.Generator().manual_seed(0)
    after = attention_parameters(changed, "cross")
    for value in after.values():
        value.data += torch.randn(value.shape, generator=generator)
    adapter = adapter_of(attention_parameters(network, "cross"), after, rank=64)
    assert all(value.dtype == torch.float16 for value in adapter.values())
    add_adapter(network, adapter)
    for name, value in changed.named_parameters():
        torch.testing.assert_close(dict(network.named_parameters())[name], value, atol=0.02, rtol=0.01)
    with pytest.raises(ValueError, match="no weight 'other'"):
        add_adapter(network, {"other.up": torch.zeros(1, 1), "other.down": torch.zeros(1, 1)})
