import copy
import math

import pytest
import torch
from accelerate import Accelerator

from shared.checkpoints import Checkpointer
from shared.data_order import generator_for
from shared.lm.batches import left_padded
from shared.lm.log_probs import response_token_log_probs
from shared.lm.models import ScalarHeadModel
from shared.lm.options import SamplingOptions
from shared.lm.ppo import Experience, actor_loss, collect_rollout, critic_loss, ppo_update
from shared.training import adamw

PROMPTS = left_padded([[2, 5, 3], [2, 5, 6, 7, 8, 3], [4], [2, 9, 3]] * 4, pad_id=0)


def _scalar_model(decoder, seed):
    model = ScalarHeadModel(copy.deepcopy(decoder.base_model))
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(seed))
    return model


def _four_models(decoder):
    """Policy, reference (not equal to it), critic, reward model."""
    reference = copy.deepcopy(decoder)
    with torch.no_grad():
        reference.get_output_embeddings().weight.mul_(0.9)
    return decoder, reference, _scalar_model(decoder, 1), _scalar_model(decoder, 2)


@pytest.fixture
def models(gpt2):
    return _four_models(gpt2)


def _collect(models, **options):
    arguments = {"eos_id": 1, "pad_id": 0, "generator": torch.Generator().manual_seed(0)} | options
    return collect_rollout(*models, PROMPTS, SamplingOptions(5, temperature=1.5), **arguments)


# Losses


def _written_out_actor_loss(log_probs, old, advantages, mask, clip):
    terms = []
    for lp, lo, a, m in zip(log_probs.flatten(), old.flatten(), advantages.flatten(), mask.flatten(), strict=True):
        if m:
            ratio = math.exp(lp - lo)
            terms.append(max(-a * ratio, -a * min(max(ratio, 1 - clip), 1 + clip)))
    return sum(terms) / len(terms)


def _written_out_critic_loss(values, old, returns, mask, clip):
    terms = []
    for v, o, g, m in zip(values.flatten(), old.flatten(), returns.flatten(), mask.flatten(), strict=True):
        if m:
            clipped = o + min(max(v - o, -clip), clip)
            terms.append(max((v - g) ** 2, (clipped - g) ** 2))
    return 0.5 * sum(terms) / len(terms)


@pytest.mark.parametrize("clip", [0.1, 0.2, 0.5])
def test_losses_equal_the_formulas_written_out(clip):
    generator = torch.Generator().manual_seed(0)
    new, old, target = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64) * 0.5
    mask = torch.rand(4, 6, generator=generator) < 0.6
    assert actor_loss(new, old, target, mask, ratio_clip=clip).item() == pytest.approx(
        _written_out_actor_loss(new, old, target, mask, clip)
    )
    assert critic_loss(new, old, target, mask, value_clip=clip).item() == pytest.approx(
        _written_out_critic_loss(new, old, target, mask, clip)
    )


def test_clipped_tokens_have_no_gradient_only_where_clipping_is_the_worse_case():
    # ratio e in all four; with A > 0 the clipped branch is active, with A < 0 the other; the last is masked
    log_probs = torch.ones(1, 4, requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, 0.0, 5.0]])
    mask = torch.tensor([[True, True, True, False]])
    actor_loss(log_probs, torch.zeros(1, 4), advantages, mask).backward()
    assert log_probs.grad[0].tolist() == pytest.approx([0.0, math.e / 3, 0.0, 0.0])


def test_at_ratio_one_the_gradient_is_that_of_the_policy_gradient():
    log_probs = torch.randn(2, 3, requires_grad=True)
    advantages, mask = torch.randn(2, 3), torch.ones(2, 3, dtype=torch.bool)
    actor_loss(log_probs, log_probs.detach(), advantages, mask).backward()
    torch.testing.assert_close(log_probs.grad, -advantages / 6)


# Rollouts


def test_rollout_is_what_the_models_say_about_the_responses(decoder):
    models = policy, reference, critic, reward_model = _four_models(decoder)
    rollout = _collect(models)
    n_rows, n_columns = rollout.actions.shape
    assert rollout.batch.response_start == PROMPTS.input_ids.shape[1]
    assert rollout.policy_logits.shape == rollout.reference_logits.shape == (n_rows, n_columns, 13)
    assert n_rows == 16 and n_columns <= 5 and (rollout.mask.sum(1) >= 1).all()
    for row in range(n_rows):
        prompt = PROMPTS.input_ids[row][PROMPTS.attention_mask[row].bool()]
        response = rollout.actions[row][rollout.mask[row]]
        sequence = torch.cat([prompt, response])[None]
        ones = torch.ones_like(sequence)
        own = slice(len(prompt) - 1, len(prompt) - 1 + len(response))
        with torch.no_grad():
            policy_logits, reference_logits = policy(sequence).logits[0, own], reference(sequence).logits[0, own]
            values = critic(sequence, ones, ones.cumsum(1) - 1)[0, own]
            reward = reward_model(sequence, ones, ones.cumsum(1) - 1)[0, -1]
        kept = slice(0, len(response))
        close = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(rollout.policy_logits[row, kept], policy_logits, **close)
        torch.testing.assert_close(rollout.reference_logits[row, kept], reference_logits, **close)
        torch.testing.assert_close(rollout.values[row, kept], values, **close)
        torch.testing.assert_close(rollout.scores[row], reward, **close)
        for log_probs, logits in (
            (rollout.log_probs, policy_logits),
            (rollout.reference_log_probs, reference_logits),
        ):
            expected = logits.log_softmax(-1)[torch.arange(len(response)), response]
            torch.testing.assert_close(log_probs[row, kept], expected, **close)
        assert (response[:-1] != 1).all()
    for zeroed in (rollout.log_probs, rollout.reference_log_probs, rollout.values):
        assert (zeroed[~rollout.mask] == 0).all()


