"""What is measured of a trained autoencoder: reconstructions, probes of z, disentanglement, generation, cost.

Errors of pixels are squared differences of images in [0, 1]. Every method gets the same random x_T.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from papers.dbae.autoencoders import Autoencoder, BridgeAutoencoder, ChainAutoencoder, PlainAutoencoder
from papers.dbae.disentanglement import tad_over_folds
from papers.dbae.image_data import ImageData, binary_attributes
from papers.dbae.latent_prior import fit_latent_prior
from papers.dbae.options import MeasureOptions
from shared.data_order import generator_for
from shared.frechet import frechet_distance
from shared.vision.similarity import ssim

Array = NDArray[np.float64]
Scores = dict[str, float]

ALPHAS = np.logspace(-3, 4, 8)
"""Ridge penalties, of which leave-one-out errors on the training images select one."""
PCA_DIMENSIONS = 32
"""Of the fixed projection of pixels in which sets of images are compared."""
_AT_ONCE = 512


@dataclass(frozen=True)
class Codes:
    """z of training and test images; DDPM has x_T in its place."""

    train: Array
    test: Array


def squared_errors(images: Tensor, originals: Tensor) -> Array:
    """Mean squared error (B,) over pixels, in units where black is 0 and white 1."""
    return ((images - originals) / 2).square().flatten(1).mean(1).double().cpu().numpy()


def unit_images(images: Tensor) -> NDArray[np.float32]:
    """From [−1, 1] to [0, 1]."""
    return ((images.clamp(-1, 1) + 1) / 2).cpu().numpy()


@torch.no_grad()
def in_parts(function: Callable[[Tensor], Tensor], data: ImageData, device: torch.device) -> Tensor:
    """A function of images, some at a time, on the device; the result is on the CPU."""
    starts = range(0, len(data), _AT_ONCE)
    return torch.cat([function(data.scaled(slice(start, start + _AT_ONCE)).to(device)).cpu() for start in starts])


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def random_endpoints(like: Tensor, draws: int, seed: int) -> Tensor:
    """x_T (draws, B, ...), the same for every method of a seed."""
    shape = (draws, *like.shape)
    return torch.randn(shape, generator=generator_for(seed, 1)).to(like)


def decode_each(model: Autoencoder, z: Tensor, endpoints: Tensor, steps: int) -> Tensor:
    """Images (K, B, ...) of codes z (B, L) from endpoints (K, B, ...)."""
    return torch.stack([decode_from(model, z, each, steps) for each in endpoints])


def decode_from(model: Autoencoder, z: Tensor | None, x_T: Tensor, steps: int) -> Tensor:
    decoded = model.decode(z, x_T, steps)
    return decoded.x0 if isinstance(model, BridgeAutoencoder) else decoded


@torch.no_grad()
def reconstruct(model: Autoencoder, images: Tensor, options: MeasureOptions, seed: int) -> dict[str, Tensor]:
    """Every reconstruction that a method knows of images (B, ...), and the endpoints behind them.

    ``z``: from z alone, (K, B, ...), one for each random x_T; ``inferred``: from z and the x_T that was inferred from
    the image; ``sde``: DBAE's; ``again``: DBAE's from z alone, a second time. ``endpoint``: DBAE's Dec(z), or the
    inferred x_T.
    """
    if isinstance(model, PlainAutoencoder):
        return {"z": model.decode(model.encode(images))[None]}
    if isinstance(model, BridgeAutoencoder):
        z = model.encode(images)
        x_T = model.endpoint(z)
        sde = model.decode(z, x_T, options.sde_steps, churn=options.churn,
                           generator=generator_for(seed, 2, device=images.device)).x0  # fmt: skip
        once, again = (model.decode(z, x_T, options.decode_steps).x0 for _ in range(2))
        return {"z": once[None], "again": again, "sde": sde, "endpoint": x_T}
    z = None if isinstance(model, ChainAutoencoder) and model.encoder is None else model.encode(images)
    x_T = model.infer(images, z, options.infer_steps)
    found = {"inferred": model.decode(z, x_T, options.decode_steps), "endpoint": x_T}
    if z is not None:
        found["z"] = decode_each(model, z, random_endpoints(images, options.draws, seed), options.decode_steps)
    return found


def image_errors(found: dict[str, Tensor], originals: Tensor) -> pd.DataFrame:
    """Errors image by image: columns image, metric, value.

    ``mse``: from z alone, the mean over random x_T; ``mse_mean``: of the mean of those reconstructions, times
    K/(K + 1), which removes what K draws add to the posterior mean's error; ``mse_inferred``; ``mse_sde``;
    ``log_<each>``; ``ssim`` from z alone; ``draw_variance``: of a pixel over random x_T, or over
    DBAE's two times.
    """
    columns: dict[str, Array] = {}
    if "z" in found:
        draws = found["z"]
        count = len(draws)
        columns["mse"] = np.mean([squared_errors(each, originals) for each in draws], axis=0)
        correction = count / (count + 1) if count > 1 else 1.0
        columns["mse_mean"] = correction * squared_errors(draws.mean(0), originals)
        columns["ssim"] = ssim(unit_images(draws[0]), unit_images(originals))
        repeated = torch.stack([draws[0], found["again"]]) if "again" in found else draws
        if len(repeated) > 1:
            spread = (repeated / 2).var(0, correction=1)
            columns["draw_variance"] = spread.flatten(1).mean(1).double().cpu().numpy()
    for name in ("inferred", "sde"):
        if name in found:
            columns[f"mse_{name}"] = squared_errors(found[name], originals)
    columns |= {f"log_{name}": np.log(values) for name, values in columns.items() if name.startswith("mse")}
    wide = pd.DataFrame(columns).rename_axis("image").reset_index()
    return wide.melt("image", var_name="metric").astype({"value": "float64"})


def encode_all(model: Autoencoder, train: ImageData, test: ImageData) -> Codes:
    """z of all images."""
    return Codes(*(in_parts(model.encode, data, device_of(model)).double().numpy() for data in (train, test)))


def probe_scores(codes: Codes, train: ImageData, test: ImageData) -> Scores:
    """Linear probes: R² of every factor, average precision and accuracy of every label, and means of the first two."""
    scores: Scores = {}
    if train.factor_names:
        by_factor = r_squared(ridge_prediction(codes, train.factors), test.factors)
        scores |= {f"r2_{name}": value for name, value in zip(train.factor_names, by_factor, strict=True)}
        scores["probe_r2"] = float(by_factor.mean())
    precisions = []
    for column, name in enumerate(train.class_names):
        precision, accuracy = class_scores(codes, train.classes[:, column], test.classes[:, column])
        precisions.append(precision)
        scores |= {f"ap_{name}": precision, f"accuracy_{name}": accuracy}
    if precisions:
        scores["probe_ap"] = float(np.mean(precisions))
    return scores


def ridge(targets: ArrayLike, inputs: ArrayLike):
    """Ridge regression on standardised inputs, its penalty selected by leave-one-out errors."""
    return make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(inputs, targets)


def ridge_prediction(codes: Codes, targets: ArrayLike) -> Array:
    return ridge(targets, codes.train).predict(codes.test)


def r_squared(predicted: ArrayLike, actual: ArrayLike) -> Array:
    """1 − error/variance of every column, (F,)."""
    predicted, actual = np.asarray(predicted, float), np.asarray(actual, float)
    return 1 - ((predicted - actual) ** 2).mean(axis=0) / actual.var(axis=0)


def class_scores(codes: Codes, train: NDArray[np.int64], test: NDArray[np.int64]) -> tuple[float, float]:
    """Average precision (mean over classes, of two that of class 1) and accuracy of a logistic regression."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(codes.train, train)
    probabilities = model.predict_proba(codes.test)
    classes = model.classes_ if len(model.classes_) > 2 else model.classes_[1:]
    columns = probabilities[:, -len(classes) :]
    precisions = [average_precision_score(test == each, column) for each, column in zip(classes, columns.T, strict=True)
                  if (test == each).any()]  # fmt: skip
    return float(np.mean(precisions)), float((model.predict(codes.test) == test).mean())


