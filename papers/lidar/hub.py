"""LiDAR on a pipeline of the hub: lookahead sets of all prompts in files, then the runs that use them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import yaml
from accelerate import PartialState
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from papers.lidar.cost import BACKWARD, model_evaluations_per_image
from papers.lidar.lookahead_sets import LookaheadSet, load_set, lookahead_key, save_set
from papers.lidar.measures import diversity
from papers.lidar.methods import LateScheduler, SteeredScheduler, adaptive_embedding
from papers.lidar.options import HubOptions, SamplerOptions, SolverOptions
from papers.lidar.pipeline import decode_images, draw_lookahead, image_latents, lookahead_sampling
from papers.lidar.runs import Run, parse_run
from shared.data_order import generator_for
from shared.errors import InputError
from shared.options import plain
from shared.t2i.clip_scorer import ClipScorer, load_clip
from shared.t2i.guidance import universal_guidance
from shared.t2i.hub_pipeline import image_size, open_pipeline
from shared.t2i.pipeline_calls import decoder
from shared.t2i.pipeline_hooks import network_of, plugged_in
from shared.t2i.prompt_files import Prompt, read_prompts, split_prompts

TARGET_NOISE, LOOKAHEAD_NOISE, SHUFFLE, RENOISING, RESAMPLING = range(5)
"""Kinds of random draws, by seed, prompt and image."""
GRADIENT = ("universal", "date")
"""Kinds of runs that differentiate the network."""
SUPPORTED = ("vanilla", "bon", "lidar", "permuted", "best", "renoised", "smc", *GRADIENT)


class HubBench:
    """A pipeline with a reward and a judge.

    Args:
        options: of the samplers.
        hub: of the models.
        pipeline: of diffusers, as `shared.t2i.hub_pipeline.prepare_pipeline` leaves it.
        reward: what guides.
        evaluator: what judges.
        seed: of all noise.
    """

    def __init__(
        self,
        options: SamplerOptions,
        hub: HubOptions,
        pipeline: DiffusionPipeline,
        reward: ClipScorer,
        evaluator: ClipScorer,
        *,
        seed: int,
    ) -> None:
        self.options, self.hub, self.seed = options, hub, seed
        self.pipeline, self.reward, self.evaluator = pipeline, reward, evaluator

    def key(self, text: str, name: str, solver: SolverOptions) -> str:
        """Key of a prompt's lookahead set."""
        settings = {**plain(solver), "name": name, "guidance_scale": self.lookahead_scale(solver)}
        settings |= {"seed": self.seed, "size": self.options.lookahead_size, "reward": self.hub.reward}
        return lookahead_key(text, self.hub.model, settings)

    def lookahead_scale(self, solver: SolverOptions) -> float:
        """Scale of classifier-free guidance of a lookahead sampler."""
        own = solver.guidance_scale
        return self.options.lookahead_guidance_scale if own is None else own

    def draw_set(self, row: int, prompt: Prompt, name: str, solver: SolverOptions) -> LookaheadSet:
        """The lookahead set of a prompt, with the solver of this name, ``d<δ>`` or ``d<δ>@<ending>``."""
        steps = int(name.partition("@")[0][1:])
        latents, rewards = draw_lookahead(
            self.pipeline,
            prompt.text,
            self._rewards,
            scheduler=scheduler_of(solver, self.pipeline),
            count=self.options.lookahead_size,
            decode_batch=self.hub.decode_batch,
            batch_size=self.options.batch_size,
            generator=generator_for(self.seed, LOOKAHEAD_NOISE, row),
            guidance_scale=self.lookahead_scale(solver),
            **image_size(self.hub),
            **({"timesteps": list(solver.timesteps)} if solver.timesteps else {"num_inference_steps": steps}),
        )
        return LookaheadSet(self.key(prompt.text, name, solver), latents, rewards)

    def sample_run(
        self, run: Run, row: int, prompt: Prompt, lookahead: LookaheadSet | None, solver: SolverOptions | None = None
    ) -> dict[str, Any]:
        """Images of one prompt in a run: scores by metric (M,), the images as bytes, and costs of an image.

        `lookahead` was drawn with `solver`; runs without lookahead samples need neither.

        Raises:
            ValueError: a kind of run that is not supported here.
        """
        if run.kind not in SUPPORTED:
            raise ValueError(f"run: {run.name} is not supported on models of the hub")
        started = time.perf_counter()
        if run.kind in ("vanilla", "bon"):
            latents = self._best_of(run.count, row, prompt)
        elif run.kind == "best":
            latents = lookahead.best[None].expand(self.options.images_per_prompt, -1, -1, -1)
        elif run.kind == "renoised":
            latents = self._renoised(row, prompt, lookahead.best)
        elif run.kind == "smc":
            latents = self._steered(run, row, prompt)
        else:
            with self._guidance(run, row, prompt, lookahead):
                latents = self._target(row, prompt, range(self.options.images_per_prompt))
        seconds = (time.perf_counter() - started) / len(latents)
        return self._judge(prompt, latents) | {"costs": self._costs(run, seconds, solver)}

    def _guidance(
        self, run: Run, row: int, prompt: Prompt, lookahead: LookaheadSet | None
    ) -> AbstractContextManager[None]:
        """What acts in the steps of the pipeline within the block."""
        evaluate = self._reward_of(prompt)
        if run.kind == "universal":
            return plugged_in(self.pipeline, universal_guidance(evaluate, self.hub.universal_scale))
        if run.kind == "date":
            method = adaptive_embedding(evaluate, self.hub.step_size, run.count, self.options.num_steps)
            return plugged_in(self.pipeline, method)
        rewards = lookahead.rewards
        if run.kind == "permuted":
            rewards = rewards[torch.randperm(len(rewards), generator=generator_for(self.seed, SHUFFLE, row))]
        strength = {"reward_weight": self.hub.reward_weight, "scale": self.hub.scale}
        return lookahead_sampling(
            self.pipeline, lookahead.latents, rewards, end_timestep=self.options.end_timestep, **strength
        )

    def _target(self, row: int, prompt: Prompt, copies: range, **changes: Any) -> Tensor:
        size = image_size(self.hub)
        latents = self.pipeline(
            prompt.text,
            num_images_per_prompt=len(copies),
            num_inference_steps=self.options.num_steps,
            guidance_scale=self.options.guidance_scale,
            generator=[generator_for(self.seed, TARGET_NOISE, row, copy) for copy in copies],
            output_type="latent",
            # Pipelines of flow matching have no such argument.
            **({"eta": self.options.eta} if self.options.eta else {}),
            **size,
            **changes,
        ).images
        return image_latents(self.pipeline, latents, **size)

    def _best_of(self, count: int, row: int, prompt: Prompt) -> Tensor:
        size = self.options.images_per_prompt
        parts = [self._target(row, prompt, range(part * size, (part + 1) * size)) for part in range(count)]
        if count == 1:
            return parts[0]
        rewards = torch.stack([self._rewards_of_latents(part, prompt) for part in parts])  # (N, M)
        return torch.stack(parts)[rewards.argmax(dim=0), torch.arange(size)]

    def _renoised(self, row: int, prompt: Prompt, best: Tensor) -> Tensor:
        """The best lookahead sample (C, H, W), noised and finished by the last steps of the target sampler."""
        copies = range(self.options.images_per_prompt)
        late = LateScheduler(self.pipeline.scheduler, self.hub.renoising_steps)
        late.set_timesteps(self.options.num_steps)
        noise = torch.stack(
            [torch.randn(best.shape, generator=generator_for(self.seed, RENOISING, row, copy)) for copy in copies]
        )
        start = late.add_noise(best.float().cpu().expand_as(noise), noise, late.timesteps[:1].cpu())
        precision = next(network_of(self.pipeline).parameters())
        with replaced_scheduler(self.pipeline, late):
            return self._target(row, prompt, copies, latents=start.to(precision))

    def _steered(self, run: Run, row: int, prompt: Prompt) -> Tensor:
        decode = decoder(self.pipeline)
        steered = SteeredScheduler(
            self.pipeline.scheduler,
            torch.no_grad()(self._reward_of(prompt)),
            lambda latents: decode(latents).clamp(0, 1),
            particles=run.count,
            potential=run.potential,
            reward_weight=self.hub.steering_weight,
            steps=self.options.steering_steps,
            seeds=[(self.seed, RESAMPLING, row)],
        )
        with replaced_scheduler(self.pipeline, steered):
            return self._target(row, prompt, range(run.count))[: self.options.images_per_prompt]

    def _costs(self, run: Run, seconds: float, solver: SolverOptions | None) -> dict[str, float]:
        images, steps = self.options.images_per_prompt, self.options.num_steps
        # Without guidance, or where its scale is an input of the network, that is evaluated once a step.
        twice = not getattr(network_of(self.pipeline).config, "guidance_embeds", False)
        target_cfg = twice and self.options.guidance_scale > 1
        ahead = {"num_lookahead": run.lookahead_size, "lookahead_steps": run.lookahead_steps or 0}
        if solver is not None:
            ahead["lookahead_cfg"] = twice and self.lookahead_scale(solver) > 1
        drawn = {"best": 0, "renoised": self.hub.renoising_steps, "bon": run.count * steps}.get(run.kind, steps)
        evaluations = model_evaluations_per_image(target_steps=drawn, num_images=images, target_cfg=target_cfg, **ahead)
        ratings = {"bon": run.count, "universal": steps}.get(run.kind, run.lookahead_size / images)
        if run.kind == "universal":  # both branches a second time, with gradient
            evaluations += steps * (2 if target_cfg else 1) * (1 + BACKWARD)
        elif run.kind == "date":  # the branch with the prompt again, with gradient, and without prompt for the update
            ratings = len(range(0, steps, run.count))
            evaluations += ratings * (1 + BACKWARD + (1 if target_cfg else 0))
        elif run.kind == "smc":
            evaluations *= run.count / images
            ratings = len({*self.options.steering_steps, steps - 1}) * run.count / images
        return {"evaluations": evaluations, "reward_evaluations": ratings, "seconds": seconds}

    def _reward_of(self, prompt: Prompt) -> Callable[[Tensor], Tensor]:
        """The reward of images of a prompt, differentiable."""
        features = self.reward.text_features([prompt.text])
        return lambda images: self.reward(images, features)

    def _rewards(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        return self.reward(images, self.reward.text_features(texts)).cpu()

    @torch.no_grad()
    def _rewards_of_latents(self, latents: Tensor, prompt: Prompt) -> Tensor:
        parts = latents.split(self.hub.decode_batch)
        return torch.cat(
            [self._rewards(decode_images(self.pipeline, part), [prompt.text] * len(part)) for part in parts]
        )

    @torch.no_grad()
    def _judge(self, prompt: Prompt, latents: Tensor) -> dict[str, Any]:
        images = torch.cat([decode_images(self.pipeline, part) for part in latents.split(self.hub.decode_batch)])
        features = self.evaluator.image_features(images)
        aligned = (features * self.evaluator.text_features([prompt.text])).sum(dim=-1)
        return {
            "scores": {
                "guidance_score": self._rewards(images, [prompt.text] * len(images)).double().numpy(),
                "evaluator_score": aligned.double().cpu().numpy(),
                "diversity": np.repeat(diversity(features[None].cpu()), len(images)),
            },
            "images": (images.cpu() * 255).round().byte(),
        }


@contextmanager
def replaced_scheduler(pipeline: DiffusionPipeline, scheduler: Any) -> Iterator[None]:
    """Within the block, the pipeline samples by another scheduler."""
    own, pipeline.scheduler = pipeline.scheduler, scheduler
    try:
        yield
    finally:
        pipeline.scheduler = own


def scheduler_of(solver: SolverOptions, pipeline: DiffusionPipeline) -> Any:
    """The scheduler of a lookahead sampler on the pipeline's noise schedule.

    Raises:
        InputError: diffusers has no such class, or a setting is not `<name>=<value>`.
    """
    kind = getattr(diffusers, solver.scheduler, None)
    if kind is None:
        raise InputError(f"scheduler: diffusers has no {solver.scheduler!r}")
    settings = {}
    for text in solver.settings:
        name, separator, value = text.partition("=")
        if not separator:
            raise InputError(f"settings: expected <name>=<value>, got {text!r}")
        settings[name] = yaml.safe_load(value)
    return kind.from_config(pipeline.scheduler.config, **settings)


def open_hub(
    options: SamplerOptions,
    hub: HubOptions,
    *,
    seed: int,
    solver: SolverOptions | None = None,
    runs: Sequence[str] = (),
) -> HubBench:
    """The models of the options on this process's device.

    Args:
        options: of the samplers.
        hub: of the models.
        seed: of all noise.
        solver: a lookahead sampler that draws, with weights of its own if it has some.
        runs: that are to be sampled: for those that differentiate the network, it is in single precision.
    """
    if any(parse_run(name).kind in GRADIENT for name in runs):
        hub = replace(hub, precision="float32")
    pipeline = open_pipeline(hub)
    if unet := (solver.unet if solver is not None else "") or hub.unet:
        pipeline.unet = load_unet(unet, getattr(torch, hub.precision)).to(pipeline.device)
    if solver is not None and solver.adapter:
        repository, _, name = solver.adapter.rpartition("/")
        pipeline.load_lora_weights(repository, weight_name=name, adapter_name="lookahead")
        pipeline.set_adapters(["lookahead"], [solver.adapter_weight])
    network_of(pipeline).eval().requires_grad_(False)
    if hub.float32_decoder:
        pipeline.vae.float()
    reward, evaluator = (load_clip(name).to(pipeline.device) for name in (hub.reward, hub.evaluator))
    return HubBench(options, hub, pipeline, reward, evaluator, seed=seed)


def load_unet(name: str, precision: torch.dtype) -> UNet2DConditionModel:
    """A U-Net from a folder, or from ``<owner>/<repository>[/<subfolder>]`` of the hub."""
    if Path(name).is_dir():
        return UNet2DConditionModel.from_pretrained(name, torch_dtype=precision, use_safetensors=True)
    owner, repository, *inner = name.split("/")
    return UNet2DConditionModel.from_pretrained(
        f"{owner}/{repository}", subfolder="/".join(inner), torch_dtype=precision, use_safetensors=True
    )


def own_prompts(path: Path, hub: HubOptions) -> list[tuple[int, Prompt]]:
    """The prompts of this process with their numbers; all processes together have all."""
    prompts = split_prompts(read_prompts(path), dev=0, test=hub.test_prompts, seed=hub.split_seed)["test"]
    process = PartialState()
    return list(enumerate(prompts))[process.process_index :: process.num_processes]


def draw_sets(
    bench: HubBench, prompts: list[tuple[int, Prompt]], name: str, solver: SolverOptions, folder: Path
) -> None:
    """Write the lookahead sets of prompts that are not in the folder yet."""
    for row, prompt in prompts:
        if not (folder / f"{bench.key(prompt.text, name, solver)}.safetensors").is_file():
            save_set(folder, bench.draw_set(row, prompt, name, solver))


def run_prompt(
    bench: HubBench, row: int, prompt: Prompt, names: Sequence[str], solvers: dict[str, tuple[SolverOptions, Path]]
) -> dict[str, dict[str, Any]]:
    """All runs of one prompt, see `HubBench.sample_run`; `solvers` are the lookahead samplers with their folders."""
    found = {}
    for run in map(parse_run, names):
        lookahead = solver = None
        if name := run.solver:
            solver, folder = solvers[name]
            lookahead = load_set(folder, bench.key(prompt.text, name, solver)).first(run.lookahead_size)
        found[run.name] = bench.sample_run(run, row, prompt, lookahead, solver)
    return found
