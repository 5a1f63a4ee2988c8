"""Sample: in one setting, for several seeds, train the discriminator, draw samples of every run, and measure them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from papers.diffrs.bench import FAKES, SOLVERS, Bench, Drawn
from papers.diffrs.data_sets import as_pixels, like_data, mixture, reference_set, training_set
from papers.diffrs.judges import OUTLIER_STDS, Judge, judge_of
from papers.diffrs.log_ratios import log_ratio_quantiles
from papers.diffrs.methods import PUBLISHED, parse_run
from papers.diffrs.noise_schedule import edm_sigmas
from papers.diffrs.options import DataOptions, SamplerOptions
from papers.diffrs.paths import follow_requests
from papers.diffrs.pretrained import load_pretrained
from papers.diffrs.selection import read_selection
from shared.diffusion.files import load_denoiser
from shared.diffusion.metrics import nearest_distances
from shared.diffusion.options import DiscriminatorOptions
from shared.diffusion.training import build_discriminator, train_discriminator
from shared.errors import InputError
from shared.files import write_json
from shared.run_by_run import FINISHED, RunFolders
from shared.stage import Input, Output, State, run
from shared.tables import write_table

TABLES = ("runs", "levels", "costs", "blocks", "paths", "ratios", "curve")
BLOCKS = 50
"""Parts of a run's samples whose shares of outliers are told one by one."""


@dataclass(frozen=True)
class _Job:
    """What all seeds and runs of a job share."""

    data: DataOptions
    options: SamplerOptions
    discriminator: DiscriminatorOptions
    names: tuple[str, ...]
    selected: Mapping[str, Mapping[str, float]]
    prepared: Path | None
    accelerator: Accelerator


def sample(
    data: DataOptions,
    options: SamplerOptions,
    discriminator: DiscriminatorOptions,
    *,
    setting: str,
    seeds: tuple[int, ...],
    names: tuple[str, ...],
    denoisers: tuple[Input, ...] = (),
    pretrained: str | None = None,
    prepared: tuple[Input, ...] = (),
    selection: tuple[Input, ...] = (),
    runs: Output,
    levels: Output,
    costs: Output,
    blocks: Output,
    paths: Output,
    ratios: Output,
    curves: Output,
    pictures: Output,
    discriminators: Output,
    state: State,
) -> dict[str, float]:
    """Make the runs ``names`` for each of the ``seeds``; hyperparameters are those of ``selection``, where given.

    All tables have the columns setting and seed. ``runs`` has a row for each run (as named in the configuration): its
    hyperparameters as JSON, nfe and warm_up_nfe (evaluations per sample, and of the warm-up per sample), request_nfe
    (evaluations since a request's last restart), restarts, seconds, and the metrics of :mod:`papers.diffrs.judges`.
    ``levels``: run, origin, target, count of proposals (target -1) and of push-backs from one level to another.
    ``costs``: run, nfe, count of requests that took so many evaluations since their last restart. ``blocks``: run,
    block, outliers, their share in each part of a ring's samples. ``paths``: those of :mod:`papers.diffrs.paths`.
    ``ratios``: those of :mod:`papers.diffrs.log_ratios`, of data, base sampler and DiffRS with the official percentile.
    ``curves``: the discriminator's training. ``pictures``: some samples of every run of the first seed, and of the
    data, numbers as float16, images as uint8. ``discriminators``: weights, where they are kept.
    """
    accelerator = Accelerator(mixed_precision=discriminator.training.mixed_precision)
    for name in names:
        parse_run(name)  # a wrong name ends the job before it has begun
    if len(denoisers) + (pretrained is not None) != 1:
        raise InputError("denoisers: need one folder, or one that is pretrained")
    job = _Job(
        data,
        options,
        discriminator,
        names,
        read_selection(selection[0]).get(setting, {}) if selection else {},
        prepared[0] if prepared else None,
        accelerator,
    )
    folders = RunFolders(state, [str(seed) for seed in seeds])
    for name, folder in folders.unfinished():
        folder.mkdir(parents=True, exist_ok=True)
        source = (
            load_pretrained(Path(pretrained)) if pretrained else load_denoiser(denoisers[0] / f"seed{name}.safetensors")
        )
        make_seed(job, int(name), *source, folder, is_first=name == folders.names[0])
    if not accelerator.is_main_process:
        return {}

    def columns(name: str) -> dict[str, object]:
        return {"setting": setting, "seed": int(name)}

    for table, output in zip(TABLES, (runs, levels, costs, blocks, paths, ratios, curves), strict=True):
        write_table(output, folders.gather(table, columns))
    (folders.folder(folders.names[0]) / "pictures.safetensors").rename(pictures)
    discriminators.mkdir()
    for name in folders.names if options.keep_discriminator else ():
        path = folders.folder(name) / "discriminator.safetensors"
        path.rename(discriminators / f"seed{name}.safetensors")
    return {name: record["discriminator_loss"] for name, record in folders.records().items()}


