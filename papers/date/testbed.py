"""DATE and its baselines on the small text-to-image testbed."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from papers.date.cost import metered
from papers.date.drawn import Drawn, StepTrace, as_bytes, shown_rows
from papers.date.methods import Evaluate, weighted_sum
from papers.date.options import SamplerOptions, ScenePromptOptions
from papers.date.scene_hooks import SceneRun
from papers.date.variants import Variant, parse_rewards
from shared.data_order import chunks
from shared.frechet import frechet_distance
from shared.t2i.captions import PromptSpec, caption_of, sample_scene
from shared.t2i.checker import check_prompt, prompt_score
from shared.t2i.metrics import detect_all
from shared.t2i.model import LatentCodec
from shared.t2i.networks import load_network
from shared.t2i.pipeline import ScenePipeline, load_pipeline
from shared.t2i.prompt_files import Prompt
from shared.t2i.prompts import mini_geneval
from shared.t2i.sampling import Step, initial_noise, sample
from shared.t2i.scenes import render_scene
from shared.t2i.scorer import DualEncoderScorer
from shared.t2i.step_method import sampler_hooks

SCORERS = ("guidance", "preference", "plain", "evaluator")
"""The first three are rewards that may be followed; only the checker and the evaluator decide claims."""


class SceneBench:
    """The testbed's pipeline with prompts of one split and seed; see :class:`papers.date.drawn.Bench`.

    Its seconds are of processor time, which other jobs on the machine hardly change.
    """

    def __init__(
        self,
        sampler: SamplerOptions,
        options: ScenePromptOptions,
        pipeline: ScenePipeline,
        scorers: dict[str, DualEncoderScorer],
        *,
        seed: int,
        split: str,
    ) -> None:
        self.sampler, self.pipeline, self.scorers, self.seed = sampler, pipeline, scorers, seed
        self.specs = mini_geneval(options.prompts_per_task, seed, split)
        self.prompts = [Prompt(caption_of(spec), spec.task) for spec in self.specs]
        self.shown = shown_rows(self.prompts, sampler.shown_per_task)
        ids = pipeline.tokenizer.encode([prompt.text for prompt in self.prompts]).to(pipeline.device)
        with torch.no_grad():
            self.texts = {name: scorer.text_features(ids) for name, scorer in scorers.items()}
        self.references = self._features(render_references(self.specs, options.references_per_prompt, seed))
        self._warm_up()

    def draw(self, variant: Variant, strength: float | None) -> Drawn:
        """As the protocol says; a fixed embedding has no strength."""
        with metered(self.pipeline.unet) as meter:
            batches = [
                self._draw_batch(variant, strength, rows)
                for rows in chunks(np.arange(len(self.prompts)), self.sampler.batch_size)
            ]
        images, traces, seconds = zip(*batches, strict=True)
        images = torch.cat(images)
        features = self._features(images)
        steps = pd.concat([trace.rows() for trace in traces], ignore_index=True)
        return Drawn(
            scores=self._scores(images),
            sets={"frechet_distance": frechet_distance(features, self.references)},
            images=as_bytes(images[self.shown]),
            steps=steps,
            displacements=torch.cat([torch.stack(trace.displacements) for trace in traces], dim=1),
            evaluations=meter.evaluations / len(self.prompts),
            seconds=sum(seconds) / len(self.prompts),
        )

    def _warm_up(self) -> None:
        """Sample in one step and differentiate once: the first time in a process takes longer, and is no method's."""
        captions = [prompt.text for prompt in self.prompts[: self.sampler.batch_size]]
        noise = initial_noise(self.seed, range(len(captions))).to(self.pipeline.device)
        self.pipeline(captions, noise, num_steps=1)
        with torch.enable_grad():
            embedding = self.pipeline.embed(captions).requires_grad_()
            torch.autograd.grad(self.pipeline.denoise(noise, torch.tensor(0), embedding).sum(), embedding)

    def _features(self, images: Tensor) -> np.ndarray:
        with torch.no_grad():
            return self.scorers["evaluator"].perceptual_features(images.to(self.pipeline.device)).cpu().numpy()

    @torch.no_grad()
    def _scores(self, images: Tensor) -> dict[str, np.ndarray]:
        found = list(zip(self.specs, detect_all(images), strict=True))
        learned = {
            f"{name}_score": scorer(images, self.texts[name]).double().cpu().numpy()
            for name, scorer in self.scorers.items()
        }
        return {
            "gold": np.array([check_prompt(spec, objects) for spec, objects in found], float),
            "gold_share": np.array([prompt_score(spec, objects) for spec, objects in found]),
            **learned,
        }

    def _draw_batch(
        self, variant: Variant, strength: float | None, rows: np.ndarray
    ) -> tuple[Tensor, StepTrace, float]:
        """Images, what their embeddings did, and seconds."""
        embedding, empty = self.pipeline.embed([self.prompts[row].text for row in rows]), self.pipeline.embed([""])
        trace = StepTrace(embedding, torch.tensor(np.flatnonzero(np.isin(rows, self.shown))))
        predictions: list[Tensor] = []  # judged afterwards, which takes no time of sampling
        run = SceneRun(
            self.pipeline,
            variant,
            strength,
            self.sampler,
            self._reward(variant.reward, rows),
            self.seed,
            rows.tolist(),
        )
        started = time.process_time()
        with run.method() as method:
            hooks = sampler_hooks(method, self.pipeline.denoise, embedding, empty)

            def embedding_hook(step: Step, before: Tensor) -> Tensor:
                change = hooks["embedding_hook"]
                after = change(step, before) if change else before
                trace.embedding(step.index, before, after)
                return after

            images = sample(
                self.pipeline.denoise,
                self.pipeline.scheduler,
                embedding,
                empty,
                initial_noise=initial_noise(self.seed, run.rows).to(self.pipeline.device),
                num_steps=round(self.sampler.num_steps * variant.step_factor),
                guidance_scale=self.sampler.guidance_scale,
                embedding_hook=embedding_hook,
                output_hook=hooks["output_hook"],
                step_callback=lambda step, clean: predictions.append(clean),
            )
        seconds, watched = time.process_time() - started, self._reward("guidance", rows)
        with torch.no_grad():
            trace.rewards([watched(LatentCodec.decode(clean)) for clean in predictions])
        return images, trace, seconds

    def _reward(self, name: str, rows: np.ndarray) -> Evaluate:
        if name == "sum":
            weights = parse_rewards(self.sampler.rewards)
            return weighted_sum({part: self._reward(part, rows) for part in weights}, weights)
        scorer, texts = self.scorers[name], self.texts[name][torch.tensor(rows)]
        return lambda images: scorer(images, texts)


def render_references(specs: list[PromptSpec], per_prompt: int, seed: int) -> Tensor:
    """True scenes of prompts, (prompts · per_prompt, 3, 12, 12) in [-1, 1]: what samples are compared with as a set."""
    rng = np.random.default_rng([seed, 2])
    scenes = [render_scene(sample_scene(rng, spec)) for spec in specs for _ in range(per_prompt)]
    return torch.from_numpy(np.stack(scenes))


def open_testbed(
    sampler: SamplerOptions,
    options: ScenePromptOptions,
    *,
    seed: int,
    split: str,
    pipeline: Path,
    guidance: Path,
    preference: Path,
    plain: Path,
    evaluator: Path,
) -> SceneBench:
    """The testbed from its files, on a GPU where there is one.

    Raises:
        InputError: a file is not what it should be.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    files = dict(zip(SCORERS, (guidance, preference, plain, evaluator), strict=True))
    scorers = {name: load_network(path, DualEncoderScorer).to(device) for name, path in files.items()}
    return SceneBench(sampler, options, load_pipeline(pipeline).to(device), scorers, seed=seed, split=split)
