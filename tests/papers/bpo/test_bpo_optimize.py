import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import (
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)

from papers.bpo import optimize as stage
from papers.bpo.generation_metrics import mean_token_entropy
from papers.bpo.judge import gold_judge, reward_model_judge
from papers.bpo.methods import PairLogProbs
from papers.bpo.optimize import optimize
from papers.bpo.options import LossOptions, OptimizeOptions
from shared.errors import InputError
from shared.files import checksum
from shared.lm.batches import right_padded
from shared.lm.log_probs import response_log_probs, response_logits
from shared.lm.options import SamplingOptions
from shared.lm.texts import answer_rows, load_causal_lm, load_tokenizer, prompt_rows
from shared.options import flags
from shared.tables import read_table, write_table
from shared.training_options import TrainingOptions
from tests.papers.bpo.conftest import DATA

REPOSITORY = Path(__file__).resolve().parents[3]
OPTIONS = OptimizeOptions(
    training=TrainingOptions(
        epochs=1,
        batch_size=16,
        learning_rate=0.0003,
        schedule="constant",
        warmup_fraction=0.25,
        max_grad_norm=10.0,
        checkpoint_every=1,
    ),
    sampling=SamplingOptions(max_new_tokens=13),
    loss=LossOptions(beta=0.3),
    max_prompt_tokens=4,
    max_answer_tokens=13,
    validation_samples=2,
    test_samples=3,
    temperatures=(0.5,),
    tempered_methods=("dpo",),
    sampling_batch=50,
    saved_policies=("dpo",),
)
LOSSES = ("dpo", "dpo:0.6", "sba:-0.5", "sba:2", "ba:2", "kliep", "sba:0.5@fdpo-js", "fpo-js", "simpo")
METHODS = ("preferred", "sft", *LOSSES)
OUTPUTS = ("policies", "samples", "curves", "margins")


def run_stage(data, folder, methods=METHODS, options=OPTIONS, **changed):
    paths = {name: data[name] for name in DATA if name not in ("words", "supervised")}
    outputs = {name: folder / name for name in OUTPUTS}
    measurements = optimize(
        options,
        seed=3,
        setting="clean",
        methods=methods,
        **paths | {"supervised": data["model"]} | changed,
        **outputs,
        state=folder / "state",
    )
    return outputs, measurements


def bench_of(data):
    names = ("pairs", "held_out", "prompts", "references", "model")
    return stage.open_bench(OPTIONS, 3, *(data[name] for name in names))


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    return run_stage(tiny_data, tmp_path_factory.mktemp("bpo-optimize"))


def test_every_method_is_trained_sampled_and_measured(finished):
    outputs, measurements = finished
    samples, curves, margins = (read_table(outputs[name]) for name in OUTPUTS[1:])
    assert set(samples["method"]) == set(measurements["seconds"]) == set(METHODS)
    assert set(curves["method"]) == set(margins["method"]) == set(LOSSES)
    assert (curves.groupby("method")["step"].apply(list).map(tuple) == (1, 2, 3, 4)).all()
    assert (margins.groupby("method").size() == 16).all()
    plan = samples.groupby(["method", "split", "temperature"]).size()
    assert plan["sba:2"].to_dict() == {("test", 1.0): 90, ("validation", 1.0): 60}
    assert plan["dpo"].to_dict() == {("test", 0.5): 90, ("test", 1.0): 90, ("validation", 1.0): 60}
    assert plan["preferred"].to_dict() == {("test", 1.0): 120}
    assert not samples.duplicated(["method", "split", "temperature", "prompt_id", "sample"]).any()
    assert samples.loc[samples["method"] != "preferred", "entropy"].notna().all()
    assert samples[["setting", "seed"]].drop_duplicates().to_numpy().tolist() == [["clean", 3]]


