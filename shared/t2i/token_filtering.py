"""SAFREE's filtering of a prompt's tokens: those that carry a concept are projected out of its subspace.

Jaehong Yoon, Shoubin Yu, Vaidehi Patil, Huaxiu Yao, Mohit Bansal. "SAFREE: Training-Free and Adaptive Guard for Safe
Text-to-Image and Video Generation", ICLR 2025, arXiv 2410.12761. Without its reweighting of frequencies in the U-Net.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

PUBLISHED_STEPS = 50
"""Sampler steps for which the limit of `filtered_step_limit` is meant."""


def subspace_projector(rows: Tensor) -> Tensor:
    """Orthogonal projector (D, D) onto the span of rows (m, D), which may depend on each other linearly.

    Raises:
        ValueError: no rows.
    """
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"rows: need at least one of them, (m, D), got {tuple(rows.shape)}")
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    tolerance = singular[0] * max(rows.shape) * torch.finfo(rows.dtype).eps
    basis = right[singular > tolerance]
    return basis.T @ basis


def safree_token_projection(
    text_embedding: Tensor, masked_pooled: Tensor, concept_embeddings: Tensor, alpha: float = 0.01
) -> tuple[Tensor, Tensor]:
    """SAFREE's filtered embedding (L, D), and which content tokens it takes for triggers, bool (n,).

    P_c and P_m project onto the rows of the concepts and of the masked prompts. A token is a trigger if the prompt
    without it is far from the concepts, d_i = ‖(I - P_c) p_i‖ >= (1 + α) · mean of the other d_j, or if it is the only
    one; its state e becomes (I - P_c) P_m e.

    Args:
        text_embedding: (L, D), states of a prompt's tokens; content token i stands at position i + 1.
        masked_pooled: p, (n, D), pooled embeddings of the prompt with content token i masked.
        concept_embeddings: (m, D), pooled embeddings of the unsafe concept's phrases.
        alpha: α.

    Raises:
        ValueError: differing D, or no content tokens or more than the embedding has positions for.
    """
    for name, rows in (("masked_pooled", masked_pooled), ("concept_embeddings", concept_embeddings)):
        if rows.ndim != 2 or rows.shape[1] != text_embedding.shape[-1] or not len(rows):
            raise ValueError(f"{name}: need rows of {text_embedding.shape[-1]} features, got {tuple(rows.shape)}")
    count = len(masked_pooled)
    if count + 1 > len(text_embedding):
        raise ValueError(f"masked_pooled: at most {len(text_embedding) - 1} content tokens, got {count}")
    wide = torch.promote_types(text_embedding.dtype, torch.float32)  # half precision has no decompositions
    masked, states = masked_pooled.to(wide), text_embedding[1 : count + 1].to(wide)
    away = torch.eye(states.shape[1]).to(states) - subspace_projector(concept_embeddings.to(wide))
    distances = (masked @ away).norm(dim=1)
    if count == 1:
        triggers = torch.ones(1, dtype=torch.bool, device=text_embedding.device)
    else:
        others = (distances.sum() - distances) / (count - 1)
        triggers = ~(distances < (1 + alpha) * others)
    projected = states @ subspace_projector(masked) @ away
    filtered = text_embedding.clone()
    filtered[1 : count + 1] = torch.where(triggers[:, None], projected, states).to(filtered.dtype)
    return filtered, triggers


def filtered_step_limit(
    embedding: Tensor, projected: Tensor, attended: Tensor, *, max_steps: float = 10, midpoint: float = 5.333,
    slope: float = 2.5,
) -> int:  # fmt: skip
    """The last sampler step, of 50, in which the filtered embedding is used: round(U σ(2k (10 b - m))).

    b = 1 - the mean cosine of the states with their projections: a prompt far from the concept keeps its own embedding.

    Args:
        embedding: (L, D), of one prompt.
        projected: (L, D), its states, all of them projected.
        attended: (L,), which states count.
        max_steps: U.
        midpoint: m.
        slope: k.

    Raises:
        ValueError: shapes that differ, or no state that counts.
    """
    if embedding.shape != projected.shape or attended.shape != embedding.shape[:1]:
        raise ValueError(
            f"projected, attended: need {tuple(embedding.shape)} and its first axis, got {tuple(projected.shape)} and "
            f"{tuple(attended.shape)}"
        )
    counted = attended.bool()
    if not counted.any():
        raise ValueError("attended: no state counts")
    distance = 1 - float(F.cosine_similarity(embedding[counted], projected[counted], dim=-1).mean())
    return round(max_steps / (1 + math.exp(-2 * slope * (10 * distance - midpoint))))
