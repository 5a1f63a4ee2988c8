"""Batched sampling of responses with a key-value cache.

Transformers' own `generate` draws from the global random state and fills unset options from the model's generation
config (a top-k, a repetition penalty). This loop takes a `torch.Generator` and nothing implicit, so that samples are a
function of the arguments alone; its speed is that of `generate`, and transformers' logits processors fit into it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import TopKLogitsWarper, TopPLogitsWarper

from shared.lm.batches import PromptBatch, TokenRows, left_padded
from shared.lm.options import SamplingOptions

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Models without dropout and without gradients inside the block, every submodule as it was after it."""
    training = [module for model in models for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def sample_responses(
    model: nn.Module,
    prompts: PromptBatch,
    options: SamplingOptions,
    *,
    eos_id: int,
    pad_id: int,
    generator: torch.Generator,
    processors: Sequence[LogitsProcessor] = (),
) -> tuple[Tensor, Tensor]:
    """One response per prompt from a causal language model of transformers.

    `processors` are called as `(tokens so far (B, P + t), logits (B, V)) -> logits`, before temperature, top-k and
    top-p: transformers' `NoRepeatNGramLogitsProcessor(6)`, for example. `generator` lives on the model's device.

    Returns:
        responses (B, T) int64, T at most `max_new_tokens` and no more than the longest response, `pad_id` after the
        end; mask (B, T) bool, True on tokens of the response including EOS, contiguous from column 0.
    """
    warpers = [*processors, *_warpers(options)]
    sequence, attention_mask = prompts.input_ids, prompts.attention_mask
    inputs, positions = sequence, prompts.position_ids
    alive = torch.ones(len(prompts), dtype=torch.bool, device=sequence.device)
    masks: list[Tensor] = []
    cache = None
    with evaluation_mode(model):
        for _ in range(options.max_new_tokens):
            output = model(
                input_ids=inputs,
                attention_mask=attention_mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            logits = output.logits[:, -1].float()
            for warper in warpers:
                logits = warper(sequence, logits)
            tokens = _draw(logits, options.temperature, generator).masked_fill(~alive, pad_id)
            masks.append(alive)
            alive = alive & (tokens != eos_id)
            inputs, positions = tokens.unsqueeze(-1), positions[:, -1:] + 1
            sequence = torch.cat([sequence, inputs], dim=1)
            attention_mask = torch.nn.functional.pad(attention_mask, (0, 1), value=1)
            if not alive.any():
                break
    return sequence[:, prompts.input_ids.shape[1] :], torch.stack(masks, dim=1)


def sample_token_rows(
    model: nn.Module,
    prompts: TokenRows,
    options: SamplingOptions,
    *,
    eos_id: int,
    pad_id: int,
    generator: torch.Generator,
    batch_size: int = 512,
    processors: Sequence[LogitsProcessor] = (),
) -> list[list[int]]:
    """One response per prompt as a list of token ids that ends with EOS unless it was cut off.

    The prompts, of any lengths and number, are sampled in batches in the order given.
    """
    device = next(model.parameters()).device
    rows: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        batch = left_padded(prompts[start : start + batch_size], pad_id=pad_id).to(device)
        responses, mask = sample_responses(
            model, batch, options, eos_id=eos_id, pad_id=pad_id, generator=generator, processors=processors
        )
        rows += response_rows(responses, mask)
    return rows


def response_rows(responses: Tensor, mask: Tensor) -> list[list[int]]:
    """Sampled responses (B, T) as lists of token ids, without what the mask (B, T) leaves out at their ends."""
    lengths = mask.sum(dim=1).tolist()
    return [row[:length] for row, length in zip(responses.tolist(), lengths, strict=True)]


def _warpers(options: SamplingOptions) -> list[LogitsProcessor]:
    warpers: list[LogitsProcessor] = []
    if options.temperature not in (0.0, 1.0):
        warpers.append(lambda _, logits: logits / options.temperature)
    if options.top_k is not None:
        warpers.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1.0:
        warpers.append(TopPLogitsWarper(options.top_p))
    return warpers


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(-1)
