"""The stages end to end at a tiny size: testbed and instruction data, kill and resume, several processes."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from test_csd_hub import dolly
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from papers.csd.bench import PLAIN_STREAM, SOURCE_STREAM, initial_student, open_bench
from papers.csd.distillation import train_student
from papers.csd.options import (
    VALIDATION,
    CostOptions,
    DataOptions,
    DistillOptions,
    HubDataOptions,
    ScoreOptions,
    TuneOptions,
)
from papers.csd.runs import parse_run
from papers.csd.step_batches import StepBatches
from shared.data_order import BatchOrder
from shared.errors import InputError
from shared.lm.options import DecoderOptions, FinetuneOptions, SamplingOptions
from shared.lm.stages.finetune import finetune
from shared.lm.texts import answer_rows
from shared.options import flags
from shared.stage import run
from shared.tables import read_table, write_table
from shared.training_options import TrainingOptions

ROOT = Path(__file__).resolve().parents[3]
DATA = DataOptions(teacher_examples=96, distillation_examples=32, validation_prompts=4, suite_prompts=3, references=2)
OPTIONS = DistillOptions(
    sampling=SamplingOptions(max_new_tokens=12), epochs=2, batch_size=8, max_prompt_tokens=12, max_answer_tokens=24,
    cache_teacher=True, generate_every=2, buffer_sequences=12, sampling_seeds=(1, 2), checkpoint_every=3,
    saved_students=("off-policy/csd-SS",),
)  # fmt: skip
RUNS = ("off-policy/teacher", "off-policy/csd-SS", "off-policy/reverse_kl", "imitkd/dld-S", "off-policy/seqkd")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def start(module: str, *options, **values) -> None:
    """Run a stage in this process, by the command line that a rule would use."""
    function = getattr(__import__(f"papers.csd.{module}", fromlist=[module]), module)
    arguments = [flag for group in options for flag in flags(group)]
    for name, value in values.items():
        listed = value if isinstance(value, (tuple, list)) else (value,)
        arguments += [f"--{name.replace('_', '-')}", *map(str, listed)]
    run(function, arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Data, a teacher and a student of the testbed."""
    folder = tmp_path_factory.mktemp("csd")
    start("prepare", DATA, seed=0, words=folder / "words.txt", teaching=folder / "teaching.parquet",
          distillation=folder / "distillation.parquet", plain=folder / "plain.parquet",
          prompts=folder / "prompts.parquet")  # fmt: skip
    for name, width, examples in (("teacher", 16, "teaching"), ("student", 8, "distillation")):
        options = FinetuneOptions(
            training=TrainingOptions(epochs=1, batch_size=16, learning_rate=0.01),
            decoder=DecoderOptions(layers=1, width=width, heads=2), max_prompt_tokens=12, max_answer_tokens=24,
        )  # fmt: skip
        finetune(options, seed=0, examples=folder / f"{examples}.parquet", words=folder / "words.txt",
                 model=folder / name, curve=folder / f"{name}-curve.parquet", state=folder / "state")  # fmt: skip
    rates = {text: 0.01 for text in (*RUNS, "imitkd/csd-SS", "gkd/jensen_shannon", "distillm/csd-SS")}
    (folder / "rates.json").write_text(json.dumps(rates))
    return folder


def distil_arguments(made: Path, out: Path, runs: tuple[str, ...] = RUNS) -> dict:
    return {
        "seed": 0, "runs": runs, "examples": made / "distillation.parquet", "prompts": made / "prompts.parquet",
        "plain": made / "plain.parquet",
        "teacher": made / "teacher", "student": made / "student", "rates": made / "rates.json",
        "samples": out / "samples.parquet", "fidelity": out / "fidelity.parquet", "curves": out / "curves.parquet",
        "costs": out / "costs.parquet",
        "students": out / "students", "state": out / "state", "record": out / "record.json",
    }  # fmt: skip


