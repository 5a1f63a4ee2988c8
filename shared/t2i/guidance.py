"""Guidance by gradients of a reward on the predicted clean image: of the text embedding, and of the noisy latents.

Both differentiate h(D(x̄0)): the noisy latents x (B, C, H, W) and the denoiser's output give the clean prediction x̄0,
a decoder D makes an image of it, and h scores it with one number per sample. ᾱ is the cumulative signal level of the
noise schedule; the noisy latents are √ᾱ x0 + √(1-ᾱ) ε.

`ascend_text_embedding` moves the text embedding (DATE, and STG with the sign turned), `data_space_guidance` the noisy
latents (Universal Guidance; Bansal et al., 2023), which `universal_guidance` plugs into a sampler.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shared.t2i.step_method import NetworkStep, StepMethod

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
STARTS = ("previous", "anchor")
"""Where the steps of an embedding start: where the step before left it, or at the prompt's own."""

Denoise = Callable[[Tensor, Tensor], Tensor]
"""`(noisy latents, embedding (B, L, D)) -> output (B, C, H, W)` at the current timestep."""

Score = Callable[[Tensor], tuple[Tensor, Tensor]]
"""`decoded (B, ...) -> (values (B,), active (B,) bool)`; only active samples are guided."""

Decode = Callable[[Tensor], Tensor]


class Gradient(NamedTuple):
    """What :func:`embedding_gradient` finds; all detached.

    Attributes:
        gradient: (B, L, D), zero for samples that are not active.
        values: (B,).
        active: (B,) bool.
    """

    gradient: Tensor
    values: Tensor
    active: Tensor


class Ascent(NamedTuple):
    """What :func:`ascend_text_embedding` finds; all detached.

    Attributes:
        embedding: (B, L, D).
        values: (B,), of the score at the incoming embedding.
        active: (B,) bool, by the score at the incoming embedding.
        moved: (B,) bool, whether the gradient of an active sample is not zero.
    """

    embedding: Tensor
    values: Tensor
    active: Tensor
    moved: Tensor


def predict_clean_latents(
    noisy_latents: Tensor, model_output: Tensor, alpha_cumprod: float | Tensor, prediction_type: str = "epsilon"
) -> Tensor:
    """The clean latents x̄0 that a denoiser's output stands for, in the shape of the noisy ones.

    ε: (x - √(1-ᾱ) o) / √ᾱ; v: √ᾱ x - √(1-ᾱ) o; x0: o.

    Args:
        noisy_latents: x, (B, ...).
        model_output: o, of the same shape.
        alpha_cumprod: ᾱ in (0, 1], a number or (B,).
        prediction_type: `epsilon`, `v_prediction` or `sample`.

    Raises:
        ValueError: shapes that differ, an unknown type, or ᾱ outside (0, 1].
    """
    if noisy_latents.shape != model_output.shape:
        raise ValueError(f"model_output: need shape {tuple(noisy_latents.shape)}, got {tuple(model_output.shape)}")
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type: expected one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")
    alpha = _per_sample(alpha_cumprod, noisy_latents)
    if prediction_type == "epsilon":
        return (noisy_latents - (1 - alpha).sqrt() * model_output) / alpha.sqrt()
    if prediction_type == "v_prediction":
        return alpha.sqrt() * noisy_latents - (1 - alpha).sqrt() * model_output
    return model_output


def predict_noise(
    noisy_latents: Tensor, model_output: Tensor, alpha_cumprod: float | Tensor, prediction_type: str = "epsilon"
) -> Tensor:
    """The noise ε = (x - √ᾱ x̄0) / √(1-ᾱ) that a denoiser's output stands for; zeros where ᾱ is 1.

    Args and errors are those of `predict_clean_latents`, of which this is the counterpart.
    """
    if prediction_type == "epsilon" and noisy_latents.shape == model_output.shape:
        return model_output
    clean = predict_clean_latents(noisy_latents, model_output, alpha_cumprod, prediction_type)
    alpha = _per_sample(alpha_cumprod, noisy_latents)
    scale = (1 - alpha).sqrt()
    return torch.where(scale > 0, (noisy_latents - alpha.sqrt() * clean) / scale, 0.0)


def output_of_noise(
    noisy_latents: Tensor, noise: Tensor, alpha_cumprod: float | Tensor, prediction_type: str = "epsilon"
) -> Tensor:
    """The denoiser's output that stands for a noise ε: the inverse of `predict_noise`, with its errors."""
    if prediction_type == "epsilon" and noisy_latents.shape == noise.shape:
        return noise
    clean = predict_clean_latents(noisy_latents, noise, alpha_cumprod, "epsilon")
    if prediction_type == "sample":
        return clean
    if prediction_type == "v_prediction":
        alpha = _per_sample(alpha_cumprod, noisy_latents)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    raise ValueError(f"prediction_type: expected one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")


