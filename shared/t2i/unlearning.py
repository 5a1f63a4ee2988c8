"""Training-based defences: losses that train an unsafe concept out of a denoiser.

DUO: Yong-Hyun Park et al., "Direct Unlearning Optimization for Robust and Safe Text-to-Image Models", NeurIPS 2024,
arXiv 2407.21035: a preference loss on pairs of a safe and an unsafe image of one layout, with a penalty that keeps the
output at pure noise. ESD: Rohit Gandikota et al., "Erasing Concepts from Diffusion Models", ICCV 2023, arXiv
2303.07345: the output for the concept's text is taught to be what negative guidance would give.

Outputs are those of the network and of its frozen copy, of whatever prediction type.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from shared.t2i.captions import UNSAFE_NAMES, ObjectGroup, PromptSpec, caption_of
from shared.t2i.scenes import COLORS, SAFE_SHAPES, UNSAFE_SHAPE, SceneObject, place_objects


def preference_loss(
    safe_error: Tensor, unsafe_error: Tensor, safe_reference: Tensor, unsafe_reference: Tensor, beta: float
) -> Tensor:
    """DUO's preference loss -log σ(-β [(ℓ⁺ - ℓ⁺_ref) - (ℓ⁻ - ℓ⁻_ref)]), a scalar.

    Args:
        safe_error: ℓ⁺, mean squared errors (B,) of the network on the safe images.
        unsafe_error: ℓ⁻, (B,), on the unsafe images at the same timesteps and noise.
        safe_reference: (B,), of the frozen network.
        unsafe_reference: (B,), of the frozen network.
        beta: β > 0.

    Raises:
        ValueError: β that is not positive.
    """
    if not beta > 0:
        raise ValueError(f"beta: must be positive, got {beta}")
    margin = (safe_error - safe_reference) - (unsafe_error - unsafe_reference)
    return -F.logsigmoid(-beta * margin).mean()


def negative_guidance_loss(output: Tensor, concept_output: Tensor, uncond_output: Tensor, scale: float) -> Tensor:
    """ESD's loss ‖f(x, c_S) - [f_0(x, ∅) - η (f_0(x, c_S) - f_0(x, ∅))]‖², a mean over all entries.

    Args:
        output: of the network for the concept's text, (B, ...).
        concept_output: f_0(x, c_S), of the frozen network.
        uncond_output: f_0(x, ∅), of the frozen network.
        scale: η.
    """
    target = uncond_output - scale * (concept_output - uncond_output)
    return F.mse_loss(output, target.detach())


def per_sample_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared errors (B,) of outputs (B, ...)."""
    return (output - target).square().flatten(1).mean(dim=1)


def draw_pair(rng: np.random.Generator, replaced: float) -> tuple[str, list[SceneObject], list[SceneObject]]:
    """A caption that asks for the unsafe shape by any of its names, an unsafe scene of it, and a safe one.

    The scenes differ in the unsafe shape alone: the safe one has with probability `replaced` a safe shape of the same
    colour in its place, else nothing there. Without replacements a network learns to leave things out.
    """
    colors = [str(color) for color in rng.choice(list(COLORS), size=2)]
    companion, substitute = (str(shape) for shape in rng.choice(SAFE_SHAPES, size=2, replace=False))
    alone = rng.random() < 0.25
    groups = () if alone else (ObjectGroup(1, colors[0], companion),)
    unsafe = ObjectGroup(1, colors[1] if alone else None, UNSAFE_SHAPE)
    spec = PromptSpec("colors" if alone else "color_attr", (*groups, unsafe), unsafe_name=str(rng.choice(UNSAFE_NAMES)))
    places = place_objects(rng, 2)
    kept = [] if alone else [SceneObject(companion, colors[0], *places[0])]
    scene = [*kept, SceneObject(UNSAFE_SHAPE, colors[1], *places[1])]
    stands_in = [SceneObject(substitute, colors[1], *places[1])] if alone or rng.random() < replaced else []
    return caption_of(spec), scene, [*kept, *stands_in]


ATTENTION = {"self": (".attn1.",), "cross": (".attn2.",), "all": (".attn1.", ".attn2.")}
"""Layers of diffusers' U-Nets: attention within the image, to the text, and both."""


def attention_parameters(network: torch.nn.Module, kind: str) -> dict[str, torch.nn.Parameter]:
    """Weights by name of a U-Net's attention layers of a kind: `self`, `cross` or `all`."""
    layers = ATTENTION[kind]
    return {name: value for name, value in network.named_parameters() if any(layer in name for layer in layers)}


def low_rank(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best factors (O, r) and (r, I) of a matrix's change (O, I), as an adapter stores it.

    Raises:
        ValueError: a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"rank: must be at least 1, got {rank}")
    left, singular, right = torch.linalg.svd(change.double(), full_matrices=False)
    roots = singular[:rank].sqrt()
    return (left[:, :rank] * roots).to(change), (roots[:, None] * right[:rank]).to(change)


def adapter_of(before: Mapping[str, Tensor], after: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """What changed from weights to weights of the same names, in half precision: factors of matrices, whole vectors."""
    found = {}
    for name, value in after.items():
        change = (value - before[name]).detach().float().cpu()
        if change.ndim == 2:
            found[f"{name}.up"], found[f"{name}.down"] = low_rank(change, rank)
        else:
            found[name] = change
    return {name: value.half().contiguous() for name, value in found.items()}


def add_adapter(network: torch.nn.Module, adapter: Mapping[str, Tensor]) -> None:
    """Add the changes of :func:`adapter_of` to a network's weights.

    Raises:
        ValueError: the network has no weight of a name.
    """
    parameters = dict(network.named_parameters())
    names = {name.removesuffix(".up").removesuffix(".down") for name in adapter}
    if unknown := names - set(parameters):
        raise ValueError(f"adapter: the network has no weight {sorted(unknown)[0]!r}")
    for name in names:
        whole = adapter[name] if name in adapter else adapter[f"{name}.up"].float() @ adapter[f"{name}.down"].float()
        parameters[name].data += whole.to(parameters[name])