def test_from_data_to_tables(made, tmp_path):
    start("tune", OPTIONS, TuneOptions(learning_rates=(0.001, 0.02)), ScoreOptions(stemmer=False), seed=0,
          runs=["off-policy/csd-SS"], examples=made / "distillation.parquet", prompts=made / "prompts.parquet",
          plain=made / "plain.parquet", teacher=made / "teacher", student=made / "student",
          validation=tmp_path / "validation.parquet",
          state=tmp_path / "tuning")  # fmt: skip
    validation = read_table(tmp_path / "validation.parquet")
    assert validation["learning_rate"].tolist() == [0.001, 0.02] and validation["rouge_l"].between(0, 100).all()
    start("select", runs=["off-policy/csd-SS", "off-policy/reverse_kl"], validation=tmp_path / "validation.parquet",
          rates=tmp_path / "rates.json", grid=tmp_path / "grid.parquet")  # fmt: skip
    assert len(set(json.loads((tmp_path / "rates.json").read_text()).values())) == 1

    start("distill", OPTIONS, **distil_arguments(made, tmp_path))
    samples = read_table(tmp_path / "samples.parquet")
    assert len(samples) == len(RUNS) * 5 * DATA.suite_prompts * 2
    assert "validation" not in set(samples["suite"])
    assert (samples["teacher_nll"] > 0).all() and samples["tokens"].between(1, 12).all()
    fidelity = read_table(tmp_path / "fidelity.parquet").groupby("method")[["kl_forward", "kl_reverse"]].mean()
    assert (fidelity.loc["teacher"] == 0).all() and (fidelity.drop("teacher") > 0).all(axis=None)
    curves = read_table(tmp_path / "curves.parquet")
    assert curves.groupby(["setting", "method"])["step"].agg(list).map(lambda steps: steps == [1, 8]).all()
    assert [path.name for path in (tmp_path / "students").iterdir()] == ["off-policy--csd-SS"]
    assert not (tmp_path / "state").exists()

    start("score", ScoreOptions(stemmer=False), judge="gold", samples=tmp_path / "samples.parquet",
          prompts=made / "prompts.parquet", scores=tmp_path / "scores.parquet")  # fmt: skip
    scores = read_table(tmp_path / "scores.parquet")
    assert len(scores) == len(RUNS) * 5 * DATA.suite_prompts
    start("examine", OPTIONS, seed=0, examples=made / "distillation.parquet", teacher=made / "teacher",
          student=made / "student", gradients=tmp_path / "gradients.parquet", shifts=tmp_path / "shifts.parquet",
          probabilities=tmp_path / "probabilities.parquet", sampling=tmp_path / "sampling.parquet",
          quantities=tmp_path / "quantities.parquet")  # fmt: skip
    start("evaluate", paper="csd", scale="smoke", judge="gold", scores=tmp_path / "scores.parquet",
          fidelity=tmp_path / "fidelity.parquet", curves=tmp_path / "curves.parquet",
          costs=tmp_path / "costs.parquet", quantities=tmp_path / "quantities.parquet",
          prompts=made / "prompts.parquet", metrics=tmp_path / "metrics.parquet", units=tmp_path / "units.parquet",
          training=tmp_path / "training.parquet")  # fmt: skip
    metrics = read_table(tmp_path / "metrics.parquet").set_index(["setting", "method", "metric"])["value"]
    by_hand = scores[scores["method"] == "csd-SS"].groupby("suite")["parse"].mean().mean()
    assert metrics["off-policy", "csd-SS", "parse"] == pytest.approx(by_hand)
    assert metrics["off-policy", "csd-SS", "gradient_gap"] < 1e-5
    assert metrics["off-policy", "language", "reference_nll"] > 0
    spent = read_table(tmp_path / "metrics.parquet").set_index(["setting", "method"])[["wall_seconds", "cost"]]
    assert (spent.loc[("off-policy", "csd-SS"), "wall_seconds"] > 0).all()
    assert (spent.loc[("off-policy", "csd-SS"), "cost"] == 0).all()
    # Half of eight steps write eight responses of one to twelve tokens.
    assert spent.loc[("imitkd", "dld-S"), "cost"].between(32, 32 * 12).all()
    assert spent.loc[("off-policy", "teacher")].isna().all(axis=None)
    sampling = read_table(tmp_path / "sampling.parquet").pivot(index="pairs", columns="method", values="error")
    assert (sampling.loc[1] / sampling.loc[256]).between(10, 25).all(), "the error falls with the root of 256"
    assert {"gradients", "shifts"} <= {path.stem for path in tmp_path.glob("*.parquet")}
    shifts = read_table(tmp_path / "shifts.parquet").pivot(index="shift", columns="method", values="loss")
    assert shifts["csd-SS"].max() - shifts["csd-SS"].min() < 1e-4
    # The parabola of the uniform DLD: ½ C² above its vertex, exactly.
    curvature = np.polyfit(shifts.index, shifts["dld-U"], 2)[0]
    assert curvature == pytest.approx(0.5, rel=1e-3)