def texture_scores(
    model: Autoencoder, codes: Codes, train: ImageData, test: ImageData, steps: int, count: int
) -> Scores:
    """How much of the texture a linear probe finds in z, and in z with x_T beside it: R² over all its pixels.

    x_T is DBAE's Dec(z), or what is inferred from the image; of the first `count` training images.
    """
    device = device_of(model)
    train_codes, test_codes = (
        None if part is None else torch.from_numpy(part).float() for part in (codes.train[:count], codes.test)
    )
    found = []
    for data, z in ((train, train_codes), (test, test_codes)):
        images = data.scaled(slice(len(z)))
        found.append(endpoint_of(model, images.to(device), z.to(device), steps).flatten(1).double().cpu().numpy())
    alone = Codes(codes.train[:count], codes.test)
    beside = Codes(*(np.hstack([z, x_T]) for z, x_T in zip((alone.train, alone.test), found, strict=True)))
    scores = {}
    for name, inputs in (("texture_r2", alone), ("texture_r2_with_endpoint", beside)):
        predicted = ridge_prediction(inputs, train.texture[:count])
        actual = test.texture[: len(predicted)]
        scores[name] = float(1 - ((predicted - actual) ** 2).sum() / ((actual - actual.mean(0)) ** 2).sum())
    return scores


