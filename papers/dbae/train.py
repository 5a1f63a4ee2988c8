"""Train: methods of one family and seed one after another, each trained and measured.

All methods of a seed share images, the order of batches, and the x_T from which test images are decoded.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor

from papers.dbae.autoencoders import (
    Autoencoder,
    BridgeAutoencoder,
    ChainAutoencoder,
    PlainAutoencoder,
    build_autoencoder,
)
from papers.dbae.checkpoints import write_autoencoder
from papers.dbae.image_data import ImageData, load_split
from papers.dbae.measurements import (
    Codes,
    code_scores,
    decode_from,
    decoder_error,
    device_of,
    encode_all,
    endpoint_cost,
    generate,
    image_errors,
    in_parts,
    pictures_of,
    pixel_distance,
    probe_scores,
    quality_by_steps,
    random_endpoints,
    reconstruct,
    squared_errors,
    texture_scores,
)
from papers.dbae.options import LONG, DataOptions, FitOptions, MeasureOptions, MethodOptions, NetworkOptions
from papers.dbae.training import Trained, load_average, snapshot_steps, train_autoencoder
from shared.files import write_json
from shared.run_by_run import FINISHED, RunFolders
from shared.stage import Input, Output, State, run
from shared.tables import write_table

TABLES = ("images", "scores", "curves", "steps", "losses")
"""Tables of a run."""
_ENDPOINTS = ("endpoint", "interpolated_endpoint")


@dataclass(frozen=True)
class _Job:
    """What all methods of a job share."""

    network: NetworkOptions
    method: MethodOptions
    fit: FitOptions
    measure: MeasureOptions
    train: ImageData
    test: ImageData
    seed: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.train.images.shape[1:])


def train(
    data: DataOptions,
    network: NetworkOptions,
    method: MethodOptions,
    fit: FitOptions,
    measure: MeasureOptions,
    *,
    seed: int,
    setting: str,
    names: tuple[str, ...],
    saved: tuple[str, ...] = (),
    pixels: tuple[Input, ...] = (),
    images: Output,
    scores: Output,
    curves: Output,
    steps: Output,
    losses: Output,
    pictures: Output,
    models: Output,
    state: State,
) -> dict[str, dict[str, float]]:
    """Train and measure the methods ``names`` on the images ``pixels``, or on drawn ones.

    All tables have the columns setting, seed and method: ``images`` image, metric, value; ``scores`` metric, value;
    ``curves`` step, mse, probe; ``steps`` sampler, steps, evaluations, mse, ssim; ``losses`` those of training.
    ``pictures`` holds tensors ``<method>/<name>``, uint8, and float16 for endpoints, which are not bounded; ``models``
    the weights of the methods ``saved``.
    """
    train_data, test_data = load_split(data, seed, pixels[0] if pixels else None)
    job = _Job(network, method, fit, measure, train_data, test_data, seed)
    folders = RunFolders(state, names)
    for name, folder in folders.unfinished():
        make_run(job, name, folder, state, keep=name in saved)
    if not PartialState().is_main_process:
        return {}
    for table, output in zip(TABLES, (images, scores, curves, steps, losses), strict=True):
        rows = folders.gather(table, lambda name: {"method": name})
        write_table(output, rows.assign(setting=setting, seed=seed).astype(_narrow(rows)))
    shown: dict[str, Tensor] = {}
    models.mkdir()
    for name in names:
        shown |= load_file(folders.folder(name) / "pictures.safetensors")
        if name in saved:
            (folders.folder(name) / "model.safetensors").rename(models / f"{name}.safetensors")
    save_file(shown, pictures)
    return {"seconds": {name: record["seconds"] for name, record in folders.records().items()},
            "parameters": {name: record["parameters"] for name, record in folders.records().items()}}  # fmt: skip


def make_run(job: _Job, name: str, folder: Path, state: Path, *, keep: bool) -> None:
    """Train one method, measure it, and write its tables and pictures; last of all that it is finished."""
    torch.manual_seed(job.seed)
    method, is_long = name.removesuffix(LONG), name.endswith(LONG)
    prior = _trained_prior(job, state) if method == "pdae" else None
    model = build_autoencoder(method, job.shape, job.network, job.method, seed=job.seed, prior=prior)
    started = time.perf_counter()
    trained = train_autoencoder(model, job.train, job.fit, is_long=is_long, seed=job.seed, state=folder)
    seconds = time.perf_counter() - started
    if PartialState().is_main_process:
        measure_run(job, name, trained, folder)
        if keep:
            write_autoencoder(folder / "model.safetensors", trained.average, method, job.shape, job.network, job.method)
        counts = {"parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)}
        print(f"{name}: {seconds:.1f} s of training, {time.perf_counter() - started:.1f} s in all", flush=True)
        write_json(folder / FINISHED, {"seconds": round(seconds, 3), **counts})
    PartialState().wait_for_everyone()


def _trained_prior(job: _Job, state: Path) -> ChainAutoencoder:
    """The DDPM that PDAE starts from: this job's own."""
    prior = build_autoencoder("ddpm", job.shape, job.network, job.method, seed=job.seed)
    last = snapshot_steps(job.fit, len(job.train))[-1]
    load_average(prior, RunFolders(state, ["ddpm"]).folder("ddpm") / f"snapshot-{last}.safetensors")
    return prior.eval()


