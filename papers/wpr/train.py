"""Train: PPO from the supervised model, for several methods and penalty weights one after another.

Each run is a method and its penalty weight, ``wpr:0.3``. All runs of a training seed share the models they start from,
the prompts of every update, and the random numbers of sampling, so that with a weight of 0 they are identical. Each
final policy answers the validation and test prompts once. Of the methods in ``saved_policies``, the policy whose weight
does best on the validation prompts is written out.
"""

from __future__ import annotations

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
from transformers import PreTrainedTokenizerBase

from papers.wpr.costs import TokenCost
from papers.wpr.options import PolicyOptions
from papers.wpr.penalties import NeighborDistances, Penalties, is_clipped, method_cost, penalty_function, reference_cost
from papers.wpr.ppo import generalized_advantages, token_rewards
from papers.wpr.reward import load_standardization
from papers.wpr.selection import select_weights
from papers.wpr.testbed import judge_texts
from shared.checkpoints import Checkpointer
from shared.data_order import BatchOrder, chunks, generator_for
from shared.errors import InputError
from shared.files import write_json
from shared.lm.batches import PromptBatch, append_responses, left_padded
from shared.lm.generation import evaluation_mode, response_rows, sample_responses
from shared.lm.log_probs import response_logits
from shared.lm.models import ScalarHeadModel
from shared.lm.ppo import Experience, Rollout, collect_rollout, ppo_update
from shared.lm.reward_modeling import score
from shared.lm.texts import decode_rows, load_causal_lm, load_tokenizer, prompt_rows, save_for_store
from shared.progress import Progress
from shared.run_by_run import FINISHED, RunFolders
from shared.schedules import named_schedule, set_learning_rate
from shared.stage import Input, Output, State, run
from shared.tables import read_table, with_short_numbers, write_table
from shared.training import adamw

ADAM_BETAS = (0.9, 0.95)
GAE_LAMBDA = 0.95
# Sampling of final policies draws from streams that no update uses.
EVALUATION_STREAM = 2**31


@dataclass(frozen=True)
class Run:
    """A method and its penalty weight."""

    method: str
    beta: float

    def __str__(self) -> str:
        return f"{self.method}:{self.beta:g}"


@dataclass(frozen=True)
class Bench:
    """What all runs of a job start from and share; the models are frozen."""

    options: PolicyOptions
    seed: int
    judge: str
    supervised: Path
    reward: Path
    tokenizer: PreTrainedTokenizerBase
    reference: nn.Module
    reward_model: nn.Module
    score_shift: float
    score_scale: float
    prompts: dict[str, pd.DataFrame]
    """By split: columns prompt_id, prompt."""
    rows: dict[str, list[list[int]]]
    """By split: the prompts' token ids."""
    cost: TokenCost

    @property
    def token_ids(self) -> dict[str, int]:
        return {"eos_id": self.tokenizer.eos_token_id, "pad_id": self.tokenizer.pad_token_id}

    def standardized(self, scores: Tensor) -> Tensor:
        return (scores - self.score_shift) / self.score_scale


def train_policies(
    options: PolicyOptions,
    *,
    seed: int,
    setting: str,
    runs: tuple[str, ...],
    judge: str,
    prompts: Input,
    supervised: Input,
    reward: Input,
    distances: tuple[Input, ...] = (),
    policies: Output,
    samples: Output,
    curves: Output,
    state: State,
) -> dict[str, dict[str, dict[str, float]]]:
    """Train every run, sample its final policy, and keep the policies asked for.

    ``setting`` names the reward regime in the tables. ``judge`` is ``gold`` (the testbed's reward) or ``score`` (the
    reward model's), by which weights are selected. ``distances`` is the table of :mod:`papers.wpr.neighbors`, if costs
    are truncated; without it the distances are computed here.
    """
    planned = [parse_run(text) for text in runs]
    device = Accelerator(mixed_precision=options.mixed_precision).device
    found = read_distances(distances[0], device) if distances else None
    table = read_table(prompts, ("split", "prompt"))
    bench = open_bench(options, seed, judge, supervised, reward, table, device, found)
    folders = RunFolders(state, [str(each) for each in planned])
    for text, folder in folders.unfinished():
        train_run(bench, parse_run(text), folder)
    if not PartialState().is_main_process:
        return {}
    for name, path in (("samples", samples), ("curves", curves)):
        write_table(path, folders.gather(name, lambda text: labels_of(text, setting, seed)))
    selected = select_weights(read_table(samples), judge)
    policies.mkdir()
    for method in options.saved_policies:
        if method in selected:
            shutil.copytree(folders.folder(str(Run(method, selected[method]))) / "policy", policies / method)
    write_json(policies / "selected.json", selected)
    return {"seconds": folders.records()}


