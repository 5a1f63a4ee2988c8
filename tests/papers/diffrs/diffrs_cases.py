"""Tiny sizes of the stages, and how they are started."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from papers.diffrs.options import DataOptions, JudgeOptions, SamplerOptions
from shared.diffusion.options import DenoiserOptions, DiscriminatorOptions
from shared.training_options import TrainingOptions
from shared.vision.options import ClassifierOptions

TRAINING = TrainingOptions(epochs=2, batch_size=32, learning_rate=0.003, checkpoint_every=4)
RING = DataOptions(kind="ring", train_size=256, references=200)
GLYPHS = DataOptions(kind="glyphs", std=0.1, train_size=64, references=60)
JUDGE = JudgeOptions(
    ClassifierOptions(architecture="cnn", widths=(4,), hidden=6), TRAINING, judge_size=128, judge_noise=0.1
)
DENOISER = DenoiserOptions(TRAINING, log_sigma_std=1.5, widths=(8, 8))
DISCRIMINATOR = DiscriminatorOptions(TRAINING, width=8, depth=1)
SAMPLER = SamplerOptions(steps=4, samples=50, warm_up=40, fakes=64, judged=40, kept=16, followed=2, slots=30)
TABLES = ("runs", "levels", "costs", "blocks", "paths", "ratios", "curves")


def outputs(folder: Path) -> dict[str, Path]:
    """Of the stage sample."""
    tables = {name: folder / f"{name}.parquet" for name in TABLES}
    others = {"pictures": "pictures.safetensors", "discriminators": "discriminators", "state": "state"}
    return tables | {name: folder / path for name, path in others.items()} | {"record": folder / "record.json"}


def write_cifar(path: Path, count: int, seed: int = 0) -> Path:
    """A file in the layout of the hub's `uoft-cs/cifar10`, of images whose class is their colour."""
    rng = np.random.default_rng(seed)
    cells, labels = [], []
    for number in range(count):
        label = number % 10
        pixels = rng.integers(0, 60, (32, 32, 3), np.uint8) + np.array([20 * label, 10, 190 - 15 * label], np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format="PNG")
        cells.append({"bytes": stream.getvalue(), "path": None})
        labels.append(label)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"img": pa.array(cells, image), "label": pa.array(labels)}), path)
    return path
