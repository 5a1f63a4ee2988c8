"""Tune: every run at every learning rate of the grid, judged by ROUGE-L on validation prompts."""

from __future__ import annotations

import pandas as pd
from accelerate import Accelerator

from papers.csd.bench import open_bench
from papers.csd.distillation import sample_suites, train_student
from papers.csd.options import VALIDATION, DistillOptions, ScoreOptions, TuneOptions
from papers.csd.runs import parse_run
from shared.files import write_json
from shared.lm.rouge import rouge_l
from shared.run_by_run import FINISHED, RunFolders
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
    plain: Input,
    teacher: Input,
    student: Input,
    validation: Output,
    state: State,
) -> None:
    """Write the columns run, learning_rate, rouge_l (x 100, mean over validation prompts and sampling seeds)."""
    accelerator = Accelerator(mixed_precision=options.mixed_precision)
    asked = read_table(prompts, ("suite", "prompt_id", "prompt", "references"))
    asked = asked[asked["suite"] == VALIDATION].reset_index(drop=True)
    bench = open_bench(
        options,
        seed,
        teacher,
        student,
        read_table(examples, ("prompt", "answer")),
        accelerator.device,
        validation=asked,
        texts=read_table(plain, ("text",))["text"].tolist(),
    )
    trials = {f"{text}@{rate:g}": (text, rate) for text in runs for rate in grid.learning_rates}
    folders = RunFolders(state, list(trials))
    for name, folder in folders.unfinished():
        text, rate = trials[name]
        trained = train_student(bench, parse_run(text), rate, folder / "training").student
        samples = sample_suites(bench, trained, asked, accelerator)
        if accelerator.is_main_process:
            references = asked.set_index("prompt_id")["references"].loc[samples["prompt_id"]]
            values = rouge_l(samples["response"].tolist(), references.map(list).tolist(), stemmer=score.stemmer)
            write_json(folder / FINISHED, {"rouge_l": 100 * sum(values) / len(values)})
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        found = folders.records()
        rows = [(*trial, found[name]["rouge_l"]) for name, trial in trials.items()]
        write_table(validation, pd.DataFrame(rows, columns=["run", "learning_rate", "rouge_l"]))


if __name__ == "__main__":
    run(tune)
