"""DATE and its baselines on a pipeline of the hub, with CLIP models as rewards.

Processes of accelerate share the prompts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from diffusers import DiffusionPipeline
from torch import Tensor

from papers.date.cost import metered
from papers.date.drawn import Drawn, StepTrace, as_bytes, shown_rows
from papers.date.energy_cross_attention import energy_cross_attention
from papers.date.methods import Evaluate, embedding_update, weighted_sum
from papers.date.options import HubOptions, SamplerOptions
from papers.date.variants import Variant, parse_rewards, parse_schedules
from shared.data_order import chunks, generator_for
from shared.t2i.clip_scorer import ClipScorer, load_clip
from shared.t2i.guidance import universal_guidance
from shared.t2i.hub_pipeline import image_size, open_pipeline
from shared.t2i.pipeline_calls import is_flow
from shared.t2i.pipeline_hooks import network_of, plugged_in
from shared.t2i.prompt_files import Prompt
from shared.t2i.step_method import EmbeddingUpdate, NetworkStep, StepMethod


class HubBench:
    """A pipeline with prompts and CLIP scorers; see :class:`papers.date.drawn.Bench`.

    Its seconds are those that pass for one device, which has no other work; processors wait for it meanwhile.

    Args:
        sampler: options of sampling.
        pipeline: of diffusers; its safety checker must be off, since it blanks images.
        scorers: ``guidance``, ``preference`` and ``evaluator``.
        prompts: what is sampled.
        seed: of the noise; each prompt has its own.
        size: further arguments of the pipeline's call, for the size of its images.
    """

    def __init__(
        self,
        sampler: SamplerOptions,
        pipeline: DiffusionPipeline,
        scorers: dict[str, ClipScorer],
        prompts: Sequence[Prompt],
        *,
        seed: int,
        size: Mapping[str, int] | None = None,
    ) -> None:
        self.sampler, self.pipeline, self.scorers, self.prompts, self.seed = sampler, pipeline, scorers, prompts, seed
        self.size = dict(size or {})
        self.process = PartialState()
        self.shown = shown_rows(prompts, sampler.shown_per_task)
        self.schedules = parse_schedules(sampler.schedules, sampler.num_steps)

    def draw(self, variant: Variant, strength: float | None) -> Drawn:
        """As the protocol says.

        Raises:
            ValueError: the reward ``plain``, or energy-based cross-attention in a pipeline without a U-Net.
        """
        if variant.reward == "plain" or (variant.kind == "ebca" and not hasattr(self.pipeline, "unet")):
            raise ValueError(f"variant: {variant.name} is not supported on {type(self.pipeline).__name__}")
        own = np.arange(len(self.prompts))[self.process.process_index :: self.process.num_processes]
        parts = [self._draw_batch(variant, strength, rows) for rows in chunks(own, self.sampler.batch_size)]
        return merge_parts(gather_object(parts))

    def _draw_batch(self, variant: Variant, strength: float | None, rows: np.ndarray) -> dict[str, object]:
        """Rows, scores, steps, images, displacements, evaluations and seconds of a batch, as plain values."""
        texts = [self.prompts[row].text for row in rows]
        features = {name: scorer.text_features(texts) for name, scorer in self.scorers.items()}
        traces: list[StepTrace] = []
        shown = np.flatnonzero(np.isin(rows, self.shown))
        rewards = {name: _reward(scorer, features[name]) for name, scorer in self.scorers.items()}
        followed = rewards.get(variant.reward) or weighted_sum(rewards, parse_rewards(self.sampler.rewards))
        acting = self._acting(variant, strength, rows, followed, torch.tensor(shown, dtype=torch.int64), traces)
        started = time.perf_counter()
        with metered(network_of(self.pipeline)) as meter, acting:
            output = self.pipeline(
                texts,
                num_inference_steps=round(self.sampler.num_steps * variant.step_factor),
                guidance_scale=self.sampler.guidance_scale,
                generator=[generator_for(self.seed, int(row)) for row in rows],
                output_type="pt",
                **self.size,
            )
        images = output.images.float()
        if images.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        with torch.no_grad():
            scores = {f"{name}_score": scorer(images, features[name]).double().cpu().numpy()
                      for name, scorer in self.scorers.items()}  # fmt: skip
        return {
            "rows": rows,
            "scores": scores,
            "steps": [trace.rows() for trace in traces],
            "shown": rows[shown],
            "images": as_bytes(2 * images[shown] - 1).numpy(),
            "displacements": [torch.stack(trace.displacements).numpy() for trace in traces],
            "evaluations": meter.evaluations,
            "seconds": seconds,
        }

    @contextmanager
    def _acting(
        self,
        variant: Variant,
        strength: float | None,
        rows: np.ndarray,
        evaluate: Evaluate,
        shown: Tensor,
        traces: list[StepTrace],
    ) -> Iterator[None]:
        """Within the block, a run of the pipeline is the variant's; where it moves the embedding, a trace is added."""
        if variant.kind == "fixed":
            yield
        elif variant.kind == "ebca":
            with energy_cross_attention(self.pipeline.unet, strength, prompts=len(rows)) as energy:
                energy.active = True
                yield
        elif variant.kind == "universal":
            # Flow matching starts from pure noise, where a change of ε moves x̄0 without bound.
            guided = range(int(is_flow(self.pipeline.scheduler)), self.sampler.num_steps)
            with plugged_in(self.pipeline, replace(universal_guidance(evaluate, strength), steps=guided)):
                yield
        else:
            change = embedding_update(
                variant,
                strength,
                evaluate,
                scheduler=self.pipeline.scheduler,
                seed=self.seed,
                rows=rows.tolist(),
                num_updates=self.sampler.num_updates,
                prior_weight=self.sampler.prior_weight,
            )
            method = StepMethod(_traced(change, shown, traces), steps=self.schedules[variant.schedule])
            with plugged_in(self.pipeline, method):
                yield


