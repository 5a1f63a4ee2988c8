"""Optimize: preference optimisation from the supervised model, for several losses one after another.

All methods of a training seed share the model they start from, its log-probs of all pairs, the order of the batches,
and the random numbers of sampling; only the loss differs. Each final policy answers the validation and test prompts.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from papers.bpo.generation_metrics import token_entropies
from papers.bpo.judge import Judge, open_judge
from papers.bpo.methods import PairLogProbs, clipped_share, pair_losses, parse_method
from papers.bpo.options import PREFERRED, SFT, OptimizeOptions
from shared.data_order import chunks, generator_for
from shared.errors import InputError
from shared.files import write_json
from shared.lm.batches import PromptResponseBatch, append_responses, left_padded, right_padded
from shared.lm.generation import evaluation_mode, response_rows, sample_responses
from shared.lm.log_probs import response_log_probs, response_logits
from shared.lm.texts import answer_rows, decode_rows, load_causal_lm, load_tokenizer, prompt_rows, save_for_store
from shared.run_by_run import FINISHED, RunFolders
from shared.stage import Input, Output, State, run
from shared.tables import read_table, write_table
from shared.training import adamw, fit

# Sampling draws from streams of its own, one for each split and temperature.
SAMPLING_STREAM = 2**31


@dataclass(frozen=True)
class Pairs:
    """Preference pairs as token ids, with the reference model's log-probs (N, 2) of chosen and rejected."""

    prompts: list[list[int]]
    chosen: list[list[int]]
    rejected: list[list[int]]
    reference: Tensor


@dataclass(frozen=True)
class PairBatch:
    """B pairs for one forward pass: 2B sequences, the chosen ones first, and the reference's log-probs (B, 2)."""

    sequences: PromptResponseBatch
    reference: Tensor

    def __len__(self) -> int:
        return len(self.reference)


@dataclass(frozen=True)
class Bench:
    """What all methods of a job start from and share."""

    options: OptimizeOptions
    seed: int
    supervised: Path
    tokenizer: PreTrainedTokenizerBase
    judge: Judge
    train: Pairs
    held_out: Pairs
    prompts: dict[str, pd.DataFrame]
    """By split: columns prompt_id, prompt."""
    references: pd.DataFrame
    """Columns prompt_id, sample, response: preferred responses to the test prompts."""


def optimize(
    options: OptimizeOptions,
    *,
    seed: int,
    setting: str,
    methods: tuple[str, ...],
    pairs: Input,
    held_out: Input,
    prompts: Input,
    references: Input,
    supervised: Input,
    policies: Output,
    samples: Output,
    curves: Output,
    margins: Output,
    state: State,
) -> dict[str, dict[str, float]]:
    """Train a policy with every method, sample it, and keep the policies asked for.

    ``setting`` names the condition in the tables. ``methods`` may hold ``sft``, the supervised model itself, and
    ``preferred``, the references, beside the losses.
    """
    for method in methods:
        if method not in (SFT, PREFERRED):
            parse_method(method)  # a wrong name ends the job before it has begun
    bench = open_bench(options, seed, pairs, held_out, prompts, references, supervised)
    runs = RunFolders(state, methods)
    for method, folder in runs.unfinished():
        run_method(bench, method, folder)
    if not PartialState().is_main_process:
        return {}
    for name, path in (("samples", samples), ("curves", curves), ("margins", margins)):
        write_table(path, runs.gather(name, lambda method: {"method": method, "setting": setting, "seed": seed}))
    policies.mkdir()
    write_json(policies / "methods.json", list(methods))
    for method in methods:
        if method in options.saved_policies:
            shutil.copytree(runs.folder(method) / "policy", policies / method)
    return {"seconds": {method: record["seconds"] for method, record in runs.records().items()}}


