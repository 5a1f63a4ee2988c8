"""Every guidance as what it changes in the sampler: the embeddings, and what acts in its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from papers.implicit_negatives.negatives import Negative
from papers.implicit_negatives.options import GuidanceOptions
from papers.implicit_negatives.runs import Run
from papers.implicit_negatives.safety_guidance import negative_guidance
from shared.t2i.bench import Bench
from shared.t2i.defences import Plugs, filtered_prompts, sld
from shared.t2i.step_method import NetworkStep, StepMethod


def plug_in(
    run: Run,
    bench: Bench,
    captions: Sequence[str],
    negative: Negative | None,
    options: GuidanceOptions,
    word: Tensor | None = None,
) -> Plugs:
    """What a run samples with.

    Args:
        run: what is sampled, at a strength.
        bench: the system, with the run's U-Net.
        captions: of one batch.
        negative: of the run; None where it has none.
        options: of the guidance.
        word: embedding of the placeholder in captions, where an attack has one.
    """
    plain = Plugs(bench.text.embed(captions, word), bench.text.embed([""]))
    match run.method:
        case "none":
            return plain
        case "prompt":
            return plain._replace(cond_embedding=negative.embedding.expand(len(captions), -1, -1))
        case "sld":
            return plain._replace(method=_sld(run.strength, negative, options))
        case "safree":
            steps = options.num_steps if options.safree_filter else None
            filtered, method = filtered_prompts(
                bench, captions, negative.pooled, alpha=options.safree_alpha, num_steps=steps, word=word
            )
            plugs = Plugs(filtered, plain.uncond_embedding, method)
            return _negative_prompt(run.strength, plugs, negative) if options.safree_negative else plugs
        case _:
            return _negative_prompt(run.strength, plain, negative)


def _negative_prompt(strength: float, plugs: Plugs, negative: Negative) -> Plugs:
    """At strength 1 the negative takes the empty prompt's place; otherwise it is evaluated besides."""
    if strength == 1:
        return plugs._replace(uncond_embedding=negative.embedding)

    def guide(step: NetworkStep, guided_output: Tensor) -> Tensor:
        concept = step.denoise(step.latents, negative.embedding.expand(len(step.latents), -1, -1))
        return negative_guidance(
            step.uncond_output, step.cond_output, concept, guidance_scale=step.guidance_scale, strength=strength
        )

    return plugs._replace(method=replace(plugs.method, change_output=guide))


def _sld(strength: float, negative: Negative, options: GuidanceOptions) -> StepMethod:
    return sld(
        negative.embedding,
        safety_scale=strength,
        threshold=options.sld_threshold,
        warmup_steps=round(options.sld_warmup * options.num_steps),
        momentum_scale=options.sld_momentum,
        momentum_beta=options.sld_momentum_decay,
    )
