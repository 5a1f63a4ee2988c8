"""A smooth classifier small enough for finite differences, and a batch for it."""

import pytest
import torch
from torch import Tensor, nn


class SmallNet(nn.Module):
    """Convolution, tanh, linear features, linear head: twice differentiable everywhere."""

    def __init__(self, channels: int = 1, classes: int = 3, features: int = 4) -> None:
        super().__init__()
        self.featurizer = nn.Sequential(
            nn.Conv2d(channels, 2, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(2 * 16, features), nn.Tanh()
        )
        self.head = nn.Linear(features, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.featurizer(inputs))


@pytest.fixture
def net() -> SmallNet:
    torch.manual_seed(0)
    return SmallNet().double()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Six images [6, 1, 4, 4] of two domains of three, and labels of three classes."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.tensor([0, 1, 2, 1, 1, 0])
