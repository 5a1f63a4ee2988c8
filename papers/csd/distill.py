"""Distill: students of several runs one after another, each at its selected learning rate, sampled on all suites."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from papers.csd.distillation import (
    Bench,
    initial_student,
    measure_fidelity,
    open_bench,
    sample_suites,
    train_student,
)
from papers.csd.options import VALIDATION, DistillOptions
from papers.csd.runs import Run, parse_run
from shared.errors import InputError
from shared.files import write_json
from shared.lm.texts import save_for_store
from shared.stage import Input, Output, State, run
from shared.tables import read_table, write_table

TABLES = ("samples", "fidelity", "curves")


def distill(
    options: DistillOptions,
    *,
    seed: int,
    runs: tuple[str, ...],
    examples: Input,
    prompts: Input,
    teacher: Input,
    student: Input,
    rates: Input,
    samples: Output,
    fidelity: Output,
    curves: Output,
    students: Output,
    state: State,
) -> None:
    """Train, sample and measure every run; write out the students that are kept.

    All tables have the columns setting, method and seed; the others are those of
    :func:`papers.csd.distillation.sample_suites`, ``measure_fidelity`` and ``train_student``.
    """
    selected = read_rates(rates, runs)
    accelerator = Accelerator(mixed_precision=options.mixed_precision)
    bench = open_bench(options, seed, teacher, student, read_table(examples, ("prompt", "answer")), accelerator.device)
    asked = read_table(prompts, ("suite", "prompt_id", "prompt", "references"))
    asked = asked[asked["suite"] != VALIDATION].reset_index(drop=True)
    for text in runs:
        if not (_folder(state, text) / "finished.json").exists():
            make_run(bench, parse_run(text), selected.get(text), asked, _folder(state, text), accelerator)
    if not accelerator.is_main_process:
        return
    for name, path in zip(TABLES, (samples, fidelity, curves), strict=True):
        parts = []
        for text in runs:
            planned = parse_run(text)
            table = read_table(_folder(state, text) / f"{name}.parquet")
            parts.append(table.assign(setting=planned.setting, method=planned.method, seed=seed))
        write_table(path, pd.concat(parts, ignore_index=True))
    students.mkdir()
    for text in set(runs) & set(options.saved_students):
        shutil.copytree(_folder(state, text) / "student", students / _folder(state, text).name)


def make_run(
    bench: Bench, planned: Run, rate: float | None, asked: pd.DataFrame, folder: Path, accelerator: Accelerator
) -> None:
    """Train one run, or take the model it names, and write its tables; last of all ``finished.json``."""
    model, records = obtain(bench, planned, rate, folder / "training")
    samples = sample_suites(bench, model, asked, accelerator)
    fidelity = measure_fidelity(bench, model, asked, accelerator)
    if accelerator.is_main_process:
        # What is not trained has no records; the columns are the same.
        columns = ("step", "loss", "grad_norm", "learning_rate", "kl_forward", "kl_reverse")
        curves = pd.DataFrame(records, columns=list(columns)).astype(dict.fromkeys(columns, float))
        for name, table in zip(TABLES, (samples, fidelity, curves), strict=True):
            write_table(folder / f"{name}.parquet", table)
        if str(planned) in bench.options.saved_students:
            save_for_store(model, bench.tokenizer, folder / "student", dtype=getattr(torch, bench.options.weights))
        write_json(folder / "finished.json", {"run": str(planned), "learning_rate": rate})
    accelerator.wait_for_everyone()


def obtain(bench: Bench, planned: Run, rate: float | None, state: Path) -> tuple[nn.Module, list[dict[str, float]]]:
    """The model of a run and the records of its training."""
    if planned.is_trained:
        return train_student(bench, planned, rate, state)
    if planned.method == "teacher":
        return bench.teacher, []
    return initial_student(bench, planned).to(bench.device).eval(), []


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


def _folder(state: Path, text: str) -> Path:
    return state / text.replace("/", "--").replace(":", "-tau")


if __name__ == "__main__":
    run(distill)
