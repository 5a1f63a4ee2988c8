import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from shared.checkpoints import Checkpointer
from shared.schedules import constant, linear
from shared.training import adamw, fit, gradient_step, train
from shared.training_options import TrainingOptions

ROOT = Path(__file__).parents[2]
PROCESS = Path(__file__).with_name("training_process.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def accelerator():
    accelerator = Accelerator(cpu=True)
    yield accelerator
    accelerator.free_memory()


def _regression(accelerator, lr=0.1, seed=0):
    """A linear model and data that it can fit exactly, as (model, optimizer, inputs, targets)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(12, 3, generator=generator)
    targets = inputs @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3
    model = nn.Linear(3, 1)
    nn.init.constant_(model.weight, 0.1)
    nn.init.constant_(model.bias, 0.0)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=lr))
    return model, optimizer, inputs, targets


# Optimizer


def _decay_of(model, **options):
    optimizer = adamw(model, 1e-3, weight_decay=0.1, **options)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


def test_weight_decay_by_kind_of_parameter():
    model = nn.ModuleDict({"table": nn.Embedding(5, 4), "norm": nn.LayerNorm(4), "linear": nn.Linear(4, 5)})
    model["frozen"] = nn.Linear(2, 2).requires_grad_(False)
    expected = {
        "table.weight": 0.1,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "linear.weight": 0.1,
        "linear.bias": 0.0,
    }
    assert _decay_of(model) == expected
    assert _decay_of(model, embedding_weight_decay=1.0) == expected | {"table.weight": 1.0}
    model["linear"].weight = model["table"].weight
    tied = {name: decay for name, decay in expected.items() if name != "linear.weight"}
    assert _decay_of(model, embedding_weight_decay=1.0) == tied | {"table.weight": 1.0}


# One step


def _one_step(parts, accelerator, *, weight_of=len, **options):
    model, optimizer, inputs, targets = _regression(accelerator)

    def loss_fn(rows):
        error = (model(inputs[rows]) - targets[rows]).square().mean()
        return error, {"rows": torch.tensor(float(len(rows)))}

    report = gradient_step(
        loss_fn,
        parts,
        model=model,
        optimizer=optimizer,
        accelerator=accelerator,
        step=5,
        weight_of=weight_of,
        **options,
    )
    return model, report


def test_a_step_does_not_depend_on_how_the_batch_is_split(accelerator):
    whole, whole_report = _one_step([range(12)], accelerator)
    split, split_report = _one_step([range(0, 2), range(2, 5), range(5, 12)], accelerator)
    torch.testing.assert_close(whole.weight, split.weight)
    torch.testing.assert_close(whole.bias, split.bias)
    assert split_report.loss == pytest.approx(whole_report.loss)
    assert split_report.grad_norm == pytest.approx(whole_report.grad_norm)
    assert split_report.metrics == {"rows": pytest.approx((4 + 9 + 49) / 12)}
    equal, _ = _one_step([range(0, 2), range(2, 5), range(5, 12)], accelerator, weight_of=lambda _: 1.0)
    assert not torch.allclose(whole.weight, equal.weight)


def test_a_step_is_the_optimizers(accelerator):
    model, report = _one_step([range(12)], accelerator)
    by_hand, _, inputs, targets = _regression(accelerator)
    loss = (by_hand(inputs) - targets).square().mean()
    loss.backward()
    assert report.loss == pytest.approx(loss.item())
    norm = math.hypot(*by_hand.weight.grad.flatten().tolist(), by_hand.bias.grad.item())
    assert report.grad_norm == pytest.approx(norm)
    torch.testing.assert_close(model.weight, by_hand.weight - 0.1 * by_hand.weight.grad)
    assert model.weight.grad is None


def test_clipping_scales_the_gradient_and_reports_its_norm_before(accelerator):
    free, report = _one_step([range(12)], accelerator)
    clipped, clipped_report = _one_step([range(12)], accelerator, max_grad_norm=0.25)
    assert report.grad_norm > 0.25 and clipped_report.grad_norm == pytest.approx(report.grad_norm)
    torch.testing.assert_close(clipped.weight - 0.1, (free.weight - 0.1) * 0.25 / report.grad_norm)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(accelerator, bad):
    model, optimizer, inputs, _ = _regression(accelerator)
    before = model.weight.clone()
    with pytest.raises(FloatingPointError, match="step 5: the loss is"):
        gradient_step(
            lambda rows: (model(inputs[rows]).mean() * bad, {}),
            [range(3)],
            model=model,
            optimizer=optimizer,
            accelerator=accelerator,
            step=5,
        )
    assert torch.equal(model.weight, before)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(accelerator):
    model, optimizer, inputs, _ = _regression(accelerator)
    before = model.weight.clone()
    with pytest.raises(FloatingPointError, match="step 5: the gradient's norm is"):
        # the square root of zero: a finite loss with an infinite derivative
        gradient_step(
            lambda rows: ((model(inputs[rows]) * 0).abs().sum().sqrt(), {}),
            [range(3)],
            model=model,
            optimizer=optimizer,
            accelerator=accelerator,
            step=5,
        )
    assert torch.equal(model.weight, before)


# The loop


def _train(accelerator, steps, *, state=None, schedule=None, log_every=10, on_record=lambda record: None):
    model, optimizer, inputs, targets = _regression(accelerator, lr=0.2)
    records = train(
        lambda rows: ((model(inputs[rows]) - targets[rows]).square().mean(), {}),
        model=model,
        optimizer=optimizer,
        schedule=schedule or constant(),
        batches=lambda step: [range(12)],
        steps=steps,
        accelerator=accelerator,
        checkpointer=Checkpointer(state, accelerator, every=4) if state else None,
        log_every=log_every,
        on_record=on_record,
    )
    return model, records


def test_training_converges_and_keeps_records(accelerator):
    seen = []
    model, records = _train(accelerator, 60, schedule=linear(60), log_every=25, on_record=seen.append)
    torch.testing.assert_close(model.weight, torch.tensor([[1.0, -2.0, 0.5]]), atol=0.05, rtol=0)
    assert [record["step"] for record in records] == [1, 25, 50, 60]
    assert [record["learning_rate"] for record in records] == pytest.approx([0.2, 0.12, 0.2 * 11 / 60, 0.2 / 60])
    assert set(records[0]) == {"step", "loss", "grad_norm", "learning_rate"}
    assert records[-1]["loss"] < 0.01 * records[0]["loss"]
    assert seen == records


def test_progress_is_plain_lines_where_there_is_no_terminal(accelerator, capsys):
    _train(accelerator, 3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("train: 3/3, ") and " loss " in lines[0]


def test_progress_is_a_bar_on_a_terminal(accelerator, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    _train(accelerator, 3)
    shown = capsys.readouterr().err
    assert "3/3" in shown and "\r" in shown and "train: 3/3, " not in shown


def test_a_finished_training_is_not_repeated(accelerator, tmp_path):
    model, records = _train(accelerator, 8, state=tmp_path)
    accelerator.free_memory()
    again, same_records = _train(accelerator, 8, state=tmp_path)
    assert torch.equal(model.weight, again.weight) and records == same_records


# Checkpoints


def test_only_the_last_checkpoint_is_kept_and_leftovers_do_not_matter(accelerator, tmp_path):
    (tmp_path / ".partial-step-000000008").mkdir()
    (tmp_path / ".partial-step-000000008" / "model.safetensors").write_bytes(b"half")
    _train(accelerator, 9, state=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000008"]
    assert not list((tmp_path / "step-000000008").glob("model*.bin")), "weights are safetensors"


def test_a_hand_written_loop_restores_its_record_and_the_random_states(accelerator, tmp_path):
    model, *_ = _regression(accelerator)
    checkpointer = Checkpointer(tmp_path, accelerator, every=3)
    assert checkpointer.restore() == (0, {})
    record = {"buffer": [[1, 2], [3]], "best": 0.1 + 0.2, "nothing": None}
    checkpointer.save_if_due(2, {"too": "early"})
    checkpointer.save_if_due(3, record)
    saved = model.weight.clone()
    draws = [(torch.rand(3).tolist(), np.random.rand(), random.random()) for _ in range(2)]  # noqa: NPY002
    model.weight.data.zero_()
    assert checkpointer.restore() == (3, record)
    assert torch.equal(model.weight, saved)
    assert [(torch.rand(3).tolist(), np.random.rand(), random.random()) for _ in range(2)] == draws  # noqa: NPY002


def test_random_states_that_cannot_be_restored_are_an_error(accelerator, tmp_path):
    _regression(accelerator)
    checkpointer = Checkpointer(tmp_path, accelerator, every=1)
    checkpointer.save(1)
    (tmp_path / "step-000000001" / "random_states_0.pkl").write_bytes(b"not a state")
    random.random()
    with pytest.raises(RuntimeError, match="step-000000001: the states of the random generators"):
        checkpointer.restore()


def test_code_in_a_checkpoint_is_not_run(accelerator, tmp_path):
    """A pickle that calls a function when it is loaded with Python's own unpickler."""
    _regression(accelerator)
    checkpointer = Checkpointer(tmp_path, accelerator, every=1)
    checkpointer.save(1)

    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    torch.save(Attack(), tmp_path / "step-000000001" / "optimizer.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        checkpointer.restore()
    assert not (tmp_path / "touched").exists()


def test_checkpoints_must_be_some_steps_apart(accelerator, tmp_path):
    with pytest.raises(ValueError, match="every"):
        Checkpointer(tmp_path, accelerator, every=0)


def test_a_killed_training_resumes_to_the_same_bytes(tmp_path):
    subprocess.run([sys.executable, PROCESS, "interrupt", tmp_path], check=True, env=ENVIRONMENT)
    report = json.loads((tmp_path / "report.json").read_text())
    expected = tmp_path / "uninterrupted"
    first, second = "step-000000004", "step-000000008"
    left = {
        "before the first checkpoint": [],
        "between checkpoints": [first],
        "in the first save, before its rename": [f".partial-{first}"],
        "in the second save, between its files": [f".partial-{second}", first],
        "in the second save, before its rename": [f".partial-{second}", first],
        "in the second save, after its rename": [first, second],
        "in the second save, deleting the first": [first, second],
        "after the last step": [second],
    }
    assert report.pop("uninterrupted") == {"status": 0}
    assert {name: entry["left"] for name, entry in report.items()} == left
    for name, entry in report.items():
        assert (entry["signal"], entry["status"]) == (signal.SIGKILL, 0), name
        for file in ("final.safetensors", "records.json"):
            assert (tmp_path / name / file).read_bytes() == (expected / file).read_bytes(), (name, file)
    weights = load_file(expected / "final.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.slow
def test_two_processes_train_like_one_and_resume(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # `accelerate launch` starts several processes on CPUs only through MPI; torch's own launcher always does.
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    for n, launcher in ((1, []), (2, launch)):
        (tmp_path / str(n)).mkdir()
        command = [sys.executable, *launcher, str(PROCESS), "distribute", str(tmp_path / str(n))]
        subprocess.run(command, check=True, env=ENVIRONMENT)
    reports = {n: json.loads((tmp_path / str(n) / "report.json").read_text()) for n in (1, 2)}
    assert [reports[n]["processes"] for n in (1, 2)] == [1, 2]
    for n, report in reports.items():
        at_once, resumed = (load_file(tmp_path / str(n) / f"{run}.safetensors") for run in ("at-once", "resumed"))
        assert report["at-once"] == report["resumed"]
        assert all(torch.equal(resumed[name], weight) for name, weight in at_once.items())
    one, two = (load_file(tmp_path / str(n) / "at-once.safetensors") for n in (1, 2))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-6)
    for record, other in zip(reports[1]["at-once"], reports[2]["at-once"], strict=True):
        assert other == pytest.approx(record, rel=1e-4)


# A whole training on a data set


def _fitted(checkpoints, optimizer=None, **changes):
    """A linear model fitted by `fit`, which examples each step saw, and the records."""
    torch.manual_seed(0)
    model, seen, accelerator = nn.Linear(3, 1), [], Accelerator(cpu=True)
    inputs = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    options = {"epochs": 20.5, "batch_size": 4, "learning_rate": 0.1, "schedule": "linear", "warmup_fraction": 0.5}

    def make_batch(rows):
        seen.append(rows.tolist())
        return inputs[rows.tolist()]

    model, records = fit(
        lambda model, batch: (model(batch).square().mean(), {"size": torch.tensor(float(len(batch)))}),
        model,
        TrainingOptions(**options | changes),
        size=len(inputs),
        make_batch=make_batch,
        seed=3,
        accelerator=accelerator,
        checkpoints=checkpoints,
        optimizer=optimizer(model) if optimizer else None,
        weight_of=len,
        log_every=1,
    )
    return model, seen, records


def test_fit_sees_shuffled_epochs_under_the_options_schedule(tmp_path):
    model, seen, records = _fitted(tmp_path)
    assert len(seen) == 41, "20.5 epochs of 2 whole batches"
    assert not set(seen[0]) & set(seen[1]) and seen[0] != seen[2], "an epoch repeats examples, or all epochs are one"
    rates = [record["learning_rate"] for record in records]
    assert max(rates) == pytest.approx(0.1) and rates[-1] < 0.1
    assert model.weight.abs().max() < 0.2, "the mean square of the outputs does not fall"
    assert records[0]["size"] == 4
    assert _fitted(tmp_path / "again", accumulation=2)[1] == [part for row in seen for part in (row[:2], row[2:])]


def test_fit_goes_on_from_its_checkpoint(tmp_path):
    whole, _, records = _fitted(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _fitted(tmp_path / "cut", checkpoint_every=2, optimizer=_failing_after(3))
    resumed, seen, resumed_records = _fitted(tmp_path / "cut", checkpoint_every=2)
    assert len(seen) == 39 and resumed_records == records
    assert torch.equal(whole.weight, resumed.weight)


def _failing_after(steps):
    """Makes AdamW as `fit` does, which is interrupted in a later step."""

    class Interrupted(torch.optim.AdamW):
        taken = 0

        def step(self, closure=None):
            self.taken += 1
            if self.taken > steps:
                raise KeyboardInterrupt
            return super().step(closure)

    return lambda model: Interrupted(adamw(model, 0.1).param_groups, lr=0.1, fused=True)


def test_fit_takes_another_optimizer(tmp_path):
    frozen, _, records = _fitted(tmp_path, lambda model: torch.optim.SGD(model.parameters(), lr=0.0))
    torch.manual_seed(0)
    assert records[-1]["grad_norm"] > 0
    assert records[0]["learning_rate"] == 0.0 and torch.equal(frozen.weight, nn.Linear(3, 1).weight)


def test_fit_refuses_a_batch_larger_than_the_data(tmp_path):
    with pytest.raises(ValueError, match="batch_size"):
        _fitted(tmp_path, batch_size=11)
