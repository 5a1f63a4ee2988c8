"""The sampler hooks that make the testbed's sampler DATE or one of its baselines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from papers.date.energy_cross_attention import energy_cross_attention
from papers.date.methods import Evaluate, embedding_update, next_noisy_latents, universal_guidance
from papers.date.variants import Variant
from shared.t2i.model import LatentCodec
from shared.t2i.pipeline import ScenePipeline
from shared.t2i.pipeline_hooks import NetworkStep
from shared.t2i.sampling import EmbeddingHook, OutputHook, Step, classifier_free_guidance

Hooks = tuple[EmbeddingHook, OutputHook | None]


@dataclass(frozen=True)
class SceneRun:
    """One variant on one batch of prompts.

    Attributes:
        pipeline: the testbed's.
        variant: what is sampled.
        strength: of its guidance; None for a fixed embedding.
        schedule: the steps in which the embedding is updated.
        evaluate: the reward that is followed.
        seed: of random directions.
        rows: the prompts' numbers.
        anchor: the prompts' own embeddings, (B, L, D).
        empty: the empty caption's, (1, L, D).
    """

    pipeline: ScenePipeline
    variant: Variant
    strength: float | None
    schedule: tuple[int, ...]
    evaluate: Evaluate
    seed: int
    rows: list[int]
    anchor: Tensor
    empty: Tensor

    @contextmanager
    def hooks(self) -> Iterator[Hooks]:
        """The hooks, for use within the block."""
        if self.variant.kind == "ebca":
            with energy_cross_attention(self.pipeline.unet, self.strength) as energy:

                def switch_on(step: Step, embedding: Tensor) -> Tensor:
                    energy.active = True  # the evaluation without the prompt is over
                    return embedding

                def switch_off(step: Step, cond_output: Tensor, guided_output: Tensor) -> Tensor:
                    energy.active = False
                    return guided_output

                yield switch_on, switch_off
        elif self.variant.kind == "universal":
            yield _keep, self._universal
        elif self.variant.kind == "fixed":
            yield _keep, None
        else:
            yield self._adaptive(), None

    def _adaptive(self) -> EmbeddingHook:
        update = embedding_update(self.variant, self.strength, self.evaluate, seed=self.seed, rows=self.rows)

        def hook(step: Step, embedding: Tensor) -> Tensor:
            if step.index not in self.schedule:
                return embedding
            return update(self._network_step(step), embedding, self.anchor)

        return hook

    def _universal(self, step: Step, cond_output: Tensor, guided_output: Tensor) -> Tensor:
        conditions = (self.empty.expand(len(self.anchor), -1, -1), self.anchor)

        def predict_clean(latents: Tensor) -> Tensor:
            outputs = (self.pipeline.denoise(latents, step.timestep, condition) for condition in conditions)
            return classifier_free_guidance(*outputs, step.guidance_scale)

        return universal_guidance(
            predict_clean,
            self.evaluate,
            step.latents,
            alpha_cumprod=step.alpha_cumprod,
            scale=self.strength,
            decode=LatentCodec.decode,
        )

    def _network_step(self, step: Step) -> NetworkStep:
        def decode_next(clean: Tensor) -> Tensor:
            scheduler = self.pipeline.scheduler
            later = [float(scheduler.alphas_cumprod[timestep]) for timestep in scheduler.timesteps[step.index + 1 :]]
            next_alpha = later[0] if later else float(scheduler.final_alpha_cumprod)
            return LatentCodec.decode(next_noisy_latents(clean, step.latents, step.alpha_cumprod, next_alpha))

        return NetworkStep(
            index=step.index,
            latents=step.latents,
            denoise=lambda latents, states: self.pipeline.denoise(latents, step.timestep, states),
            uncond_output=step.uncond_output,
            guidance_scale=step.guidance_scale,
            alpha_cumprod=step.alpha_cumprod,
            prediction_type=self.pipeline.scheduler.config.prediction_type,
            decode=decode_next if self.variant.scores_noisy else LatentCodec.decode,
        )


def _keep(step: Step, embedding: Tensor) -> Tensor:
    return embedding