@torch.no_grad()
def endpoint_of(model: Autoencoder, images: Tensor, z: Tensor, steps: int) -> Tensor:
    """x_T of images: Dec(z), or inferred by DDIM."""
    return model.endpoint(z) if isinstance(model, BridgeAutoencoder) else model.infer(images, z, steps)


def code_scores(codes: Codes, train: ImageData, test: ImageData) -> Scores:
    """Probes and disentanglement of z."""
    attributes = binary_attributes(train)[:10_000]
    varied = np.ptp(attributes, axis=0) > 0
    tad, captured = tad_over_folds(codes.train[:10_000], attributes[:, varied])
    return {**probe_scores(codes, train, test), "tad": tad, "captured": captured}


def decoder_error(codes: Codes, train: Tensor, test: Tensor, *, steps: int, seed: int) -> float:
    """Test error of a small decoder trained on frozen z, the same for every method: what z knows of an image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, scale = codes.train.mean(0), codes.train.std(0) + 1e-6
        known = codes.train[: len(train)]
        inputs, held_out = (torch.from_numpy((part - mean) / scale).float() for part in (known, codes.test))
        size = train[0].numel()
        network = nn.Sequential(
            nn.Linear(inputs.shape[1], 128), nn.SiLU(), nn.Linear(128, 256), nn.SiLU(), nn.Linear(256, size)
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, fused=True)
        targets = train.flatten(1)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
            chosen = torch.randint(len(inputs), (128,))
            F.mse_loss(network(inputs[chosen]), targets[chosen]).backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            return float(squared_errors(network(held_out).view_as(test), test).mean())


@torch.no_grad()
def generate(model: Autoencoder, codes: Codes | None, shape: torch.Size, options: MeasureOptions, seed: int) -> Tensor:
    """Images from z of a prior that is fitted to the training images' codes; without codes, DDPM's own samples."""
    device, count = device_of(model), options.generated
    noise = torch.randn((count, *shape), generator=generator_for(seed, 3)).to(device)
    if codes is None:
        return model.decode(None, noise, options.decode_steps)
    with torch.enable_grad():
        prior = fit_latent_prior(
            torch.from_numpy(codes.train).float().to(device),
            width=options.prior_width,
            depth=options.prior_depth,
            steps=options.prior_steps,
            batch_size=options.prior_batch,
            seed=seed,
        )
    start = torch.randn(count, codes.train.shape[1], generator=generator_for(seed, 4)).to(device)
    z = prior.sample(start, options.decode_steps)
    if isinstance(model, PlainAutoencoder):
        return model.decode(z)
    x_T = model.endpoint(z) if isinstance(model, BridgeAutoencoder) else noise
    return decode_from(model, z, x_T, options.decode_steps)


def pixel_distance(images: Tensor, train: Tensor, test: Tensor) -> float:
    """Fréchet distance of images and test images in the first principal components of the training images' pixels."""
    size = train[0].numel()
    projection = PCA(min(PCA_DIMENSIONS, size, len(train)), random_state=0).fit(train.flatten(1).numpy())
    first, second = (projection.transform(part.cpu().flatten(1).numpy()) for part in (images, test))
    return frechet_distance(first, second)


@torch.no_grad()
def quality_by_steps(model: BridgeAutoencoder | ChainAutoencoder, images: Tensor, options: MeasureOptions, seed: int):
    """Errors against evaluations of the U-Net: columns sampler, steps, evaluations, mse, ssim."""
    z = model.encode(images)
    rows = []
    samplers = ("ode", "heun", "sde") if isinstance(model, BridgeAutoencoder) else ("ddim",)
    for sampler in samplers:
        for steps in options.step_counts:
            if sampler == "ddim":
                x_T = random_endpoints(images, 1, seed)[0]
                decoded, evaluations = model.decode(z, x_T, steps), steps
            else:
                decoded, evaluations = model.decode(
                    z,
                    model.endpoint(z),
                    steps,
                    order=2 if sampler == "heun" else 1,
                    churn=options.churn if sampler == "sde" else 0.0,
                    generator=generator_for(seed, 5, device=images.device),
                )
            similarity = ssim(unit_images(decoded), unit_images(images)).mean()
            rows.append({"sampler": sampler, "steps": steps, "evaluations": evaluations,
                         "mse": squared_errors(decoded, images).mean(), "ssim": similarity})  # fmt: skip
    return pd.DataFrame(rows)


