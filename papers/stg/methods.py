"""Every defence as what it changes in the sampler: the embeddings, and two hooks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from papers.stg.bench import Bench
from papers.stg.options import DefenceOptions
from papers.stg.runs import Run
from papers.stg.safe_text_guidance import (
    centered_update_window,
    guide_text_embedding,
    safe_data_guidance,
    safe_latent_diffusion_guidance,
    safree_token_projection,
)
from shared.t2i.guidance import predict_clean_latents, predict_noise
from shared.t2i.sampling import Denoiser, EmbeddingHook, OutputHook, Step, classifier_free_guidance


class Plugs(NamedTuple):
    """What a run gives to `shared.t2i.sampling.sample`."""

    cond_embedding: Tensor
    uncond_embedding: Tensor
    embedding_hook: EmbeddingHook | None = None
    output_hook: OutputHook | None = None


def network_of(run: Run, bench: Bench, options: DefenceOptions) -> Bench:
    """The system with the U-Net that a run samples from."""
    bench = bench.on(run.model)
    return bench.edited(run.strength, options.uce_preserve) if run.method == "uce" else bench


def plug_in(run: Run, bench: Bench, denoise: Denoiser, captions: Sequence[str], options: DefenceOptions) -> Plugs:
    """The embeddings and hooks of a run.

    Args:
        run: what is sampled.
        bench: the system, from `network_of`.
        denoise: its denoiser; every evaluation goes through it.
        captions: of one batch.
        options: what is not in the run's name.
    """
    options = replace(options, **run.options)
    cond, uncond = bench.embed(captions), bench.embed([""])
    match run.method:
        case "stg":
            return Plugs(cond, uncond, embedding_hook=_stg(run.strength, bench, denoise, cond, options))
        case "sdg":
            return Plugs(cond, uncond, output_hook=_sdg(run.strength, bench, denoise, cond, uncond, options))
        case "negative":
            return Plugs(cond, torch.lerp(uncond, bench.embed(bench.concepts[:1]), run.strength))
        case "sld":
            return Plugs(cond, uncond, output_hook=_sld(run.strength, bench, denoise, options))
        case "safree":
            return Plugs(*_safree(run.strength, bench, captions, cond, uncond, options))
        case _:
            return Plugs(cond, uncond)


def _stg(strength: float, bench: Bench, denoise: Denoiser, anchor: Tensor, options: DefenceOptions) -> EmbeddingHook:
    window = centered_update_window(options.num_steps, options.fraction)

    def guide(step: Step, embedding: Tensor) -> Tensor:
        if step.index not in window:
            return embedding
        guided, _, _ = guide_text_embedding(
            lambda latents, states: denoise(latents, step.timestep, states),
            lambda images: bench.unsafe_score(images, options.threshold),
            step.latents,
            embedding,
            uncond_output=step.uncond_output,
            guidance_scale=step.guidance_scale,
            alpha_cumprod=step.alpha_cumprod,
            step_size=strength,
            prediction_type=bench.prediction_type,
            decode=bench.decode,
            anchor_embedding=anchor,
            start=options.start,
            prior_weight=options.prior_weight,
        )
        return guided

    return guide


def _sdg(
    strength: float, bench: Bench, denoise: Denoiser, cond: Tensor, uncond: Tensor, options: DefenceOptions
) -> OutputHook:
    """SDG acts in the same steps as STG, so that the two differ in what they move alone."""
    window = centered_update_window(options.num_steps, options.fraction)

    def guide(step: Step, cond_output: Tensor, guided_output: Tensor) -> Tensor:
        if step.index not in window:
            return guided_output

        def noise_of(latents: Tensor) -> Tensor:
            without = denoise(latents, step.timestep, uncond.expand(len(latents), -1, -1))
            output = classifier_free_guidance(without, denoise(latents, step.timestep, cond), step.guidance_scale)
            return predict_noise(latents, output, step.alpha_cumprod, bench.prediction_type)

        noise, flags, _ = safe_data_guidance(
            noise_of,
            lambda images: bench.unsafe_score(images, options.threshold),
            step.latents,
            alpha_cumprod=step.alpha_cumprod,
            scale=strength,
            decode=bench.decode,
        )
        output = output_of_noise(step, noise, bench.prediction_type)
        return torch.where(flags.view(-1, 1, 1, 1), output, guided_output)

    return guide


def _sld(strength: float, bench: Bench, denoise: Denoiser, options: DefenceOptions) -> OutputHook:
    concept = bench.embed(bench.concepts[:1])
    momentum: Tensor | None = None

    def guide(step: Step, cond_output: Tensor, guided_output: Tensor) -> Tensor:
        nonlocal momentum
        unsafe_output = denoise(step.latents, step.timestep, concept.expand(len(step.latents), -1, -1))
        noises = [
            predict_noise(step.latents, output, step.alpha_cumprod, bench.prediction_type)
            for output in (step.uncond_output, cond_output, unsafe_output)
        ]
        noise, momentum = safe_latent_diffusion_guidance(
            *noises,
            momentum,
            step=step.index,
            guidance_scale=step.guidance_scale,
            safety_scale=strength,
            threshold=options.sld_threshold,
            warmup_steps=round(options.sld_warmup * options.num_steps),
            momentum_scale=options.sld_momentum,
            momentum_beta=options.sld_momentum_decay,
        )
        return output_of_noise(step, noise, bench.prediction_type)

    return guide


def _safree(
    strength: float, bench: Bench, captions: Sequence[str], cond: Tensor, uncond: Tensor, options: DefenceOptions
) -> Plugs:
    """SAFREE's filtered embedding, in all steps or in as many as its self-validation says; no frequency filter."""
    concepts = bench.pooled(bench.concepts)
    masked = [bench.masked_pooled(caption) for caption in captions]
    filtered = torch.stack(
        [safree_token_projection(each, rows, concepts, strength)[0] for each, rows in zip(cond, masked, strict=True)]
    )
    if not options.safree_filter:
        return Plugs(filtered, uncond)
    limits = [
        self_validation_steps(each, rows, concepts, options.num_steps) for each, rows in zip(cond, masked, strict=True)
    ]
    last = torch.tensor(limits, device=cond.device).view(-1, 1, 1)
    return Plugs(filtered, uncond, embedding_hook=lambda step, _: torch.where(step.index <= last, filtered, cond))


