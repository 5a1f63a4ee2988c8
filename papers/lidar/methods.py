"""LiDAR and its baselines as what they change in a sampler: a method of its steps, or its scheduler."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from papers.lidar.lookahead_guidance import guide_model_output, lookahead_score
from papers.lidar.particle_resampling import effective_sample_size, log_potentials, resample
from shared.data_order import generator_for
from shared.t2i.guidance import ascend_text_embedding, for_all, predict_clean_latents
from shared.t2i.step_method import NetworkStep, StepMethod

Evaluate = Callable[[Tensor], Tensor]
"""From images of the sampler's range, (B, ...), to rewards (B,)."""


def lookahead_guidance(
    lookahead: Tensor, rewards: Tensor, *, reward_weight: float, scale: float, end_timestep: float = 200.0
) -> StepMethod:
    """LiDAR in the steps of a sampler; nothing is differentiated, and the network is not evaluated again.

    Args:
        lookahead: clean latents, (n, C, H, W) for all images, or (B, n, C, H, W).
        rewards: of these, (n,) or (B, n).
        reward_weight: λ.
        scale: s.
        end_timestep: t_end; later steps (timesteps up to it) are left alone.
    """

    @torch.no_grad()
    def guide(step: NetworkStep, guided_output: Tensor) -> Tensor:
        if step.timestep <= end_timestep:
            return guided_output
        alpha, sigma = step.alpha_cumprod**0.5, (1 - step.alpha_cumprod) ** 0.5
        samples, values = (each.to(step.latents.device) for each in (lookahead, rewards))
        latents = step.latents.float()
        score = lookahead_score(latents, samples, values, alpha, sigma, reward_weight)
        return guide_model_output(guided_output, score.to(guided_output), alpha, sigma, scale, step.prediction_type)

    return StepMethod(change_output=guide)


def adaptive_embedding(evaluate: Evaluate, step_size: float, every: int, num_steps: int) -> StepMethod:
    """DATE: in every so-manieth step the text embedding moves by a fixed length along the reward's gradient."""

    def follow(step: NetworkStep, embedding: Tensor, anchor: Tensor) -> Tensor:
        return ascend_text_embedding(
            step.denoise, for_all(evaluate), step.latents, embedding, step_size=step_size, **step.guidance
        ).embedding

    return StepMethod(change_embedding=follow, steps=range(0, num_steps, every))


class LateScheduler:
    """A scheduler that makes only the last steps of its run.

    Args:
        scheduler: of diffusers.
        steps: how many.
    """

    def __init__(self, scheduler: Any, steps: int) -> None:
        self._scheduler, self._steps = scheduler, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    @property
    def timesteps(self) -> Tensor:
        return self._scheduler.timesteps[-self._steps :]


class SteeredScheduler:
    """A scheduler that resamples the particles of each prompt after some of its steps: Feynman-Kac steering.

    The batch holds the particles of one prompt after another. A prompt's text embedding is the same for all of them, so
    that latents and outputs are all that has to move.

    Args:
        scheduler: of diffusers.
        evaluate: from decoded clean predictions (B, ...) to rewards (B,).
        decode: from clean latents to images.
        particles: K for each prompt.
        potential: as in `feynman_kac_weights`.
        reward_weight: λ.
        steps: after which particles are resampled; the last step of a run is among them anyhow.
        seeds: a key for each prompt's random draws.
    """

    def __init__(
        self,
        scheduler: Any,
        evaluate: Evaluate,
        decode: Callable[[Tensor], Tensor],
        *,
        particles: int,
        potential: str,
        reward_weight: float,
        steps: Sequence[int],
        seeds: Sequence[tuple[int, ...]],
    ) -> None:
        self._scheduler, self._evaluate, self._decode = scheduler, evaluate, decode
        self._particles, self._steps = particles, frozenset(steps)
        self._weighting = {"potential": potential, "reward_weight": reward_weight}
        self._generators = [generator_for(*key) for key in seeds]
        self._running = [torch.zeros(particles) for _ in seeds]
        self._products = [torch.zeros(particles) for _ in seeds]
        self.reward_evaluations = 0
        # Pipelines look at the signature for what a scheduler takes, such as eta.
        self.step = functools.wraps(scheduler.step)(functools.partial(self._step))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def _step(self, output: Tensor, timestep: Tensor, latents: Tensor, **options: Any) -> Any:
        index = int((self._scheduler.timesteps == timestep).nonzero()[0])
        last = index == len(self._scheduler.timesteps) - 1
        if last or index in self._steps:
            ancestors = self._ancestors(output, timestep, latents, last=last)
            output, latents = output[ancestors], latents[ancestors]
        return self._scheduler.step(output, timestep, latents, **options)

    def _ancestors(self, output: Tensor, timestep: Tensor, latents: Tensor, *, last: bool) -> Tensor:
        """Which particle each one continues from, int64 (B,)."""
        scheduler = self._scheduler
        level = float(scheduler.alphas_cumprod[timestep])
        clean = predict_clean_latents(latents, output, level, scheduler.config.prediction_type)
        rewards = self._evaluate(self._decode(clean)).float().cpu()
        self.reward_evaluations += len(rewards)
        found = []
        for prompt, own in enumerate(rewards.split(self._particles)):
            logs, running = log_potentials(
                own, self._running[prompt], log_product=self._products[prompt], final=last, **self._weighting
            )
            weights = logs.softmax(dim=0)
            keep = torch.arange(self._particles)
            # The paper's code: at the end only where few particles carry the weight.
            if not last or effective_sample_size(weights) < self._particles / 2:
                keep = resample(weights, self._generators[prompt])
            self._running[prompt] = running[keep]
            self._products[prompt] = (self._products[prompt] + logs)[keep]
            found.append(prompt * self._particles + keep)
        return torch.cat(found).to(output.device)
