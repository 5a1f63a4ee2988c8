"""WPR's stages at a tiny size, one after another, as rules call them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from papers.wpr.analyse import analyse
from papers.wpr.annotate import annotate
from papers.wpr.evaluate import evaluate
from papers.wpr.prepare import prepare
from papers.wpr.reward import train_reward
from papers.wpr.train import parse_run, train_policies
from shared.errors import InputError
from shared.files import checksum
from shared.lm.stages.finetune import finetune
from shared.results import read_metrics, read_units
from shared.stage import run

TRAINING = "--batch-size 32 --learning-rate 0.003 --schedule one_cycle"
LENGTHS = "--max-prompt-tokens 6 --max-answer-tokens 6"
POLICY = (
    "--max-new-tokens 6 --inverse-strength 15 --normalize-cost --batch-size 16 --actor-learning-rate 0.002"
    " --critic-learning-rate 0.002 --score-clip None --max-prompt-tokens 6 --seed 3 --setting A --judge gold"
)
RUNS = ("supervised:0", "none:0", "rkl:0.1", "wpr:1", "wpr:0", "rkl:0", "permuted:0", "fkl-gradient:0", "idkernel:0.5")


def arguments(text: str, **paths) -> list[str]:
    """Command-line arguments; paths are appended as flags."""
    extra = [part for name, path in paths.items() for part in (f"--{name}", *map(str, np.atleast_1d(path)))]
    return [*text.split(), *extra]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder with everything up to the reward model."""
    folder = tmp_path_factory.mktemp("wpr")
    sizes = "--supervised-examples 640 --preference-pairs 160 --training-prompts 64 --validation-prompts 8"
    outputs = {name: folder / f"{name}.parquet" for name in ("supervised", "pairs", "prompts")}
    run(prepare, arguments(f"{sizes} --test-prompts 12 --seed 3", words=folder / "words.txt", **outputs))
    run(annotate, arguments("--bias 0.5 --seed 3", pairs=outputs["pairs"], preferences=folder / "preferences.parquet"))
    run(
        finetune,
        arguments(
            f"--epochs 1 {TRAINING} {LENGTHS} --width 16 --heads 2 --layers 1 --seed 3", examples=outputs["supervised"],
            words=folder / "words.txt", model=folder / "sft", curve=folder / "c1.parquet", state=folder / "s1",
        ),
    )  # fmt: skip
    run(
        train_reward,
        arguments(
            f"--epochs 1 {TRAINING} {LENGTHS} --standardize --held-out-pairs 32 --seed 3",
            preferences=folder / "preferences.parquet", supervised=folder / "sft", model=folder / "rm",
            curve=folder / "c2.parquet", state=folder / "s2",
        ),
    )  # fmt: skip
    return folder


