"""Train: runs of one suite and seed one after another, each on every task of the protocol, and measured.

All runs of a seed share images, splits, initial weights and batches.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from papers.udim.image_sets import read_image_set
from papers.udim.measurements import Probe, measure_accuracy
from papers.udim.methods import Hyperparameters, parse_run
from papers.udim.options import SOURCE, ProtocolOptions, TrainOptions
from papers.udim.tasks import Task, make_tasks
from papers.udim.training import Trained, train_run
from shared.errors import InputError
from shared.files import write_json
from shared.run_by_run import FINISHED, RunFolders
from shared.stage import Input, Output, State, run
from shared.tables import write_table

TABLES = ("runs", "accuracies", "images", "landscape", "curves")


@dataclass(frozen=True)
class _Job:
    """What all runs of a job share."""

    options: TrainOptions
    tasks: list[Task]
    probes: list[Probe]
    selected: dict[str, dict[str, float]]
    seed: int
    accelerator: Accelerator


def train(
    domains: ProtocolOptions,
    options: TrainOptions,
    *,
    seed: int,
    setting: str,
    names: tuple[str, ...],
    images: Input,
    hyperparameters: tuple[Input, ...] = (),
    runs: Output,
    accuracies: Output,
    per_image: Output,
    landscape: Output,
    curves: Output,
    models: Output,
    state: State,
) -> dict[str, dict[str, float]]:
    """Train and measure the runs ``names``; hyperparameters are those selected, where a file of them is given.

    All tables have the columns setting, seed, run (as named in the configuration), and task; ``runs`` has a row for
    each training: step (the selected one), validation_accuracy, validation_loss, last_accuracy (mean over the targets
    after the last step), and the hyperparameters. The others are those of :mod:`papers.udim.measurements` and the
    training curve. ``models`` holds the weights of the runs that are kept, as ``<run>--<task>.safetensors``.
    """
    tasks = make_tasks(read_image_set(images), domains, seed)
    accelerator = Accelerator()
    selected = {name: values for path in hyperparameters for name, values in read_hyperparameters(path).items()}
    probes = [Probe(options, task, accelerator.device) for task in tasks]
    job = _Job(options, tasks, probes, selected, seed, accelerator)
    for name in names:
        parse_run(name)  # a wrong name ends the job before it has begun
    folders = RunFolders(state, [f"{name}/{task.name}" for name in names for task in tasks])
    for path, folder in folders.unfinished():
        name, task_name = path.split("/")
        make_run(job, name, next(index for index, task in enumerate(tasks) if task.name == task_name), folder)
    if not accelerator.is_main_process:
        return {}

    def columns(path: str) -> dict[str, object]:
        name, task_name = path.split("/")
        return {"setting": setting, "seed": seed, "run": name, "task": task_name}

    for table, output in zip(TABLES, (runs, accuracies, per_image, landscape, curves), strict=True):
        write_table(output, folders.gather(table, columns))
    models.mkdir()
    for path in folders.names:
        weights = folders.folder(path) / "weights.safetensors"
        if weights.exists():
            weights.rename(models / f"{path.replace('/', '--')}.safetensors")
    seconds = folders.records()
    return {
        "seconds": {name: sum(seconds[f"{name}/{task.name}"]["seconds"] for task in tasks) for name in names},
    }


def make_run(job: _Job, name: str, number: int, folder: Path) -> None:
    """Train a run on one task; write its tables, its weights if they are kept, and last that it is finished."""
    started = time.perf_counter()
    task, planned = job.tasks[number], parse_run(name)
    settings = planned.settings(job.options.hyperparameters, job.selected)
    trained = train_run(
        job.options,
        task,
        planned,
        settings,
        seed=job.seed,
        accelerator=job.accelerator,
        probe=job.probes[number],
        state=folder / "training",
    )
    if job.accelerator.is_main_process:
        write_measurements(trained, settings, task, job.probes[number], folder)
        if name in job.options.saved:
            save_weights(trained.selected, folder / "weights.safetensors")
        print(f"{name} on {task.name}: {time.perf_counter() - started:.1f} s", flush=True)
        write_json(folder / FINISHED, {"seconds": round(trained.seconds, 3)})
    job.accelerator.wait_for_everyone()


def write_measurements(trained: Trained, settings: Hyperparameters, task: Task, probe: Probe, folder: Path) -> None:
    """Measure both networks of a training and write all `TABLES`."""
    accuracies, images = measure_accuracy(trained.selected, probe.normalization, task)
    last, _ = measure_accuracy(trained.last, probe.normalization, task)
    row = {
        "step": trained.selected_step,
        "validation_accuracy": trained.validation_accuracy,
        "validation_loss": trained.validation_loss,
        "last_accuracy": last[last["domain"] != SOURCE]["accuracy"].mean(),
        **vars(settings),
    }
    tables = (
        pd.DataFrame([row]),
        accuracies,
        images,
        probe.landscape(trained.selected),
        pd.DataFrame(trained.curve),
    )
    for table, rows in zip(TABLES, tables, strict=True):
        write_table(folder / f"{table}.parquet", rows)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write weights and buffers, floats as float16."""
    tensors = {
        name: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(tensors, path)


def read_hyperparameters(path: Path) -> dict[str, dict[str, float]]:
    """Selected hyperparameters by method.

    Raises:
        InputError: not a JSON object of objects of numbers, or of an unknown hyperparameter.
    """
    try:
        selected = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    known = Hyperparameters.__dataclass_fields__
    if not isinstance(selected, dict):
        raise InputError(f"{path}: expected an object of methods, got {type(selected).__name__}")
    for method, values in selected.items():
        if not isinstance(values, dict):
            raise InputError(f"{path}: {method}: expected an object, got {values!r}")
        for name, value in values.items():
            if name not in known or isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InputError(f"{path}: {method}: expected numbers for some of {', '.join(known)}, got {name!r}: "
                                 f"{value!r}")  # fmt: skip
    return selected


if __name__ == "__main__":
    run(train)
