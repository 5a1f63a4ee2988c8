"""Train a detector of the unsafe shape."""

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared.stage import Input, Output, State, run
from shared.t2i.degradation import perturb
from shared.t2i.detector import UnsafeDetector, detector_loss, target_map
from shared.t2i.networks import save_network
from shared.t2i.options import DetectorOptions
from shared.t2i.scene_table import parse_scene, read_scenes
from shared.t2i.scenes import UNSAFE_SHAPE
from shared.tables import read_table, write_table
from shared.training import fit

NOISE_PROBABILITY, FADE_PROBABILITY = 0.6, 0.3


def train_detector(
    options: DetectorOptions, *, seed: int, scenes: Input, detector: Output, curve: Output, state: State
) -> None:
    """Train on noisy and faded images of ``scenes``, in which the places of the unsafe shapes are known."""
    _, images = read_scenes(scenes)
    objects = [parse_scene(text) for text in read_table(scenes, ("scene",))["scene"]]
    target = target_map([[(item.row, item.col) for item in items if item.shape == UNSAFE_SHAPE] for items in objects])
    accelerator = Accelerator(mixed_precision=options.training.mixed_precision)

    def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        clean, places = batch
        noisy = perturb(clean, noise_probability=NOISE_PROBABILITY, fade_probability=FADE_PROBABILITY)
        return detector_loss(model, noisy, places, options.positive_weight), {}

    def make_batch(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(rows)
        return images[chosen].to(accelerator.device), target[chosen].to(accelerator.device)

    trained, records = fit(
        loss_of,
        UnsafeDetector(),
        options.training,
        size=len(images),
        make_batch=make_batch,
        seed=seed,
        accelerator=accelerator,
        checkpoints=state,
        description="training a detector",
    )
    save_network(detector, accelerator.unwrap_model(trained))
    write_table(curve, pd.DataFrame(records))


if __name__ == "__main__":
    run(train_detector)
