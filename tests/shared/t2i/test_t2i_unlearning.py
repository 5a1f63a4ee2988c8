import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shared.t2i.model import build_scheduler, build_unet
from shared.t2i.options import UNetOptions
from shared.t2i.unlearning import train_attention_only, unlearning_loss

OPTIONS = {"strength": 50.0, "matching_weight": 1.0, "largest_timestep": 750}


@pytest.fixture
def unet():
    return build_unet(UNetOptions(channels=(16, 32)), seed=0).eval()


def batch(count=4):
    generator = torch.Generator().manual_seed(0)
    safe, unsafe = torch.randn(2, count, 12, 6, 6, generator=generator)
    return safe, unsafe, torch.randn(count, 12, 64, generator=generator)


class Constant(nn.Module):
    """A network that answers with a constant, and remembers when it was asked."""

    def __init__(self, value):
        super().__init__()
        self.value, self.timesteps = value, []

    def forward(self, noisy, timesteps, encoder_hidden_states):
        self.timesteps.append(timesteps)
        return type("Output", (), {"sample": torch.full_like(noisy, self.value)})


def test_an_unchanged_model_loses_a_coins_toss(unet):
    loss = unlearning_loss(unet, copy.deepcopy(unet), build_scheduler(), *batch(), **OPTIONS)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)


def test_the_loss_against_its_definition():
    safe, unsafe, embeddings = batch()
    model, original = Constant(0.3), Constant(-0.2)
    found = unlearning_loss(model, original, build_scheduler(), safe, unsafe, embeddings, **OPTIONS | {"strength": 2.0})

    def gain(clean):
        return ((0.3 - clean).square() - (-0.2 - clean).square()).mean(dim=(1, 2, 3))

    expected = -F.logsigmoid(-2.0 * (gain(safe) - gain(unsafe))).mean() + 0.25
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert [int(asked.max()) < 750 for asked in model.timesteps] == [True, True, False]
    assert torch.equal(model.timesteps[0], model.timesteps[1]) and (model.timesteps[2] == 999).all()


def test_descent_prefers_the_safe_twin_and_moves_attention_only(unet):
    original = copy.deepcopy(unet).requires_grad_(False)
    train_attention_only(unet)
    data = batch()
    optimizer = torch.optim.SGD([p for p in unet.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        torch.manual_seed(1)
        loss = unlearning_loss(unet, original, build_scheduler(), *data, **OPTIONS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for (name, before), after in zip(original.named_parameters(), unet.parameters(), strict=True):
        assert torch.equal(before, after) or ".attn" in name
    assert all(parameter.grad is None for parameter in original.parameters())


def test_a_network_without_attention_is_refused():
    with pytest.raises(ValueError, match=r"^unet: "):
        train_attention_only(nn.Linear(2, 2))
