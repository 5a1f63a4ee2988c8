"""Proximal policy optimisation of language models: rollouts, the two clipped losses, and the update.

What is rewarded is not decided here. A training step is

    rollout = collect_rollout(policy, reference, critic, reward_model, prompts, ...)
    rewards = ...                     # from rollout.scores and a penalty on policy and reference, (B, T)
    advantages, returns = ...         # from the rewards and rollout.values, (B, T)
    ppo_update([Experience(rollout, advantages, returns)], ...)

Index t of every (B, T) tensor belongs to response token t: the action taken in the state before that token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from shared.lm.batches import PromptBatch, PromptResponseBatch, append_responses
from shared.lm.generation import evaluation_mode, sample_responses
from shared.lm.log_probs import response_logits, token_log_probs
from shared.lm.options import SamplingOptions
from shared.lm.reward_modeling import score
from shared.training import gradient_step


@dataclass(frozen=True)
class Rollout:
    """Responses sampled from the policy and what the four models say about them. All tensors are detached but two."""

    batch: PromptResponseBatch
    """B sequences: left-padded prompts, then T columns of responses."""
    actions: Tensor
    """(B, T) int64, the response tokens."""
    mask: Tensor
    """(B, T) bool, True on response tokens including EOS, contiguous from column 0; no row is empty."""
    policy_logits: Tensor
    """(B, T, V) at temperature 1, in the model's precision; garbage outside the mask."""
    reference_logits: Tensor
    """(B, T, V), of the reference model at the same positions."""
    log_probs: Tensor
    """(B, T) float32, log-probabilities of the actions under the policy, 0 outside the mask."""
    reference_log_probs: Tensor
    """(B, T) float32, the same under the reference model."""
    values: Tensor
    """(B, T), the critic's value of the state before each response token, 0 outside the mask."""
    scores: Tensor
    """(B,), the reward model's value at the last response token."""
    graph: tuple[Tensor, Tensor] | None = None
    """The log-probabilities and values with their autograd graphs, if they were kept: the first update's forward."""


class Experience(NamedTuple):
    """A rollout with what `ppo_update` learns from it."""

    rollout: Rollout
    advantages: Tensor
    """(B, T)."""
    returns: Tensor
    """(B, T)."""


def collect_rollout(
    policy: nn.Module,
    reference: nn.Module,
    critic: nn.Module,
    reward_model: nn.Module,
    prompts: PromptBatch,
    sampling: SamplingOptions,
    *,
    eos_id: int,
    pad_id: int,
    generator: torch.Generator,
    min_response_tokens: int = 1,
    keep_graph: bool = False,
) -> Rollout:
    """Samples one response per prompt and evaluates it with all four models, each in evaluation mode.

    Log-probabilities and logits are at temperature 1 from one teacher-forced forward, whatever `sampling` says.

    Args:
        policy, reference: causal language models of transformers, possibly wrapped by `accelerator.prepare`.
        critic, reward_model: `ScalarHeadModel`s or the like.
        min_response_tokens: rows whose response, EOS included, is shorter are left out of the rollout.
        keep_graph: whether the forward passes of policy and critic can be back-propagated through. With one epoch per
            rollout it saves the update a forward pass of each; it holds their activations until then.

    Raises:
        RuntimeError: no response is long enough.
    """
    with evaluation_mode(policy, reference, critic, reward_model):
        responses, mask = sample_responses(
            extract_model_from_parallel(policy), prompts, sampling, eos_id=eos_id, pad_id=pad_id, generator=generator
        )
        rows = mask.sum(dim=1) >= min_response_tokens
        if not rows.any():
            raise RuntimeError(f"no response has {min_response_tokens} tokens: the policy has collapsed")
        batch = append_responses(prompts[rows], responses[rows], mask[rows])
        with torch.set_grad_enabled(keep_graph):
            policy_logits, actions, mask = response_logits(policy, batch)
            log_probs = _masked(token_log_probs(policy_logits, actions), mask)
            values = response_values(critic, batch)
        reference_logits, _, _ = response_logits(reference, batch)
        return Rollout(
            batch=batch,
            actions=actions,
            mask=mask,
            policy_logits=policy_logits.detach(),
            reference_logits=reference_logits,
            log_probs=log_probs.detach(),
            reference_log_probs=_masked(token_log_probs(reference_logits, actions), mask),
            values=values.detach(),
            scores=score(reward_model, batch),
            graph=(log_probs, values) if keep_graph else None,
        )


