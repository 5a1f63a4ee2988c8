"""The small text-to-image testbed as LiDAR needs it: a target sampler, a lookahead sampler, a reward and judges."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from papers.lidar.cost import BACKWARD, model_evaluations_per_image
from papers.lidar.lookahead_sets import LookaheadSet, lookahead_key
from papers.lidar.measures import crisp, diversity
from papers.lidar.methods import LateScheduler, SteeredScheduler, adaptive_embedding, lookahead_guidance
from papers.lidar.options import SamplerOptions
from papers.lidar.runs import TARGET, Run
from shared.data_order import generator_for
from shared.files import checksum
from shared.t2i.captions import PromptSpec, caption_of
from shared.t2i.checker import check_prompt, prompt_score
from shared.t2i.guidance import universal_guidance
from shared.t2i.metrics import detect_all
from shared.t2i.model import LATENT_SHAPE, LatentCodec
from shared.t2i.networks import load_network
from shared.t2i.pipeline import ScenePipeline, load_pipeline
from shared.t2i.prompts import mini_geneval
from shared.t2i.sampling import sample
from shared.t2i.scorer import DualEncoderScorer
from shared.t2i.step_method import StepMethod, sampler_hooks

TARGET_NOISE, STEP_NOISE, LOOKAHEAD_NOISE, LOOKAHEAD_STEP_NOISE, SHUFFLE, RESAMPLING = range(6)
"""Kinds of random draws. Each has generators of its own, by seed, prompt, image and step."""


@dataclass(frozen=True)
class Strength:
    """How strongly a method guides.

    Attributes:
        value: s of LiDAR, the scale of Universal Guidance, ρ of DATE, λ of steering, steps of the re-noised sample.
        reward_weight: λ of LiDAR.
    """

    value: float
    reward_weight: float | None = None


@dataclass(frozen=True)
class Sampled:
    """Images of all prompts in one run, and what one of them costs.

    Attributes:
        latents: clean, (P, M, C, H, W).
        evaluations: of the denoiser, a backward pass counted as two.
        reward_evaluations: of the reward.
        seconds: of processor time.
    """

    latents: Tensor
    evaluations: float
    reward_evaluations: float
    seconds: float


class SceneBench:
    """Prompts of one split and seed with everything that is sampled for them; draws do not depend on each other.

    Args:
        options: of the samplers.
        pipeline: the testbed's.
        reward: the guidance scorer.
        evaluator: the scorer that no method follows.
        specs: what the prompts ask for.
        seed: of all noise.
        model: what identifies the pipeline and the reward in the keys of lookahead sets.
    """

    def __init__(
        self,
        options: SamplerOptions,
        pipeline: ScenePipeline,
        reward: DualEncoderScorer,
        evaluator: DualEncoderScorer,
        specs: list[PromptSpec],
        *,
        seed: int,
        model: str,
    ) -> None:
        self.options, self.pipeline, self.seed, self.model = options, pipeline, seed, model
        self.reward, self.evaluator, self.specs = reward, evaluator, specs
        self.captions = [caption_of(spec) for spec in specs]
        ids = pipeline.tokenizer.encode(self.captions)
        with torch.no_grad():
            self.texts = {"guidance": reward.text_features(ids), "evaluator": evaluator.text_features(ids)}
        self.embeddings, self.empty = pipeline.embed(self.captions), pipeline.embed([""])
        self._sets: dict[str, tuple[list[LookaheadSet], float]] = {}
        self._parts: list[tuple[Tensor, float]] = []

    @property
    def images(self) -> int:
        """M, images of each prompt."""
        return self.options.images_per_prompt

    # Sampling

    def sample_run(self, run: Run, strength: Strength | None) -> Sampled:
        """Sample a run; `strength` is what it was tuned to, None for runs without one."""
        if run.kind in ("vanilla", "bon"):
            return self._best_of(run.count)
        if run.kind in ("lidar", "exact", "permuted", "oracle"):
            return self._with_lookahead(run, strength)
        if run.kind in ("best", "renoised"):
            return self._from_best(run, strength)
        if run.kind == "smc":
            return self._steered(run, strength)
        steps = self.options.num_steps
        if run.kind == "date":
            updates = len(range(0, steps, run.count))
            evaluations = 2 * steps + updates * (1 + BACKWARD)

            def method(evaluate: Callable[[Tensor], Tensor]) -> StepMethod:
                return adaptive_embedding(evaluate, strength.value, run.count, steps)
        else:
            # Both branches a second time, with gradient.
            updates, evaluations = steps, 2 * steps + 2 * steps * (1 + BACKWARD)

            def method(evaluate: Callable[[Tensor], Tensor]) -> StepMethod:
                return universal_guidance(evaluate, strength.value)

        latents, seconds = self._target(range(self.images), method=method)
        return Sampled(latents, evaluations, updates, seconds)

    def _best_of(self, count: int) -> Sampled:
        """For each image the best of `count` target samples: those whose numbers leave the same rest by division."""
        latents, rewards = self.pool(count)
        best = rewards.view(len(self.specs), count, self.images).argmax(dim=1)  # (P, M)
        pool = latents.view(len(self.specs), count, self.images, *LATENT_SHAPE)
        chosen = torch.stack([pool[row, best[row], range(self.images)] for row in range(len(self.specs))])
        evaluations = model_evaluations_per_image(target_steps=self.options.num_steps * count, num_images=1)
        seconds = sum(self._parts[part][1] for part in range(count))
        return Sampled(chosen, evaluations, count if count > 1 else 0, seconds)

    def pool(self, count: int) -> tuple[Tensor, Tensor]:
        """Target samples (P, count · M, ...) with rewards (P, count · M); pools of different sizes are nested."""
        for part in range(len(self._parts), count):
            self._parts.append(self._target(range(part * self.images, (part + 1) * self.images)))
        latents = torch.cat([part for part, _ in self._parts[:count]], dim=1)
        return latents, self.rewards_of(latents)

    def _with_lookahead(self, run: Run, strength: Strength) -> Sampled:
        sets, drawn_in = self.lookahead(run)
        rewards = torch.stack([each.rewards for each in sets])
        if run.kind == "permuted":
            orders = [torch.randperm(rewards.shape[1], generator=self._generator(SHUFFLE, row)) for row in self._rows]
            rewards = rewards.gather(1, torch.stack(orders))
        samples = torch.stack([each.latents for each in sets])
        if run.kind == "oracle":
            rewards = torch.from_numpy(self.judge(samples)["gold"]).float()

        def method(rows: Tensor) -> StepMethod:
            return lookahead_guidance(
                samples[rows],
                rewards[rows],
                reward_weight=strength.reward_weight,
                scale=strength.value,
                end_timestep=self.options.end_timestep,
            )

        latents, seconds = self._target(range(self.images), method_of_rows=method)
        return self._priced(run, latents, seconds + drawn_in, self.options.num_steps)

    def _from_best(self, run: Run, strength: Strength | None) -> Sampled:
        sets, drawn_in = self.lookahead(run)
        best = torch.stack([each.best for each in sets])[:, None].expand(-1, self.images, *LATENT_SHAPE)
        if run.kind == "best":
            return self._priced(run, best, drawn_in, 0)
        steps = int(strength.value)
        latents, seconds = self._target(range(self.images), start=best, steps=steps)
        return self._priced(run, latents, seconds + drawn_in, steps)

    def _priced(self, run: Run, latents: Tensor, seconds: float, steps: int) -> Sampled:
        ahead = run.lookahead_steps or self.options.num_steps
        sizes = {"num_lookahead": run.lookahead_size, "lookahead_steps": ahead, "num_images": self.images}
        evaluations = model_evaluations_per_image(target_steps=steps, **sizes)
        return Sampled(latents, evaluations, run.lookahead_size / self.images, seconds)

    def _steered(self, run: Run, strength: Strength) -> Sampled:
        def scheduler(rows: Tensor) -> Any:
            evaluate = self._reward_of(rows)
            return SteeredScheduler(
                self.pipeline.scheduler,
                evaluate,
                LatentCodec.decode,
                particles=run.count,
                potential=run.potential,
                reward_weight=strength.value,
                steps=self.options.steering_steps,
                seeds=[(self.seed, RESAMPLING, int(row)) for row in rows.unique()],
            )

        latents, seconds = self._target(range(run.count), scheduler_of_rows=scheduler)
        share = run.count / self.images
        ratings = len({*self.options.steering_steps, self.options.num_steps - 1})
        evaluations = model_evaluations_per_image(target_steps=self.options.num_steps, num_images=1) * share
        return Sampled(latents[:, : self.images], evaluations, ratings * share, seconds)

    @property
    def _rows(self) -> range:
        return range(len(self.specs))

    def _target(
        self,
        copies: range,
        *,
        method: Callable[[Callable[[Tensor], Tensor]], StepMethod] | None = None,
        method_of_rows: Callable[[Tensor], StepMethod] | None = None,
        scheduler_of_rows: Callable[[Tensor], Any] | None = None,
        start: Tensor | None = None,
        steps: int | None = None,
    ) -> tuple[Tensor, float]:
        """Latents (P, copies, ...) of the target sampler, and processor seconds for each of M images a prompt.

        Args:
            copies: numbers of the images of each prompt; they decide on the noise.
            method: what acts in the steps, from the reward of a batch.
            method_of_rows: the same, from the prompts' numbers of a batch, (B,).
            scheduler_of_rows: in place of the pipeline's scheduler.
            start: clean latents (P, copies, ...) from which the last steps start, noised.
            steps: how many steps then.
        """
        started, parts = time.process_time(), []
        prompts_at_once = max(1, self.options.batch_size // len(copies))
        for rows in torch.arange(len(self.specs)).split(prompts_at_once):
            draws = torch.cartesian_prod(rows, torch.tensor(copies))
            owners, noise = draws[:, 0], self._noises(TARGET_NOISE, draws)
            scheduler = scheduler_of_rows(owners) if scheduler_of_rows else self.pipeline.scheduler
            if start is not None:
                scheduler = LateScheduler(scheduler, steps)
                scheduler.set_timesteps(self.options.num_steps)
                noise = scheduler.add_noise(start[rows].flatten(0, 1), noise, scheduler.timesteps[:1])
            if method_of_rows:
                acting = method_of_rows(owners)
            else:
                acting = method(self._reward_of(owners)) if method else StepMethod()
            latents = self._sample(
                owners,
                noise,
                scheduler,
                acting,
                num_steps=self.options.num_steps,
                guidance_scale=self.options.guidance_scale,
                eta=self.options.eta,
                step_noise=lambda index, draws=draws: self._noises(STEP_NOISE, draws, index),
            )
            parts.append(latents.unflatten(0, (len(rows), len(copies))))
        seconds = (time.process_time() - started) / (len(self.specs) * self.images)
        return torch.cat(parts), seconds

    def _sample(self, owners: Tensor, noise: Tensor, scheduler: Any, method: StepMethod, **options: Any) -> Tensor:
        embeddings = self.embeddings[owners]
        hooks = sampler_hooks(method, self.pipeline.denoise, embeddings, self.empty)
        return sample(
            self.pipeline.denoise,
            scheduler,
            embeddings,
            self.empty,
            initial_noise=noise,
            decode=lambda latents: latents,
            **hooks,
            **options,
        )

    # Lookahead samples

    def lookahead(self, run: Run) -> tuple[list[LookaheadSet], float]:
        """The first samples of each prompt's set that a run needs, and the processor seconds of an image's share."""
        name = f"d{run.lookahead_steps}" if run.lookahead_steps else TARGET
        if name not in self._sets:
            # The target sampler is dear: its sets are no larger than the run asks for.
            size = self.options.lookahead_size if run.lookahead_steps else run.lookahead_size
            self._sets[name] = self._draw_sets(run.lookahead_steps, size)
        sets, seconds = self._sets[name]
        solver = self.solver(run.lookahead_steps)
        keys = [lookahead_key(caption, self.model, solver) for caption in self.captions]
        chosen = [each.check(key).first(run.lookahead_size) for each, key in zip(sets, keys, strict=True)]
        return chosen, seconds * run.lookahead_size / len(sets[0].rewards)

    def solver(self, steps: int | None) -> dict[str, object]:
        """Settings of a lookahead sampler, as they are hashed into the keys of its sets."""
        options = self.options
        if steps is None:
            kind = {"scheduler": "DDIMScheduler", "steps": options.num_steps, "eta": options.eta}
            return {**kind, "guidance_scale": options.guidance_scale, "seed": self.seed}
        kind = {"scheduler": "DPMSolverMultistepScheduler", "steps": steps}
        return {**kind, "guidance_scale": options.lookahead_guidance_scale, "seed": self.seed}

    def _draw_sets(self, steps: int | None, size: int) -> tuple[list[LookaheadSet], float]:
        started, parts = time.process_time(), []
        for draws in torch.cartesian_prod(torch.arange(len(self.specs)), torch.arange(size)).split(
            self.options.batch_size
        ):
            noise = {}
            if steps is None:
                noise["eta"] = self.options.eta
                noise["step_noise"] = lambda index, draws=draws: self._noises(LOOKAHEAD_STEP_NOISE, draws, index)
            latents = self._sample(
                draws[:, 0],
                self._noises(LOOKAHEAD_NOISE, draws),
                self.pipeline.scheduler if steps is None else dpm_solver(self.pipeline),
                StepMethod(),
                num_steps=steps or self.options.num_steps,
                guidance_scale=self.options.guidance_scale if steps is None else self.options.lookahead_guidance_scale,
                **noise,
            )
            parts.append(latents)
        latents = torch.cat(parts).unflatten(0, (len(self.specs), size))
        rewards, solver = self.rewards_of(latents), self.solver(steps)
        sets = [
            LookaheadSet(lookahead_key(caption, self.model, solver), own, values)
            for caption, own, values in zip(self.captions, latents, rewards, strict=True)
        ]
        return sets, (time.process_time() - started) / (len(self.specs) * self.images)

    # Noise and rewards

    def _generator(self, kind: int, *key: int) -> torch.Generator:
        return generator_for(self.seed, kind, *key)

    def _noises(self, kind: int, draws: Tensor, *step: int) -> Tensor:
        """Noise (B, ...) for images by prompt and number, (B, 2): a function of seed, kind, prompt, image and step."""
        keys = [(row, copy, *step) for row, copy in draws.tolist()]
        return torch.stack([torch.randn(LATENT_SHAPE, generator=self._generator(kind, *key)) for key in keys])

    def _reward_of(self, owners: Tensor) -> Callable[[Tensor], Tensor]:
        texts = self.texts["guidance"][owners]
        return lambda images: self.reward(images, texts)

    @torch.no_grad()
    def rewards_of(self, latents: Tensor) -> Tensor:
        """Rewards (P, N) of clean latents (P, N, ...)."""
        owners = torch.arange(len(latents)).repeat_interleave(latents.shape[1])
        return self._reward_of(owners)(LatentCodec.decode(latents.flatten(0, 1))).unflatten(0, latents.shape[:2])

    # Judges

    @torch.no_grad()
    def judge(self, latents: Tensor) -> dict[str, np.ndarray]:
        """Scores (P, M) of clean latents (P, M, ...), and measures of each prompt's images (P,)."""
        shape = latents.shape[:2]
        images = LatentCodec.decode(latents.flatten(0, 1))
        owners = torch.arange(shape[0]).repeat_interleave(shape[1])
        found = list(zip([self.specs[row] for row in owners], detect_all(images), strict=True))
        gold = np.array([check_prompt(spec, objects) for spec, objects in found], float).reshape(shape)
        features = self.evaluator.image_features(images).unflatten(0, shape)
        return {
            "gold": gold,
            "gold_share": np.array([prompt_score(spec, objects) for spec, objects in found]).reshape(shape),
            "guidance_score": self.rewards_of(latents).double().numpy(),
            "evaluator_score": (features * self.texts["evaluator"][:, None]).sum(dim=-1).double().numpy(),
            "crisp": crisp(images).reshape(shape),
            "diversity": diversity(features),
            "diversity_right": diversity(features, torch.from_numpy(gold)),
        }


def dpm_solver(pipeline: ScenePipeline) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ of order 2 on the pipeline's noise schedule."""
    return DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="trailing"
    )


def open_bench(
    options: SamplerOptions,
    *,
    prompts_per_task: int,
    seed: int,
    split: str,
    pipeline: Path,
    guidance: Path,
    evaluator: Path,
) -> SceneBench:
    """The testbed from its files.

    Raises:
        InputError: a file is not what it should be.
    """
    return SceneBench(
        options,
        load_pipeline(pipeline),
        load_network(guidance, DualEncoderScorer),
        load_network(evaluator, DualEncoderScorer),
        mini_geneval(prompts_per_task, seed, split),
        seed=seed,
        model=f"{checksum(pipeline)} {checksum(guidance)}",
    )
