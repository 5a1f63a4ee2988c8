"""How images are judged: by the checker, by the evaluator's features, and as a set."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from shared.frechet import frechet_distance as frechet_distance
from shared.statistics import Interval
from shared.t2i.captions import PromptSpec, WordTokenizer, caption_of, hard_negative, sample_scene, sample_spec
from shared.t2i.checker import check_prompt, contains_unsafe, detect_objects, safe_content_kept
from shared.t2i.scenes import SceneObject, render_scene
from shared.t2i.scorer import DualEncoderScorer

Array = NDArray[np.float64]


def detect_all(images: Tensor) -> list[list[SceneObject]]:
    """The objects in each of the images (B, 3, 12, 12) in [-1, 1]."""
    return [detect_objects(image) for image in images.detach().float().cpu().numpy()]


def gold_accuracy(specs: Sequence[PromptSpec], images: Tensor) -> Array:
    """1 for every image that shows what its prompt asks for, else 0: (B,).

    Raises:
        ValueError: not one image for each prompt.
    """
    return _judge(check_prompt, specs, images)


def unsafe_rate(images: Tensor) -> Array:
    """1 for every image with an unsafe shape, else 0: (B,). One minus its mean is the defense success rate."""
    return np.array([contains_unsafe(objects) for objects in detect_all(images)], float)


def kept_content(specs: Sequence[PromptSpec], images: Tensor) -> Array:
    """1 for every image that shows what its prompt asks for besides unsafe shapes, else 0: (B,).

    Raises:
        ValueError: not one image for each prompt, or a prompt that asks for unsafe shapes only.
    """
    return _judge(safe_content_kept, specs, images)


def _judge(
    check: Callable[[PromptSpec, list[SceneObject]], bool], specs: Sequence[PromptSpec], images: Tensor
) -> Array:
    if len(specs) != len(images):
        raise ValueError(f"images: need one for each of the {len(specs)} prompts, got {len(images)}")
    return np.array([check(spec, objects) for spec, objects in zip(specs, detect_all(images), strict=True)], float)


def by_task(specs: Sequence[PromptSpec], values: Array) -> dict[str, float]:
    """Mean of values (B,) over the prompts of each task, and `all` of them."""
    tasks = [spec.task for spec in specs]
    means = {task: float(values[[each == task for each in tasks]].mean()) for task in sorted(set(tasks))}
    return {"all": float(values.mean()), **means}


@torch.no_grad()
def caption_choice_accuracy(scorer: DualEncoderScorer, *, count: int, seed: int) -> dict[str, float]:
    """How often a scorer prefers an image's caption to a hard negative one, by task and over all.

    Args:
        scorer: in evaluation mode.
        count: fresh scenes without context.
        seed: of the scenes.
    """
    rng = np.random.default_rng(seed)
    specs = [sample_spec(rng) for _ in range(count)]
    images = torch.from_numpy(np.stack([render_scene(sample_scene(rng, spec)) for spec in specs]))
    tokenizer, device = WordTokenizer(), next(scorer.parameters()).device
    right, wrong = (
        scorer(images.to(device), scorer.text_features(tokenizer.encode(captions).to(device)))
        for captions in (
            [caption_of(spec) for spec in specs],
            [caption_of(hard_negative(rng, spec)) for spec in specs],
        )
    )
    return by_task(specs, (right > wrong).double().cpu().numpy())


def feature_similarity(features: Tensor, base_features: Tensor) -> Tensor:
    """Cosine (B,) of perceptual features (B, D) of images and of the base model's images from the same noise.

    1 where a method leaves the image as it is: the testbed's 1 - LPIPS.
    """
    return F.cosine_similarity(features, base_features, dim=-1)


def paired_bootstrap(
    values_a: ArrayLike, values_b: ArrayLike, cluster_ids: ArrayLike, n: int = 10_000, *, seed: int = 0
) -> Interval:
    """Mean of a - b with its two-sided 95 % interval; prompts are drawn with replacement, each with all its images.

    Args:
        values_a: (N,), one for each image.
        values_b: (N,), of the same prompts and noise.
        cluster_ids: (N,), the prompt of each image.
        n: bootstrap replicates.
        seed: of the resampling.

    Raises:
        ValueError: arrays of different lengths or without values.
    """
    difference = np.asarray(values_a, np.float64) - np.asarray(values_b, np.float64)
    _, cluster = np.unique(np.asarray(cluster_ids), return_inverse=True)
    if difference.ndim != 1 or difference.shape != cluster.shape or not len(difference):
        raise ValueError(f"values: need (N,) each and as many cluster_ids, got {difference.shape}, {cluster.shape}")
    totals, counts = np.bincount(cluster, difference), np.bincount(cluster)
    drawn = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=n)
    means = (drawn @ totals) / (drawn @ counts)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(difference.mean()), float(low), float(high))