def test_reverse_kl_and_concrete_score_train_the_same_student(made):
    examples = read_table(made / "distillation.parquet")
    bench = open_bench(OPTIONS, 0, made / "teacher", made / "student", examples, torch.device("cpu"))
    weights = {}
    for text in ("off-policy/csd-SS", "off-policy/reverse_kl", "off-policy/forward_kl", "offset-6/csd-SS"):
        student = train_student(bench, parse_run(text), 0.01, made / "unused" / text).student
        weights[text] = torch.cat([parameter.detach().flatten() for parameter in student.parameters()])
    scale = (weights["off-policy/forward_kl"] - weights["off-policy/csd-SS"]).abs().max()
    assert scale > 0.01
    for text in ("off-policy/reverse_kl", "offset-6/csd-SS"):
        assert (weights[text] - weights["off-policy/csd-SS"]).abs().max() < 0.02 * scale, text


def test_the_cache_of_the_teacher_changes_nothing(made):
    examples = read_table(made / "distillation.parquet")
    records = []
    for cached in (True, False):
        options = replace(OPTIONS, cache_teacher=cached, epochs=0.5)
        bench = open_bench(options, 0, made / "teacher", made / "student", examples, torch.device("cpu"))
        state = made / "unused" / str(cached)
        records.append(train_student(bench, parse_run("offset-2/dld-S"), 0.01, state).records)
    assert records[0][-1]["loss"] == pytest.approx(records[1][-1]["loss"], rel=1e-4)


def test_plain_text_adds_its_next_token_loss_on_policy_alone(made):
    examples = read_table(made / "distillation.parquet")
    texts = read_table(made / "plain.parquet")["text"].tolist()
    losses = {}
    for weight in (0.0, 0.5):
        options = replace(OPTIONS, plain_text_weight=weight, epochs=0.25)
        bench = open_bench(options, 0, made / "teacher", made / "student", examples, torch.device("cpu"), texts=texts)
        for text in ("imitkd/csd-SS", "off-policy/csd-SS"):
            losses[text, weight] = train_student(bench, parse_run(text), 0.01, made / "unused" / text).records[0][
                "loss"
            ]
    assert losses["off-policy/csd-SS", 0.5] == losses["off-policy/csd-SS", 0.0]
    # By hand, on the eight texts that the first step draws; the initial student has not moved yet.
    student = initial_student(bench, parse_run("imitkd/csd-SS")).eval()
    drawn = np.random.default_rng([0, 0, PLAIN_STREAM]).integers(len(texts), size=8)
    rows = answer_rows(bench.tokenizer, [texts[index] for index in drawn], max_tokens=36)
    log_probs, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            values = student(torch.tensor([row])).logits[0].log_softmax(-1)
            log_probs += sum(values[place, token].item() for place, token in enumerate(row[1:]))
            count += len(row) - 1
    assert losses["imitkd/csd-SS", 0.5] - losses["imitkd/csd-SS", 0.0] == pytest.approx(
        -0.5 * log_probs / count, rel=1e-4
    )


