"""Train: every arm of a family on one setting's data, and measure it; see :mod:`papers.tiw_dsm.training`.

Tables, all with the columns setting and seed:

``measured``  method, metric, value: of the arms, see :meth:`papers.tiw_dsm.measurements.SampleMeter.measure`; of
              discriminators (methods such as ``noisy``, ``clean@selected``): steps, small_weights, ratio_error
``shares``    method, group, share: of the samples
``lengths``   discriminator, steps, held_out_loss, selected
``errors``    method, sigma, error: of time-dependent ratios, where the exact one is known
``weights``   method, sigma, log10_weight, count: histogram of the biased samples' weights

``drawn`` holds a few samples of every arm: images, or the coordinates of vectors along two of the modes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from papers.tiw_dsm.data import Problem, draw_problem, load_problem
from papers.tiw_dsm.judge import open_judge
from papers.tiw_dsm.measurements import (
    SampleMeter,
    biased_weights,
    denoiser_error,
    draw_samples,
    ratio_errors,
    small_weight_share,
    weight_counts,
)
from papers.tiw_dsm.members import Members
from papers.tiw_dsm.methods import EXACT, FIXED, SELECTED, Arm, Logits, parse_arm, sampling_denoiser
from papers.tiw_dsm.options import TrainOptions
from papers.tiw_dsm.training import Length, choose_lengths, train_arms, train_ratio
from shared.errors import InputError
from shared.files import write_json
from shared.run_by_run import FINISHED, RunFolders
from shared.stage import Input, Output, State, run
from shared.tables import write_table

DISCRIMINATORS = ("noisy", "clean")
IMAGES_KEPT, VECTORS_KEPT = 24, 200


def train(
    options: TrainOptions,
    *,
    setting: str,
    seed: int,
    methods: tuple[str, ...],
    images: tuple[Input, ...] = (),
    judge: tuple[Input, ...] = (),
    measured: Output,
    shares: Output,
    lengths: Output,
    errors: Output,
    weights: Output,
    drawn: Output,
    state: State,
) -> dict[str, dict[str, float]] | None:
    """Train the discriminators, then the arms: MLPs side by side, other networks one after another."""
    arms = [parse_arm(name) for name in methods]
    # Vectors are small, and their exact densities live on the CPU.
    accelerator = Accelerator(
        mixed_precision=options.denoiser.training.mixed_precision, cpu=not options.data.has_images
    )
    problem = open_problem(options, seed, images)
    meter = SampleMeter(options.data, problem, open_judge(*judge) if judge else None)
    on_device = problem.to(accelerator.device)
    ratios = Ratios(options, on_device, seed, accelerator, state / "ratios")
    estimates = {name: ratios.estimate(name) for name in sorted({arm.ratio for arm in arms if arm.uses_ratio})}
    seconds, groups = {}, groups_of(arms, side_by_side=options.denoiser.architecture == "mlp")
    runs = RunFolders(state / "arms", list(groups))
    for name, folder in runs.unfinished():
        started = time.perf_counter()
        trained = distinct_trainings(groups[name])
        members = train_arms(
            options,
            trained,
            on_device,
            estimates,
            seed=seed,
            accelerator=accelerator,
            checkpoints=folder / "training",
        )
        if accelerator.is_main_process:
            share = (time.perf_counter() - started) / len(trained)
            measure_arms(options, groups[name], trained, members, estimates, meter, seed, accelerator.device, folder)
            write_json(folder / FINISHED, {arm.name: round(share, 3) for arm in groups[name]})
        accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return None
    label = {"setting": setting, "seed": seed}
    tables = ratios.tables(estimates)
    for table, path in (("measured", measured), ("shares", shares)):
        rows = runs.gather(table, lambda name: {})
        write_table(path, _small(pd.concat([rows, tables.get(table, rows[:0])]).assign(**label)))
    for table, path in (("lengths", lengths), ("errors", errors), ("weights", weights)):
        write_table(path, _small(tables[table].assign(**label)))
    samples = [load_file(runs.folder(name) / "drawn.safetensors") for name in groups]
    save_file({name: value for part in samples for name, value in part.items()}, drawn)
    for record in runs.records().values():
        seconds |= record
    return {"seconds": seconds}


def open_problem(options: TrainOptions, seed: int, images: Sequence[Path]) -> Problem:
    """The setting's data: images from a file, all else drawn."""
    if images:
        return load_problem(images[0])
    return draw_problem(options.data, seed, options.sampling.samples)


