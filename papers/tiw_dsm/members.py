"""Denoisers of several arms side by side: one forward pass gives what all of them say, each with weights of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from shared.diffusion.denoisers import EdmDenoiser
from shared.diffusion.networks import MlpImage


class Members(Protocol):
    """M denoisers that are trained together."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D (M, B, ...) of K batches x (K, B, ...), at noise levels (B,) that they share."""

    def member(self, index: int) -> EdmDenoiser:
        """One of them; the next call may change it."""


def build_members(denoiser: EdmDenoiser, sources: Sequence[int]) -> Members:
    """Members that start as copies of a denoiser.

    Args:
        denoiser: an MLP, or any other for a single member.
        sources: for each member, which of the K batches it sees.

    Raises:
        ValueError: several members that are no MLPs.
    """
    if isinstance(denoiser.network, MlpImage):
        return MlpMembers(denoiser, sources)
    if len(sources) > 1:
        raise ValueError(f"sources: only MLPs train side by side, got {len(sources)} members")
    return OneMember(denoiser)


class MlpMembers(nn.Module):
    """M copies of an MLP denoiser, in batched matrix products.

    On one core eight members of the mixture's testbed train in two thirds of the time that they take one after another,
    and a noisy batch's ratio is evaluated once for all of them.
    """

    def __init__(self, denoiser: EdmDenoiser, sources: Sequence[int]):
        super().__init__()
        self.register_buffer("sources", torch.tensor(sources), persistent=False)
        self.single = denoiser
        self.all = EdmDenoiser(_MemberNetwork(denoiser.network, len(sources)), denoiser.sigma_data)
        self.single.requires_grad_(False)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        seen = x[self.sources]
        return self.all(seen.flatten(0, 1), sigma.repeat(len(seen))).view_as(seen)

    def member(self, index: int) -> EdmDenoiser:
        network = self.all.network
        with torch.no_grad():
            for layer, weight, bias in zip(_linear(self.single.network), network.weights, network.biases, strict=True):
                layer.weight.copy_(weight[index].T)
                layer.bias.copy_(bias[index, 0])
        return self.single


class _MemberNetwork(nn.Module):
    """The networks of M members, for batches of M parts."""

    def __init__(self, template: MlpImage, members: int):
        super().__init__()
        layers = _linear(template)
        self.weights = nn.ParameterList(each.weight.detach().T.expand(members, -1, -1).clone() for each in layers)
        self.biases = nn.ParameterList(each.bias.detach().expand(members, 1, -1).clone() for each in layers)
        self._features = template.mlp.features  # has no weights

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        hidden = self._features(x.flatten(1), noise).unflatten(0, (len(self.weights[0]), -1))
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if index < last:
                hidden = nn.functional.silu(hidden)
        return hidden.flatten(0, 1).view_as(x)


class OneMember(nn.Module):
    """Any denoiser, as the only member."""

    def __init__(self, denoiser: EdmDenoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.denoiser(x[0], sigma)[None]

    def member(self, index: int) -> EdmDenoiser:
        return self.denoiser


def _linear(network: MlpImage) -> list[nn.Linear]:
    return [module for module in network.mlp.layers if isinstance(module, nn.Linear)]