def test_losses_differ_in_the_weight_of_the_first_gradient_alone(finished):
    first = read_table(finished[0]["curves"]).query("step == 1").set_index("method")
    ratio = first["grad_norm"] / first.loc["dpo", "grad_norm"]
    assert first["margin"].abs().max() == pytest.approx(first.loc["simpo", "margin"] * -1, abs=1e-4)  # -gamma + ...
    assert first.drop("simpo")["margin"].abs().max() < 1e-5  # the policy is the reference, dropout is off
    expected = {"dpo": 1, "dpo:0.6": 2, "sba:-0.5": 1, "sba:2": 1, "ba:2": 12, "kliep": 4, "sba:0.5@fdpo-js": 0.5}
    for method, value in expected.items():
        assert ratio[method] == pytest.approx(value, rel=1e-4), method


def test_training_lowers_the_loss_and_separates_the_pairs(tiny_data, tmp_path):
    training = dataclasses.replace(OPTIONS.training, epochs=8)
    outputs, _ = run_stage(tiny_data, tmp_path, ("dpo",), dataclasses.replace(OPTIONS, training=training))
    curve = read_table(outputs["curves"]).sort_values("step")
    assert curve["loss"].iloc[-4:].mean() < 0.9 * curve["loss"].iloc[0]
    assert curve["accuracy"].iloc[-4:].mean() > 0.7
    assert curve["margin"].iloc[-4:].mean() > 0.1
    assert (curve["margin_square"] >= curve["margin"] ** 2 - 1e-6).all()


def test_measurements_of_samples_and_margins_come_from_the_policy(finished, tiny_data):
    outputs, _ = finished
    policy = load_causal_lm(outputs["policies"] / "dpo").eval()
    reference, tokenizer = load_causal_lm(tiny_data["model"]).eval(), load_tokenizer(tiny_data["model"])
    samples = read_table(outputs["samples"]).query("method == 'dpo' and split == 'test'")
    texts = read_table(tiny_data["prompts"]).query("split == 'test'").set_index("prompt_id")["prompt"]
    assert samples.groupby("temperature")["response"].count().to_dict() == {0.5: 0, 1.0: 90}
    for temperature, stored in samples.groupby("temperature"):
        stream = stage.SAMPLING_STREAM + (1 if temperature == 1.0 else 2)
        rows = stage.sample(bench_of(tiny_data), policy, "test", temperature, 3, stream, Accelerator())
        columns = ["prompt_id", "sample", "tokens", "entropy", "score"]
        assert rows[columns].equals(stored[columns].reset_index(drop=True))  # drawn again, with all texts
        prompts = texts.loc[rows["prompt_id"]].tolist()
        finished_rows = rows["tokens"].to_numpy() > rows["response"].str.split().str.len().to_numpy()
        np.testing.assert_allclose(rows["score"], gold_judge(prompts, rows["response"].tolist(), finished_rows))
        ids = answer_rows(tokenizer, rows["response"].tolist(), max_tokens=14)
        ids = [row if done else row[:-1] for row, done in zip(ids, finished_rows, strict=True)]
        assert [len(row) for row in ids] == rows["tokens"].tolist()
        asked = prompt_rows(tokenizer, prompts, max_tokens=4)
        with torch.no_grad():
            logits, _, mask = response_logits(policy, right_padded(asked, ids, pad_id=tokenizer.pad_token_id))
        entropy = mean_token_entropy(logits, mask, temperature=temperature).item()
        assert rows["entropy"].sum() / rows["tokens"].sum() == pytest.approx(entropy, rel=1e-3)

    pairs = read_table(tiny_data["held_out"])
    asked = prompt_rows(tokenizer, pairs["prompt"].tolist(), max_tokens=4)
    z = []
    for name in ("chosen", "rejected"):
        answers = answer_rows(tokenizer, pairs[name].tolist(), max_tokens=13)
        batch = right_padded(asked, answers, pad_id=tokenizer.pad_token_id)
        with torch.no_grad():
            z.append(response_log_probs(policy, batch) - response_log_probs(reference, batch))
    margins = read_table(outputs["margins"]).query("method == 'dpo'").sort_values("pair")["margin"]
    np.testing.assert_allclose(margins, 0.3 * (z[0] - z[1]), atol=1e-4)