def _reward(scorer: ClipScorer, texts: Tensor) -> Evaluate:
    return lambda images: scorer(images, texts)


def _traced(change: EmbeddingUpdate, shown: Tensor, traces: list[StepTrace]) -> EmbeddingUpdate:
    """The same update; what it does is taken down in the list's one trace."""

    def update(step: NetworkStep, embedding: Tensor, anchor: Tensor) -> Tensor:
        after = change(step, embedding, anchor)
        if not traces:
            traces.append(StepTrace(anchor, shown))
        traces[0].embedding(step.index, embedding, after)
        return after

    return update


def merge_parts(parts: list[dict[str, object]]) -> Drawn:
    """The batches of all processes as one, in the order of the prompts."""
    order = np.argsort(np.concatenate([part["rows"] for part in parts]))
    scores = {name: np.concatenate([part["scores"][name] for part in parts])[order] for name in parts[0]["scores"]}
    steps = [table for part in parts for table in part["steps"]]
    still = pd.DataFrame({"step": [0], "distance": [0.0], "length": [0.0]})
    order = np.argsort(np.concatenate([part["shown"] for part in parts]))
    images = torch.from_numpy(np.concatenate([part["images"] for part in parts])[order])
    paths = [path for part in parts for path in part["displacements"]]
    moved = np.concatenate(paths, axis=1)[:, order] if paths else np.zeros((1, len(order), 1), np.float32)
    count = len(np.concatenate([part["rows"] for part in parts]))
    return Drawn(
        scores=scores,
        sets={},
        images=images,
        steps=pd.concat(steps or [still], ignore_index=True),
        displacements=torch.from_numpy(moved),
        evaluations=sum(part["evaluations"] for part in parts) / count,
        seconds=sum(part["seconds"] for part in parts) / count,
    )


def open_hub(sampler: SamplerOptions, options: HubOptions, prompts: Sequence[Prompt], *, seed: int) -> HubBench:
    """The models of the options, on this process's GPU where there is one."""
    device = PartialState().device
    pipeline = open_pipeline(options)
    names = {"guidance": options.guidance, "preference": options.preference, "evaluator": options.evaluator}
    scorers = {name: load_clip(hub_name).to(device) for name, hub_name in names.items()}
    return HubBench(sampler, pipeline, scorers, prompts, seed=seed, size=image_size(options))
