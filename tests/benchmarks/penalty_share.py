"""Share of a PPO step that the Wasserstein penalty takes: `python -m tests.benchmarks.penalty_share`.

Untrained models of the testbed's size, the settings of scale `small` in `papers/wpr/config.yaml`, one thread. The runs
of the methods are interleaved, so that a busy machine slows them alike. Times are of whole updates: sampling, the
forward passes of four models, both losses and their gradients.
"""

import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers.utils.logging import disable_progress_bar

from papers.wpr.options import Scale
from papers.wpr.prepare import WORDS
from papers.wpr.reward import STANDARDIZATION_FILE
from papers.wpr.testbed import LANGUAGE
from papers.wpr.train import open_bench, parse_run, train_run
from shared.lm.models import ScalarHeadModel
from shared.lm.options import FinetuneOptions
from shared.lm.stages.finetune import starting_point
from shared.lm.word_texts import to_texts
from shared.options import read_scale
from shared.stage import make_deterministic

REPEATS = 5
RUNS = ("none:0", "rkl:0.1", "wpr:1", "idkernel:0.5")


def models(options: FinetuneOptions, folder: Path) -> tuple[Path, Path]:
    """Folders of an untrained language model and of a reward model on its body."""
    model, tokenizer = starting_point(options, WORDS, seed=0)
    for name in ("supervised", "reward"):
        tokenizer.save_pretrained(folder / name)
    model.save_pretrained(folder / "supervised")
    ScalarHeadModel.from_causal_lm(folder / "supervised").save_pretrained(folder / "reward")
    (folder / "reward" / STANDARDIZATION_FILE).write_text(json.dumps({"shift": 0.0, "scale": 1.0}))
    return folder / "supervised", folder / "reward"


def main() -> None:
    disable_progress_bar()
    make_deterministic(0)
    torch.set_num_threads(1)
    settings = read_scale(Path(__file__).parents[2] / "papers/wpr/config.yaml", "small", Scale)
    prompts = to_texts(LANGUAGE.prompts(16 * settings.policy.batch_size, np.random.default_rng(0)), WORDS)
    table = pd.DataFrame({"split": "train", "prompt_id": range(len(prompts)), "prompt": prompts})
    table = pd.concat([table, table[:8].assign(split="validation"), table[:8].assign(split="test")])
    shares: dict[str, list[float]] = {run: [] for run in RUNS}
    milliseconds: dict[str, list[float]] = {run: [] for run in RUNS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        supervised, reward = models(settings.supervised, folder)
        bench = open_bench(settings.policy, 0, "gold", supervised, reward, table, torch.device("cpu"))
        for repeat in range(REPEATS + 1):
            for run in RUNS:
                train_run(bench, parse_run(run), folder / f"{run}-{repeat}")
                seconds = json.loads((folder / f"{run}-{repeat}" / "finished.json").read_text())
                if repeat:  # the first round warms up
                    shares[run].append(seconds["penalty"] / seconds["total"])
                    milliseconds[run].append(1000 * seconds["total"] / 16)
    print(f"batch {settings.policy.batch_size}, 16 updates, 1 thread, {REPEATS} repeats")
    print(f"{'run':<14} {'ms / update':>12} {'penalty share':>14}")
    for run in RUNS:
        print(f"{run:<14} {statistics.median(milliseconds[run]):12.1f} {statistics.median(shares[run]):14.1%}")


if __name__ == "__main__":
    main()
