"""Reward model: trained on preference pairs, from the body of the supervised model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor

from papers.wpr.options import RewardOptions
from shared.data_order import chunks
from shared.errors import InputError
from shared.lm.batches import PromptResponseBatch
from shared.lm.generation import evaluation_mode
from shared.lm.models import ScalarHeadModel
from shared.lm.reward_modeling import pair_accuracy, pair_batch, pairwise_loss, position_values, score
from shared.lm.texts import answer_rows, load_tokenizer, prompt_rows, save_for_store
from shared.stage import Input, Output, State, run
from shared.tables import read_table, write_table
from shared.training import fit

STANDARDIZATION_FILE = "standardization.json"
# Pairs in one forward pass without gradients.
JUDGED_TOGETHER = 256


def train_reward(
    options: RewardOptions,
    *,
    seed: int,
    preferences: Input,
    supervised: Input,
    model: Output,
    curve: Output,
    state: State,
) -> dict[str, float]:
    """Train on ``preferences`` (columns prompt, chosen, rejected); the last ``held_out_pairs`` measure accuracy."""
    table = read_table(preferences, ("prompt", "chosen", "rejected"))
    tokenizer = load_tokenizer(supervised)
    rows = {
        "prompt": prompt_rows(tokenizer, table["prompt"].tolist(), max_tokens=options.max_prompt_tokens),
        "chosen": answer_rows(tokenizer, table["chosen"].tolist(), max_tokens=options.max_answer_tokens),
        "rejected": answer_rows(tokenizer, table["rejected"].tolist(), max_tokens=options.max_answer_tokens),
    }
    size = len(table) - options.held_out_pairs
    if size < options.training.batch_size:
        raise InputError(
            f"{preferences}: {len(table)} pairs are too few for {options.held_out_pairs} held out "
            f"and a batch of {options.training.batch_size}"
        )

    accelerator = Accelerator(mixed_precision=options.training.mixed_precision)

    def batch_of(indices: np.ndarray) -> PromptResponseBatch:
        parts = ([rows[name][index] for index in indices] for name in ("prompt", "chosen", "rejected"))
        return pair_batch(*parts, pad_id=tokenizer.pad_token_id).to(accelerator.device)

    reward_model, records = fit(
        lambda reward_model, batch: (pairwise_loss(position_values(reward_model, batch), batch), {}),
        ScalarHeadModel.from_causal_lm(supervised, dtype=torch.float32),
        options.training,
        size=size,
        make_batch=batch_of,
        seed=seed,
        accelerator=accelerator,
        checkpoints=state,
        weight_of=len,
        description="reward model",
    )
    accuracy, _ = judged(
        reward_model, [batch_of(part) for part in chunks(np.arange(size, len(table)), JUDGED_TOGETHER)]
    )
    standardization = {"shift": 0.0, "scale": 1.0}
    if options.standardize:
        _, scores = judged(
            reward_model, [batch_of(part) for part in chunks(np.arange(min(size, 2048)), JUDGED_TOGETHER)]
        )
        standardization = {"shift": scores.mean().item(), "scale": scores.std().item()}
    if accelerator.is_main_process:
        trained = accelerator.unwrap_model(reward_model)
        save_for_store(trained, tokenizer, model, dtype=getattr(torch, options.weights))
        (model / STANDARDIZATION_FILE).write_text(json.dumps(standardization) + "\n", encoding="utf-8")
        write_table(curve, pd.DataFrame(records))
    return {"held_out_accuracy": accuracy}


def judged(reward_model: torch.nn.Module, batches: Iterable[PromptResponseBatch]) -> tuple[float, Tensor]:
    """Share of pairs in which the chosen answer scores higher, and the scores of all answers, (2N,)."""
    with evaluation_mode(reward_model):
        scores = [score(reward_model, batch) for batch in batches]
    correct = sum(pair_accuracy(part).item() * len(part) for part in scores)
    return correct / sum(map(len, scores)), torch.cat(scores)


def load_standardization(folder: Path) -> tuple[float, float]:
    """Shift and scale by which a reward model's scores are standardised: (score - shift) / scale."""
    values = json.loads((folder / STANDARDIZATION_FILE).read_text(encoding="utf-8"))
    return values["shift"], values["scale"]


if __name__ == "__main__":
    run(train_reward)
