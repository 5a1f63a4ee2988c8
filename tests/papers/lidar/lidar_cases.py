"""A text-to-image system of the testbed's kind that nobody trained, for tests of this folder."""

from pathlib import Path

import torch

from papers.lidar.options import SamplerOptions
from papers.lidar.testbed import SceneBench
from shared.t2i.model import build_scheduler, build_unet
from shared.t2i.networks import save_network
from shared.t2i.options import UNetOptions
from shared.t2i.pipeline import ScenePipeline
from shared.t2i.prompts import mini_geneval
from shared.t2i.scorer import DualEncoderScorer, build_text_encoder

SAMPLER = SamplerOptions(
    num_steps=4,
    guidance_scale=2.0,
    lookahead_guidance_scale=2.0,
    lookahead_size=4,
    images_per_prompt=2,
    end_timestep=200.0,
    steering_steps=(1, 2),
    batch_size=6,
    pictured=("vanilla", "lidar/d2-n4"),
)


def scene_pipeline() -> ScenePipeline:
    torch.manual_seed(0)
    return ScenePipeline(build_unet(UNetOptions(channels=(16, 16)), seed=0), build_text_encoder(), build_scheduler())


def scorer(seed: int) -> DualEncoderScorer:
    torch.manual_seed(seed)
    return DualEncoderScorer(width=4).eval().requires_grad_(False)


def scene_bench(options: SamplerOptions = SAMPLER, *, seed: int = 0, prompts: slice = slice(0, 3)) -> SceneBench:
    specs = mini_geneval(1, seed, "test")[prompts]
    return SceneBench(options, scene_pipeline(), scorer(1), scorer(2), specs, seed=seed, model="tiny")


def save_system(folder: Path) -> dict[str, Path]:
    """The system's files by the names of the stages' inputs."""
    scene_pipeline().save_pretrained(folder / "pipeline", safe_serialization=True)
    for seed, name in enumerate(("guidance", "evaluator"), start=1):
        save_network(folder / f"{name}.safetensors", scorer(seed), width=4)
    return {name: folder / f"{name}.safetensors" for name in ("guidance", "evaluator")} | {
        "pipeline": folder / "pipeline"
    }
