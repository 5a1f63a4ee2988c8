"""What can be checked of the paper's scale without a hub: real configurations, real formats, tiny random models."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from papers.wpr.evaluate import evaluate
from papers.wpr.neighbors import find_neighbors
from papers.wpr.options import Scale
from papers.wpr.prepare_hub import prepare_hub
from papers.wpr.reward import train_reward
from papers.wpr.train import train_policies
from shared.lm.stages.finetune import finetune
from shared.options import flags, read_scale
from shared.results import read_metrics
from shared.stage import run

CONFIG = Path(__file__).resolve().parents[3] / "papers" / "wpr" / "config.yaml"
WORDS = ("the", "cat", "sat", "on", "a", "mat", "while", "dogs", "ran", "home", "people", "said", "yes", "no", "how")


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        # Published sizes: Gemma-2B has 2.51e9 parameters, Qwen1.5-1.8B has 1.84e9.
        (GemmaConfig(vocab_size=256_000, hidden_size=2048, intermediate_size=16_384, num_hidden_layers=18,
                     num_attention_heads=8, num_key_value_heads=1, head_dim=256), 2_506_172_416),
        (Qwen2Config(vocab_size=151_936, hidden_size=2048, intermediate_size=5504, num_hidden_layers=24,
                     num_attention_heads=16, num_key_value_heads=16), 1_836_828_672),
    ],
)  # fmt: skip
def test_the_papers_models_are_built(config, parameters):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_papers_hyperparameters():
    settings = read_scale(CONFIG, "paper", Scale)
    policy = settings.policy
    assert (policy.batch_size, policy.actor_learning_rate, policy.sampling.temperature) == (256, 1.5e-5, 0.8)
    assert (policy.wasserstein.inverse_strength, policy.wasserstein.iterations) == (100.0, 10)
    assert (policy.wasserstein.neighbors, policy.wasserstein.support_size) == (512, 128)
    assert policy.wasserstein.gauge == "none" and not policy.wasserstein.normalize_cost
    assert {0.05} <= set(settings.grids["rkl"]) and {0.01} <= set(settings.grids["wpr"])


def dialogues(path: Path, count: int, seed: int) -> None:
    """Preference pairs in the published format of HH-RLHF."""
    rng = np.random.default_rng(seed)

    def words() -> str:
        return " ".join(rng.choice(WORDS, size=rng.integers(2, 7)))

    with gzip.open(path, "wt", encoding="utf-8") as file:
        for index in range(count):
            prompt = f"\n\nHuman: {words()} {index}\n\nAssistant:"
            if index % 3 == 0:
                prompt += f" {words()}\n\nHuman: {words()}\n\nAssistant:"
            record = {"chosen": f"{prompt} {words()} yes", "rejected": f"{prompt} {words()} no"}
            file.write(json.dumps(record) + "\n")


def tiny_model(folder: Path, architecture: str) -> Path:
    """A tiny random model of the paper's architecture, whose special tokens are not those of the testbed."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["!", "<unk>", "<eos>", "<bos>", "<pad>"]  # id 0 is an ordinary token, as in Qwen
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([" ".join(WORDS), "Human: Assistant:"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", bos_token="<bos>", pad_token="<pad>"
    )
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "vocab_size": len(fast), "max_position_embeddings": 128,
             "pad_token_id": 4, "eos_token_id": 2, "bos_token_id": 3}  # fmt: skip
    config = GemmaConfig(**sizes, head_dim=8) if architecture == "gemma" else Qwen2Config(**sizes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["gemma", "qwen"])
def prepared(request, tmp_path_factory):
    """Data of the paper's format and shape, a tiny model, and the paper scale's own settings made small."""
    folder = tmp_path_factory.mktemp(request.param)
    dialogues(folder / "train.jsonl.gz", 120, seed=0)
    dialogues(folder / "test.jsonl.gz", 30, seed=1)
    base = tiny_model(folder / "base", request.param)
    outputs = {name: folder / f"{name}.parquet" for name in ("supervised", "preferences", "prompts")}
    text = "--dataset hh-rlhf --validation-prompts 6 --test-prompts 8 --seed 0"
    sources = ["--train", str(folder / "train.jsonl.gz"), "--evaluation", str(folder / "test.jsonl.gz")]
    run(prepare_hub, [*text.split(), *sources, *paths(words=folder / "words.txt", **outputs)])
    return folder, base, outputs


def paths(**named) -> list[str]:
    return [part for name, path in named.items() for part in (f"--{name}", str(path))]


def shrunk(options, **changes: str) -> list[str]:
    """The flags of the paper's options with some values replaced."""
    arguments = flags(options)
    for name, value in changes.items():
        index = arguments.index(f"--{name.replace('_', '-')}")
        arguments[index + 1] = value
    return arguments


def test_a_preference_data_set_is_split_for_three_trainings(prepared):
    _, _, outputs = prepared
    supervised, preferences, prompts = (pd.read_parquet(outputs[name]) for name in outputs)
    counts = prompts["split"].value_counts()
    assert (len(supervised), len(preferences), counts["train"]) == (24, 48, 48)
    assert (counts["validation"], counts["test"]) == (6, 8)
    texts = [set(supervised["prompt"]), set(preferences["prompt"]), set(prompts["prompt"])]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    assert prompts["prompt"].str.endswith("\n\nAssistant:").all()
    assert supervised["answer"].str.endswith("yes").all()
    assert preferences["chosen"].str.endswith("yes").all() and preferences["rejected"].str.endswith("no").all()