def normalized_ascent_step(base_embedding: Tensor, gradient: Tensor, step_size: float) -> Tensor:
    """base + step_size · g / ‖g‖, one norm over all axes of each sample.

    Args:
        base_embedding: (B, ...), at least two axes.
        gradient: of the same shape; a sample whose gradient is zero keeps its base.
        step_size: the step's length, >= 0.

    Raises:
        ValueError: shapes that differ or have less than two axes, or a step that is negative or not finite.
        FloatingPointError: a gradient that is not finite.
    """
    if base_embedding.shape != gradient.shape or gradient.ndim < 2:
        raise ValueError(
            f"gradient: need the embedding's shape with two axes or more, got {tuple(gradient.shape)} "
            f"and {tuple(base_embedding.shape)}"
        )
    check_step_size(step_size)
    check_finite(gradient)
    # In single precision at least, and relative to the largest entry: squares of small numbers would vanish.
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    axes = tuple(range(1, gradient.ndim))
    largest = wide.abs().amax(dim=axes, keepdim=True)
    moved = largest > 0
    relative = wide / torch.where(moved, largest, 1.0)
    length = relative.square().sum(dim=axes, keepdim=True).sqrt()
    unit = relative / torch.where(moved, length, 1.0)
    return torch.where(moved, base_embedding + (step_size * unit).to(base_embedding.dtype), base_embedding)


def embedding_gradient(
    denoise: Denoise,
    score: Score,
    noisy_latents: Tensor,
    text_embedding: Tensor,
    *,
    uncond_output: Tensor,
    guidance_scale: float,
    alpha_cumprod: float | Tensor,
    prediction_type: str = "epsilon",
    decode: Decode | None = None,
) -> Gradient:
    """Gradient of the score of the guided clean prediction with respect to the text embedding, by sample.

    It flows through the conditional output, classifier-free guidance, the clean prediction, the decoder and the score.
    `denoise` is called once; there is no backward pass when no sample is active. Works inside `torch.no_grad()` and
    leaves no gradient on any parameter.

    Args:
        denoise: the network with its condition.
        score: of decoded clean predictions.
        noisy_latents: (B, C, H, W).
        text_embedding: (B, L, D).
        uncond_output: of the network without its condition, (B, C, H, W).
        guidance_scale: w of classifier-free guidance.
        alpha_cumprod: ᾱ in (0, 1], a number or (B,).
        prediction_type: of the network.
        decode: from latents to what is scored; None: the latents themselves.

    Raises:
        ValueError: shapes, prediction type or ᾱ as in `predict_clean_latents`; values or flags that are not (B,); or
            values on which the embedding has no influence that could be differentiated.
        FloatingPointError: a gradient of an active sample that is not finite.
    """
    if len(text_embedding) != len(noisy_latents):
        raise ValueError(f"text_embedding: need {len(noisy_latents)} samples, got {len(text_embedding)}")
    if uncond_output.shape != noisy_latents.shape:
        raise ValueError(f"uncond_output: need shape {tuple(noisy_latents.shape)}, got {tuple(uncond_output.shape)}")
    with torch.enable_grad():
        leaf = text_embedding.detach().clone().requires_grad_()
        output = denoise(noisy_latents.detach(), leaf)
        guided = uncond_output.detach() + guidance_scale * (output - uncond_output.detach())
        clean = predict_clean_latents(noisy_latents.detach(), guided, alpha_cumprod, prediction_type)
        values, active = _scored(score, clean if decode is None else decode(clean), len(noisy_latents))
        gradient = _gradient(values, active, leaf)
    return Gradient(gradient, values.detach(), active)


