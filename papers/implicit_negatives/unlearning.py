"""How the models are unlearned: UCE's closed form. The losses of ESD and DUO are in `shared.t2i.unlearning`."""

from torch import Tensor

from shared.t2i.concept_editing import edit_projection


def uce_edit(
    weight: Tensor,
    erase: Tensor,
    target: Tensor,
    preserve: Tensor,
    *,
    erase_weight: float = 1.0,
    preserve_weight: float = 0.1,
    ridge: float = 0.1,
) -> Tensor:
    """UCE's edit of a matrix of keys or values, a new one (O, D), as `edit_projection` gives it:

        W' = (λ W + η_e Σ W t_i c_iᵀ + η_p Σ W p_j p_jᵀ) (λ I + η_e Σ c_i c_iᵀ + η_p Σ p_j p_jᵀ)⁻¹.

    Args:
        weight: W, (O, D).
        erase: c, text states to erase, (E, D).
        target: t, what each is mapped like, (E, D).
        preserve: p, states that stay as they are, (P, D), P may be 0.
        erase_weight: η_e.
        preserve_weight: η_p.
        ridge: λ.

    Raises:
        ValueError: shapes that do not fit, a negative weight or ridge, or a singular system without ridge.
    """
    return edit_projection(
        weight, erase, target, preserve, erase_weight=erase_weight, preserve_weight=preserve_weight, ridge=ridge
    )