def train_arguments(folder: Path, name: str, *extra: str, runs=RUNS) -> list[str]:
    return [
        *arguments(
            POLICY, runs=list(runs), prompts=folder / "prompts.parquet", supervised=folder / "sft",
            reward=folder / "rm", policies=folder / name, samples=folder / f"{name}-samples.parquet",
            curves=folder / f"{name}-curves.parquet", state=folder / f"{name}-state", record=folder / f"{name}.json",
        ),
        *extra,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(chain):
    run(train_policies, train_arguments(chain, "policies", "--saved-policies", "rkl", "wpr"))
    return chain


def test_data_is_drawn_from_the_seed(chain):
    prompts = pd.read_parquet(chain / "prompts.parquet")
    assert prompts["split"].value_counts().to_dict() == {"train": 64, "test": 12, "validation": 8}
    pairs, preferences = (pd.read_parquet(chain / f"{name}.parquet") for name in ("pairs", "preferences"))
    assert ((preferences["chosen"] == pairs["answer_a"]) | (preferences["chosen"] == pairs["answer_b"])).all()
    assert ((preferences["chosen"] == pairs["answer_a"]) == (preferences["rejected"] == pairs["answer_b"])).all()


def test_evaluation_prompts_are_the_same_for_every_seed(chain, tmp_path):
    sizes = "--supervised-examples 8 --preference-pairs 8 --training-prompts 8 --validation-prompts 8"
    outputs = {name: tmp_path / f"{name}.parquet" for name in ("supervised", "pairs", "prompts")}
    run(prepare, arguments(f"{sizes} --test-prompts 12 --seed 4", words=tmp_path / "words.txt", **outputs))
    here, there = (pd.read_parquet(folder / "prompts.parquet").set_index("split") for folder in (tmp_path, chain))
    for split in ("validation", "test"):
        assert here.loc[split, "prompt"].tolist() == there.loc[split, "prompt"].tolist()
    assert set(here.loc["train", "prompt"]) != set(there.loc["train", "prompt"])


def test_every_run_answers_every_evaluation_prompt(trained):
    samples = pd.read_parquet(trained / "policies-samples.parquet")
    assert samples.groupby(["method", "beta"]).size().to_dict() == {
        (parse_run(text).method, parse_run(text).beta): 20 for text in RUNS
    }
    assert set(samples["seed"]) == {3} and set(samples["setting"]) == {"A"}
    supervised = samples[samples["method"] == "supervised"]
    assert supervised["kl"].abs().max() < 1e-5
    trained_kl = samples[samples["method"] == "none"]["kl"]
    assert trained_kl.mean() > 0.01 and (samples["kl"] > -1e-5).all()


def test_without_weight_all_penalties_train_the_same_policy(trained):
    samples = pd.read_parquet(trained / "policies-samples.parquet").set_index(["method", "beta"]).sort_index()
    expected = samples.loc[("none", 0.0), ["response", "score", "kl"]].reset_index(drop=True)
    for method in ("wpr", "rkl", "permuted", "fkl-gradient"):
        found = samples.loc[(method, 0.0), ["response", "score", "kl"]].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, expected)
    other = samples.loc[("rkl", 0.1), "kl"].to_numpy()
    assert not np.array_equal(other, expected["kl"])


def test_the_identity_kernel_moves_nothing_between_tokens(trained):
    curves = pd.read_parquet(trained / "policies-curves.parquet")
    first = curves[(curves["method"] == "idkernel") & (curves["step"] == 1)].iloc[0]
    assert first["off_diagonal_mass"] < 1e-12
    wpr = curves[(curves["method"] == "wpr") & (curves["step"] == 4)]
    assert (wpr["off_diagonal_mass"] > 1e-6).all()


def test_the_saved_policy_is_the_one_selected_on_validation_prompts(trained):
    selected = json.loads((trained / "policies" / "selected.json").read_text())
    samples = pd.read_parquet(trained / "policies-samples.parquet")
    assert set(selected) == set(samples["method"])
    assert sorted(path.name for path in (trained / "policies").iterdir()) == ["rkl", "selected.json", "wpr"]
    assert (trained / "policies" / "wpr" / "model.safetensors").exists()
    assert not (trained / "policies-state").exists()


def test_the_same_seed_gives_the_same_bytes(trained):
    runs = ("wpr:1", "rkl:0.1")
    for name in ("once", "again"):
        run(train_policies, train_arguments(trained, name, "--saved-policies", "wpr", runs=runs))
    for suffix in ("", "-samples.parquet", "-curves.parquet"):
        assert checksum(trained / f"once{suffix}") == checksum(trained / f"again{suffix}")


