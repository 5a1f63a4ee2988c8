"""Safe text embedding guidance (STG), and the defences it is compared with, as functions of one sampler step.

Byeonghu Na, Mina Kang, Jiseok Kwak, Minsang Park, Jiwoo Shin, SeJoon Jun, Gayoung Lee, Jin-Hwa Kim, Il-Chul Moon.
"Training-Free Safe Text Embedding Guidance for Text-to-Image Diffusion Models", NeurIPS 2025, arXiv 2510.24012.

Let u(x0) = -g(x0) be how unsafe a clean image is, with a flag that says whether it is unsafe at all. While the one-step
prediction x̄0(x_t, c) is flagged, STG moves the text embedding against the gradient of u,

    c <- c - ρ ∇_c u / ‖∇_c u‖,

and to first order the score then gains a term towards safety (Theorem 1): s(x, c + ρv) = s(x, c) + ρ ∇_x(v·∇_c log
q_t(x|c)) + O(ρ²). The sample stays in the model's own conditional family, unlike under guidance of the noisy latents
(SDG, `safe_data_guidance`), which can push it off the images the model knows.

Of the other defences, `safe_latent_diffusion_guidance` is that of `shared.t2i.safe_latent_diffusion`, and
`safree_token_projection` that of `shared.t2i.token_filtering`.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from shared.t2i.guidance import ascend_text_embedding, guided_noise, normalized_ascent_step, predict_clean_latents
from shared.t2i.safe_latent_diffusion import safe_latent_diffusion_guidance
from shared.t2i.step_method import NetworkStep, StepMethod
from shared.t2i.token_filtering import safree_token_projection

__all__ = [
    "centered_update_window",
    "guide_text_embedding",
    "normalized_ascent_step",
    "predict_clean_latents",
    "safe_data_guidance",
    "safe_latent_diffusion_guidance",
    "safe_text_step",
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


def safe_text_step(
    unsafe_score: Callable[[Tensor], tuple[Tensor, Tensor]],
    *,
    step_size: float,
    steps: Iterable[int],
    start: str = "previous",
    prior_weight: float = 0.0,
) -> StepMethod:
    """STG as what acts in a sampler's steps.

    Args:
        unsafe_score: from images of the sampler's range to values and flags, as in `guide_text_embedding`.
        step_size: ρ >= 0.
        steps: in which the embedding may be updated; see `centered_update_window`.
        start: as in `guide_text_embedding`.
        prior_weight: as in `guide_text_embedding`.
    """

    def update(step: NetworkStep, embedding: Tensor, anchor: Tensor) -> Tensor:
        guided, _, _ = guide_text_embedding(
            step.denoise,
            unsafe_score,
            step.latents,
            embedding,
            **step.guidance,
            step_size=step_size,
            anchor_embedding=anchor,
            start=start,
            prior_weight=prior_weight,
        )
        return guided

    return StepMethod(change_embedding=update, steps=frozenset(steps))


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
