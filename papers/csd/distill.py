"""Distill: students of several runs one after another, each at its selected learning rate, sampled on all suites."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator

from papers.csd.bench import Bench, initial_student, open_bench
from papers.csd.distillation import Trained, measure_fidelity, sample_suites, train_student
from papers.csd.options import VALIDATION, DistillOptions
from papers.csd.runs import Run, parse_run
from shared.errors import InputError
from shared.files import write_json
from shared.lm.texts import save_for_store
from shared.run_by_run import FINISHED, RunFolders
from shared.stage import Input, Output, State, run
from shared.tables import read_table, write_table

TABLES = ("samples", "fidelity", "curves", "costs")
COSTS = ("learning_rate", "wall_seconds", "tokens_written")
CURVE = ("step", "loss", "grad_norm", "learning_rate", "student_share", "kl_forward", "kl_reverse")


def distill(
    options: DistillOptions,
    *,
    seed: int,
    runs: tuple[str, ...],
    examples: Input,
    prompts: Input,
    plain: Input,
    teacher: Input,
    student: Input,
    rates: Input,
    samples: Output,
    fidelity: Output,
    curves: Output,
    costs: Output,
    students: Output,
    state: State,
) -> None:
    """Train, sample and measure every run; write out the students that are kept.

    All tables have the columns setting, method and seed; the others are those of
    :func:`papers.csd.distillation.sample_suites`, ``measure_fidelity`` and ``train_student``. ``costs`` has one row a
    run: learning_rate, wall_seconds and tokens_written of its training; runs without training have no numbers there.
    """
    selected = read_rates(rates, runs)
    accelerator = Accelerator(mixed_precision=options.mixed_precision)
    asked = read_table(prompts, ("suite", "prompt_id", "prompt", "references"))
    held_out = asked["suite"] == VALIDATION
    bench = open_bench(
        options,
        seed,
        teacher,
        student,
        read_table(examples, ("prompt", "answer")),
        accelerator.device,
        validation=asked[held_out],
        texts=read_table(plain, ("text",))["text"].tolist(),
    )
    folders = RunFolders(state, runs)
    for name, folder in folders.unfinished():
        planned = parse_run(name)
        make_run(bench, planned, selected.get(name), asked[~held_out].reset_index(drop=True), folder, accelerator)
    if not accelerator.is_main_process:
        return
    for name, path in zip(TABLES, (samples, fidelity, curves, costs), strict=True):
        write_table(path, folders.gather(name, lambda text: {**vars(parse_run(text)), "seed": seed}))
    students.mkdir()
    for name in set(runs) & set(options.saved_students):
        shutil.copytree(folders.folder(name) / "student", students / folders.folder(name).name)


def make_run(
    bench: Bench, planned: Run, rate: float | None, asked: pd.DataFrame, folder: Path, accelerator: Accelerator
) -> None:
    """Train one run, or take the model it names, and write its tables; last of all that it is finished."""
    model, records, seconds, tokens = obtain(bench, planned, rate, folder / "training")
    samples = sample_suites(bench, model, asked, accelerator)
    fidelity = measure_fidelity(bench, model, asked, accelerator)
    if accelerator.is_main_process:
        # What is not trained has no records; the columns are the same.
        curves = pd.DataFrame(records, columns=list(CURVE)).astype(dict.fromkeys(CURVE, float))
        costs = pd.DataFrame(
            {"learning_rate": [rate], "wall_seconds": [seconds], "tokens_written": [tokens]}, dtype=float
        )
        for name, table in zip(TABLES, (samples, fidelity, curves, costs), strict=True):
            write_table(folder / f"{name}.parquet", table)
        if str(planned) in bench.options.saved_students:
            save_for_store(model, bench.tokenizer, folder / "student", dtype=getattr(torch, bench.options.weights))
        write_json(folder / FINISHED, {"run": str(planned)})
    accelerator.wait_for_everyone()


def obtain(bench: Bench, planned: Run, rate: float | None, state: Path) -> Trained:
    """The model of a run, and what is known of its training, if there was one."""
    if planned.is_trained:
        return train_student(bench, planned, rate, state)
    if planned.method == "teacher":
        return Trained(bench.teacher, [], None, None)
    return Trained(initial_student(bench, planned).to(bench.device).eval(), [], None, None)


def read_rates(path: Path, runs: tuple[str, ...]) -> dict[str, float]:
    """Learning rates by run.

    Raises:
        InputError: not a JSON object, or it lacks a run that is trained.
    """
    try:
        rates = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    for text in runs:
        if parse_run(text).is_trained and text not in rates:
            raise InputError(f"{path}: no learning rate for the run {text!r}")
    return rates


if __name__ == "__main__":
    run(distill)
