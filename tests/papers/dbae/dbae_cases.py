"""Small options and data that several tests of DBAE share."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from papers.dbae.image_data import ImageData
from papers.dbae.options import DataOptions, FitOptions, MeasureOptions, MethodOptions, NetworkOptions
from shared.training_options import TrainingOptions

SHAPE = (3, 8, 8)
NETWORK = NetworkOptions(latent_dim=3, base_channels=8, encoder_channels=8, hidden=8)
METHOD = MethodOptions(chain_times=50)
DATA = DataOptions("sprites", image_size=8, train_images=48, test_images=24)
FIT = FitOptions(
    TrainingOptions(epochs=2.0, batch_size=12, learning_rate=0.002, warmup_fraction=0.25, checkpoint_every=100),
    long_factor=1.5,
)
MEASURE = MeasureOptions(
    reconstructed=8, draws=2, decode_steps=3, infer_steps=3, sde_steps=3, step_counts=(2, 3), counted_images=6,
    probed_images=20, generated=16, prior_width=8, prior_depth=2, prior_steps=3, prior_batch=8, compared_images=40,
    decoder_steps=3, shown=3, interpolation_points=3, interpolation_steps=2,
)  # fmt: skip


def random_images(count: int = 4, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """float32 images in [−1, 1]."""
    return 2 * torch.rand((count, *shape), generator=torch.Generator().manual_seed(seed)) - 1


def plain_data(images: torch.Tensor) -> ImageData:
    """Images of which nothing is known."""
    none = np.zeros((len(images), 0), np.float32)
    return ImageData(images, none, (), none.astype(np.int64), (), none)


def write_celeba(root: Path, count: int = 6, size: tuple[int, int] = (178, 218)) -> tuple[Path, Path]:
    """A folder of images, and a file of attributes, in CelebA's layout: png instead of jpg, so that pixels are exact.

    The 128 pixels that the paper cuts out are of one grey level for each image, all others black.
    """
    folder = root / "img_align_celeba"
    folder.mkdir(parents=True)
    lines = [str(count), "Bald Smiling"]
    for number in range(count):
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        pixels[57:185, 25:153] = 10 * number + 20
        Image.fromarray(pixels).save(folder / f"{number:06d}.png")
        lines.append(f"{number:06d}.png {1 if number % 2 else -1:2d} {1 if number > 2 else -1:2d}")
    attributes = root / "list_attr_celeba.txt"
    attributes.write_text("\n".join(lines) + "\n")
    return folder, attributes
