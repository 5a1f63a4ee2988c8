"""What sampling one variant gives, and the tables and files that stages make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from papers.date.variants import Variant
from shared.t2i.prompt_files import Prompt


@dataclass(frozen=True)
class Drawn:
    """The images of all prompts under one variant, judged.

    Attributes:
        scores: metric -> (prompts,), higher is better.
        sets: metric -> number, of the images as a set.
        images: of the prompts that are shown, (shown, 3, H, W), uint8.
        steps: columns step, distance, length, and reward where it was measured; see :class:`StepTrace`.
        displacements: of the shown prompts' embeddings from their own, (steps, shown, features), float32.
        evaluations: of the network per image; see :func:`papers.date.cost.metered`.
        seconds: of sampling per image, without judging it; see the bench.
    """

    scores: dict[str, np.ndarray]
    sets: dict[str, float]
    images: Tensor
    steps: pd.DataFrame
    displacements: Tensor
    evaluations: float
    seconds: float


class Bench(Protocol):
    """A text-to-image system with prompts and judges."""

    prompts: Sequence[Prompt]
    shown: Sequence[int]

    def draw(self, variant: Variant, strength: float | None) -> Drawn:
        """Sample an image of every prompt; images and scores do not depend on what was drawn before."""
        ...


@dataclass
class StepTrace:
    """Follows the text embedding of a batch from step to step."""

    anchor: Tensor
    """The prompts' own embeddings, (B, L, D)."""
    shown: Tensor
    """Rows of the batch whose displacements are kept, int64."""
    steps: list[dict[str, Tensor | int]] = field(default_factory=list)
    displacements: list[Tensor] = field(default_factory=list)

    def embedding(self, index: int, before: Tensor, after: Tensor) -> None:
        """Take down a step: its index, and the embedding before and after it."""
        self.steps.append({"step": index, "distance": _length(after - self.anchor), "length": _length(after - before)})
        self.displacements.append((after - self.anchor)[self.shown].flatten(1).float().cpu())

    def rewards(self, values: Sequence[Tensor]) -> None:
        """Take down the rewards (B,) of all steps' clean predictions."""
        for step, reward in zip(self.steps, values, strict=True):
            step["reward"] = reward.double().cpu()

    def rows(self) -> pd.DataFrame:
        """A row for each step and prompt: step, distance from the own embedding, length of the step, reward."""
        return pd.concat([pd.DataFrame(step) for step in self.steps], ignore_index=True)


def _length(difference: Tensor) -> Tensor:
    return difference.flatten(1).double().norm(dim=1).cpu()


def as_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, values outside clipped."""
    return ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()


def shown_rows(prompts: Sequence[Prompt], per_task: int) -> list[int]:
    """The first prompts of each task, by their numbers."""
    tasks = pd.Series([prompt.task for prompt in prompts])
    return tasks.groupby(tasks).head(per_task).index.tolist()


def direction_cosines(displacements: Tensor) -> Tensor:
    """Mean cosine between the moves of an embedding in any two steps, (steps, steps).

    Args:
        displacements: (steps, prompts, features), from the prompts' own embeddings; steps without a move give zeros.
    """
    start = torch.zeros_like(displacements[:1])
    moves = F.normalize(torch.diff(displacements, dim=0, prepend=start), dim=-1)
    return torch.einsum("ipf,jpf->ij", moves, moves) / displacements.shape[1]


def principal_paths(displacements: Tensor) -> Tensor:
    """Paths of one prompt's embedding in the plane in which they extend most, (variants, steps, 2).

    The plane goes through the prompt's own embedding, the origin; each axis points to where its mean is positive.

    Args:
        displacements: (variants, steps, features).
    """
    flat = displacements.flatten(0, 1).double()
    _, _, axes = torch.linalg.svd(flat, full_matrices=False)
    coordinates = flat @ axes[:2].T
    signs = torch.where(coordinates.mean(dim=0) < 0, -1.0, 1.0)
    return F.pad(coordinates * signs, (0, 2 - coordinates.shape[1])).unflatten(0, displacements.shape[:2])
