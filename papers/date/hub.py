"""DATE on a pipeline of the hub, with CLIP models as rewards; processes of accelerate share the prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from diffusers import DiffusionPipeline
from torch import Tensor

from papers.date.drawn import Drawn, StepTrace, as_bytes, shown_rows
from papers.date.methods import embedding_update
from papers.date.options import HubOptions, SamplerOptions
from papers.date.variants import Variant, parse_schedules
from shared.data_order import chunks, generator_for
from shared.t2i.clip_scorer import ClipScorer, load_clip
from shared.t2i.hub_pipeline import counted_rows, image_size, open_pipeline
from shared.t2i.pipeline_hooks import plugged_in
from shared.t2i.prompt_files import Prompt
from shared.t2i.step_method import NetworkStep, StepMethod

SUPPORTED = ("fixed", "date", "random")


class HubBench:
    """A pipeline with prompts and CLIP scorers; see :class:`papers.date.drawn.Bench`.

    Args:
        sampler: options of sampling.
        pipeline: of diffusers; its safety checker must be off, since it blanks images.
        scorers: ``guidance``, ``preference`` and ``evaluator``.
        prompts: what is sampled.
        seed: of the noise; each prompt has its own.
        size: further arguments of the pipeline's call, for the size of its images.

    Attributes:
        branches: evaluations of the network for an image in a step that updates nothing, known after the first batch: 2
            under classifier-free guidance, 1 in a model that was distilled from it.
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
        self.size, self.branches = dict(size or {}), 2
        self.process = PartialState()
        self.shown = shown_rows(prompts, sampler.shown_per_task)
        self.schedules = parse_schedules(sampler.schedules, sampler.num_steps)

    def draw(self, variant: Variant, strength: float | None) -> Drawn:
        """As the protocol says.

        Raises:
            ValueError: a kind of variant that is not supported here, or the reward on noisy latents.
        """
        if variant.kind not in SUPPORTED or variant.scores_noisy or variant.reward not in self.scorers:
            raise ValueError(f"variant: {variant.name} is not supported on models of the hub")
        own = np.arange(len(self.prompts))[self.process.process_index :: self.process.num_processes]
        parts = [self._draw_batch(variant, strength, rows) for rows in chunks(own, self.sampler.batch_size)]
        return merge_parts(gather_object(parts))

    def _draw_batch(self, variant: Variant, strength: float | None, rows: np.ndarray) -> dict[str, object]:
        """Rows, scores, steps, images and displacements of a batch, as plain values."""
        texts = [self.prompts[row].text for row in rows]
        features = {name: scorer.text_features(texts) for name, scorer in self.scorers.items()}
        traces: list[StepTrace] = []
        shown = np.flatnonzero(np.isin(rows, self.shown))
        updates = self._updates(variant, strength, rows, features, torch.tensor(shown, dtype=torch.int64), traces)
        with updates, counted_rows(self.pipeline) as counted:
            output = self.pipeline(
                texts,
                num_inference_steps=round(self.sampler.num_steps * variant.step_factor),
                guidance_scale=self.sampler.guidance_scale,
                generator=[generator_for(self.seed, int(row)) for row in rows],
                output_type="pt",
                **self.size,
            )
        self.branches = counted[0] // len(rows)
        images = output.images.float()
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
        }

    def _updates(
        self,
        variant: Variant,
        strength: float | None,
        rows: np.ndarray,
        features: dict[str, Tensor],
        shown: Tensor,
        traces: list[StepTrace],
    ) -> AbstractContextManager[None]:
        """What makes the pipeline's runs within the block the variant, and follows the embedding in its updates."""
        if variant.kind == "fixed":
            return nullcontext()
        scorer = self.scorers[variant.reward]

        def evaluate(images: Tensor) -> Tensor:
            return scorer(images, features[variant.reward])

        change = embedding_update(variant, strength, evaluate, seed=self.seed, rows=rows.tolist())

        def update(step: NetworkStep, embedding: Tensor, anchor: Tensor) -> Tensor:
            after = change(step, embedding, anchor)
            if not traces:
                traces.append(StepTrace(anchor, shown))
            traces[0].embedding(step.index, embedding, after)
            return after

        return plugged_in(self.pipeline, StepMethod(change_embedding=update, steps=self.schedules[variant.schedule]))


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
    return Drawn(scores, {}, images, pd.concat(steps or [still], ignore_index=True), torch.from_numpy(moved))


def open_hub(sampler: SamplerOptions, options: HubOptions, prompts: Sequence[Prompt], *, seed: int) -> HubBench:
    """The models of the options, on this process's GPU where there is one."""
    device = PartialState().device
    pipeline = open_pipeline(options)
    names = {"guidance": options.guidance, "preference": options.preference, "evaluator": options.evaluator}
    scorers = {name: load_clip(hub_name).to(device) for name, hub_name in names.items()}
    return HubBench(sampler, pipeline, scorers, prompts, seed=seed, size=image_size(options))
