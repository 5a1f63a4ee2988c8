"""Texts of prompts and answers as token ids, and the base models that read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from shared.errors import InputError


def prompt_rows(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, max_tokens: int) -> list[list[int]]:
    """Token ids of prompts, with the tokenizer's own leading special tokens, cut on the left to `max_tokens`.

    The end of a prompt holds the cue that asks for the answer, so it is the beginning that gives way.
    """
    rows = tokenizer(list(prompts)).input_ids if prompts else []
    for row in rows:  # some tokenizers close every text with EOS, which would end the prompt before its answer
        if row and row[-1] == tokenizer.eos_token_id:
            row.pop()
    return [row[-max_tokens:] for row in rows]


def answer_rows(tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], *, max_tokens: int) -> list[list[int]]:
    """Token ids of answers, closed by EOS; an answer longer than `max_tokens` is cut and stays open."""
    rows = tokenizer(list(answers), add_special_tokens=False).input_ids if answers else []
    return [[*row, tokenizer.eos_token_id][:max_tokens] for row in rows]


def decode_rows(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> list[str]:
    """Texts of answers without their closing EOS. Other special tokens are written out: they were sampled."""
    open_rows = [row[:-1] if row and row[-1] == tokenizer.eos_token_id else row for row in rows]
    return tokenizer.batch_decode(open_rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a model folder or hub name, with a pad token that is not EOS wherever it has one to offer.

    Raises:
        InputError: there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: no tokenizer to load: {str(error).splitlines()[0]}") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token if tokenizer.unk_token is not None else tokenizer.eos_token
    return tokenizer


def load_causal_lm(source: str | Path, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Causal language model of a folder or hub name, from safetensors, in `dtype`.

    Raises:
        InputError: there is none.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(str(source), dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: no model to load: {str(error).splitlines()[0]}") from None


def save_for_store(model, tokenizer: PreTrainedTokenizerBase, folder: Path, *, dtype: torch.dtype) -> None:
    """Write a model with its tokenizer in the Hugging Face format, its weights rounded to `dtype`."""
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