def test_the_supervised_model_is_sampled_as_it_is(finished, tiny_data, tmp_path):
    """Without a single step that moves weights, every method gives the supervised model's samples."""
    training = dataclasses.replace(OPTIONS.training, learning_rate=0.0)
    outputs, _ = run_stage(tiny_data, tmp_path, ("sba:2",), dataclasses.replace(OPTIONS, training=training))
    columns = ["split", "prompt_id", "sample", "response", "entropy", "score"]
    untrained = read_table(outputs["samples"])[columns]
    supervised = read_table(finished[0]["samples"]).query("method == 'sft'")[columns].reset_index(drop=True)
    assert untrained.equals(supervised)


def test_a_method_gives_the_same_bytes_whatever_is_trained_beside_it(finished, tiny_data, tmp_path):
    outputs, _ = run_stage(tiny_data, tmp_path, ("sba:2",))
    for name in OUTPUTS[1:]:
        alone = read_table(outputs[name])
        beside = read_table(finished[0][name]).query("method == 'sba:2'").reset_index(drop=True)
        assert alone[alone.columns].equals(beside[alone.columns]), name
    assert json.loads((outputs["policies"] / "methods.json").read_text()) == ["sba:2"]


def stage_command(data, folder, methods):
    paths = {name: str(data[name]) for name in DATA if name not in ("words", "supervised")}
    paths |= {"supervised": str(data["model"]), "state": str(folder / "state")}
    paths |= {name: str(folder / name) for name in OUTPUTS}
    files = [part for name, path in paths.items() for part in (f"--{name.replace('_', '-')}", path)]
    return ["papers.bpo.optimize", *flags(OPTIONS), "--seed", "3", "--setting", "clean", "--methods", *methods, *files]


@pytest.mark.slow
def test_a_killed_job_ends_with_the_same_bytes(tiny_data, tmp_path):
    """Killed once in the second method's training and once between its end and the next one."""
    methods = ("sba:2", "dpo", "fpo-js")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *stage_command(tiny_data, whole, methods)]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True)
    for marker in ("dpo/checkpoints/step-000000002", "dpo/finished.json"):
        killer = (
            "import os, runpy, signal, sys, pathlib\n"
            "marker = pathlib.Path(sys.argv.pop(1))\n"
            "sys.addaudithook(lambda event, _: event == 'open' and marker.exists() and os.kill(os.getpid(), 9))\n"
            "module = sys.argv.pop(1)\n"
            "runpy.run_module(module, run_name='__main__', alter_sys=True)\n"
        )
        arguments = [str(killed / "state" / marker), *stage_command(tiny_data, killed, methods)]
        died = subprocess.run(
            [sys.executable, "-c", killer, *arguments], cwd=REPOSITORY, env=environment, capture_output=True
        )
        assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-2000:]
        assert not (killed / "samples").exists()
    before = (killed / "state" / "sba:2" / "finished.json").stat().st_mtime_ns
    command = [sys.executable, "-m", *stage_command(tiny_data, killed, methods)]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True)
    assert before and not (killed / "state").exists()
    assert {name: checksum(whole / name) for name in OUTPUTS} == {name: checksum(killed / name) for name in OUTPUTS}


def test_wrong_methods_and_pairs_end_the_job_before_it_begins(tiny_data, tmp_path):
    with pytest.raises(InputError, match="method 'ppo'"):
        run_stage(tiny_data, tmp_path / "a", ("dpo", "ppo"))
    assert not (tmp_path / "a" / "state").exists()
    pairs = read_table(tiny_data["pairs"])
    pairs.loc[5, "rejected"] = pairs.loc[5, "chosen"]
    write_table(tmp_path / "pairs", pairs)
    with pytest.raises(InputError, match="pairs: row 5: chosen and rejected are the same within 13 tokens"):
        run_stage(tiny_data, tmp_path / "b", ("dpo",), pairs=tmp_path / "pairs")


def test_optimizers(tiny_data):
    model = load_causal_lm(tiny_data["model"])
    for name, made in (("rmsprop", torch.optim.RMSprop), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)):
        optimizer = stage.make_optimizer(model, dataclasses.replace(OPTIONS, optimizer=name))
        assert type(optimizer) is made
        assert {group["lr"] for group in optimizer.param_groups} == {0.0003}
    training = dataclasses.replace(OPTIONS.training, embedding_weight_decay=0.1)
    with pytest.raises(InputError, match="embedding_weight_decay: only for optimizer adamw, got rmsprop"):
        stage.make_optimizer(model, dataclasses.replace(OPTIONS, training=training))