def measure_run(job: _Job, name: str, trained: Trained, folder: Path) -> None:
    """Write all `TABLES` of a method, and its pictures."""
    model, images = trained.average, tested_images(job, trained.average)
    points = []
    for step, snapshot in trained.snapshots.items():
        load_average(model, snapshot)
        codes = None if name == "ddpm" else encode_all(model, job.train, job.test)
        points.append({"step": step, **curve_point(job, model, codes)})
    # The last snapshot is what the training ended with.
    found = reconstruct(model, images, job.measure, job.seed)
    values = scores_of(job, model, codes)
    tables = {
        "images": image_errors(found, images),
        "scores": pd.DataFrame({"metric": list(values), "value": list(values.values())}),
        "curves": pd.DataFrame(points),
        "losses": pd.DataFrame(trained.records),
    }
    if codes is not None and not isinstance(model, PlainAutoencoder):
        tables["steps"] = quality_by_steps(model, images[: job.measure.counted_images], job.measure, job.seed)
    for table, rows in tables.items():
        write_table(folder / f"{table}.parquet", rows)
    shown = pictures_of(model, codes, job.train, images, found, job.measure, job.seed)
    shown = {f"{name}/{key}": value for key, value in shown.items()}
    shown[f"{name}/original"] = job.test.scaled(slice(job.measure.shown))
    save_file({key: _compact(key, value) for key, value in shown.items()}, folder / "pictures.safetensors")


def tested_images(job: _Job, model: Autoencoder) -> Tensor:
    """The test images that are reconstructed, on the model's device."""
    return job.test.scaled(slice(job.measure.reconstructed)).to(device_of(model))


def curve_point(job: _Job, model: Autoencoder, codes: Codes | None) -> dict[str, float]:
    """Error from z alone (a single x_T), and the probes' mean R², or average precision where there are no factors."""
    if codes is None:
        return {"mse": np.nan, "probe": np.nan}
    images = tested_images(job, model)[: job.measure.counted_images]
    with torch.no_grad():
        z = model.encode(images)
        if isinstance(model, PlainAutoencoder):
            decoded = model.decode(z)
        elif isinstance(model, BridgeAutoencoder):
            decoded = decode_from(model, z, model.endpoint(z), job.measure.decode_steps)
        else:
            decoded = decode_from(model, z, random_endpoints(images, 1, job.seed)[0], job.measure.decode_steps)
    probes = probe_scores(codes, job.train, job.test)
    return {"mse": float(squared_errors(decoded, images).mean()),
            "probe": probes.get("probe_r2", probes.get("probe_ap", np.nan))}  # fmt: skip


def scores_of(job: _Job, model: Autoencoder, codes: Codes | None) -> dict[str, float]:
    """Everything that is one number for a method and seed."""
    train, test, options = job.train, job.test, job.measure
    values: dict[str, float] = {}
    if not isinstance(model, PlainAutoencoder):
        values |= endpoint_cost(model, tested_images(job, model), options)
    few_train, all_test = train.scaled(slice(options.compared_images)), test.scaled()
    generated = generate(model, codes, test.images.shape[1:], options, job.seed)
    values["frechet"] = pixel_distance(generated, few_train, all_test)
    if codes is None:
        return values | inferred_scores(job, model)
    values |= code_scores(codes, train, test)
    values["decoder_mse"] = decoder_error(codes, few_train, all_test, steps=options.decoder_steps, seed=job.seed)
    if train.texture.shape[1] and not isinstance(model, PlainAutoencoder):
        few = Codes(codes.train, codes.test[: options.reconstructed])
        values |= texture_scores(model, few, train, test, options.infer_steps, options.probed_images)
    if isinstance(model, BridgeAutoencoder) and model.stochastic:
        means = Codes(*(in_parts(model.code_mean, data, device_of(model)).numpy() for data in (train, test)))
        values |= {f"{name}_of_mean": value for name, value in probe_scores(means, train, test).items()
                   if name.startswith("probe")}  # fmt: skip
    return values


def inferred_scores(job: _Job, model: ChainAutoencoder) -> dict[str, float]:
    """Probes of DDPM's representation, the x_T that DDIM infers from an image; of fewer images."""
    parts = []
    for data, count in ((job.train, job.measure.probed_images), (job.test, job.measure.reconstructed)):
        images = data.scaled(slice(count)).to(device_of(model))
        parts.append(model.infer(images, None, job.measure.infer_steps).flatten(1).double().cpu().numpy())
    few = slice(job.measure.probed_images), slice(job.measure.reconstructed)
    return probe_scores(Codes(*parts), job.train[few[0]], job.test[few[1]])


def _compact(key: str, images: Tensor) -> Tensor:
    if key.split("/")[1] in _ENDPOINTS:
        return images.half().cpu().contiguous()
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().contiguous()


def _narrow(rows: pd.DataFrame) -> dict[str, str]:
    """Half the bytes: results travel with the repository."""
    return {name: "float32" for name in rows.columns if rows[name].dtype == np.float64}


if __name__ == "__main__":
    run(train)
