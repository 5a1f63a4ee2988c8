"""A text-to-image system of the testbed's kind that nobody trained, for tests of this folder."""

from pathlib import Path

import torch

from papers.date.options import SamplerOptions, ScenePromptOptions
from papers.date.testbed import SCORERS, SceneBench
from shared.t2i.model import build_scheduler, build_unet
from shared.t2i.networks import save_network
from shared.t2i.options import UNetOptions
from shared.t2i.pipeline import ScenePipeline
from shared.t2i.scorer import DualEncoderScorer, build_text_encoder

STEPS = 4
SAMPLER = SamplerOptions(
    num_steps=STEPS,
    guidance_scale=3.0,
    rewards=("guidance*1.0", "preference*0.5"),
    schedules=("all=0:4:1", "late=2,3", "first=0:1:1", "second=1:2:1", "third=2:3:1", "fourth=3:4:1", "every5=0:4:2"),
    shown_per_task=1,
    batch_size=12,
)
PROMPTS = ScenePromptOptions(prompts_per_task=1, references_per_prompt=2)


def scene_pipeline() -> ScenePipeline:
    torch.manual_seed(0)
    return ScenePipeline(build_unet(UNetOptions(channels=(16, 16)), seed=0), build_text_encoder(), build_scheduler())


def scorers() -> dict[str, DualEncoderScorer]:
    torch.manual_seed(1)
    return {name: DualEncoderScorer(width=4).eval().requires_grad_(False) for name in SCORERS}


def scene_bench(sampler: SamplerOptions = SAMPLER, *, seed: int = 0, split: str = "test") -> SceneBench:
    return SceneBench(sampler, PROMPTS, scene_pipeline(), scorers(), seed=seed, split=split)


def save_system(folder: Path) -> dict[str, Path]:
    """The system's files by the names of the stages' inputs."""
    scene_pipeline().save_pretrained(folder / "pipeline", safe_serialization=True)
    for name, scorer in scorers().items():
        save_network(folder / f"{name}.safetensors", scorer, width=4)
    return {"pipeline": folder / "pipeline"} | {name: folder / f"{name}.safetensors" for name in SCORERS}
