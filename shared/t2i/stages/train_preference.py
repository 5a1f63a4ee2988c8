"""Train the guidance scorer further on pairs of a better and a worse image for one caption."""

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared.stage import Input, Output, State, run
from shared.t2i.captions import WordTokenizer
from shared.t2i.degradation import degrade, perturb
from shared.t2i.networks import load_network, save_network
from shared.t2i.options import PreferenceOptions
from shared.t2i.scene_table import read_scenes
from shared.t2i.scorer import DualEncoderScorer, preference_loss
from shared.tables import write_table
from shared.training import fit

NOISE_PROBABILITY = 0.6


def train_preference(
    options: PreferenceOptions,
    *,
    seed: int,
    pairs: Input,
    scorer: Input,
    preference: Output,
    curve: Output,
    state: State,
) -> None:
    """Train ``scorer`` on ``pairs``; a share of the worse images are degraded copies of the better ones."""
    captions, better = read_scenes(pairs)
    worse = read_scenes(pairs, "loser")[1]
    ids = WordTokenizer().encode(captions)
    accelerator = Accelerator(mixed_precision=options.training.mixed_precision)
    model = load_network(scorer, DualEncoderScorer).requires_grad_(True)

    def perturbed(clean: Tensor) -> Tensor:
        return perturb(clean, noise_probability=NOISE_PROBABILITY, fade_probability=0.0)

    def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        winners, losers, tokens = batch
        degraded = torch.rand(len(winners), 1, 1, 1, device=winners.device) < options.degraded_share
        losers = torch.where(degraded, degrade(winners), losers)
        return preference_loss(accelerator.unwrap_model(model), perturbed(winners), perturbed(losers), tokens), {}

    def make_batch(rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.tensor(rows)
        return tuple(values[chosen].to(accelerator.device) for values in (better, worse, ids))

    trained, records = fit(
        loss_of,
        model,
        options.training,
        size=len(better),
        make_batch=make_batch,
        seed=seed,
        accelerator=accelerator,
        checkpoints=state,
        description="training the preference scorer",
    )
    trained = accelerator.unwrap_model(trained)
    save_network(preference, trained, width=trained.width)
    write_table(curve, pd.DataFrame(records))


if __name__ == "__main__":
    run(train_preference)
