"""Prompts that processes of accelerate share: each samples and judges its own, and all get everybody's measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray

from papers.stg.measurement import Trace
from papers.stg.sample import Judged
from shared.errors import InputError
from shared.t2i.bench import PromptSet
from shared.t2i.defended_sampling import rows_of


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


def gather(judged: Judged, share: Share) -> Judged:
    """A run with the measurements of all processes, in the order of the prompts; images are this process's alone.

    Args:
        judged: of this process's prompts.
        share: what they are.
    """
    own, sampled = len(share.numbers), judged.sampled
    values = judged.values.assign(prompt=share.places, number=share.numbers)
    trace = [rows.assign(prompt=share.numbers[rows["prompt"]]) for rows in judged.trace]
    spent = np.array([own, own * sampled.evaluations, own * sampled.seconds, sampled.wall_seconds])
    tables, traces, costs = zip(*gather_object([(values, trace, spent)]), strict=True)
    total, evaluations, seconds, _ = np.sum(costs, axis=0)
    found = pd.concat(tables).sort_values("number").drop(columns="number").reset_index(drop=True)
    everyones: Trace = [rows for each in traces for rows in each]
    return Judged(
        judged.run,
        sampled._replace(
            evaluations=float(evaluations / total),
            seconds=float(seconds / total),
            wall_seconds=float(np.max(costs, axis=0)[-1]),
        ),
        found,
        everyones,
    )