def make_seed(
    job: _Job, seed: int, denoiser: nn.Module, shape: tuple[int, ...], folder: Path, *, is_first: bool
) -> None:
    """Everything of one seed: discriminator, runs, tables, and last that it is finished."""
    accelerator, options = job.accelerator, job.options
    accelerator.free_memory()  # a saved state holds all that was prepared: this seed's discriminator alone
    set_seed(seed, device_specific=True)  # under accelerate every process draws its own noise
    sigmas = edm_sigmas(options.steps, options.sigma_min, options.sigma_max).to(accelerator.device)
    denoiser = denoiser.to(accelerator.device)
    bench = Bench(
        denoiser=denoiser,
        log_ratio=lambda x, sigma: sigma.new_zeros(len(x)),
        sigmas=sigmas,
        solver=SOLVERS[options.solver],
        shape=shape,
        seed=seed,
        share=(accelerator.process_index, accelerator.num_processes),
        slots=options.slots,
        warm_up=options.warm_up,
        budget=options.budget,
    )
    reals = training_set(job.data, seed, job.prepared)
    network, records = make_discriminator(job, bench, reals, folder)
    bench = Bench(**{**vars(bench), "log_ratio": network})
    references = reference_set(job.data, seed, job.prepared)
    judge = judge_of(job.data, references, job.prepared, options.judged, accelerator.device)
    tables, kept, told = make_runs(job, bench, judge)
    if accelerator.is_main_process:
        tables["ratios"] = log_ratio_quantiles(bench, {"data": references[: options.judged], **told})
        tables["curve"] = pd.DataFrame(records)
        tables["paths"] = follow_requests(bench, options.followed if is_first else 0)
        for name in TABLES:
            write_table(folder / f"{name}.parquet", tables[name])
        kept["data"] = reals[: options.kept]
        save_pictures(folder / "pictures.safetensors", job.data, kept)
        weights = {name: value.half().cpu().contiguous() for name, value in network.state_dict().items()}
        save_file(weights, folder / "discriminator.safetensors")
        write_json(folder / FINISHED, {"discriminator_loss": records[-1]["loss"]})
    accelerator.wait_for_everyone()


def make_discriminator(job: _Job, bench: Bench, reals: Tensor, folder: Path) -> tuple[nn.Module, list[dict]]:
    """Train the discriminator of data against samples of the very sampler that is to be improved."""
    path = folder / "fakes.safetensors"
    accelerator = job.accelerator
    if not path.exists():
        mine = len(range(bench.share[0], job.options.fakes, bench.share[1]))
        fakes = gathered(like_data(job.data, bench.base_samples(FAKES, mine)).cpu())
        if not fakes.isfinite().all():
            raise InputError(
                "sigma_max: the base sampler's samples are not finite; it must not exceed what was trained"
            )
        if accelerator.is_main_process:
            save_file({"fakes": fakes.contiguous()}, path)
        accelerator.wait_for_everyone()
    fakes = load_file(path)["fakes"]
    network = build_discriminator(
        job.discriminator, bench.shape, sigma_data=reals.square().mean().sqrt().item(), seed=bench.seed
    )
    trained, records = train_discriminator(
        job.discriminator,
        network,
        reals,
        fakes,
        seed=bench.seed,
        accelerator=accelerator,
        checkpoints=folder / "training",
    )
    # Tests compare differences of logits: these are computed in full precision.
    return accelerator.unwrap_model(trained, keep_fp32_wrapper=False), records


