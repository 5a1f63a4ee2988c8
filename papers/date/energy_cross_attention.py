"""Energy-based cross-attention (EBCA), a baseline: attention layers move the text embedding, without any reward.

Geon Yeong Park, Jeongsol Kim, Beomsu Kim, Sang Wan Lee, Jong Chul Ye. "Energy-Based Cross Attention for Bayesian
Context Update in Text-to-Image Diffusion Models", NeurIPS 2023, arXiv 2306.09869.

A cross-attention layer with queries Q of the pixels and keys K = C W_kᵀ of the text C takes one step down an energy,

    C <- C + [γ_a softmax_pixels(K Qᵀ / √d) Q - γ_n diag(softmax_l ‖k_l‖²) K] W_k,

and hands the new C on to the next layer. Every evaluation of the network starts from the prompt's own embedding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def context_update(
    context: Tensor, queries: Tensor, keys: Tensor, key_weight: Tensor, *, attention_rate: float, norm_rate: float
) -> Tensor:
    """The text after one layer, (B, L, D).

    Args:
        context: C, (B, L, D).
        queries: Q, (B, heads, pixels, d).
        keys: K, (B, heads, L, d).
        key_weight: W_k, (heads · d, D).
        attention_rate: γ_a.
        norm_rate: γ_n.
    """
    weights = (keys @ queries.transpose(-1, -2) * queries.shape[-1] ** -0.5).softmax(dim=-1)
    largeness = keys.square().sum(dim=-1, keepdim=True).softmax(dim=-2)
    step = attention_rate * weights @ queries - norm_rate * largeness * keys
    return context + step.transpose(1, 2).flatten(2) @ key_weight


class EnergyGuide:
    """What the layers of one network share: the text as the layers so far have left it.

    Attributes:
        active: whether evaluations of the network update the text; only those with the prompt should.
    """

    def __init__(self, rate: float, prompts: int | None = None) -> None:
        self.rate, self.prompts = rate, prompts
        self.active = False
        self._context: Tensor | None = None

    def begin(self, *_: Any) -> None:
        """A new evaluation of the network starts."""
        self._context = None

    def attend(
        self, layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before a cross-attention layer: give it the text as it is, and update it for the next layer."""
        if not self.active:
            return arguments, keywords
        context = keywords["encoder_hidden_states"] if self._context is None else self._context
        start = 0 if self.prompts is None else len(context) - self.prompts
        queries, keys = (
            each.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
            for each in (layer.to_q(arguments[0][start:]), layer.to_k(context[start:]))
        )
        rates = {"attention_rate": self.rate, "norm_rate": self.rate}
        updated = context_update(context[start:], queries, keys, layer.to_k.weight, **rates)
        self._context = torch.cat([context[:start], updated])
        return arguments, keywords | {"encoder_hidden_states": context}


@contextmanager
def energy_cross_attention(unet: nn.Module, rate: float, prompts: int | None = None) -> Iterator[EnergyGuide]:
    """Within the block, the network's cross-attention layers update the text while the guide is active.

    Args:
        unet: of diffusers, with attention layers `attn2`.
        rate: γ_a = γ_n.
        prompts: how many samples of a batch have the prompt, the last ones; the rest stays as it is. None: all.

    Raises:
        ValueError: the network has no such layers.
    """
    layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    if not layers:
        raise ValueError("unet: need cross-attention layers named attn2, got none")
    guide = EnergyGuide(rate, prompts)
    handles = [unet.register_forward_pre_hook(guide.begin)]
    handles += [layer.register_forward_pre_hook(guide.attend, with_kwargs=True) for layer in layers]
    try:
        yield guide
    finally:
        for handle in handles:
            handle.remove()
