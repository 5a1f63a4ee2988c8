"""Analyse: the two penalties on the same responses, and what the policies consider as candidates.

For the saved policies of reverse KL and WPR, on test prompts (the paper's figure 5 and tables 7 and 8):

``penalty_correlation``, ``penalty_slope``
    Pearson correlation of the two penalties over sampled tokens, and slope of the Wasserstein on the KL penalty after
    each has been brought to [0, 1] by its minimum and maximum; responses of both policies pooled
``fidelity_correlation``
    Pearson correlation of minus a response's mean penalty with its fidelity; ``rkl`` for the KL penalty, ``wpr`` for
    the Wasserstein penalty, of the same pooled responses
``candidate_distance``
    mean cost between the most probable next tokens, over the positions of the policy's own responses
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from papers.wpr.costs import TokenCost
from papers.wpr.diagnostics import marginal_errors
from papers.wpr.options import AnalysisOptions, PolicyOptions
from papers.wpr.penalties import reference_cost
from papers.wpr.testbed import judge_texts
from papers.wpr.wasserstein import solve_transport, transport_penalty
from shared.data_order import generator_for
from shared.lm.batches import append_responses, left_padded
from shared.lm.generation import evaluation_mode, sample_responses
from shared.lm.log_probs import response_logits, token_log_probs
from shared.lm.texts import decode_rows, load_causal_lm, load_tokenizer, prompt_rows
from shared.stage import Input, Output, run
from shared.tables import read_table, with_short_numbers, write_table

POLICIES = ("rkl", "wpr")
# Draws of this stage come from a stream of their own.
ANALYSIS_STREAM = 2**31 + 1


@dataclass(frozen=True)
class Subject:
    """What is analysed: a policy against its reference, under the Wasserstein penalty's settings."""

    policy: nn.Module
    reference: nn.Module
    tokenizer: PreTrainedTokenizerBase
    cost: TokenCost
    options: PolicyOptions


def analyse(
    options: AnalysisOptions,
    policy_options: PolicyOptions,
    *,
    seed: int,
    setting: str,
    prompts: Input,
    supervised: Input,
    policies: Input,
    analysis: Output,
    tokens: Output,
    convergence: Output,
) -> None:
    """Measure both penalties on responses of both policies, token by token."""
    table = read_table(prompts, ("split", "prompt_id", "prompt"))
    table = table[table["split"] == "test"].reset_index(drop=True)
    reference, tokenizer = load_causal_lm(supervised), load_tokenizer(supervised)
    words = [index for index in range(len(tokenizer)) if index not in tokenizer.all_special_ids]
    embeddings = reference.get_input_embeddings().weight
    cost = reference_cost(embeddings, policy_options.wasserstein, words=torch.tensor(words))
    parts, metrics, traces = [], [], []
    for stream, name in enumerate(POLICIES):
        subject = Subject(load_causal_lm(policies / name), reference, tokenizer, cost, policy_options)
        generator = generator_for(seed, ANALYSIS_STREAM, stream)
        chunks = [
            measure(subject, table.iloc[start : start + policy_options.evaluation_batch], options, generator)
            for start in range(0, len(table), policy_options.evaluation_batch)
        ]
        parts.append(pd.concat([chunk.tokens for chunk in chunks]).assign(policy=name))
        distance = torch.cat([chunk.candidate_distances for chunk in chunks]).mean().item()
        metrics.append({"method": name, "metric": "candidate_distance", "value": distance})
        traces.append(
            pd.DataFrame({"policy": name, "error": torch.cat([chunk.traces for chunk in chunks], dim=1).mean(dim=1)})
        )
    pooled = pd.concat(parts, ignore_index=True)
    label = {"setting": setting, "seed": seed}
    write_table(analysis, pd.DataFrame([*metrics, *penalty_metrics(pooled, table)]).assign(**label))
    write_table(tokens, with_short_numbers(pooled).assign(**label))
    trace = pd.concat([each.rename_axis("iteration").reset_index() for each in traces], ignore_index=True)
    write_table(convergence, trace.assign(iteration=trace["iteration"] + 1, **label))


@dataclass(frozen=True)
class Measured:
    """What one batch of prompts gives; M sampled tokens."""

    tokens: pd.DataFrame
    """M rows: prompt_id, position, token, kl_penalty, wasserstein_penalty, response."""
    candidate_distances: Tensor
    """(M,) mean embedding distance among the most probable next tokens."""
    traces: Tensor
    """(iterations, M) row-marginal error of the solver."""