def test_nothing_in_a_rollout_requires_gradients_but_a_kept_graph(models):
    plain, kept = _collect(models), _collect(models, keep_graph=True)
    assert plain.graph is None
    for rollout in (plain, kept):
        tensors = [value for value in vars(rollout).values() if isinstance(value, torch.Tensor)]
        assert len(tensors) == 8 and not any(tensor.requires_grad for tensor in tensors)
    assert torch.equal(plain.actions, kept.actions)
    assert kept.graph[0].requires_grad and kept.graph[1].requires_grad
    assert torch.equal(kept.graph[0], kept.log_probs) and torch.equal(kept.graph[1], kept.values)


def test_short_responses_are_left_out(models):
    everything, long = _collect(models), _collect(models, min_response_tokens=4)
    rows = everything.mask.sum(1) >= 4
    assert 0 < rows.sum() < len(rows)
    torch.testing.assert_close(long.scores, everything.scores[rows])
    assert torch.equal(long.actions, everything.actions[rows])
    assert torch.equal(long.batch.input_ids, everything.batch.input_ids[rows])
    with pytest.raises(RuntimeError, match="6 tokens"):
        _collect(models, min_response_tokens=6)


def test_collecting_leaves_the_models_as_they_were(models):
    policy, reference, critic, _ = models
    policy.train()
    critic.train()
    _collect(models)
    assert policy.training and policy.base_model.training and critic.backbone.training
    assert not reference.training


# Update


def _update(models, parts, *, epochs=1, **options):
    """The policy and critic after an update on parts: (rollout, advantages, returns)."""
    policy, critic = copy.deepcopy(models[0]), copy.deepcopy(models[2])
    accelerator = Accelerator(cpu=True)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (policy, critic)]
    policy, critic, *optimizers = accelerator.prepare(policy, critic, *optimizers)
    report = ppo_update(
        [Experience(*part) for part in parts],
        policy=policy,
        critic=critic,
        policy_optimizer=optimizers[0],
        critic_optimizer=optimizers[1],
        accelerator=accelerator,
        step=7,
        epochs=epochs,
        **options,
    )
    accelerator.free_memory()
    return policy, critic, report


def _targets(rollout):
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(rollout.mask.shape, generator=generator) for _ in range(2))


