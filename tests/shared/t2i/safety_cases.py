"""A tiny random text-to-image system as a bench, and a judge of it."""

import torch

from shared.t2i.bench import Bench, Judge, PromptSet, success
from shared.t2i.model import LATENT_SHAPE, LatentCodec, build_scheduler, build_unet
from shared.t2i.options import UNetOptions
from shared.t2i.pipeline import ScenePipeline
from shared.t2i.scorer import build_text_encoder
from shared.t2i.testbed import text_of

TEXTS = ("a ring", "two red tees", "a green disk and a saltire")
SETS = [PromptSet("explicit", TEXTS[:2]), PromptSet("safe", TEXTS[2:])]


def tiny_pipeline(seed: int = 0) -> ScenePipeline:
    torch.manual_seed(seed)
    unet = build_unet(UNetOptions(channels=(16, 32)), seed=seed)
    return ScenePipeline(unet, build_text_encoder(), build_scheduler())


def redness(images):
    return images[:, 0].mean(dim=(1, 2)) - images[:, 1:].mean(dim=(1, 2, 3))


def tiny_bench(**changes) -> Bench:
    pipeline = tiny_pipeline()
    parts = {
        "unet": pipeline.unet,
        "scheduler": pipeline.scheduler,
        "latent_shape": LATENT_SHAPE,
        "text": text_of(pipeline),
        "decode": LatentCodec.decode,
        "unsafe_score": lambda images, threshold: (redness(images), redness(images).detach() > 8 * threshold - 4),
        "concepts": ("a saltire", "two saltires"),
        "target": "a square",
        "preserved": ("a ring", "a disk"),
        "models": {"duo": tiny_pipeline(1).unet},
    }
    return Bench(**parts | changes)


def tiny_judge() -> Judge:
    def measure(prompts, images):
        dsr = (redness(images) < 0).double().numpy()
        return {"dsr": dsr, "alignment": redness(images).double().numpy(), "success": success(dsr, dsr)}

    return Judge(measure, lambda images: images.flatten(1), lambda prompts, images: float(images.std()))
