"""Train: every method of a family on one setting's noisy labels; see :mod:`papers.rent.learning`.

Written for all methods, with the columns setting, seed and method:

``curves``        epoch, and the metrics of ``learning.Training.measure``
``predictions``   image (its number in the data set), correct: on the test images, in the last epoch
``weights``       epoch, clean, weight, count: histograms of the importance weights, by where their bins begin
``transitions``   true_class, noisy_class, probability: T as last used
"""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from papers.rent.corruption import parse_setting, true_transition
from papers.rent.learning import Outcome, Problem, Training
from papers.rent.methods import Method, parse_method
from papers.rent.options import TrainOptions
from shared.errors import InputError
from shared.files import write_json
from shared.run_by_run import FINISHED, RunFolders
from shared.stage import Input, Output, State, run
from shared.tables import read_table, write_table
from shared.vision.data import LabeledImages

TABLES = ("curves", "predictions", "weights", "transitions")
_TYPES = {
    "seed": "int16",
    "epoch": "int16",
    "count": "int32",
    "true_class": "int16",
    "noisy_class": "int16",
    "image": "int32",
    **dict.fromkeys(
        ("accuracy", "fit_mislabelled", "purity", "transition_error", "fell_back", "probability", "weight"), "float32"
    ),
}


def train(
    options: TrainOptions,
    *,
    dataset: str,
    setting: str,
    seed: int,
    methods: tuple[str, ...],
    images: Input,
    labels: Input,
    curves: Output,
    predictions: Output,
    weights: Output,
    transitions: Output,
    state: State,
) -> dict[str, dict[str, float]] | None:
    """Train the methods, MLPs side by side, other networks one after another."""
    parsed = {name: parse_method(name) for name in methods}
    accelerator = Accelerator(mixed_precision=options.mixed_precision)
    problem, tested = open_problem(dataset, setting, seed, images, labels, accelerator.device)
    side_by_side = options.classifier.architecture == "mlp"
    groups = {"all": list(parsed.values())} if side_by_side else {name: [parsed[name]] for name in methods}
    runs = RunFolders(state, list(groups))
    for name, folder in runs.unfinished():
        started = time.perf_counter()
        outcome = Training(groups[name], problem, options, seed, accelerator).run(folder / "training")
        accelerator.free_memory()
        if accelerator.is_main_process:
            for table, frame in tables_of(outcome, groups[name], tested).items():
                write_table(folder / f"{table}.parquet", frame)
            share = (time.perf_counter() - started) / len(groups[name])
            write_json(folder / FINISHED, {method.name: round(share, 3) for method in groups[name]})
        accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return None
    for table, path in zip(TABLES, (curves, predictions, weights, transitions), strict=True):
        frame = runs.gather(table, lambda name: {"setting": setting, "seed": seed})
        write_table(path, frame.astype({name: kind for name, kind in _TYPES.items() if name in frame}))
    return {"seconds": {method: seconds for each in runs.records().values() for method, seconds in each.items()}}


def open_problem(
    dataset: str, setting: str, seed: int, images: Path, labels: Path, device: torch.device
) -> tuple[Problem, pd.Series]:
    """The problem of one setting and seed, and the numbers of its test images.

    Raises:
        InputError: the labels lack the setting or the seed.
    """
    table = read_table(labels, ("seed", "image", "part", "label", setting))
    table = table[table["seed"] == seed]
    if table.empty:
        raise InputError(f"{labels}: no rows of seed {seed}")
    pool = load_file(images)["images"]

    def part(name: str) -> tuple[LabeledImages, pd.DataFrame]:
        rows = table[table["part"] == name]
        numbers, classes = (torch.tensor(rows[column].to_numpy()).long() for column in ("image", "label"))
        return LabeledImages(pool[numbers].to(device), classes.to(device)), rows

    (train_part, train_rows), (test_part, test_rows) = part("train"), part("test")
    noisy = torch.tensor(train_rows[setting].to_numpy()).long().to(device)
    truth = true_transition(parse_setting(setting), dataset, train_part.labels.cpu(), noisy.cpu())
    return Problem(train_part, noisy, test_part, truth.float()), test_rows["image"]


def tables_of(outcome: Outcome, methods: list[Method], tested: pd.Series) -> dict[str, pd.DataFrame]:
    """The stage's tables of one training, but for setting and seed."""
    names = [method.name for method in methods]
    correct = pd.DataFrame(outcome.correct.T.numpy(), columns=names).assign(image=tested.to_numpy())
    count = outcome.transitions.shape[1]
    cells = pd.MultiIndex.from_product(
        [names, range(count), range(count)], names=["method", "true_class", "noisy_class"]
    )
    entries = pd.DataFrame({"probability": outcome.transitions.flatten().numpy()}, index=cells).reset_index()
    used = [method.name for method in methods if method.estimator]
    return {
        "curves": pd.DataFrame(outcome.history),
        "predictions": correct.melt(id_vars="image", var_name="method", value_name="correct"),
        "weights": pd.DataFrame(outcome.weight_counts, columns=["method", "epoch", "clean", "weight", "count"]),
        "transitions": entries[entries["method"].isin(used)],
    }


if __name__ == "__main__":
    run(train)
