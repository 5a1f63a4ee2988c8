"""No artifact is shared by two jobs, and everything that makes one is in its address: checked on every real paper."""

import json
from itertools import groupby
from pathlib import Path

import pytest

from shared.options import read_yaml
from shared.provenance import PlannedJob, plan

ROOT = Path(__file__).resolve().parents[2]
SCALES_OF = {
    path.parent.name: list(read_yaml(path.with_name("config.yaml"))["scales"])
    for path in sorted(ROOT.glob("papers/*/workflow.smk"))
}
SCALES = sorted({scale for scales in SCALES_OF.values() for scale in scales})


def problems(jobs: list[PlannedJob]) -> list[str]:
    """What is wrong with the provenance of planned jobs, a line for each problem."""
    found = []
    cached = sorted((job for job in jobs if job.stored), key=lambda job: job.rule)
    for rule, group in groupby(cached, key=lambda job: job.rule):
        by_params: dict[str, PlannedJob] = {}
        for job in group:
            texts = " ".join(str(value).replace("'", "") for value in job.params.values()).split()
            found += [
                f"{job.name}: wildcard {name} is not in params"
                for name, value in job.wildcards.items()
                if not any(value == text or value in text.split("/") for text in texts)
            ]
            other = by_params.setdefault(json.dumps(job.params, sort_keys=True, default=str), job)
            if other is not job:
                found.append(f"{job.name} and {other.name} have the same params")
            if "record" not in job.stored:
                found.append(f"{rule}: no output named record")
            if "code" not in job.params:
                found.append(f"{rule}: no fingerprint in params")
    addresses = [path for job in cached for path in job.stored.values()]
    found += [f"two jobs share {path.name}" for path in {each for each in addresses if addresses.count(each) > 1}]
    found += [f"{job.rule}: writes files but is not cached" for job in jobs if job.outputs and not job.stored]
    return found


@pytest.mark.parametrize("scale", SCALES)
def test_provenance_of_every_paper_and_scale(scale):
    papers = [paper for paper, scales in SCALES_OF.items() if scale in scales]
    jobs = plan([f"papers/{paper}" for paper in papers], root=ROOT, scale=scale)  # together: planning takes seconds
    for paper in papers:  # one by one: the base models that several start from are the same artifacts
        own = [job for job in jobs if job.rule.startswith(f"{paper}_")]
        assert len(own) > 3
        assert problems(own) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('seed="{seed}")', 'seed="0")', "wildcard seed is not in params"),
        ("params: **paper.stage", "params: seed='{seed}', **dict(a=1) #", "alpha_draw: no fingerprint in params"),
        (
            'record=f"{R}/records/draw-seed{{seed}}.json"',
            'note=f"{R}/records/draw-seed{{seed}}.json"',
            "alpha_draw: no output named record",
        ),
        ("    cache: True\n", "", "alpha_draw: writes files but is not cached"),
    ],
)
def test_a_rule_that_breaks_the_provenance_is_found(toy, old, new, expected, monkeypatch):
    path = toy.root / "papers/alpha/workflow.smk"
    path.write_text(
        path.read_text()
        .replace(old, new, 1)
        .replace("output.record", f"output.{'note' if 'note' in new else 'record'}", 1)
    )
    monkeypatch.chdir(toy.root)
    monkeypatch.setenv("SNAKEMAKE_OUTPUT_CACHE", str(toy.root / "data/artifacts"))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from test_provenance import problems;"
        "from shared.provenance import plan;"
        "print('\\n'.join(problems(plan(['papers/alpha'], root=Path.cwd()))))"
    )
    output = toy.run("python", "-c", code, str(Path(__file__).parent)).stdout
    assert expected in output


def test_the_plan_agrees_with_snakemake(toy):
    jobs = toy.run(
        "python",
        "-c",
        "from pathlib import Path; from shared.provenance import plan;"
        "print(*sorted(path.name for job in plan(['papers/alpha'], root=Path.cwd()) for path in job.stored.values()))",
    ).stdout.split()
    toy.snakemake("papers/alpha")
    assert sorted(path.name for path in (toy.root / "data/artifacts").iterdir()) == jobs