def _assert_same_weights(first, second, **tolerance):
    for (name, weight), other in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(weight, other, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def test_update_is_one_gradient_step_on_the_two_losses(models):
    rollout = _collect(models)
    advantages, returns = _targets(rollout)
    policy, critic, report = _update(models, [(rollout, advantages, returns)], max_grad_norm=None)

    by_hand = copy.deepcopy(models[0])
    log_probs, mask = response_token_log_probs(by_hand, rollout.batch)
    loss = -(advantages * (log_probs - rollout.log_probs).exp())[mask].mean()
    loss.backward()
    for weight in by_hand.parameters():
        weight.data -= 0.1 * weight.grad
    _assert_same_weights(policy, by_hand)
    assert report["actor_loss"] == pytest.approx(loss.item(), abs=1e-6)
    norm = torch.cat([weight.grad.flatten() for weight in by_hand.parameters()]).norm().item()
    assert report["actor_grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert report["critic_loss"] == pytest.approx(0.5 * ((rollout.values - returns)[mask] ** 2).mean().item())
    assert report["ratio_clipped"] == 0 and report["log_ratio"] == pytest.approx(0, abs=1e-6)
    assert not torch.equal(critic.head.weight, models[2].head.weight)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_kept_graph_gives_the_same_update(models, epochs):
    rollout = _collect(models)
    advantages, returns = _targets(rollout)
    policy, critic, report = _update(models, [(rollout, advantages, returns)], epochs=epochs)

    # the graph belongs to the models it was made with, so these are updated in place
    kept = _collect(models, keep_graph=True)
    accelerator = Accelerator(cpu=True)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (models[0], models[2])]
    live_policy, live_critic, *optimizers = accelerator.prepare(models[0], models[2], *optimizers)
    live_report = ppo_update(
        [Experience(kept, advantages, returns)],
        policy=live_policy,
        critic=live_critic,
        policy_optimizer=optimizers[0],
        critic_optimizer=optimizers[1],
        accelerator=accelerator,
        step=0,
        epochs=epochs,
    )
    accelerator.free_memory()
    _assert_same_weights(policy, live_policy, rtol=1e-5, atol=1e-6)
    _assert_same_weights(critic, live_critic, rtol=1e-5, atol=1e-6)
    assert live_report == pytest.approx(report, rel=1e-3, abs=1e-5)


def test_the_second_epoch_sees_a_new_policy(models):
    rollout = _collect(models)
    advantages, returns = _targets(rollout)
    *_, once = _update(models, [(rollout, advantages, returns)])
    *_, twice = _update(models, [(rollout, advantages, returns)], epochs=2)
    assert once["log_ratio"] == pytest.approx(0, abs=1e-6) and abs(twice["log_ratio"]) > 1e-4
    assert twice["actor_loss"] < once["actor_loss"]


def test_micro_batches_are_one_step_on_their_union(models):
    """Of different numbers of tokens, so that a mean of means would differ."""
    whole = _collect(models, min_response_tokens=1)
    advantages, returns = _targets(whole)
    parts = []
    for rows in (slice(0, 3), slice(3, 16)):
        fields = {
            name: value[rows]
            for name, value in vars(whole).items()
            if isinstance(value, torch.Tensor) or name == "batch"
        }
        parts.append((type(whole)(**fields), advantages[rows], returns[rows]))
    tokens = [part[0].mask.sum().item() / len(part[0].mask) for part in parts]
    assert tokens[0] != tokens[1]
    policy, critic, report = _update(models, [(whole, advantages, returns)])
    split_policy, split_critic, split_report = _update(models, parts)
    _assert_same_weights(policy, split_policy, rtol=1e-5, atol=1e-6)
    _assert_same_weights(critic, split_critic, rtol=1e-5, atol=1e-6)
    assert split_report == pytest.approx(report, rel=1e-4, abs=1e-6)


def test_gradients_do_not_flow_into_advantages_and_returns(models):
    rollout = _collect(models)
    advantages, returns = (target.requires_grad_() for target in _targets(rollout))
    _update(models, [(rollout, advantages, returns)])
    assert advantages.grad is None and returns.grad is None


def test_a_loss_that_is_not_finite_names_the_step(models):
    rollout = _collect(models)
    advantages, returns = _targets(rollout)
    advantages[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="step 7"):
        _update(models, [(rollout, advantages, returns)])


def test_an_interrupted_loop_resumes_to_the_same_weights(models, tmp_path):
    """Two models and optimizers in one checkpoint, draws that are functions of the step."""

    def run(steps, state):
        policy, critic = copy.deepcopy(models[0]), copy.deepcopy(models[2])
        accelerator = Accelerator(cpu=True)
        optimizers = [adamw(model, 1e-2) for model in (policy, critic)]
        policy, critic, *optimizers = accelerator.prepare(policy, critic, *optimizers)
        checkpointer = Checkpointer(state, accelerator, every=2)
        done, record = checkpointer.restore()
        for step in range(done, steps):
            rollout = _collect((policy, models[1], critic, models[3]), generator=generator_for(0, step))
            report = ppo_update(
                [Experience(rollout, *_targets(rollout))],
                policy=policy,
                critic=critic,
                policy_optimizer=optimizers[0],
                critic_optimizer=optimizers[1],
                accelerator=accelerator,
                step=step,
            )
            record = {"reports": [*record.get("reports", []), report]}
            checkpointer.save_if_due(step + 1, record)
        accelerator.free_memory()
        return policy, critic, record

    *expected, expected_record = run(4, tmp_path / "at-once")
    run(3, tmp_path / "interrupted")
    *resumed, record = run(4, tmp_path / "interrupted")
    _assert_same_weights(expected[0], resumed[0], rtol=0, atol=0)
    _assert_same_weights(expected[1], resumed[1], rtol=0, atol=0)
    assert record == expected_record and len(record["reports"]) == 4


def test_training_raises_the_probability_of_the_rewarded_token(gpt2):
    """The whole loop, with a reward of 1 for each token 5: on-policy, no reference penalty."""
    critic = ScalarHeadModel(copy.deepcopy(gpt2.base_model))
    accelerator = Accelerator(cpu=True)
    optimizers = [torch.optim.Adam(model.parameters(), lr=3e-3) for model in (gpt2, critic)]
    policy, critic, *optimizers = accelerator.prepare(gpt2, critic, *optimizers)
    shares = []
    for step in range(25):
        rollout = collect_rollout(
            policy,
            policy,
            critic,
            critic,
            PROMPTS,
            SamplingOptions(4),
            eos_id=1,
            pad_id=0,
            generator=torch.Generator().manual_seed(step),
            keep_graph=True,
        )
        rewards = ((rollout.actions == 5) & rollout.mask).float()
        returns = rewards.flip(1).cumsum(1).flip(1)
        ppo_update(
            [Experience(rollout, returns - rollout.values, returns)],
            policy=policy,
            critic=critic,
            policy_optimizer=optimizers[0],
            critic_optimizer=optimizers[1],
            accelerator=accelerator,
            step=step,
        )
        shares.append((rewards.sum() / rollout.mask.sum()).item())
    accelerator.free_memory()
    assert sum(shares[-5:]) / 5 > sum(shares[:5]) / 5 + 0.3