def test_an_adaptive_share_follows_the_validation_loss(made, monkeypatch):
    """Four steps an epoch; with losses that rise after each, the share is 0, 0.1, 0.2, 0.3 in the four epochs."""
    prompts = read_table(made / "prompts.parquet")
    bench = open_bench(
        replace(OPTIONS, epochs=4), 0, made / "teacher", made / "student", read_table(made / "distillation.parquet"),
        torch.device("cpu"), validation=prompts[prompts["suite"] == VALIDATION],
    )  # fmt: skip
    planned = parse_run("distillm/csd-SS")
    student = initial_student(bench, planned)
    order = BatchOrder(len(bench.prompts), 8, 0)
    batches = StepBatches(bench, planned, order, 16, student, Accelerator())
    by_hand = [
        -student(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)[
            range(len(answer)), answer].detach()
        for prompt, answer in bench.validation
    ]  # fmt: skip
    assert batches._validation_loss() == pytest.approx(torch.cat(by_hand).mean().item(), rel=1e-4)
    rising = iter([1.0, 1.2, 1.4, 1.6])
    monkeypatch.setattr(batches, "_validation_loss", lambda: next(rising))
    shares = [batches(step)[0].student_share for step in range(16)]
    assert shares == [0.0] * 4 + [0.1] * 4 + [0.2] * 4 + [0.3] * 4
    draws = [np.random.default_rng([0, step, SOURCE_STREAM]).random() for step in range(16)]
    assert len(batches.buffer) == min(12, 8 * sum(draw < share for draw, share in zip(draws, shares, strict=True)))


def test_runs_that_lack_what_they_need_are_refused(made):
    options = replace(OPTIONS, plain_text_weight=1.0)
    examples = read_table(made / "distillation.parquet")
    bench = open_bench(options, 0, made / "teacher", made / "student", examples, torch.device("cpu"))
    with pytest.raises(InputError, match="adapts to validation examples; none given"):
        train_student(bench, parse_run("distillm/csd-SS"), 0.01, made / "unused")
    with pytest.raises(InputError, match="plain text has a weight of 1; none given"):
        train_student(bench, parse_run("imitkd/csd-SS"), 0.01, made / "unused")


def test_mistakes_are_one_line(made, tmp_path):
    arguments = distil_arguments(made, tmp_path, ("off-policy/alpha_beta",))
    with pytest.raises(SystemExit, match=r"rates.json: no learning rate for the run 'off-policy/alpha_beta'"):
        start("distill", OPTIONS, **arguments)
    (tmp_path / "rates.json").write_text("{")
    with pytest.raises(SystemExit, match=r"rates.json:1: not valid JSON"):
        start("distill", OPTIONS, **arguments | {"rates": tmp_path / "rates.json"})
    with pytest.raises(SystemExit, match="unknown method 'csd-XX'"):
        start("distill", OPTIONS, **arguments | {"runs": ("off-policy/csd-XX",), "rates": tmp_path / "none.json"} | {
            "rates": made / "rates.json"})  # fmt: skip
    tiny_gpt2(tmp_path / "other", ["other words"])
    with pytest.raises(InputError, match="vocabulary is not that of the teacher"):
        open_bench(OPTIONS, 0, made / "teacher", tmp_path / "other", read_table(made / "distillation.parquet"),
                   torch.device("cpu"))  # fmt: skip


# Runs a stage and kills its own process in the given call of step_loss; -1: never.
KILLED = """
import os, signal, sys
import torch
from papers.csd import distill, distillation
from shared.stage import run
torch.set_num_threads(1)
calls, last, original = 0, int(sys.argv[1]), distillation.step_loss
def step_loss(*arguments):
    global calls
    calls += 1
    if calls == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
distillation.step_loss = step_loss
run(distill.distill, sys.argv[2:])
"""