@torch.no_grad()
def endpoint_cost(model: Autoencoder, images: Tensor, options: MeasureOptions) -> Scores:
    """Evaluations of the U-Net, and seconds for these images, until z and x_T are there."""
    started = time.perf_counter()
    z = model.encode(images) if getattr(model, "encoder", None) is not None else None
    endpoint_of(model, images, z, options.infer_steps)
    seconds = time.perf_counter() - started
    calls = 0 if isinstance(model, BridgeAutoencoder) else options.infer_steps
    return {"endpoint_evaluations": float(calls), "endpoint_seconds": seconds}


@torch.no_grad()
def pictures_of(
    model: Autoencoder, codes: Codes | None, train: ImageData, images: Tensor, found: dict[str, Tensor],
    options: MeasureOptions, seed: int,
) -> dict[str, Tensor]:  # fmt: skip
    """Tensors of images in [−1, 1] for the paper's figures.

    ``draws`` (at most 4, shown, ...), ``inferred`` and ``endpoint`` (shown, ...) of the test images; of DBAE also
    ``interpolation`` (points, ...) of x_0 and ``interpolated_endpoint``, between the first two of them; and of the
    first ``manipulation-<attribute>`` and ``moved-<attribute>`` (scales, ...): with the endpoint kept, as in the
    official code, and with that of the moved z.
    """
    shown = options.shown
    pictures = {name: found[name][:shown] for name in ("inferred", "endpoint") if name in found}
    if "z" in found:
        pictures["draws"] = found["z"][:4, :shown]
        if len(found["z"]) > 1:
            pictures["mean"] = found["z"][:, :shown].mean(0)
    if not isinstance(model, BridgeAutoencoder):
        return pictures
    z = model.encode(images[:2])
    shares = torch.linspace(0, 1, options.interpolation_points, device=z.device)[:, None]
    strips = {"interpolation": (1 - shares) * z[:1] + shares * z[1:]}
    endpoints = {"interpolation": model.endpoint(strips["interpolation"])}
    for name, direction in probe_directions(codes, train).items():
        moved = manipulated(z[:1], torch.from_numpy(direction).to(z), options.scales)
        for kind, of in (("manipulation", z[:1].expand_as(moved)), ("moved", moved)):
            strips[f"{kind}-{name}"], endpoints[f"{kind}-{name}"] = moved, model.endpoint(of)
    pictures["interpolated_endpoint"] = endpoints["interpolation"]
    steps, count = options.interpolation_steps, sum(map(len, strips.values()))
    # One noise for all images, so that they differ by their codes and endpoints alone.
    noise = torch.randn((steps, 1, *images.shape[1:]), generator=generator_for(seed, 6)).to(images)
    decoded = model.decode(
        torch.cat(list(strips.values())),
        torch.cat(list(endpoints.values())),
        steps,
        order=2,
        churn=options.interpolation_churn,
        noise=noise.expand(-1, count, -1, -1, -1),
    ).x0
    return pictures | dict(zip(strips, decoded.split([len(strip) for strip in strips.values()]), strict=True))


def manipulated(z: Tensor, direction: Tensor, scales: tuple[float, ...]) -> Tensor:
    """z + s √L w/|w| (scales, L) for each scale s, of one code z (1, L) and a probe's weights w (L,)."""
    unit = direction / direction.norm()
    return z + torch.tensor(scales).to(z)[:, None] * len(direction) ** 0.5 * unit


def probe_directions(codes: Codes, train: ImageData) -> dict[str, Array]:
    """Weights (L,) of linear probes of z itself, not standardised: of factors, and of labels with two classes."""
    directions = {}
    for name, target in zip(train.factor_names, train.factors.T, strict=True):
        directions[name] = RidgeCV(ALPHAS).fit(codes.train, target).coef_
    for name, target in zip(train.class_names, train.classes.T, strict=True):
        if set(np.unique(target)) == {0, 1}:
            directions[name] = LogisticRegression(max_iter=300).fit(codes.train, target).coef_[0]
    return directions