def ascend_text_embedding(
    denoise: Denoise,
    score: Score,
    noisy_latents: Tensor,
    text_embedding: Tensor,
    *,
    step_size: float,
    anchor_embedding: Tensor | None = None,
    start: str = "previous",
    num_updates: int = 1,
    prior_weight: float = 0.0,
    normalize: bool = True,
    **guidance: Any,
) -> Ascent:
    """The embedding after some steps of length ρ along the score's gradient; samples that are not active keep theirs.

    Works inside `torch.no_grad()`; no parameter gets a gradient.

    Args:
        denoise: as in `embedding_gradient`; called `num_updates` times.
        score: as there; it is raised.
        noisy_latents: (B, C, H, W).
        text_embedding: (B, L, D), as the sampler's steps before left it. The first gradient is taken here.
        step_size: ρ >= 0, the step's length; with `normalize=False` the gradient's factor.
        anchor_embedding: c_org, (B, L, D), the prompt's own; needed by `start="anchor"` and the prior.
        start: where steps start: at the current embedding (`previous`) or at c_org (`anchor`).
        num_updates: K >= 1 steps, each with a gradient of its own.
        prior_weight: λ >= 0 of the penalty λ · mean((c_org - c)²).
        normalize: whether the gradient is scaled to unit length.
        guidance: what else `embedding_gradient` takes.

    Raises:
        ValueError: unknown start; no anchor where one is needed, or of another shape; fewer than one update; a negative
            step or prior; and as `embedding_gradient`.
        FloatingPointError: as `embedding_gradient`.
    """
    check_step_size(step_size)
    check_start(start, text_embedding, anchor_embedding, prior_weight)
    if num_updates < 1:
        raise ValueError(f"num_updates: must be at least 1, got {num_updates}")
    embedding, first = text_embedding.detach(), None
    for _ in range(num_updates):
        found = embedding_gradient(denoise, score, noisy_latents, embedding, **guidance)
        gradient = found.gradient
        if prior_weight:
            gradient = gradient - prior_weight * prior_gradient(embedding, anchor_embedding)
        base = embedding if start == "previous" else anchor_embedding.detach()
        stepped = _step(base, gradient, step_size, normalize)
        embedding = torch.where(found.active.view(-1, 1, 1), stepped, embedding)
        first = found if first is None else first
    return Ascent(embedding, first.values, first.active, found.active & (gradient != 0).flatten(1).any(dim=1))


def _step(base: Tensor, gradient: Tensor, step_size: float, normalize: bool) -> Tensor:
    if normalize:
        return normalized_ascent_step(base, gradient, step_size)
    check_finite(gradient)
    return base + step_size * gradient