class Ratios:
    """The estimates of the ratio that arms ask for, and what is measured of the selected one.

    Args:
        options: of the setting.
        problem: on the accelerator's device.
        seed: of all draws.
        accelerator: of the device.
        checkpoints: folder of the saved states.
    """

    def __init__(self, options: TrainOptions, problem: Problem, seed: int, accelerator: Accelerator, checkpoints: Path):
        self._options, self._problem, self._seed = options, problem, seed
        self._accelerator, self._checkpoints = accelerator, checkpoints
        self._lengths: list[Length] = []
        self._steps: dict[str, dict[str, int]] = {}

    def estimate(self, name: str) -> Logits:
        """ℓ of an estimate, by the name of :attr:`papers.tiw_dsm.methods.Arm.ratio`.

        Raises:
            InputError: the exact ratio of images, which nobody knows.
        """
        if name == EXACT:
            if self._problem.densities is None:
                raise InputError(f"methods: the exact ratio of {self._options.data.testbed} is not known")
            return self._problem.densities.logits
        if name == SELECTED:
            self._lengths = choose_lengths(
                self._options,
                self._problem,
                seed=self._seed,
                accelerator=self._accelerator,
                checkpoints=self._checkpoints,
            )
            self._steps[name] = {length.discriminator: length.steps for length in self._lengths if length.selected}
        else:
            steps = self._options.ratio.ratio_steps if name == FIXED else int(name)
            self._steps[name] = dict.fromkeys(DISCRIMINATORS, steps)
        return train_ratio(
            self._options,
            self._problem,
            self._steps[name],
            seed=self._seed,
            accelerator=self._accelerator,
            checkpoints=self._checkpoints,
        )

    def tables(self, estimates: Mapping[str, Logits]) -> dict[str, pd.DataFrame]:
        """The stage's tables on learned estimates."""
        found: dict[str, list[dict]] = {"measured": [], "errors": [], "weights": []}
        for name, logits in estimates.items():
            if name != EXACT:
                for table, rows in self._measure(name, logits).items():
                    found[table] += rows
        columns = {
            "measured": ["method", "metric", "value"],
            "errors": ["method", "sigma", "error"],
            "weights": ["method", "sigma", "log10_weight", "count"],
        }
        tables = {name: pd.DataFrame(rows, columns=columns[name]) for name, rows in found.items()}
        tables["lengths"] = pd.DataFrame(map(asdict, self._lengths), columns=[field.name for field in fields(Length)])
        return tables

    def _measure(self, name: str, logits: Logits) -> dict[str, list[dict]]:
        label = {each: each if name == FIXED else f"{each}@{name}" for each in DISCRIMINATORS}
        values = {(each, "steps"): float(self._steps[name][each]) for each in DISCRIMINATORS}
        weights, errors, small = [], [], dict.fromkeys(DISCRIMINATORS, 0.0)
        for (each, sigma), log_weights in biased_weights(logits, self._problem.biased, self._seed).items():
            weights += [{"method": label[each], "sigma": sigma, **row} for row in weight_counts(log_weights)]
            small[each] = max(small[each], small_weight_share(log_weights))
        values |= {(each, "small_weights"): share for each, share in small.items()}
        if (densities := self._problem.densities) is not None:
            rows, values["clean", "ratio_error"] = ratio_errors(self._options, logits, densities, self._seed)
            values["noisy", "ratio_error"] = sum(row["error"] for row in rows) / len(rows)
            errors = [{"method": label["noisy"], **row} for row in rows]
        measured = [
            {"method": label[each], "metric": metric, "value": value} for (each, metric), value in values.items()
        ]
        return {"measured": measured, "errors": errors, "weights": weights}


def groups_of(arms: Sequence[Arm], *, side_by_side: bool) -> dict[str, list[Arm]]:
    """What trains together, by name: all arms, or only those that share a denoiser."""
    if side_by_side:
        return {"all": list(arms)}
    groups: dict[object, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(arm.training, []).append(arm)
    return {group[0].name: group for group in groups.values()}


def distinct_trainings(arms: Sequence[Arm]) -> list[Arm]:
    """The first arm of each training."""
    found: dict[object, Arm] = {}
    for arm in arms:
        found.setdefault(arm.training, arm)
    return list(found.values())


def measure_arms(
    options: TrainOptions,
    arms: Sequence[Arm],
    trained: Sequence[Arm],
    members: Members,
    estimates: dict[str, Logits],
    meter: SampleMeter,
    seed: int,
    device: torch.device,
    folder: Path,
) -> None:
    """Draw samples of every arm, measure them and its denoiser, and write the tables of the group."""
    measured, shares, kept = [], [], {}
    trainings = [arm.training for arm in trained]
    shape, densities = meter.problem.sample_shape, meter.problem.densities
    for arm in arms:
        denoiser = members.member(trainings.index(arm.training))
        guide = estimates[arm.ratio].noisy if arm.method.guided else None
        sampler = sampling_denoiser(arm, denoiser, guide, ref_fraction=options.ref_fraction)
        samples = draw_samples(options, sampler, shape, seed, device)
        values = meter.measure(samples)
        if densities is not None:
            values["denoiser_error"] = denoiser_error(options, sampler, meter.problem, seed)
        measured += [{"method": arm.name, "metric": metric, "value": value} for metric, value in values.items()]
        groups = meter.group_shares(samples).tolist()
        shares += [{"method": arm.name, "group": group, "share": share} for group, share in enumerate(groups)]
        kept[arm.name] = kept_samples(samples, meter.problem)
    write_table(folder / "measured.parquet", pd.DataFrame(measured))
    write_table(folder / "shares.parquet", pd.DataFrame(shares))
    save_file(kept, folder / "drawn.safetensors")


def kept_samples(samples: Tensor, problem: Problem) -> Tensor:
    """A few samples: images as uint8, vectors by their coordinates (N, 2) along two modes, in half precision."""
    if problem.densities is None:
        return ((samples[:IMAGES_KEPT].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    if samples.shape[1] == 2:
        return samples[:VECTORS_KEPT].half()
    axes = problem.densities.unbiased.means[[0, -1]].to(samples)
    return (samples[:VECTORS_KEPT] @ axes.T).half()


def _small(table: pd.DataFrame) -> pd.DataFrame:
    """With numbers in few bytes: results travel with the repository."""
    kinds = {
        **dict.fromkeys(("seed", "group"), "int16"),
        **dict.fromkeys(("steps", "count"), "int32"),
        **dict.fromkeys(("value", "share", "held_out_loss", "sigma", "error", "log10_weight"), "float32"),
    }
    return table.astype({name: kind for name, kind in kinds.items() if name in table})


if __name__ == "__main__":
    run(train)
