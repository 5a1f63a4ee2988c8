"""Every guidance as what it changes in the sampler: the embeddings, and two hooks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from papers.implicit_negatives.negatives import Negative
from papers.implicit_negatives.options import GuidanceOptions
from papers.implicit_negatives.runs import Run
from papers.implicit_negatives.safety_guidance import negative_guidance
from shared.t2i.bench import Bench
from shared.t2i.defences import Plugs, filtered_prompts, safe_latent_diffusion
from shared.t2i.sampling import Denoiser, EmbeddingHook, Step
from shared.t2i.step_method import sampler_hooks


def plug_in(
    run: Run,
    bench: Bench,
    denoise: Denoiser,
    captions: Sequence[str],
    negative: Negative | None,
    options: GuidanceOptions,
    word: Tensor | None = None,
) -> Plugs:
    """The embeddings and hooks of a run.

    Args:
        run: what is sampled, at a strength.
        bench: the system, with the run's U-Net.
        denoise: its denoiser; every evaluation goes through it.
        captions: of one batch.
        negative: of the run; None where it has none.
        options: of the guidance.
        word: embedding of the placeholder in captions, where an attack has one.
    """
    cond, uncond = bench.text.embed(captions, word), bench.text.embed([""])
    match run.method:
        case "none":
            return Plugs(cond, uncond)
        case "prompt":
            return Plugs(negative.embedding.expand(len(captions), -1, -1), uncond)
        case "sld":
            method = safe_latent_diffusion(
                negative.embedding,
                safety_scale=run.strength,
                threshold=options.sld_threshold,
                warmup_steps=round(options.sld_warmup * options.num_steps),
                momentum_scale=options.sld_momentum,
                momentum_beta=options.sld_momentum_decay,
            )
            kind = bench.prediction_type
            return Plugs(cond, uncond, **sampler_hooks(method, denoise, cond, uncond, prediction_type=kind))
        case "safree":
            steps = options.num_steps if options.safree_filter else None
            filtered, hook = filtered_prompts(
                bench, captions, negative.pooled, alpha=options.safree_alpha, num_steps=steps, word=word
            )
            if not options.safree_negative:
                return Plugs(filtered, uncond, embedding_hook=hook)
            return _negative_prompt(run.strength, denoise, filtered, uncond, negative, hook)
        case _:
            return _negative_prompt(run.strength, denoise, cond, uncond, negative)


def _negative_prompt(
    strength: float,
    denoise: Denoiser,
    cond: Tensor,
    uncond: Tensor,
    negative: Negative,
    embedding_hook: EmbeddingHook | None = None,
) -> Plugs:
    """At strength 1 the negative takes the empty prompt's place; otherwise it is evaluated besides."""
    if strength == 1:
        return Plugs(cond, negative.embedding, embedding_hook=embedding_hook)

    def guide(step: Step, cond_output: Tensor, guided_output: Tensor) -> Tensor:
        concept = denoise(step.latents, step.timestep, negative.embedding.expand(len(step.latents), -1, -1))
        return negative_guidance(
            step.uncond_output, cond_output, concept, guidance_scale=step.guidance_scale, strength=strength
        )

    return Plugs(cond, uncond, embedding_hook=embedding_hook, output_hook=guide)
