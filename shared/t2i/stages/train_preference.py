"""Train the guidance scorer further on pairs of a better and a worse image for one caption."""

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared.stage import Input, Output, State, run
from shared.t2i.captions import WordTokenizer
from shared.t2i.degradation import degrade, perturb
from shared.t2i.metrics import caption_choice_accuracy
from shared.t2i.networks import load_network, refuse_several_processes, save_network
from shared.t2i.options import PreferenceOptions
from shared.t2i.scene_table import read_scenes
from shared.t2i.scorer import DualEncoderScorer, preference_loss
from shared.tables import write_table
from shared.training import fit

NOISE_PROBABILITY = 0.6
CHOICES, CHOICE_SEED = 1200, 1000
"""Scenes of the closing check, and the seed of these: development data."""


def train_preference(
    options: PreferenceOptions,
    *,
    seed: int,
    pairs: Input,
    scorer: Input,
    preference: Output,
    curve: Output,
    state: State,
) -> dict[str, float]:
    """Train ``scorer`` on ``pairs``; a share of the worse images are degraded copies of the better ones.

    How often the result prefers a caption to a hard negative goes into the record.
    """
    captions, better = read_scenes(pairs)
    worse = read_scenes(pairs, "loser")[1]
    ids = WordTokenizer().encode(captions)
    accelerator = Accelerator(mixed_precision=options.training.mixed_precision)
    refuse_several_processes(accelerator)

    def perturbed(clean: Tensor) -> Tensor:
        return perturb(clean, noise_probability=NOISE_PROBABILITY, fade_probability=0.0)

    def loss_of(network: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        winners, losers, tokens = batch
        degraded = torch.rand(len(winners), 1, 1, 1, device=winners.device) < options.degraded_share
        losers = torch.where(degraded, degrade(winners), losers)
        return preference_loss(network, perturbed(winners), perturbed(losers), tokens), {}

    def make_batch(rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.tensor(rows)
        return tuple(values[chosen].to(accelerator.device) for values in (better, worse, ids))

    model, records = fit(
        loss_of,
        load_network(scorer, DualEncoderScorer).requires_grad_(True),
        options.training,
        size=len(better),
        make_batch=make_batch,
        seed=seed,
        accelerator=accelerator,
        checkpoints=state,
        description="training the preference scorer",
    )
    save_network(preference, model, width=model.width)
    write_table(curve, pd.DataFrame(records))
    choices = caption_choice_accuracy(model.eval(), count=CHOICES, seed=CHOICE_SEED)
    return {f"choice_{task}": share for task, share in choices.items()}


if __name__ == "__main__":
    run(train_preference)
