"""Trainings that tests run in processes of their own: killed and resumed ones, and one on several processes.

python training_process.py interrupt DIRECTORY     each scenario of KILLS, and an uninterrupted run
accelerate launch training_process.py distribute DIRECTORY
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from shared import checkpoints
from shared.checkpoints import Checkpointer
from shared.data_order import BatchOrder, generator_for
from shared.schedules import one_cycle
from shared.training import adamw, train

STEPS, EVERY = 10, 4


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_noisy_training(directory: Path, in_step: Callable[[int], None] = lambda step: None) -> None:
    """Ten steps that draw from every global generator; leaves final.safetensors and records.json in `directory`."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 4))
    data = torch.randn(40, 8, generator=generator_for(1))
    accelerator = Accelerator(cpu=True)
    optimizer = adamw(model, 1e-2, weight_decay=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    order = BatchOrder(len(data), 12, seed=2)

    def batches(step: int) -> list[torch.Tensor]:
        in_step(step)
        return [data[rows] for rows in order.micro_batches(step, accumulation=2)]

    def loss_fn(batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        noise = np.random.normal() + random.random()  # noqa: NPY002
        return (model(batch) - noise).square().mean(), {"noise": torch.tensor(noise)}

    records = train(
        loss_fn,
        model=model,
        optimizer=optimizer,
        schedule=one_cycle(STEPS),
        batches=batches,
        steps=STEPS,
        accelerator=accelerator,
        weight_of=len,
        max_grad_norm=0.5,
        checkpointer=Checkpointer(directory / "state", accelerator, every=EVERY),
        log_every=1,
    )
    in_step(STEPS)
    save_file(model.state_dict(), directory / "final.safetensors")
    (directory / "records.json").write_text(json.dumps(records))


def _kill_in_step(step: int) -> Callable[[Path], None]:
    return lambda directory: run_noisy_training(directory, lambda now: die() if now == step else None)


def _kill_at_save(number: int, function: str, replacement: Callable) -> Callable[[Path], None]:
    """`replacement(original, *arguments)` takes the place of `checkpoints.<function>` in the number-th save."""

    def run(directory: Path) -> None:
        original, saves = getattr(checkpoints, function), []
        save = Checkpointer.save

        def counted_save(self, *arguments, **options):
            saves.append(None)
            save(self, *arguments, **options)

        def patched(*arguments):
            return replacement(original, *arguments) if len(saves) == number else original(*arguments)

        Checkpointer.save = counted_save
        setattr(checkpoints, function, patched)
        run_noisy_training(directory)

    return run


def _publish_then_die(publish: Callable, folder: Path) -> None:
    publish(folder)
    die()


def _delete_half_then_die(remove: Callable, path: Path) -> None:
    if path.name.startswith("step-"):
        next(path.iterdir()).unlink()
        die()
    remove(path)


def _kill_between_files(directory: Path) -> None:
    """Dies in the second save, when some of the state's files are written."""
    torch_save, written = torch.save, []

    def patched(*arguments, **options):
        torch_save(*arguments, **options)
        written.append(None)
        if len(written) == 3:  # optimizer and random states of the first save, optimizer of the second
            die()

    torch.save = patched
    run_noisy_training(directory)


KILLS = {
    "before the first checkpoint": _kill_in_step(3),
    "between checkpoints": _kill_in_step(6),
    "in the first save, before its rename": _kill_at_save(1, "publish_partial", die),
    "in the second save, between its files": _kill_between_files,
    "in the second save, before its rename": _kill_at_save(2, "publish_partial", die),
    "in the second save, after its rename": _kill_at_save(2, "publish_partial", _publish_then_die),
    "in the second save, deleting the first": _kill_at_save(2, "remove", _delete_half_then_die),
    "after the last step": _kill_in_step(STEPS),
}


def interrupt(directory: Path) -> None:
    """Runs every scenario in forked processes, which spares each of them the imports."""
    adamw(torch.nn.Linear(1, 1), 1e-3)  # torch imports its compiler with the first optimizer
    report = {}
    for name, killed in {"uninterrupted": None, **KILLS}.items():
        folder = directory / name
        folder.mkdir()
        entry: dict[str, object] = {}
        if killed:
            entry["signal"] = _in_child(killed, folder)
            entry["left"] = sorted(path.name for path in (folder / "state").glob("*"))
        entry["status"] = _in_child(run_noisy_training, folder)
        report[name] = entry
    (directory / "report.json").write_text(json.dumps(report))


def _in_child(function: Callable[[Path], None], folder: Path) -> int:
    """The status of a child process that runs `function`: 0, or the number of the signal that ended it."""
    child = os.fork()
    if child == 0:
        function(folder)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def distribute(directory: Path) -> None:
    """Fine-tunes a tiny GPT-2 for four steps on all processes: at once, and with a restart after two."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from shared.lm.batches import right_padded
    from shared.lm.supervised import supervised_loss, target_count

    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, 13, size=rng.integers(1, 4)) for _ in range(24)]
    answers = [[*rng.integers(4, 13, size=rng.integers(1, 6)), 1] for _ in range(24)]
    order = BatchOrder(len(prompts), 10, seed=0)

    def tune(steps: int, state: Path | None) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
        torch.manual_seed(0)
        sizes = {"vocab_size": 13, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        model = GPT2LMHeadModel(GPT2Config(**sizes, **dropout, bos_token_id=2, eos_token_id=1))
        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.5))

        def batches(step: int) -> list:
            parts = order.micro_batches(
                step,
                accumulation=2,
                process_index=accelerator.process_index,
                num_processes=accelerator.num_processes,
            )
            return [
                right_padded([prompts[row] for row in rows], [answers[row] for row in rows], pad_id=0) for rows in parts
            ]

        records = train(
            lambda batch: (supervised_loss(model, batch), {}),
            model=model,
            optimizer=optimizer,
            schedule=one_cycle(4),
            batches=batches,
            steps=steps,
            accelerator=accelerator,
            weight_of=target_count,
            max_grad_norm=1.0,
            checkpointer=Checkpointer(state, accelerator, every=2) if state else None,
            log_every=1,
        )
        weights = accelerator.unwrap_model(model).state_dict()
        accelerator.free_memory()
        return weights, records

    weights, records = tune(4, None)
    tune(2, directory / "state")
    resumed_weights, resumed_records = tune(4, directory / "state")
    accelerator = Accelerator(cpu=True)
    if accelerator.is_main_process:
        for name, tensors in (("at-once", weights), ("resumed", resumed_weights)):
            tensors = {key: value.contiguous().clone() for key, value in tensors.items()}
            save_file(tensors, directory / f"{name}.safetensors")
        report = {"at-once": records, "resumed": resumed_records, "processes": accelerator.num_processes}
        (directory / "report.json").write_text(json.dumps(report))
    accelerator.end_training()


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"interrupt": interrupt, "distribute": distribute}[sys.argv[1]](Path(sys.argv[2]))
