"""Every defence as what it changes in the sampler: the embeddings, and what acts in its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from papers.stg.options import DefenceOptions
from papers.stg.runs import Run
from papers.stg.safe_text_guidance import centered_update_window, safe_data_guidance, safe_text_step
from shared.t2i.bench import Bench
from shared.t2i.defences import Plugs, filtered_prompts, negative_prompt, sld
from shared.t2i.guidance import output_of_noise, predict_noise
from shared.t2i.step_method import NetworkStep, StepMethod


def network_of(run: Run, bench: Bench, options: DefenceOptions) -> Bench:
    """The system with the U-Net that a run samples from."""
    bench = bench.on(run.model)
    return bench.edited(run.strength, options.uce_preserve) if run.method == "uce" else bench


def plug_in(run: Run, bench: Bench, captions: Sequence[str], options: DefenceOptions) -> Plugs:
    """What a run samples with.

    Args:
        run: what is sampled.
        bench: the system, from `network_of`.
        captions: of one batch.
        options: what is not in the run's name.
    """
    options = replace(options, **run.options)
    cond, uncond = bench.text.embed(captions), bench.text.embed([""])
    concept = bench.text.embed(bench.concepts[:1])
    match run.method:
        case "stg":
            return Plugs(cond, uncond, _stg(run.strength, bench, options))
        case "sdg":
            return Plugs(cond, uncond, _sdg(run.strength, bench, options))
        case "negative":
            return Plugs(cond, negative_prompt(uncond, concept, run.strength))
        case "sld":
            return Plugs(cond, uncond, _sld(run.strength, concept, options))
        case "safree":
            steps = options.num_steps if options.safree_filter else None
            concepts = bench.text.pooled(bench.concepts)
            filtered, method = filtered_prompts(bench, captions, concepts, alpha=run.strength, num_steps=steps)
            return Plugs(filtered, uncond, method)
        case _:
            return Plugs(cond, uncond)


def _stg(strength: float, bench: Bench, options: DefenceOptions) -> StepMethod:
    return safe_text_step(
        lambda images: bench.unsafe_score(images, options.threshold),
        step_size=strength,
        steps=centered_update_window(options.num_steps, options.fraction),
        start=options.start,
        prior_weight=options.prior_weight,
    )


def _sdg(strength: float, bench: Bench, options: DefenceOptions) -> StepMethod:
    """SDG acts in the same steps as STG, so that the two differ in what they move alone."""

    def unsafe_score(images: Tensor) -> tuple[Tensor, Tensor]:
        values, flags = bench.unsafe_score(images, options.threshold)
        return values, flags if options.sdg_gated else torch.ones_like(flags)

    def guide(step: NetworkStep, guided_output: Tensor) -> Tensor:
        parametrisation = (step.alpha_cumprod, step.prediction_type)
        noise, flags, _ = safe_data_guidance(
            lambda latents: predict_noise(latents, step.predict(latents), *parametrisation),
            unsafe_score,
            step.latents,
            alpha_cumprod=step.alpha_cumprod,
            scale=strength,
            decode=step.decode,
        )
        output = output_of_noise(step.latents, noise, *parametrisation)
        return torch.where(flags.view(-1, 1, 1, 1), output, guided_output)

    return StepMethod(change_output=guide, steps=centered_update_window(options.num_steps, options.fraction))


def _sld(strength: float, concept: Tensor, options: DefenceOptions) -> StepMethod:
    return sld(
        concept,
        safety_scale=strength,
        threshold=options.sld_threshold,
        warmup_steps=round(options.sld_warmup * options.num_steps),
        momentum_scale=options.sld_momentum,
        momentum_beta=options.sld_momentum_decay,
    )
