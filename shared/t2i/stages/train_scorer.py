"""Train a dual encoder on captioned scenes: the conditioner, the guidance scorer, or the evaluator."""

import math

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shared.stage import Input, Output, State, run
from shared.t2i.captions import WordTokenizer
from shared.t2i.degradation import degrade, perturb
from shared.t2i.metrics import caption_choice_accuracy
from shared.t2i.networks import refuse_several_processes, save_network
from shared.t2i.options import ScorerOptions
from shared.t2i.scene_table import read_scenes
from shared.t2i.scorer import DualEncoderScorer, contrastive_loss
from shared.tables import write_table
from shared.training import fit

LAST_RECORDS = 5
"""Records whose mean loss is the last one."""
CHOICES, CHOICE_SEED = 1200, 1000
"""Scenes of the closing check, and the seed of these: development data."""


def train_scorer(
    options: ScorerOptions, *, seed: int, scenes: Input, scorer: Output, curve: Output, state: State
) -> dict[str, float]:
    """Train on captions and images of ``scenes``; the noise differs in each pass over them.

    How often the scorer prefers a caption to a hard negative goes into the record.
    """
    captions, images = read_scenes(scenes)
    ids = WordTokenizer().encode(captions)
    accelerator = Accelerator(mixed_precision=options.training.mixed_precision)
    refuse_several_processes(accelerator)

    def perturbed(clean: Tensor) -> Tensor:
        return perturb(clean, noise_probability=options.noise_probability, fade_probability=options.fade_probability)

    def loss_of(network: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        clean, tokens = batch
        degraded = perturbed(degrade(clean)) if options.degraded_negatives else None
        return contrastive_loss(network, perturbed(clean), tokens, degraded), {}

    def make_batch(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(rows)
        return images[chosen].to(accelerator.device), ids[chosen].to(accelerator.device)

    model, records = fit(
        loss_of,
        DualEncoderScorer(options.width),
        options.training,
        size=len(images),
        make_batch=make_batch,
        seed=seed,
        accelerator=accelerator,
        checkpoints=state,
        description="training a scorer",
    )
    last_loss = float(np.mean([record["loss"] for record in records[-LAST_RECORDS:]]))
    guess = guessing_loss(options)
    if options.loss_bound is not None and not last_loss < options.loss_bound * guess:
        raise RuntimeError(f"the scorer did not learn: its loss is {last_loss:.3f}, that of a guess {guess:.3f}")
    save_network(scorer, model, width=options.width)
    write_table(curve, pd.DataFrame(records))
    choices = caption_choice_accuracy(model.eval(), count=CHOICES, seed=CHOICE_SEED)
    return {"last_loss": last_loss, "guessing_loss": guess} | {
        f"choice_{task}": share for task, share in choices.items()
    }


def guessing_loss(options: ScorerOptions) -> float:
    """Contrastive loss of a scorer to which all pairs are alike."""
    images = math.log(options.training.batch_size)
    return images + math.log(2) / 2 if options.degraded_negatives else images


if __name__ == "__main__":
    run(train_scorer)