def guided_noise(
    predict_noise: Callable[[Tensor], Tensor],
    score: Score,
    noisy_latents: Tensor,
    *,
    alpha_cumprod: float,
    scale: float,
    decode: Decode | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Guidance of the noisy latents themselves: ε - scale · √(1-ᾱ) · ∇_x score(D(x̄0(x))) for active samples.

    Args:
        predict_noise: from latents (B, C, H, W) to ε with classifier-free guidance; differentiated as a whole.
        score: of decoded clean predictions.
        noisy_latents: (B, C, H, W).
        alpha_cumprod: ᾱ in (0, 1].
        scale: of the guidance; positive raises the score.
        decode: as in `embedding_gradient`.

    Returns:
        the noise (B, C, H, W), values (B,) and active (B,), detached.

    Raises:
        ValueError: as `embedding_gradient`, or a scale that is not finite.
        FloatingPointError: as `embedding_gradient`.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale: must be finite, got {scale}")
    with torch.enable_grad():
        leaf = noisy_latents.detach().clone().requires_grad_()
        noise = predict_noise(leaf)
        clean = predict_clean_latents(leaf, noise, alpha_cumprod, "epsilon")
        values, active = _scored(score, clean if decode is None else decode(clean), len(noisy_latents))
        gradient = _gradient(values, active, leaf)
    return noise.detach() - scale * math.sqrt(1 - alpha_cumprod) * gradient, values.detach(), active


def data_space_guidance(
    predict_noise: Callable[[Tensor], Tensor],
    evaluate: Callable[[Tensor], Tensor],
    noisy_latents: Tensor,
    *,
    alpha_cumprod: float,
    scale: float,
    decode: Decode | None = None,
) -> tuple[Tensor, Tensor]:
    """Universal Guidance: ε - scale · √(1-ᾱ) · ∇_x h(D(x̄0(x))), and the scores (B,); both detached.

    Args:
        predict_noise: from latents (B, C, H, W) to ε with classifier-free guidance.
        evaluate: h, from decoded clean predictions to (B,); higher is better.
        noisy_latents: x, (B, C, H, W).
        alpha_cumprod: ᾱ in (0, 1].
        scale: of the guidance.
        decode: D; None: the latents themselves are evaluated.

    Raises:
        ValueError: a scale that is not finite, ᾱ outside (0, 1], or scores that are not (B,) or have no gradient.
        FloatingPointError: a gradient that is not finite.
    """
    noise, scores, _ = guided_noise(
        predict_noise, for_all(evaluate), noisy_latents, alpha_cumprod=alpha_cumprod, scale=scale, decode=decode
    )
    return noise, scores


def universal_guidance(evaluate: Callable[[Tensor], Tensor], scale: float) -> StepMethod:
    """`data_space_guidance` in all steps of a sampler; it evaluates the network with and without prompt once more.

    Args:
        evaluate: h, from images of the sampler's range to rewards (B,).
        scale: of the guidance.
    """

    def guide(step: NetworkStep, guided_output: Tensor) -> Tensor:
        parametrisation = (step.alpha_cumprod, step.prediction_type)
        noise, _ = data_space_guidance(
            lambda latents: predict_noise(latents, step.predict(latents), *parametrisation),
            evaluate,
            step.latents,
            alpha_cumprod=step.alpha_cumprod,
            scale=scale,
            decode=step.decode,
        )
        return output_of_noise(step.latents, noise, *parametrisation)

    return StepMethod(change_output=guide)


def for_all(evaluate: Callable[[Tensor], Tensor]) -> Score:
    """A reward as a score by which every sample is guided."""

    def score(decoded: Tensor) -> tuple[Tensor, Tensor]:
        values = evaluate(decoded)
        return values, torch.ones(len(decoded), dtype=torch.bool, device=values.device)

    return score


def prior_gradient(embedding: Tensor, anchor_embedding: Tensor) -> Tensor:
    """Gradient of mean_{l,d} (c_org - c)² with respect to c, (B, L, D)."""
    return 2 * (embedding - anchor_embedding).detach() / embedding[0].numel()


def check_start(start: str, embedding: Tensor, anchor: Tensor | None, prior_weight: float) -> None:
    """Refuse, with a ValueError, an unknown start, and an anchor that is missing or of another shape."""
    if start not in STARTS:
        raise ValueError(f"start: expected one of {', '.join(STARTS)}, got {start!r}")
    if not prior_weight >= 0:
        raise ValueError(f"prior_weight: must not be negative, got {prior_weight}")
    if anchor is None and (start == "anchor" or prior_weight > 0):
        raise ValueError(f"anchor_embedding: needed with start={start!r} and prior_weight={prior_weight}")
    if anchor is not None and anchor.shape != embedding.shape:
        raise ValueError(f"anchor_embedding: need shape {tuple(embedding.shape)}, got {tuple(anchor.shape)}")


def check_step_size(step_size: float) -> None:
    """Refuse a step that is negative or not finite with a ValueError."""
    if not (math.isfinite(step_size) and step_size >= 0):
        raise ValueError(f"step_size: must be finite and not negative, got {step_size}")


def check_finite(gradient: Tensor) -> None:
    """Refuse a gradient that is not finite with a FloatingPointError that counts the samples."""
    if not torch.isfinite(gradient).all():
        broken = (~torch.isfinite(gradient)).flatten(1).any(dim=1)
        raise FloatingPointError(f"gradient: not finite in {int(broken.sum())} of {len(gradient)} samples")


def _per_sample(alpha_cumprod: float | Tensor, latents: Tensor) -> Tensor:
    """ᾱ in the latents' dtype, broadcastable over them."""
    alpha = torch.as_tensor(alpha_cumprod, dtype=latents.dtype, device=latents.device)
    if alpha.ndim > 1 or (alpha.ndim == 1 and len(alpha) != len(latents)):
        raise ValueError(f"alpha_cumprod: need a number or ({len(latents)},), got shape {tuple(alpha.shape)}")
    if not ((alpha > 0) & (alpha <= 1)).all():
        raise ValueError(f"alpha_cumprod: must lie in (0, 1], got {alpha.tolist()}")
    return alpha.view(-1, *[1] * (latents.ndim - 1)) if alpha.ndim else alpha


def _scored(score: Score, decoded: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    values, active = score(decoded)
    if values.shape != (batch,) or active.shape != (batch,) or active.dtype != torch.bool:
        raise ValueError(
            f"score: need values and flags of shape ({batch},), got {tuple(values.shape)} and "
            f"{tuple(active.shape)} of {active.dtype}"
        )
    return values, active


def _gradient(values: Tensor, active: Tensor, leaf: Tensor) -> Tensor:
    if not active.any():
        return torch.zeros_like(leaf)
    gradient = None
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values[active].sum(), leaf, allow_unused=True)
    if gradient is None:
        raise ValueError("score: its values have no gradient with respect to what is guided")
    check_finite(gradient[active])
    rows = active.view(-1, *[1] * (leaf.ndim - 1))
    return torch.where(rows, gradient, 0.0)
