"""What makes the testbed's sampler DATE or one of its baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from papers.date.energy_cross_attention import energy_cross_attention
from papers.date.methods import Evaluate, embedding_update, next_noisy_latents
from papers.date.variants import Variant
from shared.t2i.guidance import universal_guidance
from shared.t2i.pipeline import ScenePipeline
from shared.t2i.step_method import EmbeddingUpdate, NetworkStep, StepMethod


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
    """

    pipeline: ScenePipeline
    variant: Variant
    strength: float | None
    schedule: tuple[int, ...]
    evaluate: Evaluate
    seed: int
    rows: list[int]

    @contextmanager
    def method(self) -> Iterator[StepMethod]:
        """What acts in the sampler's steps, for use within the block."""
        if self.variant.kind == "ebca":
            with energy_cross_attention(self.pipeline.unet, self.strength) as energy:

                def switch_on(step: NetworkStep, embedding: Tensor, anchor: Tensor) -> Tensor:
                    energy.active = True  # the evaluation without the prompt is over
                    return embedding

                def switch_off(step: NetworkStep, guided_output: Tensor) -> Tensor:
                    energy.active = False
                    return guided_output

                yield StepMethod(switch_on, switch_off)
        elif self.variant.kind == "universal":
            yield universal_guidance(self.evaluate, self.strength)
        elif self.variant.kind == "fixed":
            yield StepMethod()
        else:
            yield StepMethod(change_embedding=self._update(), steps=self.schedule)

    def _update(self) -> EmbeddingUpdate:
        update = embedding_update(self.variant, self.strength, self.evaluate, seed=self.seed, rows=self.rows)
        if not self.variant.scores_noisy:
            return update

        def update_by_noisy(step: NetworkStep, embedding: Tensor, anchor: Tensor) -> Tensor:
            return update(step._replace(decode=self._decode_next(step)), embedding, anchor)

        return update_by_noisy

    def _decode_next(self, step: NetworkStep) -> Callable[[Tensor], Tensor]:
        scheduler = self.pipeline.scheduler
        later = [float(scheduler.alphas_cumprod[timestep]) for timestep in scheduler.timesteps[step.index + 1 :]]
        next_alpha = later[0] if later else float(scheduler.final_alpha_cumprod)
        return lambda clean: step.decode(next_noisy_latents(clean, step.latents, step.alpha_cumprod, next_alpha))
