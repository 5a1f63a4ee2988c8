"""The testbed's rules, included by two papers."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from shared.options import read_scale
from shared.t2i.options import Testbed

ROOT = Path(__file__).resolve().parents[3]

SNAKEFILE = """
import sys
sys.path.insert(0, {root!r})
config.setdefault("scale", "smoke")

rule all:
    input: "papers/a/report", "papers/b/report"

for paper in ("a", "b"):
    prefix = f"{{paper}}_"
    module:
        name: paper
        snakefile: f"papers/{{paper}}/workflow.smk"
        config: config
    use rule * from paper as prefix*
"""

WORKFLOW = """
from types import SimpleNamespace
from workflows.paper import Paper

paper = SimpleNamespace(
    scale=config["scale"],
    settings=SimpleNamespace(testbed="smoke" if config["scale"] == "large" else None),
    stage=lambda *options, **values: Paper.stage(None, *options, **values),
)
include: "../../workflows/t2i.smk"

rule report:
    input: [path.format(seed=0) for path in [*T2I.values(), *T2I_RECORDS]]
    output: "papers/PAPER/report"
    shell: "touch {output}"
"""


def planned(folder: Path, *targets: str) -> Counter:
    command = ["snakemake", "--dry-run", "--cores", "1", "--nolock", *targets]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = (done.stdout + done.stderr).rpartition("Job stats:")[2].partition("total")[0]
    return Counter(dict((name, int(count)) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)))


@pytest.mark.slow
def test_papers_share_one_testbed(tmp_path):
    for name in ("shared", "workflows"):
        (tmp_path / name).symlink_to(ROOT / name)
    for paper in ("a", "b"):
        (tmp_path / "papers" / paper).mkdir(parents=True)
        (tmp_path / "papers" / paper / "workflow.smk").write_text(WORKFLOW.replace("PAPER", paper))
    (tmp_path / "Snakefile").write_text(SNAKEFILE.format(root=str(tmp_path)))
    testbed = {
        "a_t2i_" + name
        for name in (
            "scenes", "conditioner", "guidance", "evaluator", "preference", "diffusion",
            "guidance_detector", "evaluator_detector",
        )
    }  # fmt: skip
    assert planned(tmp_path) == Counter([*testbed, "a_report", "b_report", "all"])
    assert planned(tmp_path, "papers/b/report") == Counter([*testbed, "b_report"])
    # At a scale that names the testbed's scale, instead of having one of its own name.
    large = planned(tmp_path, "papers/b/report", "--config", "scale=large")
    assert large == Counter([*testbed, "b_report"])
    assert planned(tmp_path, "results/t2i/smoke/pipeline/seed0", "--config", "scale=large")["a_t2i_diffusion"] == 1


@pytest.mark.parametrize("scale", ["smoke", "small"])
def test_every_scale_is_valid(scale):
    testbed = read_scale(ROOT / "shared" / "t2i" / "config.yaml", scale, Testbed)
    assert testbed.guidance.degraded_negatives and not testbed.evaluator.degraded_negatives
    for name in ("conditioner", "guidance", "evaluator"):
        assert getattr(testbed, name).training.batch_size <= getattr(testbed.scenes, f"{name}_scenes")
    assert testbed.diffusion.training.batch_size <= testbed.scenes.diffusion_scenes
