"""Tune: every run at every learning rate of the grid, judged by ROUGE-L on validation prompts."""

from __future__ import annotations

import pandas as pd
from accelerate import Accelerator, PartialState

from papers.csd.distillation import open_bench, sample_suites, train_student
from papers.csd.options import VALIDATION, DistillOptions, ScoreOptions, TuneOptions
from papers.csd.runs import parse_run
from shared.lm.rouge import rouge_l
from shared.stage import Input, Output, State, run
from shared.tables import read_table, write_table


def tune(
    options: DistillOptions,
    grid: TuneOptions,
    score: ScoreOptions,
    *,
    seed: int,
    runs: tuple[str, ...],
    examples: Input,
    prompts: Input,
    teacher: Input,
    student: Input,
    validation: Output,
    state: State,
) -> None:
    """Write the columns run, learning_rate, rouge_l (x 100, mean over validation prompts and sampling seeds)."""
    accelerator = Accelerator(mixed_precision=options.mixed_precision)
    bench = open_bench(options, seed, teacher, student, read_table(examples, ("prompt", "answer")), accelerator.device)
    asked = read_table(prompts, ("suite", "prompt_id", "prompt", "references"))
    asked = asked[asked["suite"] == VALIDATION].reset_index(drop=True)
    for text in runs:
        for rate in grid.learning_rates:
            folder = state / f"{text.replace('/', '--')}-{rate:g}"
            if (folder / "result.parquet").exists():
                continue
            trained, _ = train_student(bench, parse_run(text), rate, folder / "training")
            samples = sample_suites(bench, trained, asked, accelerator)
            if accelerator.is_main_process:
                references = asked.set_index("prompt_id")["references"].loc[samples["prompt_id"]]
                values = rouge_l(samples["response"].tolist(), references.map(list).tolist(), stemmer=score.stemmer)
                row = {"run": text, "learning_rate": rate, "rouge_l": 100 * sum(values) / len(values)}
                write_table(folder / "result.parquet", pd.DataFrame([row]))
            accelerator.wait_for_everyone()
    if PartialState().is_main_process:
        parts = [
            read_table(state / f"{text.replace('/', '--')}-{rate:g}" / "result.parquet")
            for text in runs
            for rate in grid.learning_rates
        ]
        write_table(validation, pd.concat(parts, ignore_index=True))


if __name__ == "__main__":
    run(tune)
