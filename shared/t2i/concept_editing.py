"""UCE: a concept is edited out of the cross-attention in closed form.

Rohit Gandikota, Hadas Orgad, Yonatan Belinkov, Joanna Materzyńska, David Bau. "Unified Concept Editing in Diffusion
Models", WACV 2024, arXiv 2308.14761. A matrix W of keys or values maps text states to what the image attends to. The
new one maps the state c_e of an erased word to where W maps its replacement c*, and moves nothing else:

    W' = (λ_e Σ W c* c_eᵀ + λ_p Σ W c_p c_pᵀ + λ W) (λ_e Σ c_e c_eᵀ + λ_p Σ c_p c_pᵀ + λ I)⁻¹.
"""

import copy

import torch
from torch import Tensor, nn


def edit_projection(
    weight: Tensor,
    erased: Tensor,
    targets: Tensor,
    preserved: Tensor,
    *,
    erase_weight: float,
    preserve_weight: float = 1.0,
    ridge: float = 1.0,
) -> Tensor:
    """The edited matrix W' (O, D), a new one, the minimiser of

        λ_e Σ ‖W' c_e - W c*‖² + λ_p Σ ‖W' c_p - W c_p‖² + λ ‖W' - W‖²_F.

    Args:
        weight: W, (O, D).
        erased: c_e, (m, D).
        targets: c*, (m, D), what each is mapped like.
        preserved: c_p, (p, D), p may be 0.
        erase_weight: λ_e >= 0; at 0 and without preserved states nothing changes.
        preserve_weight: λ_p >= 0.
        ridge: λ >= 0.

    Raises:
        ValueError: states of another width, not one target for each erased state, a negative weight, or without ridge
            states that leave W' undetermined.
    """
    for name, states in (("erased", erased), ("targets", targets), ("preserved", preserved)):
        if states.ndim != 2 or states.shape[1] != weight.shape[1]:
            raise ValueError(f"{name}: need rows of {weight.shape[1]} features, got {tuple(states.shape)}")
    if len(erased) != len(targets):
        raise ValueError(f"targets: need one for each of the {len(erased)} erased states, got {len(targets)}")
    for name, value in (("erase_weight", erase_weight), ("preserve_weight", preserve_weight), ("ridge", ridge)):
        if not value >= 0:
            raise ValueError(f"{name}: must not be negative, got {value}")
    wide = [states.double() for states in (weight, erased, targets, preserved)]
    matrix, gone, wanted, kept = wide
    kept_gram = preserve_weight * kept.T @ kept
    gram = erase_weight * gone.T @ gone + kept_gram
    values = matrix @ (erase_weight * wanted.T @ gone + kept_gram) + ridge * matrix
    if ridge == 0 and torch.linalg.matrix_rank(gram, hermitian=True) < len(gram):
        raise ValueError("ridge: must be positive, since the states do not span the space of texts")
    ridged = gram + ridge * torch.eye(len(gram)).to(gram)
    return torch.linalg.solve(ridged, values, left=False).to(weight)


def edited_network(unet: nn.Module, erased: Tensor, targets: Tensor, preserved: Tensor, **weights: float) -> nn.Module:
    """A copy of a U-Net of diffusers with all keys and values of its cross-attention edited.

    Args and errors as in `edit_projection`; D is the width of the text embedding.
    """
    edited = copy.deepcopy(unet)
    for name, module in edited.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.weight.data = edit_projection(module.weight.data, erased, targets, preserved, **weights)
    return edited