def response_values(critic: nn.Module, batch: PromptResponseBatch) -> Tensor:
    """The critic's value of the state before each response token, (B, T), 0 outside the response."""
    start = batch.response_start
    values = critic(
        input_ids=batch.input_ids[:, :-1],
        attention_mask=batch.attention_mask[:, :-1],
        position_ids=batch.position_ids[:, :-1],
    )
    return _masked(values[:, start - 1 :], batch.response_mask[:, start:])


def actor_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, *, ratio_clip: float = 0.2
) -> Tensor:
    """Mean over the mask of max(-A rho, -A clip(rho, 1 - c, 1 + c)), rho = pi / pi_old; all (B, T).

    Schulman et al. 2017, equation 7, with the sign of a loss.
    """
    ratio = (log_probs - old_log_probs).exp()
    clipped = ratio.clamp(1.0 - ratio_clip, 1.0 + ratio_clip)
    return torch.maximum(-advantages * ratio, -advantages * clipped)[mask].mean()


def critic_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, value_clip: float = 0.2
) -> Tensor:
    """Half the mean over the mask of max((V - G)^2, (V_old + clip(V - V_old, -c, c) - G)^2); all (B, T)."""
    clipped = old_values + (values - old_values).clamp(-value_clip, value_clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)[mask].mean()


def ppo_update(
    experiences: Sequence[Experience],
    *,
    policy: nn.Module,
    critic: nn.Module,
    policy_optimizer: torch.optim.Optimizer,
    critic_optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    step: int,
    epochs: int = 1,
    ratio_clip: float = 0.2,
    value_clip: float = 0.2,
    max_grad_norm: float | None = 1.0,
) -> dict[str, float]:
    """`epochs` steps of both optimizers, each on all experiences: they are the micro-batches of one step.

    Losses are means over all response tokens of all micro-batches and processes. Models and optimizers come from
    `accelerator.prepare`. Without kept graphs the models should be as they were in `collect_rollout` (no dropout).

    Returns:
        of the last epoch: actor_loss, critic_loss, their gradients' norms before clipping, ratio_clipped (share of
        tokens) and log_ratio (mean of log pi_old - log pi, an estimate of the step's KL divergence).

    Raises:
        FloatingPointError: a loss or gradient that is not finite, with the step's number.
    """
    for epoch in range(epochs):

        def policy_loss(experience: Experience, epoch: int = epoch) -> tuple[Tensor, dict[str, Tensor]]:
            rollout = experience.rollout
            log_probs = _policy_log_probs(policy, rollout, epoch)
            loss = actor_loss(
                log_probs, rollout.log_probs, experience.advantages.detach(), rollout.mask, ratio_clip=ratio_clip
            )
            log_ratio = (log_probs.detach() - rollout.log_probs)[rollout.mask]
            clipped = (log_ratio.exp() - 1.0).abs() > ratio_clip
            return loss, {"ratio_clipped": clipped.float().mean(), "log_ratio": -log_ratio.mean()}

        def value_loss(experience: Experience, epoch: int = epoch) -> tuple[Tensor, dict[str, Tensor]]:
            rollout = experience.rollout
            values = _critic_values(critic, rollout, epoch)
            loss = critic_loss(values, rollout.values, experience.returns.detach(), rollout.mask, value_clip=value_clip)
            return loss, {}

        common = {
            "accelerator": accelerator,
            "step": step,
            "weight_of": lambda experience: experience.rollout.mask.sum().item(),
            "max_grad_norm": max_grad_norm,
        }
        actor = gradient_step(policy_loss, experiences, model=policy, optimizer=policy_optimizer, **common)
        value = gradient_step(value_loss, experiences, model=critic, optimizer=critic_optimizer, **common)
    return {
        "actor_loss": actor.loss,
        "critic_loss": value.loss,
        "actor_grad_norm": actor.grad_norm,
        "critic_grad_norm": value.grad_norm,
        **actor.metrics,
    }


def _policy_log_probs(policy: nn.Module, rollout: Rollout, epoch: int) -> Tensor:
    if rollout.graph is not None and epoch == 0:
        return rollout.graph[0]
    logits, actions, mask = response_logits(policy, rollout.batch)
    return _masked(token_log_probs(logits, actions), mask)


def _critic_values(critic: nn.Module, rollout: Rollout, epoch: int) -> Tensor:
    if rollout.graph is not None and epoch == 0:
        return rollout.graph[1]
    return response_values(critic, rollout.batch)


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask, 0.0)
