"""Guidance away from a concept's embedding, in one sampler step: what explicit and implicit negatives plug into.

Safe latent diffusion is that of `shared.t2i.safe_latent_diffusion`. A negative prompt is classifier-free guidance from
the concept's prediction, ε = ε_θ(c_*) + w (ε_θ(c_p) - ε_θ(c_*)); in `negative_guidance` with a strength of its own.
"""

from torch import Tensor

from shared.t2i.safe_latent_diffusion import safe_latent_diffusion_guidance


def safe_latent_guidance(
    noise_uncond: Tensor,
    noise_text: Tensor,
    noise_concept: Tensor,
    momentum: Tensor | None,
    step_index: int,
    *,
    guidance_scale: float,
    safety_scale: float,
    threshold: float,
    momentum_scale: float,
    momentum_beta: float,
    warmup_steps: int,
) -> tuple[Tensor, Tensor]:
    """SLD in one step: the guided noise and the new momentum, as `safe_latent_diffusion_guidance` gives them.

    φ = s_S (ε_p - ε_S); μ = min(|φ|, 1) where ε_p - ε_S < λ_S, else 0; γ = μ (ε_S - ε_∅) + s_m ν;
    ν <- β_m ν + (1 - β_m) γ; ε = ε_∅ + w (ε_p - ε_∅ - 1{i >= δ} γ).

    Args:
        noise_uncond: ε_∅, (B, C, H, W).
        noise_text: ε_p, of the prompt.
        noise_concept: ε_S, of the concept, in words or learned.
        momentum: ν of the step before; None: zeros.
        step_index: i, from 0.
        guidance_scale: w.
        safety_scale: s_S.
        threshold: λ_S.
        momentum_scale: s_m.
        momentum_beta: β_m.
        warmup_steps: δ.

    Raises:
        ValueError: shapes that differ, or β_m outside [0, 1].
    """
    return safe_latent_diffusion_guidance(
        noise_uncond,
        noise_text,
        noise_concept,
        momentum,
        step=step_index,
        guidance_scale=guidance_scale,
        safety_scale=safety_scale,
        threshold=threshold,
        warmup_steps=warmup_steps,
        momentum_scale=momentum_scale,
        momentum_beta=momentum_beta,
    )


def negative_guidance(
    uncond_output: Tensor, cond_output: Tensor, concept_output: Tensor, *, guidance_scale: float, strength: float
) -> Tensor:
    """o_∅ + w (o_p - o_∅) - s (w - 1) (o_n - o_∅), all (B, C, H, W).

    s = 1 is the negative prompt, classifier-free guidance from o_n in o_∅'s place; s = 0 is none. At s > 1 it is
    stronger than the pipeline's own can be.
    """
    plain = uncond_output + guidance_scale * (cond_output - uncond_output)
    return plain - strength * (guidance_scale - 1) * (concept_output - uncond_output)
