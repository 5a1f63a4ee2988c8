"""Safe text embedding guidance (STG), and the defences it is compared with, as functions of one sampler step.

Byeonghu Na, Mina Kang, Jiseok Kwak, Minsang Park, Jiwoo Shin, SeJoon Jun, Gayoung Lee, Jin-Hwa Kim, Il-Chul Moon.
"Training-Free Safe Text Embedding Guidance for Text-to-Image Diffusion Models", NeurIPS 2025, arXiv 2510.24012.

Let u(x0) = -g(x0) be how unsafe a clean image is, with a flag that says whether it is unsafe at all. While the one-step
prediction x̄0(x_t, c) is flagged, STG moves the text embedding against the gradient of u,

    c <- c - ρ ∇_c u / ‖∇_c u‖,

and to first order the score then gains a term towards safety (Theorem 1): s(x, c + ρv) = s(x, c) + ρ ∇_x(v·∇_c log
q_t(x|c)) + O(ρ²). The sample stays in the model's own conditional family, unlike under guidance of the noisy latents
(SDG, `safe_data_guidance`), which can push it off the images the model knows.

Besides: Safe Latent Diffusion (Schramowski et al., 2023) in `safe_latent_diffusion_guidance`, and the token projection
of SAFREE (Yoon et al., 2025) in `safree_token_projection`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from shared.t2i.guidance import ascend_text_embedding, guided_noise, normalized_ascent_step, predict_clean_latents

__all__ = [
    "centered_update_window",
    "guide_text_embedding",
    "normalized_ascent_step",
    "predict_clean_latents",
    "safe_data_guidance",
    "safe_latent_diffusion_guidance",
    "safree_token_projection",
    "unsafe_confidence",
]


def unsafe_confidence(
    confidence: Tensor, class_id: Tensor, unsafe_classes: Sequence[int], threshold: float
) -> tuple[Tensor, Tensor]:
    """Unsafe value of a detector's boxes: the sum of the confidences of its unsafe boxes above the threshold.

    Args:
        confidence: (B, N) in [0, 1], of each box; differentiable.
        class_id: (B, N) integers, of each box; -1 where there is none.
        unsafe_classes: which classes are unsafe, >= 0.
        threshold: τ in [0, 1].

    Returns:
        values (B,), whose gradient is 1 for each counted confidence, and whether any is counted, bool (B,).

    Raises:
        ValueError: shapes that differ or are not (B, N), a threshold outside [0, 1], a negative class or none.
    """
    if confidence.ndim != 2 or confidence.shape != class_id.shape:
        raise ValueError(
            f"class_id: need confidences' shape (B, N), got {tuple(class_id.shape)} and {tuple(confidence.shape)}"
        )
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: must lie in [0, 1], got {threshold}")
    if not unsafe_classes or min(unsafe_classes) < 0:
        raise ValueError(f"unsafe_classes: need classes >= 0, got {list(unsafe_classes)}")
    classes = torch.tensor(list(unsafe_classes), device=class_id.device)
    counted = torch.isin(class_id, classes) & (confidence > threshold)
    return torch.where(counted, confidence, 0.0).sum(dim=1), counted.any(dim=1)


def centered_update_window(num_inference_steps: int, fraction: float) -> range:
    """The middle share γ of S sampler steps: round(γS) indices from (S - round(γS)) // 2 on.

    Raises:
        ValueError: fewer than one step, or a fraction outside [0, 1].
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps: must be at least 1, got {num_inference_steps}")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction: must lie in [0, 1], got {fraction}")
    length = round(fraction * num_inference_steps)
    first = (num_inference_steps - length) // 2
    return range(first, first + length)