def measure(subject: Subject, table: pd.DataFrame, options: AnalysisOptions, generator: torch.Generator) -> Measured:
    """Sample a response to every prompt of ``table`` and measure it token by token."""
    tokenizer, wasserstein = subject.tokenizer, subject.options.wasserstein
    rows = prompt_rows(tokenizer, table["prompt"].tolist(), max_tokens=subject.options.max_prompt_tokens)
    prompts = left_padded(rows, pad_id=tokenizer.pad_token_id)
    with evaluation_mode(subject.policy, subject.reference):
        responses, mask = sample_responses(
            subject.policy,
            prompts,
            subject.options.sampling,
            eos_id=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id,
            generator=generator,
        )
        batch = append_responses(prompts, responses, mask)
        policy_logits = response_logits(subject.policy, batch)[0].float()
        reference_logits = response_logits(subject.reference, batch)[0].float()
    transport = solve_transport(
        policy_logits.softmax(-1),
        reference_logits.softmax(-1),
        responses,
        subject.cost,
        reg=1.0 / wasserstein.inverse_strength,
        num_iters=wasserstein.iterations,
        top_k=wasserstein.support_size,
        mask=mask,
        exclude_ids=(tokenizer.pad_token_id,),
        include_ids=(tokenizer.eos_token_id,),
    )
    potentials = transport_penalty(transport, gauge=wasserstein.gauge)
    log_ratios = token_log_probs(policy_logits, responses) - token_log_probs(reference_logits, responses)
    row, position = mask.nonzero(as_tuple=True)
    lengths = mask.sum(dim=1).tolist()
    texts = decode_rows(tokenizer, [ids[:length] for ids, length in zip(responses.tolist(), lengths, strict=True)])
    tokens = pd.DataFrame(
        {
            "prompt_id": table["prompt_id"].to_numpy()[row],
            "position": position.numpy(),
            "token": tokenizer.convert_ids_to_tokens(responses[mask].tolist()),
            "kl_penalty": log_ratios[mask].double().numpy(),
            "wasserstein_penalty": potentials[mask].numpy(),
            "response": np.array(texts)[row],
        }
    )
    traces = marginal_errors(
        transport.p,
        transport.q,
        -transport.log_kernel / wasserstein.inverse_strength,
        reg=transport.reg,
        num_iters=options.convergence_iterations,
    )
    embeddings = subject.reference.get_input_embeddings().weight.detach().float()
    candidates = policy_logits[mask].topk(options.top_candidates).indices
    return Measured(tokens, candidate_distances(embeddings[candidates]), traces)


def candidate_distances(points: Tensor) -> Tensor:
    """Mean Euclidean distance among k points, over the k(k-1) ordered pairs: (M, k, d) -> (M,)."""
    k = points.shape[1]
    return torch.cdist(points, points).sum(dim=(1, 2)) / (k * (k - 1))


def penalty_metrics(tokens: pd.DataFrame, table: pd.DataFrame) -> list[dict[str, object]]:
    """How the two penalties relate to each other and to the fidelity of responses."""
    kl, wasserstein = tokens["kl_penalty"], tokens["wasserstein_penalty"]
    unit_kl, unit_wasserstein = ((each - each.min()) / (each.max() - each.min()) for each in (kl, wasserstein))
    rows = [
        {"method": "wpr", "metric": "penalty_correlation", "value": kl.corr(wasserstein)},
        {"method": "wpr", "metric": "penalty_slope", "value": np.polyfit(unit_kl, unit_wasserstein, 1)[0]},
    ]
    by_response = tokens.groupby(["policy", "prompt_id"]).agg(
        kl=("kl_penalty", "mean"), wasserstein=("wasserstein_penalty", "mean"), response=("response", "first")
    )
    prompts = table.set_index("prompt_id")["prompt"].loc[by_response.index.get_level_values("prompt_id")]
    fidelity = pd.Series(judge_texts(prompts, by_response["response"])["fidelity"], index=by_response.index)
    for method, penalty in (("rkl", "kl"), ("wpr", "wasserstein")):
        value = (-by_response[penalty]).corr(fidelity)
        rows.append({"method": method, "metric": "fidelity_correlation", "value": value})
    return rows


if __name__ == "__main__":
    run(analyse)