@pytest.fixture(scope="module")
def trained(prepared):
    folder, base, outputs = prepared
    settings = read_scale(CONFIG, "paper", Scale)
    common = {"epochs": "1", "batch_size": "8", "mixed_precision": "no", "max_prompt_tokens": "48"}
    run(
        finetune,
        [*shrunk(settings.supervised, **common, base_model=str(base), accumulation="2", max_answer_tokens="12"),
         "--seed", "0", *paths(examples=outputs["supervised"], words=folder / "words.txt", model=folder / "sft",
                               curve=folder / "c1.parquet", state=folder / "s1")],
    )  # fmt: skip
    run(
        train_reward,
        [*shrunk(settings.reward, **common, held_out_pairs="8", max_answer_tokens="12"), "--seed", "0",
         *paths(preferences=outputs["preferences"], supervised=folder / "sft", model=folder / "rm",
                curve=folder / "c2.parquet", state=folder / "s2")],
    )  # fmt: skip
    return folder, outputs, settings


def policy_arguments(folder, outputs, settings, name: str) -> list[str]:
    changes = {"batch_size": "16", "accumulation": "2", "max_new_tokens": "10", "mixed_precision": "no",
               "max_prompt_tokens": "48", "neighbors": "20", "support_size": "8"}  # fmt: skip
    return [
        *shrunk(settings.policy, **changes), "--seed", "0", "--setting", "human", "--judge", "score",
        "--runs", "supervised:0", "rkl:0.05", "wpr:0.01", "permuted:0.01",
        *paths(prompts=outputs["prompts"], supervised=folder / "sft", reward=folder / "rm", policies=folder / name,
               samples=folder / f"{name}-samples.parquet", curves=folder / f"{name}-curves.parquet",
               state=folder / f"{name}-state", record=folder / f"{name}.json"),
    ]  # fmt: skip


@pytest.mark.slow
def test_every_stage_runs_with_the_papers_settings(trained):
    folder, outputs, settings = trained
    run(train_policies, policy_arguments(folder, outputs, settings, "one"))
    samples = pd.read_parquet(folder / "one-samples.parquet")
    assert samples.groupby("method").size().to_dict() == dict.fromkeys(("permuted", "rkl", "supervised", "wpr"), 14)
    curves = pd.read_parquet(folder / "one-curves.parquet")
    wpr = curves[curves["method"] == "wpr"]
    assert (wpr["support_size"] < 320).all() and (wpr["policy_dust"] > 0).all() and wpr["penalty"].notna().all()
    tables = {name: folder / f"{name}.parquet" for name in ("metrics", "units", "sweep")}
    run(
        evaluate,
        ["--paper", "wpr", "--scale", "paper", "--judge", "score", "--analyses",
         *paths(samples=folder / "one-samples.parquet", records=folder / "one.json", **tables)],
    )  # fmt: skip
    metrics = read_metrics(tables["metrics"])
    assert {"score", "kl", "win_vs_rkl", "penalty_share"} <= set(metrics["metric"]) and "gold" not in set(
        metrics["metric"]
    )


@pytest.mark.slow
def test_two_processes_train_together(trained):
    folder, outputs, settings = trained
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "papers.wpr.train", *policy_arguments(folder, outputs, settings, "two")]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    samples = pd.read_parquet(folder / "two-samples.parquet")
    assert samples.groupby(["method", "split"]).size().unstack().to_numpy().tolist() == [[8, 6]] * 4
    assert (samples.groupby(["method", "split"])["prompt_id"].nunique() == [8, 6] * 4).all()
    curves = pd.read_parquet(folder / "two-curves.parquet")
    assert curves.groupby("method")["step"].max().to_dict() == {"permuted": 3, "rkl": 3, "wpr": 3}
    assert not (folder / "two-state").exists()


@pytest.mark.slow
def test_neighbours_found_beforehand_change_nothing(trained):
    folder, outputs, settings = trained
    wasserstein = [*shrunk(settings.policy.wasserstein, neighbors="20"), *paths(supervised=folder / "sft")]
    run(find_neighbors, [*wasserstein, *paths(distances=folder / "neighbors.parquet")])
    table = pd.read_parquet(folder / "neighbors.parquet")
    assert (table["nearest"] < table["radius"]).mean() > 0.9 and len(table) > 300
    for name, extra in (("here", []), ("before", paths(distances=folder / "neighbors.parquet"))):
        run(train_policies, [*policy_arguments(folder, outputs, settings, name), *extra])
    samples = [pd.read_parquet(folder / f"{name}-samples.parquet") for name in ("here", "before")]
    pd.testing.assert_frame_equal(*samples, check_exact=True)


def test_neighbours_without_truncation_are_a_users_mistake(trained):
    folder, _, _ = trained
    with pytest.raises(SystemExit, match="neighbors: expected a number of neighbours"):
        run(
            find_neighbors,
            ["--inverse-strength", "15", *paths(supervised=folder / "sft", distances=folder / "n.parquet")],
        )
    assert not (folder / "n").exists()