def open_bench(
    options: OptimizeOptions,
    seed: int,
    pairs: Path,
    held_out: Path,
    prompts: Path,
    references: Path,
    supervised: Path,
) -> Bench:
    """Load what the methods share; the reference model is needed here alone."""
    accelerator = Accelerator(mixed_precision=options.training.mixed_precision)
    tokenizer = load_tokenizer(supervised)
    reference = load_causal_lm(supervised).to(accelerator.device)
    table = read_table(prompts, ("split", "prompt_id", "prompt"))
    return Bench(
        options=options,
        seed=seed,
        supervised=supervised,
        tokenizer=tokenizer,
        judge=open_judge(options.judge, accelerator.device),
        train=referenced_pairs(pairs, tokenizer, reference, options, accelerator),
        held_out=referenced_pairs(held_out, tokenizer, reference, options, accelerator),
        prompts={split: rows.reset_index(drop=True) for split, rows in table.groupby("split", sort=False)},
        references=read_table(references, ("prompt_id", "sample", "response")),
    )


def referenced_pairs(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    reference: nn.Module,
    options: OptimizeOptions,
    accelerator: Accelerator,
) -> Pairs:
    """Read a table of pairs (columns prompt, chosen, rejected) and score them once under the reference model.

    Raises:
        InputError: a pair whose two responses are the same token ids, which no preference can tell apart.
    """
    table = read_table(path, ("prompt", "chosen", "rejected"))
    prompts = prompt_rows(tokenizer, table["prompt"].tolist(), max_tokens=options.max_prompt_tokens)
    chosen, rejected = (
        answer_rows(tokenizer, table[name].tolist(), max_tokens=options.max_answer_tokens)
        for name in ("chosen", "rejected")
    )
    for row, (preferred, other) in enumerate(zip(chosen, rejected, strict=True)):
        if preferred == other:
            raise InputError(
                f"{path}: row {row}: chosen and rejected are the same within {options.max_answer_tokens} tokens"
            )
    unscored = Pairs(prompts, chosen, rejected, torch.zeros(len(prompts), 2))
    log_probs = all_log_probs(reference, unscored, tokenizer, options, accelerator)
    return dataclasses.replace(unscored, reference=log_probs)


def run_method(bench: Bench, method: str, folder: Path) -> None:
    """Train and sample one method; writes its tables, the policy if it is kept, and last of all that it is finished.

    A training that was interrupted continues from its last saved state, to the same result.
    """
    started = time.perf_counter()
    accelerator = Accelerator(mixed_precision=bench.options.training.mixed_precision)
    if method == PREFERRED:
        if accelerator.is_main_process:
            write_table(folder / "samples.parquet", reference_samples(bench))
    else:
        policy = load_causal_lm(bench.supervised)
        if method == SFT:
            policy = accelerator.prepare(policy)
        else:
            policy, records = train_policy(bench, policy, method, accelerator, folder / "checkpoints")
            margins = held_out_margins(bench, policy, method, accelerator)
            if accelerator.is_main_process:
                write_table(folder / "curves.parquet", pd.DataFrame(records))
                write_table(folder / "margins.parquet", margins)
        samples = all_samples(bench, policy, method, accelerator)
        if accelerator.is_main_process:
            write_table(folder / "samples.parquet", samples)
            if method in bench.options.saved_policies:
                trained = accelerator.unwrap_model(policy)
                dtype = getattr(torch, bench.options.weights)
                save_for_store(trained, bench.tokenizer, folder / "policy", dtype=dtype)
    if accelerator.is_main_process:
        write_json(folder / FINISHED, {"seconds": round(time.perf_counter() - started, 3)})
    accelerator.wait_for_everyone()