def test_dropout_is_switched_off(tiny_data):
    model = load_causal_lm(tiny_data["model"]).train()
    ids = torch.arange(4, 14).reshape(2, 5)
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, model(ids).logits)
        stage.without_dropout(model)
        assert torch.equal(model(ids).logits, model(ids).logits)


def test_a_batch_of_pairs_is_scored_row_by_row(tiny_data):
    model, tokenizer = load_causal_lm(tiny_data["model"]).eval(), load_tokenizer(tiny_data["model"])
    pairs = stage.referenced_pairs(tiny_data["pairs"], tokenizer, model, OPTIONS, Accelerator())
    rows = np.array([7, 2, 40])
    with torch.no_grad():
        found = stage.pair_log_probs(model, stage.pair_batch(pairs, rows, tokenizer.pad_token_id, torch.device("cpu")))
        for position, row in enumerate(rows):
            for log_probs, answers in ((found.policy_chosen, pairs.chosen), (found.policy_rejected, pairs.rejected)):
                alone = right_padded([pairs.prompts[row]], [answers[row]], pad_id=tokenizer.pad_token_id)
                assert log_probs[position].item() == pytest.approx(response_log_probs(model, alone).item(), abs=1e-4)
    assert isinstance(found, PairLogProbs)
    torch.testing.assert_close(found.reference_chosen, found.policy_chosen)
    torch.testing.assert_close(found.reference_rejected, found.policy_rejected)
    assert found.chosen_lengths.tolist() == [len(pairs.chosen[row]) for row in rows]


@pytest.fixture(scope="session")
def neox(tiny_data, tmp_path_factory):
    """A random GPT-NeoX, the class of the paper's Pythia, over the tokenizer of the tiny data."""
    folder = tmp_path_factory.mktemp("bpo-neox")
    tokenizer = AutoTokenizer.from_pretrained(tiny_data["model"])
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reward_model(folder, tokenizer_of):
    """A random classifier of the class of the paper scale's judge."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = DebertaV2Config(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **shape)
    DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_reward_model_can_judge(neox, tmp_path):
    judge = reward_model_judge(reward_model(tmp_path, neox), torch.device("cpu"), batch_size=2)
    with torch.no_grad():
        scores = judge(["wave"] * 3, ["star", "star moon", "star"], np.ones(3, dtype=bool))
    assert scores.shape == (3,) and scores[0] == pytest.approx(scores[2], rel=1e-5) != scores[1]
    with pytest.raises(InputError, match="no reward model to load"):
        reward_model_judge(str(tmp_path / "none"), torch.device("cpu"))


@pytest.mark.slow
def test_the_paper_scale_runs_on_two_processes(tiny_data, neox, tmp_path):
    """Micro-batches, checkpointed activations and a reward model, as in the paper's setting, on a tiny Pythia."""
    options = dataclasses.replace(
        OPTIONS,
        training=dataclasses.replace(OPTIONS.training, accumulation=2),
        gradient_checkpointing=True,
        judge=reward_model(tmp_path / "judge", neox),
    )
    results = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        command = stage_command(tiny_data | {"model": neox}, folder, ("preferred", "sft", "dpo", "sba:0.5"))
        start = command.index("--epochs")
        command[start : start + len(flags(OPTIONS))] = flags(options)
        launch = ["launch", "--num_processes", str(processes), "--cpu", "--num_cpu_threads_per_process", "1", "-m"]
        subprocess.run(
            [sys.executable, "-m", "accelerate.commands.accelerate_cli", *launch, *command],
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True,
            timeout=300,
        )
        results[processes] = {name: read_table(folder / name) for name in OUTPUTS[1:]}
    one, two = results[1], results[2]
    for column in ("loss", "grad_norm", "margin", "accuracy"):
        np.testing.assert_allclose(one["curves"][column], two["curves"][column], rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(one["margins"]["margin"], two["margins"]["margin"], atol=1e-3)
    key = ["method", "split", "temperature", "prompt_id", "sample"]
    assert one["samples"][key].equals(two["samples"][key])