def labels_of(text: str, setting: str, seed: int) -> dict[str, str | int | float]:
    """What stands beside the rows of a run in the tables."""
    planned = parse_run(text)
    return {"setting": setting, "seed": seed, "method": planned.method, "beta": planned.beta}


def parse_run(text: str) -> Run:
    """A run from ``method:weight``.

    Raises:
        InputError: not of that form, unknown method, or a negative weight.
    """
    method, _, weight = text.rpartition(":")
    try:
        beta = float(weight)
    except ValueError:
        raise InputError(f"run {text!r}: expected <method>:<penalty weight>, such as wpr:0.3") from None
    if not beta >= 0:
        raise InputError(f"run {text!r}: the penalty weight must not be negative")
    is_clipped(method)  # checks the name
    return Run(method, beta)


def read_distances(path: Path, device: torch.device) -> NeighborDistances:
    """Distances of the tokens to their neighbours from the table of :mod:`papers.wpr.neighbors`."""
    table = read_table(path, ("nearest", "radius"))
    return NeighborDistances(*(torch.tensor(table[name].to_numpy(), device=device) for name in ("nearest", "radius")))


def open_bench(
    options: PolicyOptions,
    seed: int,
    judge: str,
    supervised: Path,
    reward: Path,
    prompts: pd.DataFrame,
    device: torch.device,
    distances: NeighborDistances | None = None,
) -> Bench:
    """Load what the runs share onto a device."""
    tokenizer = load_tokenizer(supervised)
    reference = _frozen(load_causal_lm(supervised), device)
    embeddings = reference.get_input_embeddings().weight
    words = [index for index in range(len(tokenizer)) if index not in tokenizer.all_special_ids]
    shift, scale = load_standardization(reward)
    by_split = {split: rows.reset_index(drop=True) for split, rows in prompts.groupby("split", sort=False)}
    return Bench(
        options=options,
        seed=seed,
        judge=judge,
        supervised=supervised,
        reward=reward,
        tokenizer=tokenizer,
        reference=reference,
        reward_model=_frozen(ScalarHeadModel.from_pretrained(reward, dtype=torch.float32), device),
        score_shift=shift,
        score_scale=scale,
        prompts=by_split,
        rows={
            split: prompt_rows(tokenizer, rows["prompt"].tolist(), max_tokens=options.max_prompt_tokens)
            for split, rows in by_split.items()
        },
        cost=reference_cost(
            embeddings, options.wasserstein, words=torch.tensor(words, device=device), distances=distances
        ),
    )


