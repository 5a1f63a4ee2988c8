"""Every defence as what it changes in the sampler: the embeddings, and two hooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from papers.stg.options import DefenceOptions
from papers.stg.runs import Run
from papers.stg.safe_text_guidance import (
    centered_update_window,
    guide_text_embedding,
    safe_data_guidance,
)
from shared.t2i.bench import Bench
from shared.t2i.defences import Plugs, filtered_prompts, negative_prompt, output_of_noise, sld_hook
from shared.t2i.guidance import predict_noise
from shared.t2i.sampling import Denoiser, EmbeddingHook, OutputHook, Step, classifier_free_guidance


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
    cond, uncond = bench.text.embed(captions), bench.text.embed([""])
    concept = bench.text.embed(bench.concepts[:1])
    match run.method:
        case "stg":
            return Plugs(cond, uncond, embedding_hook=_stg(run.strength, bench, denoise, cond, options))
        case "sdg":
            return Plugs(cond, uncond, output_hook=_sdg(run.strength, bench, denoise, cond, uncond, options))
        case "negative":
            return Plugs(cond, negative_prompt(uncond, concept, run.strength))
        case "sld":
            return Plugs(cond, uncond, output_hook=_sld(run.strength, bench, denoise, concept, options))
        case "safree":
            steps = options.num_steps if options.safree_filter else None
            concepts = bench.text.pooled(bench.concepts)
            filtered, hook = filtered_prompts(bench, captions, concepts, alpha=run.strength, num_steps=steps)
            return Plugs(filtered, uncond, embedding_hook=hook)
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


def _sld(strength: float, bench: Bench, denoise: Denoiser, concept: Tensor, options: DefenceOptions) -> OutputHook:
    return sld_hook(
        denoise,
        bench.prediction_type,
        concept,
        safety_scale=strength,
        threshold=options.sld_threshold,
        warmup_steps=round(options.sld_warmup * options.num_steps),
        momentum_scale=options.sld_momentum,
        momentum_beta=options.sld_momentum_decay,
    )
