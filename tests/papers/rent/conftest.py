from pathlib import Path

import pytest

from papers.rent.options import DataOptions, TrainOptions
from papers.rent.prepare import prepare
from shared.vision.options import ClassifierOptions

SETTINGS = ("sym50", "asym40", "idn40")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> dict[str, Path]:
    """Digits, of which 160 are trained on, with the noisy labels of two seeds."""
    folder = tmp_path_factory.mktemp("rent-data")
    paths = {name: folder / name for name in ("images", "labels")}
    prepare(DataOptions("digits", 160), seeds=(3, 4), settings=SETTINGS, **paths)
    return paths


@pytest.fixture(scope="session")
def tiny_options() -> TrainOptions:
    """An MLP of 32 hidden units, two epochs of warm-up and two of training."""
    return TrainOptions(
        ClassifierOptions("mlp", (32,)),
        epochs=4,
        warmup_epochs=2,
        batch_size=32,
        learning_rate=0.01,
        checkpoint_every=1,
    )
