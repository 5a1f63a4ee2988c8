"""Tiny settings, and tiny files in CIFAR-10's published format."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from papers.tiw_dsm.options import DataOptions, RatioOptions, SamplingOptions, TrainOptions
from shared.diffusion.options import DenoiserOptions
from shared.training_options import TrainingOptions

TRAINING = TrainingOptions(epochs=2, batch_size=20, learning_rate=2e-3, max_grad_norm=None, checkpoint_every=1000)
TINY = TrainOptions(
    data=DataOptions("mixture", 0.1, biased_size=120, dimension=6),
    denoiser=DenoiserOptions(TRAINING, sigma_data=0.4, widths=(16, 16)),
    ratio=RatioOptions(ratio_steps=6, ratio_candidates=(2, 4), ratio_widths=(16, 16), ratio_batch_size=20),
    sampling=SamplingOptions(samples=40, solver_steps=3),
)
TINY_IMAGES = replace(
    TINY,
    data=DataOptions("glyphs", 0.1, biased_size=60, std=0.02),
    denoiser=replace(TINY.denoiser, architecture="unet", widths=(4, 8), ema_decay=0.5),
    ratio=replace(TINY.ratio, ratio_architecture="unet", ratio_widths=(4, 8)),
    mirror=True,
)


def write_images(path: Path, per_class: int, seed: int = 0) -> Path:
    """A parquet file like `uoft-cs/cifar10`'s, with as many random images of each of ten classes."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(10), per_class)
    cells = []
    for _ in labels:
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "png")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"img": pa.array(cells, kind), "label": pa.array(labels)}), path)
    return path
