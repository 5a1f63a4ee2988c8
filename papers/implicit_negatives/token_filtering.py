"""SAFREE's filter of a prompt's tokens, given the concept's pooled embeddings: of 17 phrases, or of c_* alone.

The formulas are those of `shared.t2i.token_filtering`.
"""

from torch import Tensor

from shared.t2i import token_filtering


def subspace_projector(embeddings: Tensor) -> Tensor:
    """Orthogonal projector (D, D) onto the span of the rows of embeddings (K, D), dependent ones included.

    Raises:
        ValueError: no rows.
    """
    return token_filtering.subspace_projector(embeddings)


def filter_prompt_embeddings(
    prompt_embeds: Tensor, masked_prompt_embeds: Tensor, concept_embeds: Tensor, *, alpha: float = 0.01
) -> tuple[Tensor, Tensor]:
    """The filtered embeddings (L, D), and which content tokens are triggers, bool (n,).

    Token i is a trigger if the prompt without it is far from the concept: d_i = ‖(I - P_C) m_i‖ >= (1 + α) · mean of
    the other d_j. Of a single token the mean is empty, and it is a trigger. A trigger e becomes (I - P_C) P_M e.

    Args:
        prompt_embeds: (L, D); content tokens stand in rows 1..n.
        masked_prompt_embeds: m, (n, D), pooled embeddings of the prompt with content token i masked.
        concept_embeds: C, (K, D), pooled.
        alpha: α.

    Raises:
        ValueError: differing widths, no content tokens or concepts, or n > L - 2.
    """
    count, length = len(masked_prompt_embeds), len(prompt_embeds)
    if count > length - 2:
        raise ValueError(f"masked_prompt_embeds: at most {length - 2} content tokens of {length} rows, got {count}")
    return token_filtering.safree_token_projection(prompt_embeds, masked_prompt_embeds, concept_embeds, alpha)


def filtered_step_limit(
    prompt_embeds: Tensor,
    projected_embeds: Tensor,
    attention_mask: Tensor,
    *,
    max_steps: int = 10,
    midpoint: float = 5.333,
    slope: float = 2.5,
) -> int:
    """The last step index at which the filtered embeddings are used, round(U · σ(2k (10 b - m))).

    b = 1 - the mean cosine, over attended tokens, of the embeddings with their projections.

    Args:
        prompt_embeds: (L, D).
        projected_embeds: (L, D), (I - P_C) P_M applied to every row.
        attention_mask: (L,), not 0 for attended tokens.
        max_steps: U.
        midpoint: m.
        slope: k.

    Raises:
        ValueError: shapes that differ, or nothing attended to.
    """
    return token_filtering.filtered_step_limit(
        prompt_embeds, projected_embeds, attention_mask, max_steps=max_steps, midpoint=midpoint, slope=slope
    )