def test_a_killed_distillation_resumes_to_the_same_bytes(made, tmp_path):
    runs = ("off-policy/csd-SS", "distillm/csd-SS", "imitkd/dld-S")
    tables = ("samples.parquet", "fidelity.parquet", "curves.parquet")
    # Any validation loss that is not lower raises the share, so that own responses are learned from soon.
    options = replace(OPTIONS, share_margin=0.0, plain_text_weight=0.1)
    start("distill", options, **distil_arguments(made, tmp_path / "whole", runs))
    arguments = flags(options)
    for name, value in distil_arguments(made, tmp_path / "resumed", runs).items():
        arguments += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    # Eight steps a run, a state after every third: killed in the second run, two steps after a state, and in the third.
    for last in (14, 10, -1):
        command = [sys.executable, "-c", KILLED, str(last), *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == (0 if last == -1 else -signal.SIGKILL), done.stderr
    assert "csd-SS" not in done.stderr.split("\n", 1)[1], "a finished run was made again"
    whole, resumed = ([(tmp_path / out / name).read_bytes() for name in tables] for out in ("whole", "resumed"))
    assert whole == resumed
    written = [read_table(tmp_path / out / "costs.parquet")["tokens_written"].tolist() for out in ("whole", "resumed")]
    assert written[0] == written[1] and written[0][2] > 0


def tiny_gpt2(folder: Path, texts: list[str], seed: int = 0) -> Path:
    """A random GPT-2 without dropout, with a byte-level tokenizer of its own and two padded rows of vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    config = GPT2Config(
        vocab_size=len(fast) + 2, n_positions=512, n_embd=8, n_layer=1, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.5,
        bos_token_id=fast.bos_token_id, eos_token_id=fast.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    GPT2LMHeadModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


HUB_OPTIONS = replace(
    OPTIONS, sampling=SamplingOptions(max_new_tokens=8), epochs=1, batch_size=4, max_prompt_tokens=200,
    max_answer_tokens=24, cache_teacher=False, no_repeat_ngram=6, teacher_weights="bfloat16", accumulation=2,
    generate_every=1, plain_text_weight=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def instructed(tmp_path_factory) -> Path:
    """Instruction data in the tables of the testbed, and a tiny random GPT-2 as teacher and student."""
    folder = tmp_path_factory.mktemp("hub")
    write_table(folder / "web.parquet", pd.DataFrame({"text": [f"Plain text number {index}." for index in range(5)]}))
    options = HubDataOptions(
        training=str(dolly(folder / "dolly.jsonl", 16)), validation_prompts=3, test_prompts=3,
        plain_text=str(folder / "web.parquet"),
    )  # fmt: skip
    start("prepare_hub", options, words=folder / "words.txt", teaching=folder / "teaching.parquet",
          distillation=folder / "distillation.parquet", plain=folder / "plain.parquet",
          prompts=folder / "prompts.parquet")  # fmt: skip
    texts = read_table(folder / "teaching.parquet")["prompt"].tolist()
    for seed, name in enumerate(("teacher", "student")):
        tiny_gpt2(folder / name, texts, seed)
    rates = {text: 0.001 for text in ("off-policy/csd-SS", "imitkd/csd-SS", "distillm/csd-SS")}
    (folder / "rates.json").write_text(json.dumps(rates))
    return folder


def test_the_papers_scale_on_a_tiny_gpt2(instructed, tmp_path):
    options = replace(HUB_OPTIONS, pretrained_student=str(instructed / "student"))
    start("distill", options, **distil_arguments(instructed, tmp_path, ("off-policy/csd-SS", "imitkd/csd-SS")))
    start("score", ScoreOptions(), judge="none", samples=tmp_path / "samples.parquet",
          prompts=instructed / "prompts.parquet", scores=tmp_path / "scores.parquet")  # fmt: skip
    scores = read_table(tmp_path / "scores.parquet")
    assert set(scores["suite"]) == {"dolly"} and "parse" not in scores
    saved = GPT2LMHeadModel.from_pretrained(tmp_path / "students" / "off-policy--csd-SS")
    assert saved.config.vocab_size > 256


@pytest.mark.slow
def test_two_processes(instructed, tmp_path):
    arguments = flags(HUB_OPTIONS)
    runs = ("off-policy/csd-SS", "imitkd/csd-SS", "distillm/csd-SS")
    for name, value in distil_arguments(instructed, tmp_path, runs).items():
        arguments += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29533"]
    done = subprocess.run([*command, "-m", "papers.csd.distill", *arguments], cwd=ROOT, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    two = read_table(tmp_path / "curves.parquet")
    assert not two[["loss", "kl_forward"]].isna().any(axis=None)
    assert len(read_table(tmp_path / "samples.parquet")) == 3 * 3 * 2
    start("distill", HUB_OPTIONS, **distil_arguments(instructed, tmp_path / "one", ("off-policy/csd-SS",)))
    one = read_table(tmp_path / "one" / "curves.parquet")
    both = two[two["setting"] == "off-policy"].reset_index(drop=True)
    # The same batches and token means however the examples are split over processes.
    for name in ("loss", "grad_norm", "kl_forward", "kl_reverse"):
        assert both[name].tolist() == pytest.approx(one[name].tolist(), rel=1e-3)


def test_costs_are_measured_against_plain_kl(tmp_path):
    from papers.csd.methods import logit_loss

    options = CostOptions(vocabularies=(50, 20_000), elements=40_000, rounds=1)
    start("measure_cost", options, costs=tmp_path / "cost.parquet")
    table = read_table(tmp_path / "cost.parquet")
    assert (table.groupby("vocabulary")["tokens"].first() == pd.Series({50: 800, 20_000: 2})).all()
    plain = table[table["loss"] == "plain_kl"]
    assert (plain[["time_ratio", "memory_ratio"]] == 1).all(axis=None)
    assert (table[["milliseconds", "megabytes"]] > 0).all(axis=None)
    # Two log-softmaxes, three terms of kl_div and its gradient against one buffer and the gradient.
    assert table.set_index(["vocabulary", "loss"]).loc[(20_000, "csd-SS"), "memory_ratio"] < 1
    for name in set(table["loss"]) - {"plain_kl"}:
        logit_loss(name)


def test_every_figure_is_drawn_from_one_run_of_each_kind(tmp_path):
    from papers.csd.figures import FIGURES, LABELS, Tables
    from shared.plotting import house_style, save_figure

    rng = np.random.default_rng(0)
    settings = {"off-policy": [*LABELS, "csd-SS:2"], "imitkd": ["csd-SS", "dld-S"], "distillm": ["csd-SS"]}
    settings |= {"offset-6": ["csd-SS", "dld-S"]}
    settings |= {"off-policy / held_out": list(LABELS)}
    metrics = pd.DataFrame(
        [(setting, method, seed, metric, rng.random()) for setting, methods in settings.items() for method in methods
         for seed in (0, 1, 2) for metric in ("rouge_l", "self_bleu")],
        columns=["setting", "method", "seed", "metric", "value"],
    ).assign(cost=1000.0)  # fmt: skip
    steps = [(method, seed, float(step)) for method in LABELS for seed in (0, 1) for step in (1, 10, 20)]
    curves = pd.DataFrame(steps, columns=["method", "seed", "step"]).assign(
        kl_forward=1.0, kl_reverse=0.5, student_share=0.2
    )
    curves = pd.concat([curves.assign(setting="off-policy"), curves[:6].assign(setting="distillm")])
    grid = pd.DataFrame({"run": ["off-policy/csd-SS", "imitkd/csd-SS", "off-policy/sft"], "learning_rate": 0.01,
                         "rouge_l": 3.0})  # fmt: skip
    ranked = pd.DataFrame({"method": "csd-SS", "rank": [1, 2], "gradient": [1.0, 0.1], "seed": 0})
    shifted = pd.DataFrame({"method": "dld-S", "shift": [0.0, 1.0], "loss": [0.0, 0.5], "seed": 0})
    exceeded = pd.DataFrame({"model": "teacher", "threshold": [0.01, 0.1], "share": [0.2, 0.1], "seed": 0})
    sampled = pd.DataFrame({"method": "csd-SS", "pairs": [1, 4], "error": [1.0, 0.5], "seed": 0})
    cost = pd.DataFrame({"loss": ["csd-SS", "plain_kl"], "vocabulary": 10, "tokens": 3}).assign(
        milliseconds=1.0, megabytes=0.5
    )
    tables = Tables(metrics, curves, grid, ranked, shifted, exceeded, sampled, cost)
    captions = (ROOT / "papers/csd/figures.yaml").read_text(encoding="utf-8")
    for name, function in FIGURES.items():
        with house_style():
            save_figure(function(tables), tmp_path / f"{name}.png")
        assert f"\n{name}:" in f"\n{captions}"