def train_run(bench: Bench, planned: Run, folder: Path) -> None:
    """PPO of one run; writes samples, curves, the policy if it may be kept, and last of all that it is finished.

    A run that was interrupted continues from its last saved state, to the same result.
    """
    options = bench.options
    accelerator = Accelerator(mixed_precision=options.mixed_precision)
    policy = load_causal_lm(bench.supervised)
    critic = ScalarHeadModel.from_pretrained(bench.reward, dtype=torch.float32)
    critic.head.weight.data /= bench.score_scale  # predicts standardised scores
    policy_optimizer = adamw(policy, options.actor_learning_rate, weight_decay=options.weight_decay, betas=ADAM_BETAS)
    critic_optimizer = adamw(critic, options.critic_learning_rate, weight_decay=options.weight_decay, betas=ADAM_BETAS)
    policy, critic, policy_optimizer, critic_optimizer = accelerator.prepare(
        policy, critic, policy_optimizer, critic_optimizer
    )
    cost = method_cost(planned.method, bench.cost, vocabulary_size=len(bench.tokenizer), seed=bench.seed)
    penalty = penalty_function(
        planned.method,
        options,
        cost,
        exclude_ids=()
        if bench.tokenizer.pad_token_id == bench.tokenizer.eos_token_id
        else (bench.token_ids["pad_id"],),
        include_ids=(bench.token_ids["eos_id"],),
    )
    order = BatchOrder(len(bench.rows["train"]), options.batch_size, bench.seed)
    steps = 0 if planned.method == "supervised" else max(1, round(options.epochs * order.steps_per_epoch))
    schedule = named_schedule("linear", steps, warmup_fraction=options.warmup_fraction)
    checkpointer = Checkpointer(folder / "checkpoints", accelerator, every=options.checkpoint_every)
    done, saved = checkpointer.restore()
    records, seconds = saved.get("records", []), saved.get("seconds", {"total": 0.0, "penalty": 0.0})
    policy.train()
    with Progress(steps, str(planned), start=done, enabled=accelerator.is_main_process) as progress:
        for step in range(done, steps):
            started = time.perf_counter()
            for optimizer in (policy_optimizer, critic_optimizer):
                set_learning_rate(optimizer, schedule(step))
            experiences, record = [], {"step": step + 1}
            for index, part in enumerate(
                order.micro_batches(
                    step,
                    accumulation=options.accumulation,
                    process_index=accelerator.process_index,
                    num_processes=accelerator.num_processes,
                )
            ):
                rollout = collect_rollout(
                    policy,
                    bench.reference,
                    critic,
                    bench.reward_model,
                    _prompt_batch(bench, "train", part, accelerator.device),
                    options.sampling,
                    **bench.token_ids,
                    generator=generator_for(
                        bench.seed, step, accelerator.process_index, index, device=accelerator.device
                    ),
                    min_response_tokens=options.min_response_tokens,
                    # Kept graphs save a forward pass; with several micro-batches they would not fit.
                    keep_graph=options.accumulation == 1,
                )
                before = time.perf_counter()
                penalties = penalty(rollout)
                seconds["penalty"] += time.perf_counter() - before
                experiences.append(experience_of(bench, planned, rollout, penalties))
                if index == 0:
                    record |= _describe(bench, part, rollout, penalties)
            record |= ppo_update(
                experiences,
                policy=policy,
                critic=critic,
                policy_optimizer=policy_optimizer,
                critic_optimizer=critic_optimizer,
                accelerator=accelerator,
                step=step,
            )
            seconds["total"] += time.perf_counter() - started
            records.append(record)
            progress.update({name: record[name] for name in ("score", "kl", "penalty")})
            checkpointer.save_if_due(step + 1, {"records": records, "seconds": seconds})
    samples = pd.concat([answer(bench, policy, split, accelerator) for split in ("validation", "test")])
    if accelerator.is_main_process:
        write_table(folder / "samples.parquet", with_short_numbers(samples))
        write_table(folder / "curves.parquet", with_short_numbers(pd.DataFrame(records)))
        if planned.method in options.saved_policies:
            trained = accelerator.unwrap_model(policy)
            save_for_store(trained, bench.tokenizer, folder / "policy", dtype=getattr(torch, options.weights))
        write_json(folder / FINISHED, seconds)
    accelerator.wait_for_everyone()


