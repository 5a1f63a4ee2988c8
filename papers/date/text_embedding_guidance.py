"""Diffusion adaptive text embedding (DATE): the prompt's embedding follows a reward while the image is sampled.

Byeonghu Na, Minsang Park, Gyuwon Sim, Donghyeok Shin, HeeSun Bae, Mina Kang, Se Jung Kwon, Wanmo Kang, Il-Chul Moon.
"Diffusion Adaptive Text Embedding for Text-to-Image Diffusion Models", NeurIPS 2025, arXiv 2510.23974.

Samplers feed one embedding c_org to the denoiser at every step. DATE asks at step t which embedding near it makes the
image best, taking the one-step prediction for the image: it maximises

    h_t(c) = h(D(x̄0(x_t, c)); y)   subject to   ‖c - c_org‖ <= ρ,

and to first order the solution is a step of length ρ along the gradient,

    ĉ_t = c_org + ρ g / ‖g‖,   g = ∇_c h_t(c).

In practice the step starts from the embedding of the step before (`start="previous"`), which then carries over to all
later steps. One norm is taken over all positions and features (L, D) of a sample; the unconditional embedding is never
touched. `adapt_text_embedding` is one such update; `update_step_indices` says in which sampler steps it happens. The
gradient and the step themselves are in `shared.t2i.guidance` (`ascend_text_embedding`), since STG takes the same ones
away from what is unsafe; so is Universal Guidance (`data_space_guidance`), the baseline that moves the noisy latents.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from shared.t2i.guidance import (
    ascend_text_embedding,
    data_space_guidance,
    for_all,
    normalized_ascent_step,
    predict_clean_latents,
)

__all__ = [
    "adapt_text_embedding",
    "data_space_guidance",
    "normalized_ascent_step",
    "predict_clean_latents",
    "update_step_indices",
]


def update_step_indices(
    num_inference_steps: int,
    *,
    every: int | None = None,
    window: tuple[int, int] | None = None,
    indices: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """The sampler steps, counted from the noisiest, in which the embedding is updated; sorted.

    Args:
        num_inference_steps: S >= 1.
        every: 0, every, 2·every, ...
        window: (a, b) for a, ..., b - 1.
        indices: these steps.

    Raises:
        ValueError: not exactly one of the three, or steps outside of 0, ..., S - 1.
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps: must be at least 1, got {num_inference_steps}")
    if sum(selector is not None for selector in (every, window, indices)) != 1:
        raise ValueError("every, window, indices: need exactly one of them")
    if every is not None:
        if every < 1:
            raise ValueError(f"every: must be at least 1, got {every}")
        return tuple(range(0, num_inference_steps, every))
    if window is not None:
        first, last = window
        if not 0 <= first <= last <= num_inference_steps:
            raise ValueError(f"window: need 0 <= a <= b <= {num_inference_steps}, got {window}")
        return tuple(range(first, last))
    chosen = tuple(sorted(set(indices or ())))
    if chosen and not 0 <= chosen[0] <= chosen[-1] < num_inference_steps:
        raise ValueError(f"indices: must lie in 0..{num_inference_steps - 1}, got {chosen}")
    return chosen


def adapt_text_embedding(
    denoise: Callable[[Tensor, Tensor], Tensor],
    evaluate: Callable[[Tensor], Tensor],
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
    num_updates: int = 1,
    prior_weight: float = 0.0,
    normalize: bool = True,
) -> tuple[Tensor, Tensor]:
    """The embedding after one update of DATE at the current timestep, for each sample by itself.

    `denoise` is called `num_updates` times. Works inside `torch.no_grad()`; no parameter gets a gradient.

    Args:
        denoise: `(noisy latents, embedding) -> conditional output` at the current timestep.
        evaluate: h, from decoded clean predictions to (B,); higher is better.
        noisy_latents: x_t, (B, C, H, W).
        text_embedding: c, (B, L, D), as the steps before left it. Gradients are taken here.
        uncond_output: of the denoiser with the unconditional embedding, (B, C, H, W).
        guidance_scale: w of classifier-free guidance.
        alpha_cumprod: ᾱ_t in (0, 1], a number or (B,).
        step_size: ρ >= 0; the step's length, or with `normalize=False` the gradient's factor.
        prediction_type: of the denoiser: `epsilon`, `v_prediction` or `sample`.
        decode: D, from latents to what is evaluated; None: the latents themselves.
        anchor_embedding: c_org, (B, L, D); needed by `start="anchor"` and the prior.
        start: where steps start: at the current embedding (`previous`) or at c_org (`anchor`).
        num_updates: K >= 1 updates at this timestep, each with a gradient of its own.
        prior_weight: λ >= 0 of the penalty λ · mean((c_org - c)²).
        normalize: whether the gradient is scaled to unit length.

    Returns:
        the new embedding (B, L, D), and the scores (B,) at the incoming one; both detached.

    Raises:
        ValueError: unknown start; no anchor where one is needed, or of another shape; fewer than one update; a negative
            step or prior; scores that are not (B,) or have no gradient; shapes as in `predict_clean_latents`.
        FloatingPointError: a gradient that is not finite.
    """
    found = ascend_text_embedding(
        denoise,
        for_all(evaluate),
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
        num_updates=num_updates,
        prior_weight=prior_weight,
        normalize=normalize,
    )
    return found.embedding, found.values