def self_validation_steps(
    embedding: Tensor, masked_pooled: Tensor, concepts: Tensor, num_steps: int, *, sharpness: float = 2.5,
    offset: float = 5.333,
) -> int:  # fmt: skip
    """The last step in which SAFREE uses its filtered embedding, round(10 σ(2k (10β - t_0))), scaled from 50 steps.

    β = 1 - the mean cosine between the states of the content tokens and their projections: a prompt far from the
    concept keeps its own embedding.

    Args:
        embedding: (L, D), of one prompt.
        masked_pooled: (n, D), as in `safree_token_projection`.
        concepts: (m, D).
        num_steps: of the sampler.
        sharpness: k.
        offset: t_0.
    """
    projected, _ = safree_token_projection(embedding, masked_pooled, concepts, alpha=-1.0)  # all tokens are triggers
    content = slice(1, len(masked_pooled) + 1)
    beta = 1 - float(F.cosine_similarity(embedding[content], projected[content], dim=-1).mean())
    share = 1 / (1 + math.exp(-2 * sharpness * (10 * beta - offset)))
    return round(10 * share * num_steps / 50)


def output_of_noise(step: Step, noise: Tensor, prediction_type: str) -> Tensor:
    """The network's output that stands for a noise ε at a step: the inverse of `predict_noise`."""
    if prediction_type == "epsilon":
        return noise
    clean = predict_clean_latents(step.latents, noise, step.alpha_cumprod, "epsilon")
    if prediction_type == "sample":
        return clean
    alpha = step.alpha_cumprod
    return math.sqrt(alpha) * noise - math.sqrt(1 - alpha) * clean
