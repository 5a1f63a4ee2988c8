"""Small data and options that several tests of UDIM share."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from papers.udim.image_sets import ImageSet
from papers.udim.methods import Hyperparameters
from papers.udim.options import InputOptions, NetworkOptions, ProtocolOptions, TrainOptions
from shared.vision.data import LabeledImages
from shared.vision.options import ClassifierOptions

CNN = NetworkOptions(classifier=ClassifierOptions(architecture="cnn", widths=(4,), hidden=8))
OPTIONS = TrainOptions(
    network=CNN,
    inputs=InputOptions(),
    hyperparameters=Hyperparameters(learning_rate=0.01),
    steps=10,
    batch_size=8,
    evaluate_every=3,
    probe_images=10,
    checkpoint_every=4,
    saved=("sam", "sam+udim"),
)
CORRUPTIONS = ProtocolOptions(
    protocol="corruptions", size=8, corruptions=("gaussian_noise", "contrast"), levels=(1, 3), train_images=60,
    validation_fraction=0.2, test_images=20, test_fraction=0.3,
)  # fmt: skip
STYLED = ProtocolOptions(
    protocol="leave_one_out", size=8, styles=("white_on_black", "tinted", "sketched"), train_images=30, test_images=20
)


def random_images(count: int, channels: int = 1, size: int = 8, seed: int = 0, classes: int = 4) -> LabeledImages:
    """Images uint8 whose class is where they are bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    images = torch.randint(60, (count, channels, size, size), generator=generator)
    step = size // 4
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, label * step : label * step + step] += 180
    return LabeledImages(images.to(torch.uint8), labels)


def image_set(names: tuple[str, ...] = ("plain",), count: int = 200, **options) -> ImageSet:
    """Domains of `count` images each."""
    parts = [random_images(count, seed=number, **options) for number in range(len(names))]
    return ImageSet(
        torch.cat([part.images for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.arange(len(names)).repeat_interleave(count),
        names,
        options.get("classes", 4),
    )


def write_cifar(path: Path, count: int, seed: int = 0, size: int = 32) -> Path:
    """A parquet file in the layout of CIFAR-10 on the hub."""
    data = random_images(count, channels=3, size=size, seed=seed, classes=4)
    rows = []
    for image in data.images.numpy():
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(buffer, format="png")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({"img": rows, "label": data.labels.numpy()}), path)
    return path


def write_folders(root: Path, domains: tuple[str, ...] = ("art", "photo", "sketch"), count: int = 6) -> Path:
    """Images in folders <domain>/<class>/<image>, as PACS comes."""
    rng = np.random.default_rng(0)
    for domain in domains:
        for number, label in enumerate(("dog", "house")):
            folder = root / domain / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 100, (40, 48, 3), dtype=np.uint8)
                pixels[20 * number : 20 * number + 20] += 120
                Image.fromarray(pixels).save(folder / f"{index}.jpg")
    return root