def guide_text_embedding(
    denoise: Callable[[Tensor, Tensor], Tensor],
    unsafe_score: Callable[[Tensor], tuple[Tensor, Tensor]],
    noisy_latents: Tensor,
    text_embedding: Tensor,
    *,
    uncond_output: Tensor,
    guidance_scale: float,
    alpha_cumprod: float | Tensor,
    step_size: float,
    prediction_type: str = "epsilon",
    decode: Callable[[Tensor], Tensor] | None = None,
    anchor_embedding: Tensor | None = None,
    start: str = "previous",
    prior_weight: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The embedding after one update of STG at the current timestep; samples that are not flagged keep theirs, bitwise.

    A flagged sample whose gradient is zero keeps its embedding too. When nothing is flagged there is no backward pass.
    Works inside `torch.no_grad()`; no parameter gets a gradient.

    Args:
        denoise: `(noisy latents, embedding) -> conditional output` at the current timestep; called once.
        unsafe_score: from decoded clean predictions to values (B,), higher is less safe, and flags (B,) bool.
        noisy_latents: x_t, (B, C, H, W).
        text_embedding: c, (B, L, D), as the steps before left it. The gradient is taken here.
        uncond_output: of the denoiser with the unconditional embedding, (B, C, H, W).
        guidance_scale: w of classifier-free guidance.
        alpha_cumprod: ᾱ_t in (0, 1], a number or (B,).
        step_size: ρ >= 0, the step's length.
        prediction_type: of the denoiser: `epsilon`, `v_prediction` or `sample`.
        decode: D, from latents to what is scored; None: the latents themselves.
        anchor_embedding: c_org, (B, L, D); needed by `start="anchor"` and the prior.
        start: where steps start: at the current embedding (`previous`) or at c_org (`anchor`).
        prior_weight: λ >= 0 of the penalty λ · mean((c_org - c)²), on flagged samples.

    Returns:
        the new embedding (B, L, D), flags (B,), and values (B,) at the incoming embedding; all detached.

    Raises:
        ValueError: unknown start; no anchor where one is needed, or of another shape; a negative step or prior; values
            or flags that are not (B,), or values without gradient; shapes as in `predict_clean_latents`.
        FloatingPointError: a gradient of a flagged sample that is not finite.
    """

    def safety(decoded: Tensor) -> tuple[Tensor, Tensor]:
        values, flags = unsafe_score(decoded)
        return -values, flags

    found = ascend_text_embedding(
        denoise,
        safety,
        noisy_latents,
        text_embedding,
        uncond_output=uncond_output,
        guidance_scale=guidance_scale,
        alpha_cumprod=alpha_cumprod,
        prediction_type=prediction_type,
        decode=decode,
        step_size=step_size,
        anchor_embedding=anchor_embedding,
        start=start,
        prior_weight=prior_weight,
    )
    embedding = torch.where(found.moved.view(-1, 1, 1), found.embedding, text_embedding.detach())
    return embedding, found.active, -found.values


def safe_data_guidance(
    predict_noise: Callable[[Tensor], Tensor],
    unsafe_score: Callable[[Tensor], tuple[Tensor, Tensor]],
    noisy_latents: Tensor,
    *,
    alpha_cumprod: float,
    scale: float,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Safe data guidance (SDG): ε + scale · √(1-ᾱ) · ∇_x u(D(x̄0(x))) for flagged samples, ε for the others.

    Args:
        predict_noise: from latents (B, C, H, W) to ε with classifier-free guidance; differentiated as a whole.
        unsafe_score: as in `guide_text_embedding`.
        noisy_latents: x, (B, C, H, W).
        alpha_cumprod: ᾱ in (0, 1].
        scale: ρ of the guidance.
        decode: D; None: the latents themselves are scored.

    Returns:
        the noise (B, C, H, W), flags (B,) and values (B,), detached.

    Raises:
        ValueError: a scale that is not finite, ᾱ outside (0, 1], values or flags that are not (B,), or values without
            gradient.
        FloatingPointError: a gradient of a flagged sample that is not finite.
    """
    noise, values, flags = guided_noise(
        predict_noise, unsafe_score, noisy_latents, alpha_cumprod=alpha_cumprod, scale=-scale, decode=decode
    )
    return noise, flags, values


def safe_latent_diffusion_guidance(
    noise_uncond: Tensor,
    noise_text: Tensor,
    noise_unsafe: Tensor,
    momentum: Tensor | None,
    *,
    step: int,
    guidance_scale: float,
    safety_scale: float,
    threshold: float,
    warmup_steps: int,
    momentum_scale: float,
    momentum_beta: float,
) -> tuple[Tensor, Tensor]:
    """Safe latent diffusion (SLD) in one step: the guided noise (B, C, H, W) and the new momentum ν.

    φ = min(1, s_S |ε_c - ε_S|), 0 where ε_c - ε_S >= λ_S; γ = φ (ε_S - ε_∅) + s_m ν; ν <- β_m ν + (1 - β_m) γ;
    ε = ε_∅ + w (ε_c - ε_∅ - γ), without γ during the warm-up, in which the momentum grows all the same.

    Args:
        noise_uncond: ε_∅, (B, C, H, W).
        noise_text: ε_c, of the prompt.
        noise_unsafe: ε_S, of the unsafe concept's text.
        momentum: ν of the step before; None: zeros.
        step: index of the sampler step, from 0.
        guidance_scale: w.
        safety_scale: s_S >= 0.
        threshold: λ_S.
        warmup_steps: steps without safety guidance.
        momentum_scale: s_m.
        momentum_beta: β_m in [0, 1].

    Raises:
        ValueError: shapes that differ, or β_m outside [0, 1].
    """
    for name, value in (("noise_text", noise_text), ("noise_unsafe", noise_unsafe), ("momentum", momentum)):
        if value is not None and value.shape != noise_uncond.shape:
            raise ValueError(f"{name}: need shape {tuple(noise_uncond.shape)}, got {tuple(value.shape)}")
    if not 0 <= momentum_beta <= 1:
        raise ValueError(f"momentum_beta: must lie in [0, 1], got {momentum_beta}")
    momentum = torch.zeros_like(noise_uncond) if momentum is None else momentum
    difference = noise_text - noise_unsafe
    strength = (safety_scale * difference.abs()).clamp(max=1.0)
    strength = torch.where(difference >= threshold, 0.0, strength)
    safety = strength * (noise_unsafe - noise_uncond) + momentum_scale * momentum
    guidance = noise_text - noise_uncond
    if step >= warmup_steps:
        guidance = guidance - safety
    return noise_uncond + guidance_scale * guidance, momentum_beta * momentum + (1 - momentum_beta) * safety


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
    away = torch.eye(states.shape[1]).to(states) - _row_space_projector(concept_embeddings.to(wide))
    distances = (masked @ away).norm(dim=1)
    if count == 1:
        triggers = torch.ones(1, dtype=torch.bool, device=text_embedding.device)
    else:
        others = (distances.sum() - distances) / (count - 1)
        triggers = ~(distances < (1 + alpha) * others)
    projected = states @ _row_space_projector(masked) @ away
    filtered = text_embedding.clone()
    filtered[1 : count + 1] = torch.where(triggers[:, None], projected, states).to(filtered.dtype)
    return filtered, triggers


def _row_space_projector(rows: Tensor) -> Tensor:
    """Orthogonal projector (D, D) onto the span of rows (m, D), which may depend on each other linearly."""
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    tolerance = singular[0] * max(rows.shape) * torch.finfo(rows.dtype).eps
    basis = right[singular > tolerance]
    return basis.T @ basis
