"""What makes the testbed's sampler DATE or one of its baselines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from papers.date.energy_cross_attention import energy_cross_attention
from papers.date.methods import Evaluate, embedding_update
from papers.date.options import SamplerOptions
from papers.date.variants import Variant, parse_schedules
from shared.t2i.guidance import universal_guidance
from shared.t2i.pipeline import ScenePipeline
from shared.t2i.step_method import NetworkStep, StepMethod


@dataclass(frozen=True)
class SceneRun:
    """One variant on one batch of prompts.

    Attributes:
        pipeline: the testbed's.
        variant: what is sampled.
        strength: of its guidance; None for a fixed embedding.
        sampler: its options.
        evaluate: the reward that is followed.
        seed: of random directions.
        rows: the prompts' numbers.
    """

    pipeline: ScenePipeline
    variant: Variant
    strength: float | None
    sampler: SamplerOptions
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
            update = embedding_update(
                self.variant,
                self.strength,
                self.evaluate,
                scheduler=self.pipeline.scheduler,
                seed=self.seed,
                rows=self.rows,
                num_updates=self.sampler.num_updates,
                prior_weight=self.sampler.prior_weight,
            )
            schedules = parse_schedules(self.sampler.schedules, self.sampler.num_steps)
            yield StepMethod(change_embedding=update, steps=schedules[self.variant.schedule])