def test_tables_of_analysis_and_evaluation(trained, tmp_path):
    outputs = {name: tmp_path / f"{name}.parquet" for name in ("analysis", "tokens", "convergence")}
    run(
        analyse,
        arguments(
            POLICY.replace(" --judge gold", "") + " --top-candidates 3 --convergence-iterations 12",
            prompts=trained / "prompts.parquet", supervised=trained / "sft", policies=trained / "policies", **outputs,
        ),
    )  # fmt: skip
    errors = pd.read_parquet(outputs["convergence"]).groupby("iteration")["error"].mean()
    assert len(errors) == 12 and errors.iloc[-1] < errors.iloc[0]
    tables = {name: tmp_path / f"{name}.parquet" for name in ("metrics", "units", "sweep")}
    run(
        evaluate,
        arguments(
            "--paper wpr --scale smoke --judge gold", samples=trained / "policies-samples.parquet",
            analyses=outputs["analysis"], records=trained / "policies.json", **tables,
        ),
    )  # fmt: skip
    metrics, units = read_metrics(tables["metrics"]), read_units(tables["units"])
    assert set(units["unit"]) == {str(index) for index in range(12)}
    gold = metrics[metrics["metric"] == "gold"].set_index("method")["value"]
    assert {"supervised", "none", "rkl", "wpr", "rkl-at-equal-kl", "best-gradient"} <= set(gold.index)
    wins = metrics[metrics["metric"] == "win_vs_rkl"].set_index("method")["value"]
    assert "rkl" not in wins and wins.between(0, 1).all()
    equal = metrics[(metrics["metric"] == "kl")].set_index("method")["value"]
    assert equal["rkl-at-equal-kl"] == pytest.approx(equal["wpr"], rel=1e-6) or equal["wpr"] > equal.drop("wpr").max()
    shares = metrics[metrics["metric"] == "penalty_share"].set_index("method")["value"]
    assert 0 < shares["rkl"] < shares["wpr"] < 1 and "supervised" not in shares


@pytest.mark.slow
@pytest.mark.parametrize("kills", [(0.3,), (0.1, 0.6)])
def test_a_killed_training_resumes_to_the_same_bytes(trained, tmp_path, kills):
    runs = ("wpr:1", "rkl:0.1")
    run(train_policies, train_arguments(trained, "whole", "--saved-policies", "wpr", runs=runs))
    command = [sys.executable, "-m", "papers.wpr.train"]
    command += train_arguments(trained, "killed", "--saved-policies", "wpr", "--checkpoint-every", "1", runs=runs)
    state = trained / "killed-state"
    for share in kills:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = round(share * 8)  # of two runs with four updates each
        while process.poll() is None and updates_done(state) < wanted:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (trained / "killed-samples.parquet").exists()
    subprocess.run(command, check=True, capture_output=True)
    # The number of updates between checkpoints is an option, and so part of the record, but of no result.
    for suffix in ("", "-samples.parquet", "-curves.parquet"):
        assert checksum(trained / f"whole{suffix}") == checksum(trained / f"killed{suffix}")
    for path in trained.glob("killed*"):
        subprocess.run(["rm", "-r", str(path)], check=True)


def updates_done(state: Path) -> int:
    finished = 4 * len(list(state.glob("*/finished.json")))
    running = [int(path.name.removeprefix("step-")) for path in state.glob("*/checkpoints/step-*")]
    return max(finished, 0) + (max(running) if running and finished < 8 else 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wpr", "expected <method>:<penalty weight>"),
        ("wpr:x", "expected <method>:<penalty weight>"),
        ("wpr:-1", "must not be negative"),
        ("kl:1", "method 'kl': expected supervised, none, rkl"),
        ("fkl:1", "method 'fkl'"),
        ("wpr-0:1", "method 'wpr-0'"),
    ],
)
def test_a_wrong_run_is_named(text, expected):
    with pytest.raises(InputError, match=r"^(run|method) ") as error:
        parse_run(text)
    assert expected in str(error.value)


def test_too_few_pairs_are_one_line(chain, tmp_path):
    text = f"--epochs 1 {TRAINING} {LENGTHS} --held-out-pairs 150 --seed 3"
    paths = {"preferences": chain / "preferences.parquet", "supervised": chain / "sft", "model": tmp_path / "rm"}
    with pytest.raises(SystemExit, match="160 pairs are too few for 150 held out and a batch of 32"):
        run(train_reward, arguments(text, **paths, curve=tmp_path / "curve.parquet", state=tmp_path / "state"))
    assert not (tmp_path / "rm").exists()


def test_a_folder_without_a_model_is_named(chain, tmp_path):
    (tmp_path / "empty").mkdir()
    text = f"--epochs 1 {TRAINING} {LENGTHS} --held-out-pairs 32 --seed 3"
    paths = {"preferences": chain / "preferences.parquet", "supervised": tmp_path / "empty", "model": tmp_path / "rm"}
    with pytest.raises(SystemExit, match="empty: no tokenizer to load"):
        run(train_reward, arguments(text, **paths, curve=tmp_path / "curve.parquet", state=tmp_path / "state"))