def train_policy(
    bench: Bench, policy: PreTrainedModel, method: str, accelerator: Accelerator, checkpoints: Path
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Preference optimisation of one method: the trained policy and a record of every step.

    A record holds loss, grad_norm (before clipping), learning_rate and, over the batch, the mean of the margin -log R
    and of its square, accuracy (share of margins above 0) and clipped (share of pairs without gradient).
    """
    options = bench.options
    loss_of = parse_method(method)
    without_dropout(policy)
    if options.gradient_checkpointing:
        policy.gradient_checkpointing_enable()

    def loss_fn(policy: nn.Module, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        losses, log_ratio = pair_losses(loss_of, options.loss, pair_log_probs(policy, batch))
        margin = -log_ratio.detach()
        return losses.mean(), {
            "margin": margin.mean(),
            "margin_square": margin.square().mean(),
            "accuracy": (margin > 0).float().mean(),
            "clipped": clipped_share(loss_of, options.loss, log_ratio.detach()),
        }

    return fit(
        loss_fn,
        policy,
        options.training,
        size=len(bench.train.prompts),
        make_batch=lambda rows: pair_batch(bench.train, rows, bench.tokenizer.pad_token_id, accelerator.device),
        seed=bench.seed,
        accelerator=accelerator,
        checkpoints=checkpoints,
        optimizer=make_optimizer(policy, options),
        weight_of=len,
        log_every=1,
        description=method,
    )


def make_optimizer(model: nn.Module, options: OptimizeOptions) -> torch.optim.Optimizer:
    """The optimizer of the options; RMSprop is the paper's.

    Raises:
        InputError: a weight decay of embeddings under another optimizer than AdamW.
    """
    training = options.training
    if options.optimizer == "adamw":
        return adamw(
            model,
            training.learning_rate,
            weight_decay=training.weight_decay,
            embedding_weight_decay=training.embedding_weight_decay,
        )
    if training.embedding_weight_decay is not None:
        raise InputError(f"embedding_weight_decay: only for optimizer adamw, got {options.optimizer}")
    make = torch.optim.RMSprop if options.optimizer == "rmsprop" else torch.optim.SGD
    return make(model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)


def without_dropout(model: nn.Module) -> None:
    """Switch dropout off for good: a policy and its reference must agree where their weights do."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):  # probabilities that attention layers keep as numbers
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def pair_batch(pairs: Pairs, rows: np.ndarray, pad_id: int, device: torch.device) -> PairBatch:
    """The chosen sequences of some rows, then the rejected ones, padded together."""
    prompts = [pairs.prompts[row] for row in rows]
    responses = [pairs.chosen[row] for row in rows] + [pairs.rejected[row] for row in rows]
    sequences = right_padded(prompts + prompts, responses, pad_id=pad_id)
    return PairBatch(sequences.to(device), pairs.reference[torch.tensor(rows)].to(device))


def pair_log_probs(policy: nn.Module, batch: PairBatch) -> PairLogProbs:
    """One forward pass over both responses of every pair."""
    chosen, rejected = response_log_probs(policy, batch.sequences).chunk(2)
    chosen_lengths, rejected_lengths = batch.sequences.response_lengths.chunk(2)
    return PairLogProbs(chosen, rejected, *batch.reference.unbind(dim=1), chosen_lengths, rejected_lengths)


def all_log_probs(
    model: nn.Module,
    pairs: Pairs,
    tokenizer: PreTrainedTokenizerBase,
    options: OptimizeOptions,
    accelerator: Accelerator,
) -> Tensor:
    """log p of the chosen and the rejected response of every pair, (N, 2) in nats; processes share the work."""
    mine = np.arange(len(pairs.prompts))[accelerator.process_index :: accelerator.num_processes]
    parts = []
    with evaluation_mode(model), accelerator.autocast():
        for rows in chunks(mine, options.sampling_batch):
            batch = pair_batch(pairs, rows, tokenizer.pad_token_id, accelerator.device)
            parts.append((rows, torch.stack(response_log_probs(model, batch.sequences).chunk(2), dim=1).cpu()))
    log_probs = torch.zeros(len(pairs.prompts), 2)
    for rows, values in gather_object(parts) if accelerator.num_processes > 1 else parts:
        log_probs[torch.tensor(rows)] = values
    return log_probs


def held_out_margins(bench: Bench, policy: nn.Module, method: str, accelerator: Accelerator) -> pd.DataFrame:
    """Margin -log R of every held-out pair under a trained policy: columns pair, margin."""
    model = accelerator.unwrap_model(policy)
    log_probs = all_log_probs(model, bench.held_out, bench.tokenizer, bench.options, accelerator)
    lengths = [torch.tensor([len(row) for row in rows]) for rows in (bench.held_out.chosen, bench.held_out.rejected)]
    pairs = PairLogProbs(*log_probs.unbind(dim=1), *bench.held_out.reference.unbind(dim=1), *lengths)
    _, log_ratio = pair_losses(parse_method(method), bench.options.loss, pairs)
    return pd.DataFrame({"pair": np.arange(len(log_ratio)), "margin": -log_ratio.double().numpy()})


def all_samples(bench: Bench, policy: nn.Module, method: str, accelerator: Accelerator) -> pd.DataFrame:
    """Responses of a policy to all prompts: columns as of :func:`sample`, and split, temperature.

    The texts are kept of the test prompts at the temperature that all methods share.
    """
    options = bench.options
    plan = [("validation", options.sampling.temperature, options.validation_samples)]
    temperatures = options.temperatures if method in options.tempered_methods else ()
    plan += [
        ("test", temperature, options.test_samples) for temperature in (options.sampling.temperature, *temperatures)
    ]
    parts = []
    for stream, (split, temperature, count) in enumerate(plan):
        drawn = sample(bench, policy, split, temperature, count, SAMPLING_STREAM + stream, accelerator)
        if (split, temperature) != ("test", options.sampling.temperature):
            drawn["response"] = None  # scores and entropies are all that is asked of them, and texts take much room
        parts.append(drawn.assign(split=split, temperature=float(temperature)))
    return pd.concat(parts, ignore_index=True)


def sample(
    bench: Bench, policy: nn.Module, split: str, temperature: float, count: int, stream: int, accelerator: Accelerator
) -> pd.DataFrame:
    """``count`` judged responses to each prompt of a split.

    Returns:
        columns prompt_id, sample, response, tokens (EOS included), entropy (summed over the response's tokens, of the
        tempered distribution, nats, to half precision), score (the judge's).
    """
    options, tokenizer, model = bench.options, bench.tokenizer, accelerator.unwrap_model(policy)
    token_ids = {"eos_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id}
    table = bench.prompts[split]
    rows = prompt_rows(tokenizer, table["prompt"].tolist(), max_tokens=options.max_prompt_tokens)
    sampling = dataclasses.replace(options.sampling, temperature=temperature)
    jobs = np.arange(len(table) * count)[accelerator.process_index :: accelerator.num_processes]
    parts = []
    with evaluation_mode(model), accelerator.autocast():
        for index, part in enumerate(chunks(jobs, options.sampling_batch)):
            asked = part // count
            prompts = left_padded([rows[row] for row in asked], pad_id=token_ids["pad_id"]).to(accelerator.device)
            generator = generator_for(bench.seed, stream, accelerator.process_index, index, device=accelerator.device)
            responses, mask = sample_responses(model, prompts, sampling, **token_ids, generator=generator)
            logits = response_logits(model, append_responses(prompts, responses, mask))[0]
            entropies = (token_entropies(logits, temperature=temperature) * mask).sum(dim=1)
            written = response_rows(responses, mask)
            texts = decode_rows(tokenizer, written)
            finished = np.array([ids[-1] == token_ids["eos_id"] for ids in written])
            parts.append(
                pd.DataFrame(
                    {
                        "prompt_id": table["prompt_id"].to_numpy()[asked],
                        "sample": part % count,
                        "response": texts,
                        "tokens": [len(ids) for ids in written],
                        "entropy": entropies.half().float().cpu().numpy(),
                        "score": bench.judge(table["prompt"].iloc[asked].tolist(), texts, finished),
                    }
                )
            )
    gathered = gather_object(parts) if accelerator.num_processes > 1 else parts
    return pd.concat(gathered).sort_values(["prompt_id", "sample"], ignore_index=True)


def reference_samples(bench: Bench) -> pd.DataFrame:
    """The data's preferred responses to the test prompts, judged; columns as of :func:`all_samples`, no entropy."""
    table = bench.references.merge(bench.prompts["test"][["prompt_id", "prompt"]], on="prompt_id", validate="m:1")
    responses = table["response"].tolist()
    rows = answer_rows(bench.tokenizer, responses, max_tokens=bench.options.max_answer_tokens)
    finished = np.ones(len(table), dtype=bool)
    return table.drop(columns="prompt").assign(
        tokens=[len(row) for row in rows],
        entropy=np.float32(np.nan),
        score=bench.judge(table["prompt"].tolist(), responses, finished),
        split="test",
        temperature=float(bench.options.sampling.temperature),
    )


if __name__ == "__main__":
    run(optimize)
