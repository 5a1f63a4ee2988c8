"""Prompts that processes of accelerate share: each samples and judges its own, and all get everybody's measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from shared.data_order import chunks
from shared.errors import InputError
from shared.t2i.bench import Bench, Meter, PromptSet
from shared.t2i.defences import Plugs
from shared.t2i.defended_sampling import Sampled, rows_of
from shared.t2i.sampling import StepCallback, initial_noise, sample
from shared.t2i.step_method import sampler_hooks

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """A process's part of sets of prompts.

    Attributes:
        sets: with the process's own prompts; a set of which it has none is missing.
        numbers: of its prompts, set by set, among all prompts; noise is drawn by them.
        places: of its prompts, each in its set.
    """

    sets: list[PromptSet]
    numbers: NDArray[np.int64]
    places: NDArray[np.int64]

    @property
    def captions(self) -> list[str]:
        return [caption for part in self.sets for caption in part.captions]


def own_share(sets: Sequence[PromptSet]) -> Share:
    """Every n-th prompt, where there are n processes.

    Raises:
        InputError: fewer prompts than processes.
    """
    process, total = PartialState(), sum(len(part.captions) for part in sets)
    if total < process.num_processes:
        raise InputError(f"processes: {process.num_processes} cannot share {total} prompts")
    numbers = np.arange(total)[process.process_index :: process.num_processes]
    own, places = [], []
    for part, rows in rows_of(sets):
        inside = numbers[(numbers >= rows.start) & (numbers < rows.stop)] - rows.start
        if len(inside):
            own.append(replace(part, captions=tuple(part.captions[place] for place in inside)))
            places.append(inside)
    return Share(own, numbers, np.concatenate(places))


def sample_share(
    draw: Callable[[list[str], list[int], int], tuple[Tensor, int]], share: Share, batch_size: int
) -> Sampled:
    """Images of all prompts of a share, and what they cost this process.

    Args:
        draw: from a batch's captions, their numbers, and the first one's place in the share to its images
            (B, 3, H, W) and the evaluations of the denoiser that they took.
        share: the prompts.
        batch_size: prompts that are sampled together.
    """
    captions, images, evaluations = share.captions, [], 0
    started, processor = time.perf_counter(), time.process_time()
    for places in chunks(np.arange(len(captions)), batch_size):
        found, spent = draw([captions[place] for place in places], share.numbers[places].tolist(), int(places[0]))
        images.append(found.float().cpu())
        evaluations += spent
    count = len(captions)
    return Sampled(
        torch.cat(images),
        evaluations / count,
        (time.process_time() - processor) / count,
        time.perf_counter() - started,
    )


def draw_batch(
    bench: Bench,
    plugs: Plugs,
    numbers: Sequence[int],
    *,
    seed: int,
    num_steps: int,
    guidance_scale: float,
    watch: StepCallback | None = None,
) -> tuple[Tensor, int]:
    """Images of a batch under a defence, and the evaluations of the denoiser that they took.

    Args:
        bench: the system with the U-Net that is sampled from.
        plugs: of the defence, for the batch.
        numbers: of its prompts among those of all processes, so that noise does not depend on how they are shared.
        seed: of the noise.
        num_steps: of the sampler.
        guidance_scale: w.
        watch: what looks on.
    """
    embeddings, meter = (plugs.cond_embedding, plugs.uncond_embedding), Meter(bench.denoise)
    hooks = sampler_hooks(plugs.method, meter, *embeddings, prediction_type=bench.prediction_type, decode=bench.decode)
    images = sample(
        meter,
        bench.scheduler,
        *embeddings,
        initial_noise=initial_noise(seed, numbers, bench.latent_shape).to(plugs.cond_embedding),
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        decode=bench.decode,
        step_callback=watch,
        **hooks,
    )
    return images, meter.evaluations


def gather_measurements(sampled: Sampled, values: pd.DataFrame, share: Share) -> tuple[Sampled, pd.DataFrame]:
    """What all processes measured: costs per image of all, and values in the order of the prompts.

    The images stay those of this process alone.

    Args:
        sampled: of this process's prompts.
        values: of its images, with a column ``prompt``.
        share: what its prompts are.
    """
    own = len(share.numbers)
    spent = np.array([own, own * sampled.evaluations, own * sampled.seconds, sampled.wall_seconds])
    numbered = values.assign(prompt=share.places, number=share.numbers)
    tables, costs = zip(*gather_object([(numbered, spent)]), strict=True)
    total, evaluations, seconds, _ = np.sum(costs, axis=0)
    together = sampled._replace(
        evaluations=float(evaluations / total),
        seconds=float(seconds / total),
        wall_seconds=float(np.max(costs, axis=0)[-1]),
    )
    return together, pd.concat(tables).sort_values("number").drop(columns="number").reset_index(drop=True)


def gather_items(items: Sequence[Item]) -> list[Item]:
    """The items of all processes, one process after another."""
    return [item for part in gather_object([list(items)]) for item in part]
