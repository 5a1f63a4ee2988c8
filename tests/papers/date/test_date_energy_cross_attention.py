from itertools import pairwise

import pytest
import torch
from date_cases import scene_pipeline
from torch import nn

from papers.date.energy_cross_attention import context_update, energy_cross_attention

B, L, N, D, HEADS, WIDTH = 2, 3, 5, 7, 2, 4


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "context": (B, L, D),
        "queries": (B, HEADS, N, WIDTH),
        "keys": (B, HEADS, L, WIDTH),
        "key_weight": (HEADS * WIDTH, D),
    }
    return {name: torch.randn(*shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def test_the_update_is_the_formula():
    given = drawn()
    found = context_update(**given, attention_rate=0.3, norm_rate=0.2)
    for b in range(B):
        step = torch.zeros(L, HEADS * WIDTH, dtype=torch.float64)
        for h in range(HEADS):
            q, k = given["queries"][b, h], given["keys"][b, h]
            share = (k @ q.T / WIDTH**0.5).exp()
            share = share / share.sum(1, keepdim=True)
            large = (k**2).sum(1).exp()
            pull = 0.3 * share @ q - 0.2 * torch.diag(large / large.sum()) @ k
            step[:, h * WIDTH : (h + 1) * WIDTH] = pull
        torch.testing.assert_close(found[b], given["context"][b] + step @ given["key_weight"])


def test_the_attention_part_descends_the_energy():
    given = drawn(1)
    keys = given["keys"].requires_grad_()
    energy = -((keys @ given["queries"].transpose(-1, -2)) / WIDTH**0.5).logsumexp(-1).sum() * WIDTH**0.5
    (gradient,) = torch.autograd.grad(energy, keys)
    expected = given["context"] - 0.1 * gradient.transpose(1, 2).flatten(2) @ given["key_weight"]
    torch.testing.assert_close(context_update(**given, attention_rate=0.1, norm_rate=0.0).detach(), expected)


@torch.no_grad()
def test_only_active_evaluations_change_and_the_network_is_as_before():
    unet = scene_pipeline().unet
    latents, states = torch.randn(2, 12, 6, 6), torch.randn(2, 12, 64)

    def evaluate():
        return unet(latents, 500, encoder_hidden_states=states).sample

    plain = evaluate()
    with energy_cross_attention(unet, 0.5) as guide:
        torch.testing.assert_close(evaluate(), plain, rtol=0, atol=0)
        guide.active = True
        changed = evaluate()
        assert not torch.allclose(changed, plain)
        torch.testing.assert_close(evaluate(), changed, rtol=0, atol=0)  # each evaluation starts anew
    torch.testing.assert_close(evaluate(), plain, rtol=0, atol=0)
    with energy_cross_attention(unet, 0.0) as guide:
        guide.active = True
        torch.testing.assert_close(evaluate(), plain)


@torch.no_grad()
def test_samples_without_the_prompt_are_left_alone():
    unet = scene_pipeline().unet
    latents, states = torch.randn(4, 12, 6, 6), torch.randn(4, 12, 64)

    def evaluate(rows):
        return unet(latents[rows], 500, encoder_hidden_states=states[rows]).sample

    plain = evaluate(slice(0, 4))
    with energy_cross_attention(unet, 0.5) as guide:
        guide.active = True
        alone = evaluate(slice(2, 4))
    with energy_cross_attention(unet, 0.5, prompts=2) as guide:
        guide.active = True
        together = evaluate(slice(0, 4))
    torch.testing.assert_close(together[:2], plain[:2])
    torch.testing.assert_close(together[2:], alone)
    assert not torch.allclose(together[2:], plain[2:], atol=1e-3)


def test_layers_hand_the_text_on():
    unet = scene_pipeline().unet
    seen = []
    layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    assert len(layers) > 2
    with energy_cross_attention(unet, 0.5) as guide, torch.no_grad():
        guide.active = True
        for layer in layers:
            layer.to_v.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0].clone()))
        states = torch.randn(1, 12, 64)
        unet(torch.randn(1, 12, 6, 6), 500, encoder_hidden_states=states)
    torch.testing.assert_close(seen[0], states)  # the first layer sees the prompt's own
    assert all(not torch.allclose(a, b) for a, b in pairwise(seen))


def test_a_network_without_cross_attention_is_refused():
    with pytest.raises(ValueError, match="attn2"), energy_cross_attention(nn.Linear(2, 2), 0.1):
        pass
