"""Judges of responses: the testbed's gold reward, or a reward model in place of the paper's GPT-4."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from papers.bpo.writer_language import WORDS, gold_reward
from shared.errors import InputError
from shared.lm.special_tokens import EOS_ID
from shared.lm.word_texts import to_ids

Judge = Callable[[Sequence[str], Sequence[str], np.ndarray], np.ndarray]
"""(prompts, responses, whether each response was finished by EOS (n,) bool) -> scores (n,), higher is better."""


def gold_judge(prompts: Sequence[str], responses: Sequence[str], finished: np.ndarray) -> np.ndarray:
    """The writer language's gold reward of texts.

    Raises:
        InputError: a word that is not in the language.
    """
    ids = to_ids(responses, WORDS)
    closed = np.pad(ids, ((0, 0), (0, 1)))
    lengths = np.array([len(response.split()) for response in responses])
    closed[np.flatnonzero(finished), lengths[finished]] = EOS_ID
    return gold_reward(to_ids(prompts, WORDS), closed)


def reward_model_judge(source: str, device: torch.device, *, batch_size: int = 16, max_tokens: int = 1024) -> Judge:
    """The scalar output of a sequence classifier that reads prompt and response as a pair of texts.

    Args:
        source: hub name or folder of a model with one label.

    Raises:
        InputError: there is no such model, or it has several labels.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="right")  # an encoder counts positions from 0
        model = AutoModelForSequenceClassification.from_pretrained(source, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: no reward model to load: {str(error).splitlines()[0]}") from None
    if model.config.num_labels != 1:
        raise InputError(f"{source}: a reward model has one label, this model has {model.config.num_labels}")
    model.to(device).eval().requires_grad_(False)

    def judge(prompts: Sequence[str], responses: Sequence[str], finished: np.ndarray) -> np.ndarray:
        scores = []
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            encoded = tokenizer(
                list(prompts[part]),
                list(responses[part]),
                padding=True,
                truncation=True,
                max_length=max_tokens,
                return_tensors="pt",
            )
            scores.append(model(**encoded.to(device)).logits[:, 0].double().cpu().numpy())
        return np.concatenate(scores)

    return judge


def open_judge(source: str | None, device: torch.device) -> Judge:
    """The gold reward for None, else the reward model of a hub name or folder."""
    return gold_judge if source is None else reward_model_judge(source, device)
