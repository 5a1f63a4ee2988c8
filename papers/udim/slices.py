"""Slices: the loss of saved networks on source and unknown domains, along the same random directions for each seed."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import nn

from papers.udim.gradients import trainable_parameters
from papers.udim.image_sets import read_image_set
from papers.udim.loss_slices import filter_normalised_direction, loss_along, loss_over_plane
from papers.udim.measurements import Batch, Probe, loss_function
from papers.udim.networks import build_network
from papers.udim.options import SOURCE, UNSEEN, ProtocolOptions, SliceOptions, TrainOptions
from papers.udim.tasks import Task, make_tasks
from shared.data_order import generator_for
from shared.errors import InputError
from shared.progress import Progress
from shared.stage import Input, Output, run
from shared.tables import write_table


def slices(
    domains: ProtocolOptions,
    options: TrainOptions,
    shape: SliceOptions,
    *,
    seeds: tuple[int, ...],
    images: Input,
    models: tuple[Input, ...],
    lines: Output,
    plane: Output,
) -> None:
    """Slice every network in the folders ``models``, of which the numbers ``seeds`` name the seed of each.

    Both tables have the columns run, task, seed, domain (source or unseen) and loss; ``lines`` has direction and x,
    ``plane`` x and y, in units of filter-normalised directions.
    """
    if len(seeds) != len(models):
        raise InputError(f"seeds: need one for each of {len(models)} folders of models, got {len(seeds)}")
    image_set = read_image_set(images)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    files = [
        (seed, path)
        for seed, folder in zip(seeds, models, strict=True)
        for path in sorted(folder.glob("*.safetensors"))
    ]
    tasks = {seed: {task.name: task for task in make_tasks(image_set, domains, seed)} for seed in sorted(set(seeds))}
    parts: list[tuple[pd.DataFrame, pd.DataFrame]] = []
    with Progress(len(files), "slices") as progress:
        for seed, path in files:
            name, _, task_name = path.stem.rpartition("--")
            columns = {"run": name, "task": task_name, "seed": seed}
            sliced = slice_network(options, shape, tasks[seed][task_name], path, seed, device)
            parts.append(tuple(table.assign(**columns) for table in sliced))
            progress.update()
    if not parts:
        raise InputError("models: the folders hold no weights; name runs under train.saved")
    for output, tables in zip((lines, plane), zip(*parts, strict=True), strict=True):
        write_table(output, pd.concat(tables, ignore_index=True))


def slice_network(
    options: TrainOptions, shape: SliceOptions, task: Task, weights: Path, seed: int, device: torch.device
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Lines and plane of one network, as columns direction, x, domain, loss and x, y, domain, loss."""
    model = load_network(options, task, weights).to(device).eval()
    parameters = list(trainable_parameters(model).values())
    directions = [
        filter_normalised_direction(parameters, generator_for(seed, number)) for number in range(shape.directions)
    ]
    steps = np.linspace(-shape.extent, shape.extent, shape.points).tolist()
    probe = Probe(options, task, device)
    lines, plane = [], []
    for domain, batch in {SOURCE: probe.source, UNSEEN: _joined(probe, shape.slice_images)}.items():
        loss = loss_function(model, batch)
        for number, direction in enumerate(directions):
            values = loss_along(loss, parameters, direction, steps).tolist()
            lines += [(number, x, domain, value) for x, value in zip(steps, values, strict=True)]
        grid = loss_over_plane(loss, parameters, (directions[0], directions[1]), steps)
        places = itertools.product(steps, steps)
        plane += [(x, y, domain, value) for (x, y), value in zip(places, grid.flatten().tolist(), strict=True)]
    return (
        pd.DataFrame(lines, columns=["direction", "x", "domain", "loss"]),
        pd.DataFrame(plane, columns=["x", "y", "domain", "loss"]).astype({"loss": "float32"}),
    )


def load_network(options: TrainOptions, task: Task, path: Path) -> nn.Module:
    """The network of a task with saved weights, float32."""
    channels, size = task.validation.images.shape[1:3]
    model = build_network(options.network, channels=channels, size=size, classes=task.classes, seed=0)
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise InputError(f"{path}: not weights of this network: {str(error).splitlines()[0]}") from None
    return model


def _joined(probe: Probe, images: int) -> Batch:
    batches = [Batch(batch.inputs[:images], batch.labels[:images]) for batch in probe.unknown.values()]
    return Batch(*(torch.cat(column) for column in zip(*batches, strict=True)))


if __name__ == "__main__":
    run(slices)