def make_runs(
    job: _Job, bench: Bench, judge: Judge
) -> tuple[dict[str, pd.DataFrame], dict[str, Tensor], dict[str, Tensor]]:
    """Tables of all runs; some samples of each, to be kept; and more of those whose log ratios are told.

    Runs that come to the same are made once.
    """
    rows: list[dict[str, object]] = []
    levels, costs, blocks, kept, told = [], [], [], {}, {}
    made: dict[tuple[object, ...], tuple[dict[str, object], Tensor, Drawn]] = {}
    for name in job.names:
        planned = parse_run(name)
        settings = planned.settings(job.selected)
        key = (planned.method, *settings.items())
        if key not in made:
            made[key] = measured(job, bench, judge, name)
        row, samples, drawn = made[key]
        rows.append({"run": name, **row})
        kept[name] = samples[: job.options.kept]
        if name in ("base", PUBLISHED):
            told[name] = samples[: job.options.judged]
        if job.data.kind == "ring":
            blocks.append(outlier_blocks(job.data, samples).assign(run=name))
        if drawn.details is not None:
            levels.append(level_table(drawn).assign(run=name))
            costs.append(cost_table(drawn).assign(run=name))
    return (
        {
            "runs": pd.DataFrame(rows),
            "levels": _joined(levels, ("run", "origin", "target", "count")),
            "costs": _joined(costs, ("run", "nfe", "count")),
            "blocks": _joined(blocks, ("run", "block", "outliers")),
        },
        kept,
        told,
    )


def measured(job: _Job, bench: Bench, judge: Judge, name: str) -> tuple[dict[str, object], Tensor, Drawn]:
    """One run: its row of the table, all processes' samples, and this process's draw."""
    planned, options = parse_run(name), job.options
    started = time.perf_counter()
    drawn = bench.draw(planned, options.samples, job.selected)
    samples = gathered(like_data(job.data, drawn.samples).cpu())
    total_nfe = sum(gather_object([drawn.total_nfe]))
    row: dict[str, object] = {
        "hyperparameters": " ".join(f"{key}={value:g}" for key, value in planned.settings(job.selected).items()),
        "nfe": total_nfe / options.samples,
        "warm_up_nfe": bench.warm_up * bench.evaluations / options.samples
        if planned.method in ("diffrs", "final")
        else 0.0,
        "request_nfe": math.nan if drawn.details is None else drawn.details.nfe.double().mean().item(),
        "restarts": math.nan if drawn.details is None else drawn.details.restarts.double().mean().item(),
        "seconds": drawn.seconds,
        **(judge(samples) if job.accelerator.is_main_process else {}),
    }
    if job.accelerator.is_main_process:
        print(f"{name}: {row['nfe']:.1f} evaluations, {time.perf_counter() - started:.1f} s", flush=True)
    return row, samples, drawn


def gathered(samples: Tensor) -> Tensor:
    """Samples of all processes, one after another."""
    return torch.cat(gather_object([samples]))


def outlier_blocks(data: DataOptions, samples: Tensor) -> pd.DataFrame:
    """Share of a ring's outliers among consecutive parts of equal size: block, outliers."""
    outside = (nearest_distances(samples, mixture(data).means) > OUTLIER_STDS * data.std).double()
    size = len(outside) // min(BLOCKS, len(outside))
    parts = outside[: size * min(BLOCKS, len(outside))].view(-1, size)
    return pd.DataFrame({"block": range(len(parts)), "outliers": parts.mean(1).numpy().astype("float32")})


def level_table(drawn: Drawn) -> pd.DataFrame:
    """Proposals (target -1) and push-backs between levels of this process: origin, target, count; zeros left out."""
    counts = torch.cat([drawn.details.proposals[:, None], drawn.details.pushbacks], 1).cpu()
    origin, target = counts.nonzero(as_tuple=True)
    return pd.DataFrame(
        {"origin": origin.int().numpy(), "target": target.int().numpy() - 1, "count": counts[origin, target].numpy()}
    )


def cost_table(drawn: Drawn) -> pd.DataFrame:
    """How many requests of this process took how many evaluations since their last restart: nfe, count."""
    values, counts = drawn.details.nfe.cpu().unique(return_counts=True)
    return pd.DataFrame({"nfe": values.int().numpy(), "count": counts.int().numpy()})


def save_pictures(path: Path, data: DataOptions, kept: Mapping[str, Tensor]) -> None:
    """Write samples by run, numbers as float16 and images as uint8."""
    convert = (lambda samples: samples.half()) if data.kind == "ring" else as_pixels
    save_file({name: convert(samples).cpu().contiguous() for name, samples in kept.items()}, path)


def _joined(tables: list[pd.DataFrame], columns: tuple[str, ...]) -> pd.DataFrame:
    joined = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(columns))
    return joined[list(columns)]


if __name__ == "__main__":
    run(sample)