def experience_of(bench: Bench, planned: Run, rollout: Rollout, penalties: Penalties) -> Experience:
    """Rewards and advantages of a rollout under a run's penalty."""
    options = bench.options
    rewards = token_rewards(
        penalties.values.to(rollout.values.dtype),
        bench.standardized(rollout.scores),
        rollout.mask,
        beta=planned.beta,
        score_clip=options.score_clip,
        penalty_clip=options.divergence_clip if is_clipped(planned.method) else None,
    )
    return Experience(rollout, *generalized_advantages(rewards, rollout.values, rollout.mask, lam=GAE_LAMBDA))


def answer(bench: Bench, policy: nn.Module, split: str, accelerator: Accelerator) -> pd.DataFrame:
    """One response of a policy to each prompt of a split, with what the models say about it.

    Returns:
        columns split, prompt_id, prompt, response, score (standardised), kl (sum over the response's positions of
        KL(policy || reference), nats), entropy (mean over its positions, nats), tokens (EOS included).
    """
    table, model = bench.prompts[split], accelerator.unwrap_model(policy)
    mine = np.arange(len(table))[accelerator.process_index :: accelerator.num_processes]
    parts = []
    with evaluation_mode(model):
        for chunk, indices in enumerate(chunks(mine, bench.options.evaluation_batch)):
            prompts = _prompt_batch(bench, split, indices, accelerator.device)
            generator = generator_for(
                bench.seed, EVALUATION_STREAM, accelerator.process_index, chunk, device=accelerator.device
            )
            responses, mask = sample_responses(
                model, prompts, bench.options.sampling, **bench.token_ids, generator=generator
            )
            batch = append_responses(prompts, responses, mask)
            log_p = response_logits(model, batch)[0].float().log_softmax(dim=-1)
            log_q = response_logits(bench.reference, batch)[0].float().log_softmax(dim=-1)
            tokens = mask.sum(dim=1)
            parts.append(
                table.loc[indices, ["split", "prompt_id", "prompt"]].assign(
                    response=decode_rows(bench.tokenizer, response_rows(responses, mask)),
                    score=_numbers(bench.standardized(score(bench.reward_model, batch))),
                    kl=_numbers(((log_p.exp() * (log_p - log_q)).sum(dim=-1) * mask).sum(dim=1)),
                    entropy=_numbers((-(log_p.exp() * log_p).sum(dim=-1) * mask).sum(dim=1) / tokens),
                    tokens=_numbers(tokens),
                )
            )
    gathered = gather_object(parts) if accelerator.num_processes > 1 else parts
    return pd.concat(gathered).sort_values("prompt_id", ignore_index=True)


def _describe(bench: Bench, part: np.ndarray, rollout: Rollout, penalties: Penalties) -> dict[str, float]:
    """What is logged of a rollout: means over its responses, or over their tokens for the penalty and diagnostics."""
    log_ratios = rollout.log_probs - rollout.reference_log_probs
    record = {
        "score": bench.standardized(rollout.scores).mean().item(),
        "kl": log_ratios.sum(dim=1).mean().item(),
        "penalty": penalties.values[rollout.mask].mean().item(),
        "tokens": rollout.mask.sum(dim=1).float().mean().item(),
        **penalties.describe(),
    }
    if bench.judge == "gold" and len(part) == len(rollout.actions):
        prompts = bench.prompts["train"]["prompt"].iloc[part]
        judged = judge_texts(prompts, decode_rows(bench.tokenizer, response_rows(rollout.actions, rollout.mask)))
        record |= {name: float(judged[name].mean()) for name in ("gold", "fidelity", "style", "boilerplate")}
    return record


def _prompt_batch(bench: Bench, split: str, indices: np.ndarray, device: torch.device) -> PromptBatch:
    rows = [bench.rows[split][index] for index in indices]
    return left_padded(rows, pad_id=bench.token_ids["pad_id"]).to(device)


def _frozen(model: nn.Module, device: torch.device) -> nn.Module:
    return model.to(device).eval().requires_grad_(False)


def _numbers(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


if __name__ == "__main__":
    run(train_policies)
