"""Train: the denoisers of one model, of several seeds one after another."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from papers.diffrs.data_sets import training_set
from papers.diffrs.options import DataOptions
from shared.diffusion.files import save_denoiser
from shared.diffusion.options import DenoiserOptions
from shared.diffusion.training import build_denoiser, train_denoiser
from shared.files import write_json
from shared.run_by_run import FINISHED, RunFolders
from shared.stage import Input, Output, State, run
from shared.tables import write_table


def train(
    data: DataOptions,
    denoiser: DenoiserOptions,
    *,
    model: str,
    seeds: tuple[int, ...],
    prepared: tuple[Input, ...] = (),
    denoisers: Output,
    curves: Output,
    state: State,
) -> None:
    """Train a denoiser for each seed: ``denoisers/seed<seed>.safetensors``, and the table ``curves`` of its training.

    ``curves`` has the columns model, seed, step, loss, grad_norm, learning_rate.
    """
    accelerator = Accelerator(mixed_precision=denoiser.training.mixed_precision)
    folders = RunFolders(state, [str(seed) for seed in seeds])
    for name, folder in folders.unfinished():
        folder.mkdir(parents=True, exist_ok=True)
        train_seed(data, denoiser, int(name), prepared[0] if prepared else None, accelerator, folder)
    if not accelerator.is_main_process:
        return
    denoisers.mkdir()
    for name in folders.names:
        (folders.folder(name) / "denoiser.safetensors").rename(denoisers / f"seed{name}.safetensors")
    write_table(curves, folders.gather("curve", lambda name: {"model": model, "seed": int(name)}))


def train_seed(
    data: DataOptions,
    options: DenoiserOptions,
    seed: int,
    prepared: Path | None,
    accelerator: Accelerator,
    folder: Path,
) -> None:
    """Train the denoiser of one seed; write it, its curve, and last that it is finished."""
    accelerator.free_memory()  # a saved state holds all that was prepared: this seed's network alone
    set_seed(seed, device_specific=True)  # under accelerate every process draws its own noise
    clean = training_set(data, seed, prepared)
    network, records = train_denoiser(
        options,
        build_denoiser(options, tuple(clean.shape[1:]), seed=seed),
        size=len(clean),
        clean_batch=lambda numbers: clean[torch.tensor(numbers)],
        seed=seed,
        accelerator=accelerator,
        checkpoints=folder / "training",
        log_every=max(1, round(options.training.epochs * (len(clean) // options.training.batch_size) / 50)),
    )
    if accelerator.is_main_process:
        network = accelerator.unwrap_model(network, keep_fp32_wrapper=False)
        save_denoiser(folder / "denoiser.safetensors", network, options, tuple(clean.shape[1:]))
        write_table(folder / "curve.parquet", pd.DataFrame(records))
        write_json(folder / FINISHED, {})
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(train)
