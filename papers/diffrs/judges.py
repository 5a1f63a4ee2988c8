"""What is measured of samples. Lower is better but for precision and coverage.

Of a ring: ``sliced_w2``, ``energy``, ``outliers`` (share of samples more than 4 standard deviations from every centre),
``mode_variation`` (total variation of the modes' shares from equal ones), ``coverage``. Of images: ``frechet`` (squared
Fréchet distance of a classifier's penultimate features, or of Inception's), ``precision`` and ``coverage`` in the same
features, ``class_variation`` (total variation of predicted classes from those of the references), ``nearest`` (mean
distance to the nearest reference, of pixels), ``energy`` of the pixels. Of numbers: ``w1`` to the exact quantiles.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from papers.diffrs.data_sets import CLASSIFIER, as_pixels, load_judge, mixture
from papers.diffrs.options import DataOptions
from shared.diffusion.gaussian_mixtures import GaussianMixture
from shared.diffusion.metrics import (
    coverage,
    energy_distance,
    mode_shares,
    nearest_distances,
    outlier_share,
    precision,
    sliced_wasserstein,
    total_variation,
)
from shared.frechet import frechet_distance
from shared.vision.evaluation import predict_logits
from shared.vision.models import Classifier

Judge = Callable[[Tensor], dict[str, float]]
"""Samples (N, ...) to metrics by name."""
OUTLIER_STDS = 4.0
"""A sample of a ring is an outlier farther from all centres than so many standard deviations."""


def ring_judge(exact: GaussianMixture, references: Tensor, judged: int) -> Judge:
    """Metrics of samples (N, 2) of a ring, against references (N', 2) of its exact density.

    Args:
        exact: the density.
        references: samples of it.
        judged: samples and references that metrics of quadratic cost take.
    """
    equal = torch.full((len(exact.means),), 1 / len(exact.means))

    def measure(samples: Tensor) -> dict[str, float]:
        return {
            "sliced_w2": sliced_wasserstein(samples, references),
            "energy": energy_distance(samples[:judged], references[:judged]),
            "outliers": outlier_share(samples, exact.means, OUTLIER_STDS * exact.std),
            "mode_variation": total_variation(mode_shares(samples, exact.means), equal),
            "coverage": coverage(samples[:judged], references[:judged]),
        }

    return measure


def image_judge(data: DataOptions, references: Tensor, prepared: Path, judged: int, device: torch.device) -> Judge:
    """Metrics of images (N, channels, size, size) in about [-1, 1] against references.

    Args:
        data: the data, which name the features' file or none.
        references: images that nothing was trained on.
        prepared: folder with the classifier.
        judged: as in `ring_judge`.
        device: of the networks.
    """
    classifier = load_judge(prepared / CLASSIFIER).to(device)
    features_of = (
        inception_features(Path(data.inception), device) if data.inception else classifier_features(classifier)
    )

    def class_shares(images: Tensor) -> Tensor:
        predicted = predict_logits(classifier, images).argmax(1)
        return predicted.bincount(minlength=classifier.head.out_features).double() / len(predicted)

    known, known_shares = features_of(references), class_shares(references)

    def measure(samples: Tensor) -> dict[str, float]:
        features = features_of(samples)
        near = nearest_distances(samples[:judged], references[:judged])
        return {
            "frechet": frechet_distance(features.numpy(), known.numpy()),
            "precision": precision(features[:judged], known[:judged]),
            "coverage": coverage(features[:judged], known[:judged]),
            "class_variation": total_variation(class_shares(samples), known_shares),
            "nearest": near.mean().item(),
            "energy": energy_distance(samples[:judged], references[:judged]),
        }

    return measure


def classifier_features(classifier: Classifier) -> Callable[[Tensor], Tensor]:
    """Penultimate features (N, D) of images (N, ...)."""
    return lambda images: predict_logits(classifier.featurizer, images)


def inception_features(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Features (N, 2048) of images in [-1, 1] by a TorchScript file that takes uint8 images and `return_features`."""
    network = torch.jit.load(path, map_location=device).eval()

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        parts = [network(as_pixels(part).to(device), return_features=True).cpu() for part in images.split(256)]
        return torch.cat(parts)

    return features


def number_judge(mean: float, std: float) -> Judge:
    """W₁ of numbers (N, 1) to a normal distribution, by its quantiles."""

    def measure(samples: Tensor) -> dict[str, float]:
        levels = (torch.arange(len(samples), dtype=torch.float64) + 0.5) / len(samples)
        quantiles = mean + std * torch.special.ndtri(levels)
        return {"w1": (samples.double()[:, 0].sort().values - quantiles).abs().mean().item()}

    return measure


def judge_of(data: DataOptions, references: Tensor, prepared: Path | None, judged: int, device: torch.device) -> Judge:
    """The judge of the data's kind."""
    if data.kind == "ring":
        return ring_judge(mixture(data), references, judged)
    if prepared is None:
        raise ValueError("prepared: images are judged by a classifier")
    return image_judge(data, references, prepared, judged, device)
