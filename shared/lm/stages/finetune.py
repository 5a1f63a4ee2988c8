"""Supervised fine-tuning: from a table of prompts and answers to a language model that writes such answers.

With a base model it is fine-tuned; without, a small decoder over the words of a procedural language is trained from
scratch.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shared.errors import InputError
from shared.lm.batches import PromptResponseBatch, right_padded
from shared.lm.models import build_decoder
from shared.lm.options import FinetuneOptions
from shared.lm.supervised import supervised_loss, target_count
from shared.lm.texts import answer_rows, load_causal_lm, load_tokenizer, prompt_rows, save_for_store
from shared.lm.tokenizer import build_tokenizer
from shared.stage import Input, Output, State, run
from shared.tables import read_table, write_table
from shared.training import fit


def finetune(
    options: FinetuneOptions,
    *,
    seed: int,
    examples: Input,
    words: Input,
    model: Output,
    curve: Output,
    state: State,
) -> None:
    """Train on the answers of ``examples`` (columns prompt, answer).

    ``words`` lists a procedural language's words, one a line; it is read only where there is no base model.
    """
    table = read_table(examples, ("prompt", "answer"))
    decoder, tokenizer = starting_point(options, words.read_text(encoding="utf-8").split(), seed=seed)
    prompts = prompt_rows(tokenizer, table["prompt"].tolist(), max_tokens=options.max_prompt_tokens)
    answers = answer_rows(tokenizer, table["answer"].tolist(), max_tokens=options.max_answer_tokens)

    accelerator = Accelerator(mixed_precision=options.training.mixed_precision)

    def make_batch(rows: np.ndarray) -> PromptResponseBatch:
        chosen = right_padded(
            [prompts[row] for row in rows], [answers[row] for row in rows], pad_id=tokenizer.pad_token_id
        )
        return chosen.to(accelerator.device)

    decoder, records = fit(
        lambda decoder, batch: (supervised_loss(decoder, batch), {}),
        decoder,
        options.training,
        size=len(prompts),
        make_batch=make_batch,
        seed=seed,
        accelerator=accelerator,
        checkpoints=state,
        weight_of=target_count,
        description="fine-tuning",
    )
    if accelerator.is_main_process:
        trained = accelerator.unwrap_model(decoder)
        save_for_store(trained, tokenizer, model, dtype=getattr(torch, options.weights))
        write_table(curve, pd.DataFrame(records))


def starting_point(
    options: FinetuneOptions, words: list[str], *, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model with its tokenizer, or a random decoder over ``words``.

    Raises:
        InputError: neither a base model nor words.
    """
    if options.base_model is not None:
        return load_causal_lm(options.base_model), load_tokenizer(options.base_model)
    if not words:
        raise InputError("words: the list is empty, and there is no base model")
    tokenizer = build_tokenizer(words)
    decoder = build_decoder(
        options.decoder,
        vocabulary_size=len(tokenizer),
        max_positions=options.max_prompt_tokens + options.max_answer_tokens,
        pad_id=tokenizer.pad_token_id,
        eos_id=tokenizer.eos_token_id,
        bos_id=tokenizer.bos_token_id,
        seed=seed,
    )
    return decoder, tokenizer


if __name__ == "__main__":
    run(finetune)
